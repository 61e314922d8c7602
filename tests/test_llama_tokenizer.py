"""Llama 3's tokenizer on the fixture's vocabulary: ids of the GGUF file against the tokenizers package."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import to_gguf
from tokenizers import Tokenizer

from sampan import runtime
from sampan.convert.tokenizer import PRE_TOKENIZERS, read_tokenizer
from sampan.errors import InputError

NASTY = Path(__file__).parents[1] / "validate" / "texts" / "nasty.json"


@pytest.fixture
def folder(model: Callable[[str], Path], tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(model("llama"), tmp_path / "llama"))
    parsed = json.loads((folder / "tokenizer.json").read_text())
    split = next(regex for regex, name in PRE_TOKENIZERS.items() if name == "llama-bpe")
    parsed["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = split
    edit(
        folder, normalizer=None, pre_tokenizer=parsed["pre_tokenizer"], model=parsed["model"] | {"ignore_merges": True}
    )
    return folder


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes, ensure_ascii=False))


def test_ids(folder: Path, tmp_path: Path) -> None:
    to_gguf(folder, tmp_path / "m.gguf", "q8_0")
    reader = Tokenizer.from_file(str(folder / "tokenizer.json"))
    with runtime.open(tmp_path / "m.gguf", runtime.EngineOptions(context=64)) as session:
        for text in (*json.loads(NASTY.read_text()), "12345678 it's I'LL"):
            assert session.tokenize(text) == reader.encode(text).ids, text


def test_a_template_that_writes_bos_does_not_double_it(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"bos_token": "<|im_start|>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    to_gguf(folder, tmp_path / "m.gguf", "q8_0")
    with runtime.open(tmp_path / "m.gguf", runtime.EngineOptions(context=64)) as session:
        plain = session.tokenize("Hello")
        assert session.detokenize(plain[:1]) == "" and len(plain) > 1
        assert session.tokenize("<|im_start|>Hello") == plain


def test_what_llama_cpp_would_do_otherwise_is_refused(folder: Path) -> None:
    parsed = json.loads((folder / "tokenizer.json").read_text())
    edit(folder, normalizer={"type": "NFC"})
    with pytest.raises(InputError, match="ignore_merges: expected True without a normalizer"):
        read_tokenizer(folder, 2048)
    edit(folder, normalizer=None, model=parsed["model"] | {"ignore_merges": False})
    with pytest.raises(InputError, match="ignore_merges: expected True without a normalizer"):
        read_tokenizer(folder, 2048)
