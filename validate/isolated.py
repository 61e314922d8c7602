"""Start the child that runs engines, and hear what it says; a child that dies is an event, not a traceback."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

from sampan.child import ended, start
from sampan.errors import InputError

CODE = "from sampan.validate.child import main; main()"


class EngineDiedError(Exception):
    """The child ended before its work was done; `role` is whose engine was in hand."""

    def __init__(self, role: str, reason: str) -> None:
        super().__init__(reason)
        self.role = role


def messages(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the child says of its task, in order.

    Raises InputError for what it refuses and EngineDiedError when it ends otherwise. Ends the child when the
    caller stops listening.
    """
    with (
        tempfile.TemporaryFile() as errors,
        start(CODE, stdin=subprocess.PIPE, stderr=errors) as child,
    ):
        assert child.stdin is not None  # noqa: S101 - both are pipes
        assert child.stdout is not None  # noqa: S101
        stage, role = "starting", "candidate"
        try:
            with child.stdin as pipe:
                json.dump(task, pipe)
            for line in child.stdout:
                message: dict[str, Any] = json.loads(line)
                if "done" in message:
                    return
                if "refused" in message:
                    raise InputError(message["refused"])
                if "stage" in message:
                    stage, role = message["stage"], message["of"]
                yield message
        except BrokenPipeError:
            pass
        finally:
            child.kill()
        errors.seek(0)
        said = errors.read().decode(errors="replace")
    raise EngineDiedError(role, f"the engine's process {ended(child.returncode, said, f' while {stage}')}")
