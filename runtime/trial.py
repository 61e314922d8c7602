"""Open an artifact as far as its vocabulary and structure go, in a process of its own: an engine may abort."""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import sys
from pathlib import Path

from sampan import registry
from sampan.errors import InputError

MEMORY = 4 << 30  # bytes beside the artifact's own, which an engine may map


def main() -> None:
    """Arguments: the artifact, seconds. Says in JSON lines which engine it is, and what that made of it."""
    path = Path(sys.argv[1])
    signal.alarm(int(sys.argv[2]))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = MEMORY + sum(p.stat().st_size for p in (path.iterdir() if path.is_dir() else path.parent.iterdir()))
    if hard == resource.RLIM_INFINITY or wanted <= hard:
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a library may print

    def say(**message: object) -> None:
        print(json.dumps(message), file=answers, flush=True)

    for name in registry.names("sampan.runtime.engines"):
        engine = importlib.import_module(f"sampan.runtime.engines.{name}")
        if engine.claims(path):
            say(engine=engine.NAME)
            try:
                engine.check(path)
            except ImportError as e:
                say(absent=f"it cannot be imported ({e})")
            except InputError as e:
                say(refused=str(e))
            else:
                say(opened=True)
            return
    say(refused="no engine here reads such a file")
