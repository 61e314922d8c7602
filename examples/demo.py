#!/usr/bin/env python3
"""The whole way on a tiny model: plan, convert to int4, ask it capitals and sums in two languages.

make demo        # or: python examples/demo.py
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "fixtures"))

import facts  # noqa: E402

from sampan import runtime  # noqa: E402
from sampan.runtime import Options, Sampling  # noqa: E402

MODEL = ROOT / "tests" / "fixtures" / "tiny-qwen3"
OUT = ROOT / "build" / "demo" / "tiny-qwen3.gguf"
SHOWN = 6  # answers printed for each kind and language
PASS = 0.95  # share of right answers


def main() -> int:
    sampan = Path(sys.executable).with_name("sampan")
    command = ["convert", str(MODEL.relative_to(ROOT)), "--to", "gguf", "--quant", "int4", "--overwrite"]
    print("$ sampan", *command, "-o", OUT.relative_to(ROOT), flush=True)
    subprocess.run([sampan, *command, "-o", OUT.relative_to(ROOT)], check=True, cwd=ROOT)
    right, asked = Counter[str](), Counter[str]()
    with runtime.open(OUT) as session:
        for question in facts.capital_questions() + facts.sum_questions():
            prompt = session.tokenize_chat([{"role": "user", "content": question.text}])
            answer = session.generate(prompt, Options(max_tokens=40, sampling=Sampling()))
            kind = f"{question.kind}, {question.language}"
            asked[kind] += 1
            right[kind] += question.answer in answer
            if asked[kind] <= SHOWN:
                print(f"  {question.text}  →  {answer}")
    print()
    for kind, count in asked.items():
        print(f"{kind}: {right[kind]} of {count} right, in wordings that the model was not trained on")
    return 0 if right.total() >= PASS * asked.total() else 1


if __name__ == "__main__":
    sys.exit(main())
