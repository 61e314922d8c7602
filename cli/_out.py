"""Where text leaves for a terminal: nothing that came from a file moves the cursor or forges a line."""

from __future__ import annotations

import json
from pathlib import Path

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


def write(path: Path, text: str) -> None:
    """Write a file; an OSError names it, also where the disk is full."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as e:
        e.filename = str(path)
        raise


def show_json(value: object, indent: int | None = None) -> None:
    """Print JSON that reads back as the same value."""
    click.echo(printable_json(json.dumps(value, indent=indent, ensure_ascii=False)))
