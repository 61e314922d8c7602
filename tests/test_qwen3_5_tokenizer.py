"""Qwen3.5's split of texts, which keeps combining marks with their letters, whatever class its files name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from test_hostile import change
from test_tokens import opened
from transformers import AutoTokenizer

from sampan.checkpoint import open_folder
from sampan.convert.tokenizer import read_tokenizer
from sampan.validate.artifact import open_artifact
from sampan.validate.conformance import check_tokenizer
from sampan.validate.tokenizer import Assembled

NASTY: list[str] = json.loads((Path(__file__).parents[1] / "validate" / "texts" / "nasty.json").read_text())
MARKED = "x\u0301"  # no letter of its own in NFC
TEXTS = [
    *NASTY, MARKED, f"a{MARKED}b", f"\u0301{MARKED}", f" {MARKED} x", "हिन्दी ไทย עִבְרִית", "e\u0301", "12 I'LL\u0301"
]  # fmt: skip
OWN, QWEN2 = [2032], [87, 2031]  # the marked letter in one piece; and in two, of which the second is a mark


@pytest.fixture
def folder(model: Callable[[str], Path], tmp_path: Path) -> Path:
    """Its last words are a mark, and a letter with it, which only a split that keeps marks with letters reaches."""
    folder = Path(shutil.copytree(model("qwen3_5"), tmp_path / "model"))
    words = json.loads((folder / "tokenizer.json").read_text())["model"]
    last = {"".join(m) if isinstance(m, list) else m.replace(" ", "") for m in words["merges"][-2:]}
    ids = sorted(words["vocab"].pop(word) for word in last)
    assert ids == [QWEN2[1], *OWN]
    words["vocab"] |= dict(zip(("Ìģ", "xÌģ"), ids, strict=True))
    words["merges"][-2:] = [["Ì", "ģ"], ["x", "Ìģ"]]
    tiny.edit_json(folder / "tokenizer.json", model=words)
    return folder


def inside(stored: dict[str, Any]) -> None:
    for name in [n for n in stored if n.startswith("model.")]:
        stored[name.replace("model.", "model.language_model.", 1)] = stored.pop(name)


def named(folder: Path, kind: str, tokenizer_class: str) -> None:
    tiny.edit_json(folder / "tokenizer_config.json", tokenizer_class=tokenizer_class)
    text = json.loads((folder / "config.json").read_text())
    if kind == "qwen3_5":  # with its vision tower, as the makers publish it
        change(folder, inside)
        outer = {
            "architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": kind, "text_config": text,
            "vision_config": {}, "tie_word_embeddings": False,
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(outer))


@pytest.mark.everyday("*marked0-onnx", "*marked1-gguf", "*marked2-onnx", "*marked3-gguf")
@pytest.mark.parametrize("form", ["gguf", "onnx"])
@pytest.mark.parametrize(
    ("kind", "tokenizer_class", "marked"),
    [
        ("qwen3_5", "Qwen2Tokenizer", OWN),  # the makers' files
        ("qwen3_5", "TokenizersBackend", OWN),
        ("qwen3_5_text", "Qwen3_5Tokenizer", OWN),
        ("qwen3_5_text", "Qwen2Tokenizer", QWEN2),
    ],
)
def test_ids_are_those_of_transformers(
    kind: str, tokenizer_class: str, marked: list[int], form: str, folder: Path
) -> None:
    named(folder, kind, tokenizer_class)
    theirs, ours = AutoTokenizer.from_pretrained(folder), Assembled(folder)
    assert theirs(MARKED)["input_ids"] == marked
    with opened(folder, form) as session:
        for text in TEXTS:
            assert session.tokenize(text) == ours.encode(text) == theirs(text)["input_ids"], text
    checks = check_tokenizer(open_folder(folder), open_artifact(folder.parent / f"m.{form}"), TEXTS)
    assert [c.findings for c in checks] == [()] * len(checks)


def test_the_split_is_known_without_a_class(folder: Path) -> None:
    """A tokenizer.json that has it itself."""
    named(folder, "qwen3_5_text", "Qwen3_5Tokenizer")
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    tiny.edit_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    assert read_tokenizer(folder, 2048).pre == "qwen35"
