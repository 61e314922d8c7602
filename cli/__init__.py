"""The command line. A command is a file here; its name is what the user types."""

from __future__ import annotations

import sys
import tempfile
import traceback
from typing import NoReturn

import click

from sampan.errors import MEND, InputError
from sampan.extras import advice
from sampan.printable import printable
from sampan.registry import load, names

from ._terminal import ReaderLeftError, abandon_output, colours, prepare_streams

EXIT_BAD_INPUT, EXIT_INTERNAL, EXIT_INTERRUPTED = 2, 3, 130


class _Commands(click.Group):
    """Commands are found on disk and imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return names(__name__)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in names(__name__):
            return None
        command: click.Command = load(__name__, cmd_name, "command", "command")
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
@click.version_option(package_name="sampan")
def cli(debug: bool) -> None:
    """Carry big open models to small devices.

    Convert a Qwen or Kimi checkpoint to GGUF or ONNX at 4 or 8 bits, in one pass and bounded memory, and run it.

    \b
    Example:
      sampan convert Qwen/Qwen3-0.6B --to gguf --quant int4 -o qwen.gguf
      sampan run qwen.gguf "Why is the sky blue?"
    """


def main() -> None:
    """Run the command line and exit: 0 done, 2 bad usage or input, 3 a bug of ours, 130 interrupted."""
    debug = "--debug" in sys.argv
    prepare_streams()
    try:
        cli(standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as e:
        click.echo(e.format_message())
        sys.exit(EXIT_BAD_INPUT)
    except click.ClickException as e:
        _fail(e.format_message().replace("\n", " "), EXIT_BAD_INPUT)
    except InputError as e:
        if debug:
            traceback.print_exc()
        _fail(str(e), EXIT_BAD_INPUT)
    except (KeyboardInterrupt, click.Abort) as e:
        _fail("; ".join(["interrupted", *map(str, (e.__cause__ or e).args)]), EXIT_INTERRUPTED)
    except ReaderLeftError:  # nothing to say, nobody to say it to
        abandon_output()
        sys.exit(EXIT_BAD_INPUT)
    except ModuleNotFoundError as e:
        if debug:
            traceback.print_exc()
        if not e.name or e.name.startswith("sampan"):
            _internal(e, debug)
        _fail(f"{e.name} is not installed; {advice(e.name)}", EXIT_BAD_INPUT)
    except OSError as e:
        if debug:
            traceback.print_exc()
        if e.filename is not None:
            _fail(f"{e.filename}: {e.strerror}", EXIT_BAD_INPUT)
        if e.errno not in MEND:
            _internal(e, debug)
        _fail(f"{_places()}: {e.strerror}: {MEND[e.errno]} and run again", EXIT_BAD_INPUT)
    except Exception as e:
        if debug:
            traceback.print_exc()
        _internal(e, debug)


def _places() -> str:
    """Where a file may lie of which an error does not tell the name."""
    return f"the output's folder, or that of temporary files, {tempfile.gettempdir()}"


def _internal(e: Exception, debug: bool) -> NoReturn:
    hint = "" if debug else "; run with `sampan --debug …` and report what it prints"
    _fail(f"internal error: {type(e).__name__}: {e}{hint}", EXIT_INTERNAL)


def _fail(message: str, code: int) -> NoReturn:
    label = click.style("error:", fg="red", bold=True) if colours() else "error:"
    click.echo(f"{label} {printable(message)}", err=True)
    abandon_output()
    sys.exit(code)
