"""Which class transformers takes for a tokenizer: by what the files name, by the model's type, or none of its own."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import transformers
from test_tokens import slow
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from sampan.convert.added import LLAMA, OTHERS, SPLITS
from sampan.convert.tokenizer import read_tokenizer, read_tokenizer_json
from sampan.convert.tokenizers.byte_level import PRE_TOKENIZERS
from sampan.errors import InputError
from sampan.validate.tokenizer import Assembled

TEXTS = ("cafe\u0301 1234567", "x\u0301y \u0301", "I'LL  go\n\n<|endoftext|></s>", "<|a|><|b|><|c|><|im_end|>")
KINDS = ("qwen2", "qwen2_moe", "qwen3", "qwen3_vl", "qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe_text",
         "llama", "mistral", "glm4", "glm4_moe", "minimax_m2", "deepseek_v3")  # fmt: skip
NAMES = (None, "PreTrainedTokenizerFast", "Qwen2Tokenizer", "Qwen2TokenizerFast", "Qwen3_5Tokenizer",
         "LlamaTokenizerFast", "TokenizersBackend", "SomebodysTokenizer")  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The fixture's words with Llama 3's split and no normalizer, so that a class with its own steps shows."""
    folder = Path(shutil.copytree(tiny.FIXTURE, tmp_path / "m"))
    parsed = json.loads((folder / "tokenizer.json").read_text())
    before = parsed["pre_tokenizer"]
    split = next(regexes[0] for regexes, name in PRE_TOKENIZERS.items() if name == "llama-bpe")
    before["pretokenizers"][0]["pattern"]["Regex"] = split
    tiny.edit_json(folder / "tokenizer.json", normalizer=None, pre_tokenizer=before)
    return folder


def says(folder: Path, **changes: Any) -> None:
    tiny.edit_json(folder / "tokenizer_config.json", **changes)


def compare(folder: Path) -> Any:
    """Ids of all three readers; returns transformers' tokenizer."""
    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ours = Tokenizer.from_str(json.dumps(read_tokenizer_json(folder, 2048)[1]))
    checked = Assembled(folder)
    for text in TEXTS:
        wanted = theirs(text)["input_ids"]
        assert ours.encode(text).ids == wanted, text
        assert checked.encode(text) == wanted, text
    return theirs


