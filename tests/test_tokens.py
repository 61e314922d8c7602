"""Tokens that stand in other files than tokenizer.json, or twice: ids of both formats against transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from transformers import AutoTokenizer

from sampan import runtime
from sampan.checkpoint import open_folder
from sampan.convert.conversion import convert, prepare
from sampan.validate.artifact import open_artifact
from sampan.validate.conformance import check_tokenizer
from sampan.validate.tokenizer import Assembled, Ranked, Transformers

FLAGS = {"special": True, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
PAD = "<|pad|>"
PLAIN = FLAGS | {"special": False, "normalized": True}
NEW = ["<|user|>", "<|assistant|>"]
TEXTS = (
    "<|user|>hello<|assistant|>", "a<|im_end|>b", "cafe\u0301 naïve é", "<|law|> <|user|", "你好 <think>x</think>",
    "word " * 50,
)  # fmt: skip
Edit = Callable[[Path], None]


def config(**changes: Any) -> Edit:
    return lambda folder: tiny.edit_json(folder / "tokenizer_config.json", **changes)


def decoder(tokens: dict[int, dict[str, Any]]) -> Edit:
    def edit(folder: Path) -> None:
        found = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
        config(added_tokens_decoder=found | {str(i): t for i, t in tokens.items()})(folder)

    return edit


def parsed(**changes: Any) -> Edit:
    return lambda folder: tiny.edit_json(folder / "tokenizer.json", **changes)


def added(*tokens: dict[str, Any]) -> Edit:
    def edit(folder: Path) -> None:
        found = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
        parsed(added_tokens=[*found, *tokens])(folder)

    return edit


def legacy(folder: Path) -> None:
    """Before added_tokens_decoder: the two small files that older releases wrote."""
    config(added_tokens_decoder=None)(folder)
    (folder / "added_tokens.json").write_text(json.dumps({t: 2040 + i for i, t in enumerate(NEW)}))
    (folder / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": NEW[:1]}))


def slow(folder: Path) -> None:
    """vocab.json and merges.txt instead of tokenizer.json."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (folder / "tokenizer.json").unlink()


def own_class(edit: Edit) -> Edit:
    """A tokenizer class that takes tokenizer.json as it is."""

    def both(folder: Path) -> None:
        config(tokenizer_class="PreTrainedTokenizerFast")(folder)
        edit(folder)

    return both


PLACES: dict[str, Edit] = {
    "added_tokens_decoder": decoder({2040 + i: {"content": t} | FLAGS for i, t in enumerate(NEW)}),
    "added_tokens_decoder, other ids": decoder({2045 - i: {"content": t} | FLAGS for i, t in enumerate(NEW)}),
    "added_tokens_decoder, not special": decoder({2040: {"content": "<|law|>"} | FLAGS | {"special": False}}),
    "a token of tokenizer.json made special": decoder({2040: {"content": "hello"} | FLAGS}),
    "additional_special_tokens": config(additional_special_tokens=NEW),
    "extra_special_tokens": config(extra_special_tokens=NEW),
    "extra_special_tokens by name": config(extra_special_tokens={"user_token": NEW[0], "other_token": NEW[1]}),
    "a key of its own": config(assistant_token=NEW[1]),
    "a named token": config(pad_token=PAD),
    "older files": legacy,
    "vocab.json and merges.txt": slow,
    "truncation": parsed(truncation={"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}),
    "padding": parsed(
        padding={
            "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 2033,
            "pad_type_id": 0, "pad_token": "<|endoftext|>",
        }
    ),
    "no normalizer": own_class(parsed(normalizer=None)),
    "no normalizer, and a class that has one": parsed(normalizer=None),
    "an empty sequence of normalizers": own_class(parsed(normalizer={"type": "Sequence", "normalizers": []})),
    "a sequence of one": own_class(parsed(normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}]})),
    "the letter of a byte": own_class(added({"id": 2040, "content": "é"} | PLAIN)),
    "tokens that the class does not look for": added({"id": 2040, "content": "hello"} | FLAGS),
    "one text twice": added({"id": 2040, "content": "<think>"} | FLAGS, {"id": 2041, "content": "<think>"} | FLAGS),
}  # fmt: skip


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.FIXTURE, tmp_path / "model"))


