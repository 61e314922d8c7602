"""SentencePiece's BPE over bytes: ids of both formats against transformers, and against tokenizer.model's scores."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import spm
from test_tokens import opened
from transformers import AutoTokenizer

from sampan import gguf, runtime
from sampan.checkpoint import open_folder
from sampan.convert.conversion import convert, prepare
from sampan.convert.formats._llama import check_merges
from sampan.convert.tokenizer import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, read_tokenizer
from sampan.convert.tokenizers import sentencepiece as kind
from sampan.errors import InputError
from sampan.validate.artifact import open_artifact
from sampan.validate.conformance import check_tokenizer
from sampan.validate.scored import Scored
from sampan.validate.tokenizer import Assembled

VOCAB = 2048
NASTY: list[str] = json.loads((spm.TEXTS / "nasty.json").read_text())
TEXTS = [
    *NASTY, *(" " * n + "x" + " " * m + "y" for n in range(6) for m in (1, 2, 3, 5, 8)), "=" * 33, "a" * 50, "\n\n\n",
    "<s>hi", "a<s> b</s>c", "<|im_start|>user\nhi<|im_end|>\n", "</s>", "<s> ", "<s>  x", "x</s>▁y", "▁", "▁▁a", " ▁a",
    "<unk>a <unk>", "a<0x0A>b<0x41>", "首都是北京。", "e\u0301 é \u200b", "\U0001f600 \U0001f468\u200d\U0001f469",
]  # fmt: skip
NAMES = {"bos_token": "<s>", "eos_token": "<|im_end|>", "unk_token": "<unk>"}
LLAMA = NAMES | {"tokenizer_class": "LlamaTokenizer"}
FLAGS = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
LISTED = {str(i): {"content": text} | FLAGS for i, text in enumerate(spm.CONTROL)}


@pytest.fixture
def folder(model: Callable[[str], Path], tmp_path: Path) -> Path:
    """A model of the Llama shape without a tokenizer."""
    folder = Path(shutil.copytree(model("llama-linear"), tmp_path / "model"))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / name).unlink()
    return folder


def write(folder: Path, config: dict[str, Any], **model: Any) -> None:
    """tokenizer.model."""
    (folder / "tokenizer.model").write_bytes(spm.model(VOCAB, **model))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_json(folder: Path, config: dict[str, Any], steps: str, **changes: Any) -> None:
    """tokenizer.json, with steps as transformers 4 wrote them ("prepend", "escape"), or a scheme of Metaspace."""
    write(folder, config)
    parsed = kind.form(folder, VOCAB)
    escape = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    prepend = [{"type": "Prepend", "prepend": "▁"}] if steps == "prepend" else []
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": steps, "split": False}
    old = steps in ("prepend", "escape")
    parsed |= {
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, escape]} if old else None,
        "pre_tokenizer": None if old else space,
        "model": parsed["model"] | changes,
    }
    (folder / "tokenizer.json").write_text(json.dumps(parsed))
    (folder / "tokenizer.model").unlink()


def equal(folder: Path, form: str, wanted: Callable[[str, bool], list[int]]) -> None:
    with opened(folder, form) as session:
        for text in TEXTS:
            for special in (True, False):
                assert session.tokenize(text, special=special) == wanted(text, special), (text, special)
    checks = check_tokenizer(open_folder(folder), open_artifact(folder.parent / f"m.{form}"), TEXTS)
    assert [(c.findings, c.known) for c in checks] == [((), ())] * len(checks)


JSONS: dict[str, tuple[dict[str, Any], str]] = {
    "as the file says": (NAMES, "prepend"),
    "as the file says, no space in front": (NAMES, "escape"),
    "Metaspace": (NAMES, "always"),
    "Metaspace, first": (NAMES, "first"),
    "LlamaTokenizer": (LLAMA, "prepend"),
    "LlamaTokenizer, legacy": (LLAMA | {"legacy": True}, "prepend"),
    "LlamaTokenizer, no space in front": (LLAMA | {"add_prefix_space": False}, "prepend"),
}


@pytest.mark.everyday(
    "as the file says-*", "Metaspace-onnx", "Metaspace, first-gguf", "LlamaTokenizer-*", "LlamaTokenizer, legacy-gguf"
)
@pytest.mark.parametrize("form", ["gguf", "onnx"])
@pytest.mark.parametrize("case", JSONS)
def test_ids_of_tokenizer_json(case: str, form: str, folder: Path) -> None:
    config, steps = JSONS[case]
    write_json(folder, config, steps)
    theirs, ours = AutoTokenizer.from_pretrained(folder), Assembled(folder)
    assert all(ours.encode(t) == theirs(t)["input_ids"] for t in TEXTS)
    equal(folder, form, lambda text, special: theirs(text, split_special_tokens=not special)["input_ids"])


MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": (NAMES, {}),
    "no space in front": (NAMES, {"prefix": False}),
    "bos and eos": (NAMES | {"add_bos_token": True, "add_eos_token": True}, {}),
    "not legacy": (NAMES | {"legacy": False}, {}),
    "listed": (NAMES | {"added_tokens_decoder": LISTED}, {}),
    "pieces of a user": (NAMES, {"prefix": False, "own": ("<own>", "[x]", "tion")}),
    "LlamaTokenizer": (LLAMA, {}),
    "a class of its own": (NAMES | {"tokenizer_class": "BaichuanTokenizer", "add_bos_token": False,
                                    "add_eos_token": False}, {"prefix": False}),
}  # fmt: skip


@pytest.mark.everyday("plain-*", "bos and eos-gguf", "not legacy-onnx", "pieces of a user-gguf")
@pytest.mark.parametrize("form", ["gguf", "onnx"])
@pytest.mark.parametrize("case", MODELS)
def test_ids_of_tokenizer_model(case: str, form: str, folder: Path) -> None:
    config, changes = MODELS[case]
    write(folder, config, **changes)
    reader = Scored(folder)
    alone = "own" in changes and form == "onnx"  # then a text that is a word is taken whole, also in transformers

    def wanted(text: str, special: bool) -> list[int]:
        return reader.encode(text, special=special or (alone and text in spm.CONTROL))

    equal(folder, form, wanted)


@pytest.mark.parametrize("case", MODELS)
def test_the_reference_is_the_sentencepiece_package(case: str, folder: Path) -> None:
    """And transformers' own conversion, which takes for special tokens only those that a config lists."""
    import sentencepiece

    config, changes = MODELS[case]
    write(folder, config | {"added_tokens_decoder": LISTED}, **changes)
    ours = Scored(folder)
    if config.get("legacy", "tokenizer_class" not in config):
        theirs = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        assert all(ours.encode(t, special=False, around=False) == theirs.encode(t) for t in TEXTS)
    if config.get("tokenizer_class") != "LlamaTokenizer":  # it ranks merges by id, see docs/decisions.md
        fast = AutoTokenizer.from_pretrained(folder)
        assert all(ours.encode(t) == fast(t)["input_ids"] for t in TEXTS)


