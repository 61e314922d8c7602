#!/usr/bin/env python3
"""Write docs/commands.md from the command line's own help texts.

make docs
"""

from __future__ import annotations

from pathlib import Path

import click

from sampan.cli import cli

OUT = Path(__file__).with_name("commands.md")


def reference() -> str:
    """The whole page."""
    parts = ["# Command reference\n\nWritten by `make docs` from the help texts; do not edit.\n"]
    root = click.Context(cli, info_name="sampan", terminal_width=100, **cli.context_settings)
    parts.append(_section("sampan", cli.get_help(root)))
    for name in cli.list_commands(root):
        if command := cli.get_command(root, name):
            context = click.Context(command, info_name=name, parent=root, terminal_width=100)
            parts.append(_section(f"sampan {name}", command.get_help(context)))
    return "\n".join(parts)


def _section(title: str, text: str) -> str:
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    return f"## {title}\n\n```text\n{lines}\n```\n"


if __name__ == "__main__":
    OUT.write_text(reference())
