"""Llama 3's and GLM-4's tokenizer on the fixture's vocabulary: ids of the GGUF file against the tokenizers package."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import to_gguf
from tokenizers import Tokenizer

from sampan import runtime
from sampan.checkpoint import open_folder
from sampan.convert.conversion import convert, prepare
from sampan.convert.generation import END_WORDS
from sampan.convert.tokenizer import read_tokenizer
from sampan.convert.tokenizers.byte_level import PRE_TOKENIZERS
from sampan.errors import InputError
from sampan.validate.artifact import open_artifact
from sampan.validate.conformance import check_tokenizer

NASTY = Path(__file__).parents[1] / "validate" / "texts" / "nasty.json"


@pytest.fixture(params=["llama", "glm4"])
def folder(request: pytest.FixtureRequest, model: Callable[[str], Path], tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(model(request.param), tmp_path / request.param))
    parsed = json.loads((folder / "tokenizer.json").read_text())
    split = next(regexes[0] for regexes, name in PRE_TOKENIZERS.items() if name == "llama-bpe")
    parsed["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = split
    configure(folder, {"tokenizer_class": "PreTrainedTokenizerFast"})  # the fixture's would bring its own split
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


def configure(folder: Path, changes: dict[str, Any]) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.everyday("llama-gguf-*", "glm4-onnx-*")
@pytest.mark.parametrize("asked", ["in tokenizer_config.json", "by a post-processor"])
@pytest.mark.parametrize("form", ["gguf", "onnx"])
def test_bos_around_a_text_and_not_around_a_conversation(asked: str, form: str, folder: Path, tmp_path: Path) -> None:
    """Only a post-processor puts one there: transformers ignores add_bos_token beside tokenizer.json."""
    from transformers import AutoTokenizer

    configure(folder, {"bos_token": "<|im_start|>", "add_bos_token": True})
    if asked == "by a post-processor":
        template(folder, "<|im_start|>", TEXT)
    out = tmp_path / ("m.gguf" if form == "gguf" else "m")
    convert(prepare(open_folder(folder), out, form, "q8_0"))
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    bos = [plain.token_to_id("<|im_start|>")] if asked == "by a post-processor" else []
    hello = [*bos, *plain.encode("Hello", add_special_tokens=False).ids]
    assert AutoTokenizer.from_pretrained(folder)("Hello")["input_ids"] == hello
    with runtime.open(out, runtime.EngineOptions(context=64)) as session:
        assert session.tokenize("Hello") == hello
        chat = [{"role": "user", "content": "Hello"}]
        text = session.render_chat(chat)
        assert text.startswith("<|im_start|>")
        assert session.tokenize_chat(chat) == plain.encode(text, add_special_tokens=False).ids
    checks = check_tokenizer(open_folder(folder), open_artifact(out), ["Hello"])
    assert [(c.name, c.findings) for c in checks] == [("tokenizer", ()), ("chat template", ())]


def test_what_llama_cpp_would_do_otherwise_is_refused(folder: Path) -> None:
    parsed = json.loads((folder / "tokenizer.json").read_text())
    edit(folder, normalizer={"type": "NFC"})
    with pytest.raises(InputError, match="ignore_merges: expected True without a normalizer"):
        read_tokenizer(folder, 2048)
    edit(folder, normalizer=None, model=parsed["model"] | {"ignore_merges": False})
    with pytest.raises(InputError, match="ignore_merges: expected True without a normalizer"):
        read_tokenizer(folder, 2048)


TEXT = {"Sequence": {"id": "A", "type_id": 0}}


def template(folder: Path, *single: Any) -> None:
    """A post-processor that puts tokens around every text."""
    added = {t["content"]: t["id"] for t in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]}
    pieces = [p if isinstance(p, dict) else {"SpecialToken": {"id": p, "type_id": 0}} for p in single]
    tokens = {p: {"id": p, "ids": [added[p]], "tokens": [p]} for p in single if isinstance(p, str)}
    processor = {"type": "TemplateProcessing", "single": pieces, "pair": pieces, "special_tokens": tokens}
    level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    edit(folder, post_processor={"type": "Sequence", "processors": [level, processor]})


@pytest.mark.parametrize("named", [False, True])
def test_a_bos_is_added_where_the_tokenizer_adds_one(named: bool, folder: Path, tmp_path: Path) -> None:
    configure(folder, {"bos_token": "<|im_start|>", "add_bos_token": None})
    template(folder, *(["<|im_start|>"] if named else []), TEXT)
    to_gguf(folder, tmp_path / "m.gguf", "q8_0")
    wanted = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("Hello").ids
    with runtime.open(tmp_path / "m.gguf", runtime.EngineOptions(context=64)) as session:
        assert session.tokenize("Hello") == wanted


@pytest.mark.parametrize(
    "single",
    [("<|im_start|>", "<|im_end|>", TEXT), (TEXT, "<|im_start|>", "<|im_end|>"), ("<|im_end|>", TEXT), (TEXT, TEXT)],
)
def test_other_tokens_around_a_text_are_refused(single: tuple[Any, ...], folder: Path) -> None:
    template(folder, *single)
    with pytest.raises(InputError, match=r"tokenizer\.json: post_processor\.single: expected "):
        read_tokenizer(folder, 2048)


@pytest.mark.parametrize("ids", ["[1e999]", "[1.5]", '"12"', "[true]", '{"3": 1}', "null"])
def test_ids_that_are_none(ids: str, folder: Path) -> None:
    template(folder, "<|im_start|>", TEXT)
    path = folder / "tokenizer.json"
    path.write_text(re.sub(r'"ids": \[\d+\]', f'"ids": {ids}', path.read_text()))
    with pytest.raises(InputError, match=r"(special tokens with their ids|found ids|unreadable)"):
        read_tokenizer(folder, 2048)


@pytest.mark.parametrize("processor", [{"type": "BertProcessing"}, "x", {"type": "TemplateProcessing", "single": 1}])
def test_other_post_processors_are_refused(processor: Any, folder: Path) -> None:
    edit(folder, post_processor=processor)
    with pytest.raises(InputError, match="post_processor: expected ByteLevel, or TemplateProcessing of a single text"):
        read_tokenizer(folder, 2048)


def test_ends_that_llama_cpp_does_not_know_get_a_role(folder: Path, tmp_path: Path) -> None:
    """GLM's chat turns end with the next speaker's token."""
    added = {t["content"]: t["id"] for t in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]}
    eos = json.loads((folder / "tokenizer_config.json").read_text())["eos_token"]
    others = [i for text, i in added.items() if text != eos and text not in END_WORDS]
    path = folder / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [added[eos], *others[:2]]}))
    to_gguf(folder, tmp_path / "m.gguf", "q8_0")
    with runtime.open(tmp_path / "m.gguf", runtime.EngineOptions(vocabulary_only=True)) as session:
        assert [session._engine.is_end(i) for i in (added[eos], *others[:3])] == [True, True, True, False]
