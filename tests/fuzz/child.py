"""Drives a target in a process of its own: `child.py TARGET SEED CASES SOURCE… WORK`.

Says on stdout, in JSON lines, which case begins, what went wrong, and in the end the peak of its memory in bytes.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
import traceback
from pathlib import Path
from random import Random

ADDRESSES = 6 * 10**9  # bytes; keeps the machine alive


def main() -> None:
    from fuzz.targets import TARGETS

    from sampan.errors import InputError

    name, seed, cases, *sources, work = sys.argv[1:]
    answers, sys.stdout = sys.stdout, sys.stderr
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    target, folder = TARGETS[name], Path(work) / "input"
    for case in range(int(cases)):
        print(json.dumps({"case": case}), file=answers, flush=True)
        random = Random(f"{name} {seed} {case}")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(sources[case % len(sources)], folder)
        try:
            target.break_(random, folder)
            target.drive(folder)
        except InputError as e:
            if "\n" in str(e) or len(str(e)) > 2000:
                print(json.dumps({"case": case, "failed": f"not one line: {str(e)!r}"}), file=answers, flush=True)
        except BaseException:
            print(json.dumps({"case": case, "failed": traceback.format_exc()[-3000:]}), file=answers, flush=True)
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"peak": peak}), file=answers, flush=True)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])
    main()
