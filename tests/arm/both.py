"""What is done on both processors and compared: `on_arm.py` imports it here and runs it as a program there.

both.py convert MODEL OUT FORMAT:SCHEME…   # each into OUT/FORMAT-SCHEME
both.py answer OUT ARTIFACT…               # greedy answers and logits to the prompts of OUT.prompts, in OUT.json, .npz;
                                           # prints what llama.cpp was compiled for
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS / "fixtures"))
import facts  # noqa: E402

from sampan import runtime  # noqa: E402
from sampan.runtime.engines import llama  # noqa: E402

QUESTIONS = (*facts.capital_questions()[::80], *facts.sum_questions()[::40])
LONGEST = 40  # tokens of an answer


def artifact(folder: Path, kind: str) -> Path:
    """Where the conversion to `kind`, FORMAT:SCHEME, stands."""
    return folder / kind.replace(":", "-")


def convert_all(model: Path, folder: Path, kinds: list[str]) -> None:
    from sampan.checkpoint import open_folder  # imports much, and imports are slow there
    from sampan.convert.conversion import convert, prepare

    for kind in kinds:
        convert(prepare(open_folder(model), artifact(folder, kind), *kind.split(":"), jobs=1), overwrite=True)


def prompts(path: Path) -> list[str]:
    """The questions by the model's template, rendered here: that is slow there."""
    with runtime.open(path, runtime.EngineOptions(vocabulary_only=True)) as session:
        return [session.render_chat([{"role": "user", "content": q.text}]) for q in QUESTIONS]


def answers(path: Path, asked: list[str]) -> tuple[list[list[int]], NDArray[np.float32]]:
    """Token ids of the greedy answers, and the logits [prompts, vocab] that their first tokens come from."""
    found, first = [], []
    with runtime.open(path, runtime.EngineOptions(context=256, threads=1)) as session:
        engine = session._engine
        for prompt in asked:
            ids: list[int] = []
            engine.keep(0)
            logits = engine.evaluate(session.tokenize(prompt, around=False), 1)[0]
            first.append(logits.copy())
            while not engine.is_end(token := int(logits.argmax())) and len(ids) < LONGEST:
                ids.append(token)
                logits = engine.evaluate([token], 1)[0]
            found.append(ids)
    return found, np.stack(first)


def main(command: str, first: str, *arguments: Any) -> None:
    if command == "convert":
        from sampan.convert import trial

        trial.trial = lambda job, name: contextlib.nullcontext(lambda: None)  # as conftest.py has it: no child for each
        convert_all(Path(first), Path(arguments[0]), list(arguments[1:]))
        return
    asked = json.loads(Path(f"{first}.prompts").read_text())
    found = {path: answers(Path(path), asked[path]) for path in arguments}
    Path(f"{first}.json").write_text(json.dumps({p: ids for p, (ids, _) in found.items()}))
    print(*llama.about()["compiled_for"])
    np.savez(f"{first}.npz", **{str(n): logits for n, (_, logits) in enumerate(found.values())})


if __name__ == "__main__":
    main(*sys.argv[1:])
