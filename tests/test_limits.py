"""Known limits of llama.cpp: announced at conversion, reported by validate, no failure unless asked for."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from transformers import AutoTokenizer

from sampan import gguf, runtime
from sampan.checkpoint import open_folder
from sampan.convert.conversion import convert, prepare
from sampan.convert.formats._limits import CONTROL_WORDS, SHOWN_WORDS, limits, retyped, text_tokens
from sampan.convert.tokenizer import CONTROL, NORMAL, USER_DEFINED, Tokenizer, read_tokenizer
from sampan.convert.tokenizers.tiktoken import byte_letters

TYPES = (NORMAL, CONTROL, USER_DEFINED)
ATTRIBUTES = {NORMAL: 4, CONTROL: 8, USER_DEFINED: 16}  # enum llama_token_attr
FILL_IN = re.compile(r"fim|prefix|suffix|middle|PRE|SUF|MID|PAD|REPO|repo_?name|file_sep")


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


def vocabulary(tokens: list[str], types: list[int]) -> Tokenizer:
    return Tokenizer("qwen2", tokens, types, ["a b"], {}, {}, None)


def words_of_the_library() -> set[str]:
    """Every short text in llama.cpp's library, also ends of longer ones, which a linker does not store again."""
    import llama_cpp

    data = (Path(llama_cpp.__file__).parent / "lib" / "libllama.so").read_bytes()
    found = {m.decode(errors="ignore") for m in re.findall(rb"[^\x00-\x20\x7f]{2,32}(?=\x00)", data)}
    return found | {w[n:] for w in found for n in range(len(w)) if w[n] in "<["}


def loaded_types(source: Path, out: Path, t: Tokenizer) -> list[int]:
    """llama.cpp's attribute of every token, of a file that has no more than a vocabulary."""
    header = gguf.read_header(source)
    keys = {
        k: v
        for k, v in header.metadata.items()
        if not k.startswith(("tokenizer.", "sampan.")) or k == "tokenizer.ggml.model"
    }
    for name, item, values in (
        ("tokens", gguf.Kind.STRING, t.tokens),
        ("token_type", gguf.Kind.INT32, t.types),
        ("merges", gguf.Kind.STRING, t.merges),
    ):
        keys[f"tokenizer.ggml.{name}"] = gguf.Value(gguf.Kind.ARRAY, values, item)
    keys["tokenizer.ggml.pre"] = gguf.Value(gguf.Kind.STRING, t.pre)
    out.write_bytes(gguf.encode(keys, []))
    with runtime.open(out, runtime.EngineOptions(vocabulary_only=True)) as session:
        engine: Any = session._engine
        return [engine._lib.llama_vocab_get_attr(engine._vocab, ctypes.c_int32(i)) for i in range(len(t.tokens))]


@pytest.mark.parametrize("kind", TYPES)
def test_no_other_word_changes_its_type(kind: int, gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    """All texts of llama.cpp's library as one vocabulary; of words to fill in it takes one for each of six roles."""
    tokens = [*byte_letters(), *sorted(words_of_the_library() - set(byte_letters()))]
    assert set(tokens) >= CONTROL_WORDS | SHOWN_WORDS
    t = vocabulary(tokens, [kind] * len(tokens))
    loaded = loaded_types(gguf("trained", "q8_0"), tmp_path / "v.gguf", t)
    unused = 1 << 1  # llama.cpp's mark for control tokens that say so, which changes no ids
    changed = {i for i, attribute in enumerate(loaded) if attribute & ~unused != ATTRIBUTES[kind]}
    roles = {i for i in retyped(t) if FILL_IN.search(tokens[i])}
    assert changed - roles == retyped(t).keys() - roles
    assert len(changed & roles) == (0 if kind == CONTROL else 6)


@pytest.mark.parametrize("word", ["</s>", "<|end|>"])
@pytest.mark.parametrize("beside", [(), ("<|tool_response>",), ("<|return|>", "<|call|>"), ("<|flush|>",)])
@pytest.mark.parametrize("kind", TYPES)
def test_words_that_depend_on_others(
    kind: int, beside: tuple[str, ...], word: str, gguf: Callable[[str, str], Path], tmp_path: Path
) -> None:
    tokens = [*byte_letters(), word, *beside]
    t = vocabulary(tokens, [NORMAL] * 256 + [kind] + [CONTROL] * len(beside))
    loaded = loaded_types(gguf("trained", "q8_0"), tmp_path / "v.gguf", t)
    changed = {i for i, attribute in enumerate(loaded) if attribute != ATTRIBUTES[t.types[i]]}
    assert changed == retyped(t).keys()


def test_notes_and_texts_of_words_whose_type_changes() -> None:
    tokens = [*byte_letters(), "</s>", "<eos>", "<|channel|>", "<|start|>", "<|im_end|>"]
    t = vocabulary(tokens, [NORMAL] * 256 + [NORMAL, USER_DEFINED, CONTROL, NORMAL, CONTROL])
    assert retyped(t) == {256: CONTROL, 257: CONTROL, 258: USER_DEFINED, 259: USER_DEFINED}
    assert text_tokens(t) == [256, 257]
    assert [limit.what for limit in limits(t)] == [
        "takes </s>, <|start|> in a prompt for one token, the checkpoint's tokenizer for plain text",
        "writes <|channel|> in an answer, transformers leaves them out as special tokens",
    ]


def added_word(folder: Path, word: str) -> None:
    """An added token that is not special."""
    path = folder / "tokenizer_config.json"
    decoder = json.loads(path.read_text())["added_tokens_decoder"]
    token = {"content": word, "special": False, "normalized": False, "lstrip": False, "rstrip": False}
    tiny.edit_json(path, added_tokens_decoder=decoder | {"2040": token | {"single_word": False}})


@pytest.mark.parametrize(("word", "add"), [("</s>", with_word), ("<eos>", added_word), ("<|law|>", added_word)])
def test_texts_come_out_though_llama_cpp_makes_them_control_tokens(
    word: str, add: Callable[[Path, str], None], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny.FIXTURE, tmp_path / "m"))
    add(folder, word)
    theirs = AutoTokenizer.from_pretrained(folder)
    ids = [theirs.convert_tokens_to_ids(word)]
    assert theirs.decode(ids, skip_special_tokens=True) == word
    convert(prepare(open_folder(folder), tmp_path / "m.gguf", "gguf", "q8_0"))
    with runtime.open(tmp_path / "m.gguf", runtime.EngineOptions(vocabulary_only=True)) as session:
        assert session.detokenize(ids) == word