def test_scores_and_types(folder: Path) -> None:
    """As llama.cpp's converter gives them: listed tokens by their flags, the others as the model has them."""
    own = {"content": "<▁own>"} | FLAGS | {"special": False}
    write(folder, NAMES | {"added_tokens_decoder": {"1": LISTED["1"], "2013": own}}, own=("<x>",))
    t = read_tokenizer(folder, VOCAB)
    assert [(t.types[i], t.scores[i]) for i in (0, 1, 2, 5, 260)] == [
        (UNKNOWN, 0.0), (CONTROL, -1000.0), (CONTROL, 0.0), (BYTE, 0.0), (BYTE, 0.0),
    ]  # fmt: skip
    assert (t.tokens[261], t.types[261], t.scores[261]) == ("▁▁", NORMAL, -1e9)
    assert (t.tokens[264], t.types[264]) == ("<x>", USER_DEFINED)
    assert (t.tokens[2013], t.types[2013], t.scores[2013]) == ("< own>", USER_DEFINED, -1000.0)
    assert (t.tokens[2047], t.types[2047], t.scores[2047]) == ("[PAD2047]", UNUSED, -10000.0)
    assert (t.model, t.pre, t.prefix, t.add) == ("llama", "default", "always", {"bos": False, "eos": False})


def test_keys_of_a_file(folder: Path, tmp_path: Path) -> None:
    write(folder, LLAMA, prefix=False)
    convert(prepare(open_folder(folder), tmp_path / "m.gguf", "gguf", "q8_0"))
    found = {k: v.value for k, v in gguf.read_header(tmp_path / "m.gguf").metadata.items()}
    assert found["tokenizer.ggml.model"] == "llama" and found["tokenizer.ggml.pre"] == "default"
    assert found["tokenizer.ggml.add_space_prefix"] is False
    assert "tokenizer.ggml.merges" not in found and len(found["tokenizer.ggml.scores"]) == VOCAB


