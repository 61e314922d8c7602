"""DeepSeek-V3's tokenizer on the fixture's words: three splits, one after the other, known by their expressions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from test_tokens import opened
from tokenizers import Tokenizer

from sampan.checkpoint import open_folder
from sampan.convert.tokenizer import read_tokenizer
from sampan.errors import InputError
from sampan.validate.artifact import open_artifact
from sampan.validate.conformance import check_tokenizer

NASTY: list[str] = json.loads((Path(__file__).parents[1] / "validate" / "texts" / "nasty.json").read_text())
TEXTS = [
    *NASTY, "1234567 12 首都123です、カタカナ", "x!foo ?bar #include <a.b> 'twas", "a\u0301b \u0301", "ー゠ヿ龥龦㐀",
    "  \n\n  x\r\n", "한국어 ไทย हिन्दी", "A1b2C3 ٣٤٥٦", "$100,000.00 …—“x”",
]  # fmt: skip
SPLITS = (  # tokenizer.json of DeepSeek-V3 and R1
    "\\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
)


def split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


@pytest.fixture
def folder(model: Callable[[str], Path], tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(model("llama-linear"), tmp_path / "model"))
    tiny.edit_json(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizerFast")  # as DeepSeek's says
    steps(folder, *SPLITS)
    tiny.edit_json(folder / "tokenizer.json", normalizer={"type": "Sequence", "normalizers": []})
    return folder


def steps(folder: Path, *regexes: str) -> None:
    last = json.loads((folder / "tokenizer.json").read_text())["pre_tokenizer"]["pretokenizers"][-1]
    before = {"type": "Sequence", "pretokenizers": [*map(split, regexes), last]}
    tiny.edit_json(folder / "tokenizer.json", pre_tokenizer=before)


@pytest.mark.parametrize("form", ["gguf", "onnx"])
def test_ids(form: str, folder: Path) -> None:
    theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
    with opened(folder, form) as session:
        assert {t: session.tokenize(t) for t in TEXTS} == {t: theirs.encode(t).ids for t in TEXTS}
    checks = check_tokenizer(open_folder(folder), open_artifact(folder.parent / f"m.{form}"), TEXTS)
    assert [c.findings for c in checks] == [()] * len(checks)


def test_every_split_counts(folder: Path) -> None:
    assert read_tokenizer(folder, 2048).pre == "deepseek-v3"
    for regexes in (SPLITS[1:], SPLITS[::-1], (*SPLITS, SPLITS[0]), SPLITS[2:]):
        steps(folder, *regexes)
        with pytest.raises(
            InputError, match="pre_tokenizer: expected the split regex of qwen2, qwen35, llama-bpe, kimi-k2, de"
        ):
            read_tokenizer(folder, 2048)
