"""Known limits of llama.cpp: announced at conversion, reported by validate, no failure unless asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import tiny

from sampan.checkpoint import open_folder
from sampan.convert.conversion import prepare
from sampan.convert.formats._limits import CONTROL_WORDS, limits
from sampan.convert.tokenizer import read_tokenizer


def with_word(folder: Path, word: str) -> None:
    """A learnt token that is a word llama.cpp takes for a control token, made by two merges of its own."""
    path = folder / "tokenizer.json"
    parsed: dict[str, Any] = json.loads(path.read_text())
    vocab, merges = parsed["model"]["vocab"], parsed["model"]["merges"]
    free = list(range(2047, 2040, -1))
    text = word[0]
    for c in word[1:]:
        merges.insert(0, [text, c]) if text + c not in vocab else None
        vocab.setdefault(text + c, free.pop() if text + c not in vocab else 0)
        text += c
    parsed["model"]["merges"] = sorted(merges, key=lambda m: 0 if word.startswith("".join(m)) else 1)
    path.write_text(json.dumps(parsed))


def test_words_that_llama_cpp_takes_for_control_tokens(tmp_path: Path) -> None:
    """`</s>` is an ordinary word of Qwen's vocabulary."""
    folder = Path(shutil.copytree(tiny.FIXTURE, tmp_path / "m"))
    with_word(folder, "</s>")
    (limit,) = limits(read_tokenizer(folder, 2048))
    assert limit.what == "takes </s> in a prompt for one token, the checkpoint's tokenizer for plain text"
    assert f"llama.cpp {limit.what}" in prepare(open_folder(folder), tmp_path / "n.gguf", "gguf", "q8_0").notes


def test_the_list_of_words_is_llama_cpps(tmp_path: Path) -> None:
    """Each word of the list changes its type when llama.cpp loads it as an ordinary token, and others do not."""
    from llama_cpp import llama_cpp as lib

    from sampan import runtime

    words = [*sorted(CONTROL_WORDS), "<word>", "</think>", "<|user|>"]
    found = {}
    for word in words:  # llama.cpp looks for each kind once, so every word gets a file of its own
        out = tmp_path / "v.gguf"
        _vocabulary(out, word)
        with runtime.open(out, runtime.EngineOptions(vocabulary_only=True)) as session:
            engine: Any = session._engine
            attr = lib.llama_vocab_get_attr(engine._vocab, 300)
        found[word] = bool(attr & lib.LLAMA_TOKEN_ATTR_CONTROL)
    assert found == {w: w in CONTROL_WORDS for w in words}


def _vocabulary(out: Path, word: str) -> None:
    """A GGUF file of a vocabulary alone, the word an ordinary token of it."""
    import gguf

    from sampan.convert.tiktoken import byte_letters

    writer = gguf.GGUFWriter(out, "qwen2")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*byte_letters(), *(f"w{i}" for i in range(256, 300)), word])
    writer.add_token_types([1] * 301)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