def test_spaces_of_metaspace_are_announced(folder: Path, tmp_path: Path) -> None:
    write_json(folder, LLAMA, "prepend")
    notes = prepare(open_folder(folder), tmp_path / "m.gguf", "gguf", "q8_0").plan.notes
    assert any("llama.cpp's own programs put a space in front of a text and behind every special" in n for n in notes)
    with opened(folder, "gguf") as session:
        assert session.metadata["sampan.tokenizer.prefix"] == "first"


def test_a_way_of_spaces_that_is_not_known(folder: Path, tmp_path: Path) -> None:
    write_json(folder, LLAMA, "prepend")
    path = tmp_path / "m.gguf"
    convert(prepare(open_folder(folder), path, "gguf", "q8_0"))
    raw, key = path.read_bytes(), b"sampan.tokenizer.prefix"
    at = raw.index(b"first", raw.index(key))
    path.write_bytes(raw[:at] + b"third" + raw[at + 5 :])
    with pytest.raises(InputError, match="prefix: expected missing or first, among the first keys, found third"):
        runtime.open(path, runtime.EngineOptions(vocabulary_only=True))


@pytest.mark.parametrize("at", [0, 500])
def test_merges_that_llama_cpp_would_make_otherwise_are_refused(at: int, folder: Path) -> None:
    write_json(folder, NAMES, "prepend")
    merges: list[list[str]] = json.loads((folder / "tokenizer.json").read_text())["model"]["merges"]
    removed = [m for n, m in enumerate(merges) if n != at]
    write_json(folder, NAMES, "prepend", merges=removed)
    with pytest.raises(InputError, match=r"no merge makes \S+ of \S+ and \S+, and llama.cpp's SPM would join them"):
        check_merges(folder, read_tokenizer(folder, VOCAB))
    write_json(folder, NAMES, "prepend", merges=[*removed, merges[at]])
    if sum(a + b == "".join(merges[at]) for a, b in merges) > 1:
        with pytest.raises(InputError, match="expected merges in the order of the tokens that they make"):
            check_merges(folder, read_tokenizer(folder, VOCAB))


def test_a_class_whose_defaults_are_not_known(folder: Path) -> None:
    write(folder, NAMES | {"tokenizer_class": "BaichuanTokenizer"})
    with pytest.raises(InputError, match="add_bos_token: expected true or false, since the default of Baichuan"):
        read_tokenizer(folder, VOCAB)


def test_other_programs_files_are_read_as_llama_cpp_does(folder: Path, tmp_path: Path) -> None:
    """Without our key a space is put in front of every text, as llama.cpp does."""
    write(folder, NAMES)
    convert(prepare(open_folder(folder), tmp_path / "m.gguf", "gguf", "q8_0"))
    with runtime.open(tmp_path / "m.gguf", runtime.EngineOptions(vocabulary_only=True)) as session:
        assert session.tokenize("  x") == Scored(folder).encode("  x")
        assert "sampan.tokenizer.prefix" not in session.metadata