def opened(folder: Path, form: str) -> runtime.Session:
    out = folder.parent / f"m.{form}"
    convert(prepare(open_folder(folder), out, form, "q8_0"), overwrite=True)
    return runtime.open(out, runtime.EngineOptions(vocabulary_only=True))


@pytest.mark.everyday(
    "added_tokens_decoder-*",
    "additional_special_tokens-onnx",
    "extra_special_tokens by name-onnx",
    "a named token-gguf",
    "older files-gguf",
    "vocab.json*-onnx",
    "truncation-onnx",
    "padding-gguf",
    "no normalizer-onnx",
    "the letter of a byte-gguf",
    "tokens that*-onnx",
    "one text twice-gguf",
)
@pytest.mark.parametrize("form", ["gguf", "onnx"])
@pytest.mark.parametrize("place", PLACES)
def test_ids_are_those_of_transformers(place: str, form: str, copy: Path) -> None:
    PLACES[place](copy)
    theirs, ours = AutoTokenizer.from_pretrained(copy), Assembled(copy)
    with opened(copy, form) as session:
        for text in TEXTS:
            wanted = theirs(text, add_special_tokens=True)["input_ids"]
            wanted = wanted[: len(wanted) - wanted.count(theirs.pad_token_id)] if place == "padding" else wanted
            assert session.tokenize(text) == wanted, text
            assert ours.encode(text) == wanted, text
    checks = check_tokenizer(open_folder(copy), open_artifact(copy.parent / f"m.{form}"), list(TEXTS))
    assert [c.findings for c in checks] == [()] * len(checks)


@pytest.mark.parametrize("form", ["gguf", "onnx"])
def test_texts_of_tokens_that_are_not_special_come_out(form: str, copy: Path) -> None:
    """`<|law|>` and its like look like control tokens to llama.cpp, which keeps those to itself."""
    plain, full = {"content": "<|law|>"} | FLAGS | {"special": False}, {"content": "<｜User｜>"} | FLAGS
    decoder({2040: plain, 2041: full})(copy)
    theirs = AutoTokenizer.from_pretrained(copy)
    ids = theirs("a<|law|>b<｜User｜>c<|im_end|>")["input_ids"]
    assert {2040, 2041} <= set(ids)
    with opened(copy, form) as session:
        assert session.detokenize(ids) == theirs.decode(ids, skip_special_tokens=True) == "a<|law|>bc"


def test_validate_finds_a_token_that_the_converter_forgot(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check does not read with the converter's eyes."""
    PLACES["extra_special_tokens"](copy)
    monkeypatch.setattr("sampan.convert.added._tokens", lambda *_: [])
    with opened(copy, "gguf"):
        pass
    (found, _) = check_tokenizer(open_folder(copy), open_artifact(copy.parent / "m.gguf"), list(TEXTS))
    assert "'<|user|>hello<|assistant|>': token 0: expected [2040, " in found.findings[0]


@pytest.mark.parametrize("special", [True, False])
def test_the_independent_readers_agree(special: bool) -> None:
    texts = [*TEXTS, *json.loads((Path(__file__).parents[1] / "validate" / "texts" / "nasty.json").read_text())]
    a, b = Transformers(tiny.FIXTURE), Assembled(tiny.FIXTURE)
    assert [a.encode(t, special=special) for t in texts] == [b.encode(t, special=special) for t in texts]


def test_ranks_are_merged_as_tiktoken_does() -> None:
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe

    from sampan.validate.tokenizer import KIMI

    ranks = load_tiktoken_bpe(str(tiny.KIMI / "tiktoken.model"))
    theirs = tiktoken.Encoding("kimi", pat_str=KIMI, mergeable_ranks=ranks, special_tokens={})
    ours = Ranked(tiny.KIMI, 2048)
    for name in ("zh.txt", "code.txt", "en.txt"):
        text = (Path(__file__).parents[1] / "validate" / "texts" / name).read_text()[:20000]
        assert ours.encode(text) == theirs.encode(text, disallowed_special=())
    long = "ab" * 20000
    assert ours.encode(long) == theirs.encode(long)