@pytest.mark.everyday("qwen2-*", "qwen3-*", "qwen3_5-*", "llama-*", "deepseek_v3-*")
@pytest.mark.parametrize("named", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_class_is_the_one_that_transformers_takes(kind: str, named: str | None, folder: Path) -> None:
    tiny.edit_json(folder / "config.json", model_type=kind)
    says(folder, tokenizer_class=named)
    compare(folder)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
def test_a_class_that_config_json_names(kind: str, folder: Path) -> None:
    tiny.edit_json(folder / "config.json", model_type=kind, tokenizer_class="Qwen2Tokenizer")
    says(folder, tokenizer_class=None)
    assert type(compare(folder)).__name__ == "Qwen2Tokenizer"


def test_without_tokenizer_config_json(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    assert type(compare(folder)).__name__ == "Qwen2Tokenizer"


@pytest.mark.parametrize("named", ["GPT2Tokenizer", "GPT2TokenizerFast", "CohereTokenizerFast"])
def test_a_class_that_makes_something_else_of_the_words(named: str, folder: Path) -> None:
    says(folder, tokenizer_class=named)
    with pytest.raises(InputError) as caught:
        read_tokenizer(folder, 2048)
    assert str(caught.value) == (
        f"{folder / 'tokenizer_config.json'}: tokenizer_class: expected a class that takes tokenizer.json as it is, "
        f"Qwen2Tokenizer, Qwen3_5Tokenizer or LlamaTokenizer, found {named.removesuffix('Fast')}; name "
        "PreTrainedTokenizerFast if tokenizer.json is right as it stands"
    )
    tiny.edit_json(folder / "config.json", model_type="qwen2")  # for which transformers knows better
    compare(folder)


def test_all_classes_of_transformers_are_known() -> None:
    """Those with steps of their own, as `TokenizersBackend.convert_to_native_format` tells them."""
    found = set()
    for path in (Path(transformers.__file__).parent / "models").glob("*/tokenization_*.py"):
        for node in ast.parse(path.read_text()).body:
            bases = [b.id for b in node.bases if isinstance(b, ast.Name)] if isinstance(node, ast.ClassDef) else []
            if "TokenizersBackend" in bases and isinstance(node, ast.ClassDef):
                own = any(isinstance(m, ast.FunctionDef) and m.name == "__init__" for m in node.body)
                found |= {node.name} if own else set()
    assert found == {*SPLITS, LLAMA, *OTHERS}


def test_named_tokens_get_their_ids_in_transformers_order(folder: Path) -> None:
    """Whatever their order in the file: by role, then a model's own."""
    config = json.loads((folder / "tokenizer_config.json").read_text())
    first = {"a_token": "<|c|>", "b_token": {"content": "<|no|>"}, "pad_token": "<|b|>", "unk_token": "<|a|>"}
    config = first | {k: v for k, v in config.items() if k not in first}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = compare(folder)
    assert theirs.convert_tokens_to_ids(["<|a|>", "<|b|>", "<|c|>"]) == [2040, 2041, 2042]


FURTHER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a list and older names": ({"extra_special_tokens": ["<|a|>"], "additional_special_tokens": ["<|b|>"]}, {}),
    "names and a list": ({"extra_special_tokens": {"own": "<|a|>"}, "additional_special_tokens": ["<|b|>"]}, {}),
    "a list in two files": ({"extra_special_tokens": ["<|a|>"]}, {"extra_special_tokens": ["<|b|>", "<|a|>"]}),
    "older names in two files": (
        {"additional_special_tokens": ["<|a|>"]}, {"additional_special_tokens": ["<|b|>"]}
    ),
    "names, and a list in the other file": (
        {"extra_special_tokens": {"own": "<|a|>"}}, {"extra_special_tokens": ["<|b|>"]}
    ),
    "only in the other file": ({}, {"additional_special_tokens": ["<|b|>"], "pad_token": "<|c|>"}),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["PreTrainedTokenizerFast", "Qwen2Tokenizer"])
@pytest.mark.parametrize("case", FURTHER)
def test_further_tokens_of_two_keys_and_two_files(case: str, kind: str, folder: Path) -> None:
    """special_tokens_map.json counts where there is no added_tokens_decoder."""
    own, older = FURTHER[case]
    says(folder, tokenizer_class=kind, added_tokens_decoder=None, **own)
    (folder / "special_tokens_map.json").write_text(json.dumps(older))
    compare(folder)


@pytest.mark.parametrize("kind", ["PreTrainedTokenizerFast", "Qwen2Tokenizer"])
def test_flags_of_a_named_token(kind: str, folder: Path) -> None:
    """A token that stands in no other file; Qwen2Tokenizer takes its text alone."""
    token = {"__type": "AddedToken", "content": "<|b|>", "lstrip": True, "normalized": False}
    says(folder, tokenizer_class=kind, pad_token=token | {"rstrip": False, "single_word": False, "special": True})
    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    parsed = read_tokenizer_json(folder, 2048)[1]
    for text in ("a  <|b|>  c", *TEXTS):
        assert Tokenizer.from_str(json.dumps(parsed)).encode(text).ids == theirs(text)["input_ids"], text


def test_a_class_that_names_tokens_itself(folder: Path) -> None:
    """`<|endoftext|>` of Qwen2Tokenizer, where no file has it."""
    parsed = json.loads((folder / "tokenizer.json").read_text())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for token in (*parsed["added_tokens"], *config["added_tokens_decoder"].values()):
        token["content"] = token["content"].replace("<|endoftext|>", "<|end|>")
    tiny.edit_json(folder / "tokenizer.json", added_tokens=parsed["added_tokens"])
    says(folder, **dict.fromkeys(("pad_token", "unk_token")), added_tokens_decoder=config["added_tokens_decoder"])
    assert compare(folder).convert_tokens_to_ids("<|endoftext|>") == 2040


def test_a_class_of_other_words_names_none(folder: Path) -> None:
    """Of a byte-level tokenizer.json transformers takes no LlamaTokenizer, so no `<s>` and `</s>` either."""
    says(folder, tokenizer_class="LlamaTokenizer", bos_token=None, eos_token=None, unk_token=None)
    assert compare(folder).convert_tokens_to_ids("</s>") is None


def test_merges_with_the_line_ends_of_windows(folder: Path) -> None:
    slow(folder)
    path = folder / "merges.txt"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    compare(folder)


@pytest.mark.parametrize(
    ("key", "line"),
    [
        (
            "split_special_tokens",
            "tokenizer_config.json: split_special_tokens: expected false, since no engine here splits them, found true;"
            " delete the key if a training left it",
        ),
        ("add_prefix_space", "tokenizer.json: pre_tokenizer: expected ByteLevel without prefix space and regex, found"),
    ],
)
def test_settings_that_no_engine_has(key: str, line: str, folder: Path) -> None:
    says(folder, **{key: True})
    with pytest.raises(InputError) as caught:
        read_tokenizer(folder, 2048)
    assert line in str(caught.value)
