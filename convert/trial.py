"""Before an output gets its name, the engine that will read it opens it: its vocabulary and structure, in a child.

All that an engine reads for this is laid out before the first weight is, so the child runs beside the conversion, and a
refusal ends that early.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sampan.child import ended, start
from sampan.errors import InputError, UnfinishedError, brief
from sampan.job import Job

# The runtime's, by name: a converter works without it.
CODE = "from sampan.runtime.trial import main; main()"
SECONDS = 600  # it takes about one for a vocabulary of 150,000
PAUSE = 0.05


@contextlib.contextmanager
def trial(job: Job, name: Path) -> Iterator[Callable[[], None]]:
    """Open a job's files, which get the name `name`, while the block runs; what it yields raises when they are refused.

    Raises InputError for a refusal or a crash of the engine, UnfinishedError where it does not answer in time.
    """
    command = [CODE, str(job.artifact), str(SECONDS)]
    with tempfile.TemporaryFile() as errors, start(*command, stderr=errors, GGML_NO_BACKTRACE="1") as process:
        began = time.monotonic()

        def check() -> None:
            code = process.poll()
            if code is not None and not answer:
                assert process.stdout is not None  # noqa: S101 - it is a pipe
                errors.seek(0)
                answer.append(_judge(process.stdout.read(), code, errors.read().decode(errors="replace"), name))

        answer: list[str] = []
        try:
            yield check
            check()
            while not answer:
                if time.monotonic() - began > SECONDS:
                    raise UnfinishedError(
                        f"{name}: the engine has not opened it within {SECONDS} s; run again to continue"
                    )
                time.sleep(PAUSE)
                check()
            job.untried = answer[0]
        finally:
            process.kill()


def _judge(said: str, code: int, errors: str, name: Path) -> str:
    """Raise what the child's answer means; returns why there was no trial, if there was none."""
    answer: dict[str, str] = {}
    for line in said.splitlines():
        answer |= json.loads(line)
    engine = answer.get("engine", "the engine")
    if "absent" in answer:
        return f"{engine} was not tried on it: {answer['absent']}"
    if "refused" in answer:
        reason = brief(answer["refused"].replace(os.linesep, " "), 300)
    elif code or "opened" not in answer:
        reason = f"its process {ended(code, errors)}"
    else:
        return ""
    raise InputError(f"{name}: {engine} cannot open what would be written, so nothing was: {reason}; please report it")
