#!/usr/bin/env python3
"""Run llama.cpp's own converter on the tiny models and record what it wrote.

    python tests/peer/record.py        # needs the test extra, sentencepiece and the build backend of the sdist

Fetches the source distribution of the pinned llama-cpp-python from the package index, runs its
`convert_hf_to_gguf.py` on every tiny model (float32, and bfloat16 where the checkpoint is bfloat16) and
writes `recorded.json`: metadata, and type, shape and SHA-256 of every tensor, with the version of the
peer and a hash of its input. Nothing else writes that file.

The converter recognises a pre-tokenizer by hashing the ids of a test string, so it cannot know a tiny
vocabulary: it is told "qwen2", for GLM too. Everything else runs as it is.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))

import tiny  # noqa: E402
from describe import describe, input_hash  # noqa: E402

PREDICTORS = ("qwen3_next", "qwen3_5", "glm4_moe")
RUNNER = """
import runpy, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/gguf-py"]
from conversion.base import TextModel
from conversion.glm import Glm4Model, Glm4MoeLiteModel, Glm4MoeModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"
for glm in (Glm4Model, Glm4MoeModel, Glm4MoeLiteModel):
    glm.set_vocab = TextModel._set_vocab_gpt2  # its own names tokens that a tiny vocabulary does not have
sys.argv = ["convert_hf_to_gguf.py", *sys.argv[2:]]
runpy.run_path(sys.path[0] + "/convert_hf_to_gguf.py", run_name="__main__")
"""


def fetch_sdist(folder: Path, version: str) -> Path:
    """Download and unpack the source distribution; returns the llama.cpp inside it."""
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", str(folder),
         f"llama-cpp-python=={version}"],
        check=True,
    )  # fmt: skip
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.glob("*/vendor/llama.cpp"))


def main() -> None:
    pins = re.search(r"llama-cpp-python==([\d.]+)", (ROOT / "pyproject.toml").read_text())
    assert pins
    recorded: dict[str, object] = {
        "peer": f"convert_hf_to_gguf.py of llama-cpp-python {pins[1]}",
        "models": {},
    }
    models: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        llama = Path(sys.argv[1]) if len(sys.argv) > 1 else fetch_sdist(work, pins[1])
        for name in ("trained", *tiny.MODELS):
            source = tiny.FIXTURE if name == "trained" else tiny.build(name, work / name)
            bf16 = name == "trained" or tiny.MODELS[name].dtype == "bfloat16"
            entry: dict[str, object] = {"input": input_hash(source, tiny.made_from(name))}
            for kind in ("f32", "bf16") if bf16 else ("f32",):
                out = work / f"{name}-{kind}.gguf"
                command = [
                    sys.executable,
                    "-c",
                    RUNNER,
                    str(llama),
                    str(source),
                    "--outtype",
                    kind,
                    "--outfile",
                    str(out),
                ]
                if name.startswith(PREDICTORS) and not name.endswith(
                    "-mtp"
                ):  # it takes for granted that they have such a head
                    command.append("--no-mtp")
                run = subprocess.run(command, capture_output=True, text=True)
                if run.returncode:
                    sys.exit(f"{name} {kind}: the converter failed\n{run.stderr[-2000:]}")
                entry[kind] = describe(out)
                out.unlink()
            models[name] = entry
            print(name, hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()[:16])
    recorded["models"] = models
    (HERE / "recorded.json").write_text(json.dumps(recorded, indent=0, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
