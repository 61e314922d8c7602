"""Where text leaves for a terminal: nothing that came from a file moves the cursor or forges a line."""

from __future__ import annotations

import json

import click

from sampan.printable import printable, printable_json


def line(text: str, *, err: bool = False) -> None:
    """Print one line, whatever is in it."""
    click.echo(printable(text), err=err)


def said(text: str) -> None:
    """Print a line that is no result."""
    line(text, err=True)


def block(text: str, *, err: bool = False) -> None:
    """Print lines that were put together by us, such as a table."""
    click.echo("\n".join(map(printable, text.split("\n"))), err=err)


def show_json(value: object, indent: int | None = None) -> None:
    """Print JSON that reads back as the same value."""
    click.echo(printable_json(json.dumps(value, indent=indent, ensure_ascii=False)))
