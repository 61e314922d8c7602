"""End tokens, sampling defaults and templates of a folder: as transformers reads them, and alike in both formats."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from conftest import to_gguf

from sampan import runtime
from sampan.chat_template import read_templates
from sampan.checkpoint import open_folder
from sampan.convert.conversion import convert, prepare
from sampan.convert.generation import notes, resolve
from sampan.convert.tokenizer import read_tokenizer
from sampan.errors import InputError
from sampan.gguf import read_header
from sampan.runtime import Options, Sampling
from sampan.runtime.sampling import Sampler

END, DOCUMENT_END, START = 2035, 2033, 2034  # <|im_end|>, <|endoftext|>, <|im_start|>
ASK = [{"role": "user", "content": "x"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.FIXTURE, tmp_path / "m"))


def said(folder: Path, generation: dict[str, Any] | None, eos: str = "<|im_end|>", **config: Any) -> Path:
    """A folder whose files say of generating what a test wants them to say."""
    (folder / "generation_config.json").unlink(missing_ok=True)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    tiny.edit_json(folder / "tokenizer_config.json", eos_token=eos)
    tiny.edit_json(folder / "config.json", **({"eos_token_id": None} | config))
    return folder


def sessions(folder: Path, tmp_path: Path) -> list[runtime.Session]:
    """The same checkpoint in both formats, without weights."""
    to_gguf(folder, tmp_path / "o.gguf", "q8_0")
    conversion = prepare(open_folder(folder), tmp_path / "o", "onnx", "int4", jobs=2)
    convert(conversion, overwrite=True)
    bare = runtime.EngineOptions(vocabulary_only=True)
    return [runtime.open(tmp_path / "o.gguf", bare), runtime.open(tmp_path / "o", bare)]


ENDS = {
    "all say the same": ({"eos_token_id": [END, DOCUMENT_END]}, "<|im_end|>", {}, [END, DOCUMENT_END]),
    "config.json alone": (None, "<|endoftext|>", {"eos_token_id": [END, DOCUMENT_END]}, [DOCUMENT_END, END]),
    "a text's config": (None, "<|endoftext|>", {"text_config": {"eos_token_id": END}}, [DOCUMENT_END, END]),
    "generation_config.json before config.json": (
        {"eos_token_id": END}, "<|im_end|>", {"eos_token_id": START}, [END]
    ),
    "a generation_config.json without ends": ({"top_k": 1}, "<|im_end|>", {"eos_token_id": [START]}, [END, START]),
    "the tokenizer alone": (None, "<|im_end|>", {}, [END]),
    "the tokenizer beside": ({"eos_token_id": DOCUMENT_END}, "<|im_end|>", {}, [END, DOCUMENT_END]),
}  # fmt: skip


def resolved(folder: Path) -> Any:
    return resolve(folder, read_tokenizer(folder, 2048))


@pytest.mark.parametrize("case", ENDS)
def test_ends_are_transformers_and_the_tokenizers(case: str, folder: Path) -> None:
    from transformers import GenerationConfig

    generation, eos, config, expected = ENDS[case]
    said(folder, generation, eos, **config)
    assert list(resolved(folder).ends) == expected
    name = "generation_config.json" if generation else "config.json"
    theirs = GenerationConfig.from_pretrained(folder, config_file_name=name, _from_model_config=not generation)
    inner = config.get("text_config", {}).get("eos_token_id")  # a config class reads it, a dict does not
    named = theirs.eos_token_id if theirs.eos_token_id is not None else inner
    assert set(named if isinstance(named, list) else [named] if named is not None else []) <= set(expected)


def test_both_formats_end_at_the_same_tokens_and_nowhere_else(folder: Path, tmp_path: Path) -> None:
    """Words of Qwen-Coder that llama.cpp takes for ends by their texts are none where no file names them."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text()
        for n, word in enumerate(("<|fim_pad|>", "<|repo_name|>")):
            text = text.replace(f"<|reserved_{n}|>", word)
        (folder / name).write_text(text)
    tokens = json.loads((folder / "tokenizer.json").read_text())
    for i, word in ((2046, "<|fim_pad|>"), (2047, "<|repo_name|>")):
        tokens["added_tokens"].append(tokens["added_tokens"][0] | {"id": i, "content": word, "special": False})
    (folder / "tokenizer.json").write_text(json.dumps(tokens))
    tiny.edit_json(folder / "tokenizer_config.json", added_tokens_decoder=None)
    said(folder, None, "<|endoftext|>", eos_token_id=[END, DOCUMENT_END])
    for session in sessions(folder, tmp_path):
        with session:
            assert [i for i in range(2048) if session._engine.is_end(i)] == [DOCUMENT_END, END]
    genai = json.loads((tmp_path / "o" / "genai_config.json").read_text())
    assert genai["model"]["eos_token_id"] == [DOCUMENT_END, END]
    written = json.loads((tmp_path / "o" / "generation_config.json").read_text())
    assert written == {"eos_token_id": [DOCUMENT_END, END]}
    header = read_header(tmp_path / "o.gguf").metadata
    assert header["tokenizer.ggml.eos_token_id"].value == DOCUMENT_END
    assert header["sampan.tokenizer.end_tokens"].value == f"{DOCUMENT_END},{END}"


def test_answers_end_there(folder: Path, tmp_path: Path) -> None:
    said(folder, None, "<|endoftext|>", eos_token_id=[END, DOCUMENT_END])
    texts = []
    for session in sessions(folder, tmp_path):
        session.close()
    for path in (tmp_path / "o.gguf", tmp_path / "o"):
        with runtime.open(path) as session:
            prompt = session.tokenize_chat([{"role": "user", "content": "What is the capital of Peru?"}])
            texts.append(session.generate(prompt, Options(max_tokens=60)))
    assert texts == ["The capital of Peru is Lima."] * 2


def test_ends_without_a_role_are_told(folder: Path) -> None:
    tokenizer = read_tokenizer(folder, 2048)
    ends = [i for i, t in enumerate(tokenizer.types) if t == 1][100:103]
    said(folder, {"eos_token_id": ends, "num_beams": 4, "typical_p": 1.0})
    assert notes(resolved(folder), tokenizer) == [
        "generation_config.json: left out, since sampan does not do it: num_beams 4",
        f"llama.cpp's own programs do not end an answer at {tokenizer.tokens[ends[2]]}; sampan does",
    ]


GREEDY = Sampling()
SAMPLING = {
    "nothing": ({}, GREEDY),
    "greedy": ({"do_sample": False, "temperature": 0.6}, GREEDY),
    "no do_sample": ({"temperature": 0.6, "top_k": 20.0}, Sampling(top_k=20)),
    "no temperature": ({"do_sample": True}, Sampling(temperature=1.0, top_k=50)),
    "all": (
        {"do_sample": True, "temperature": 0.5, "top_k": 7, "top_p": 0.25, "min_p": 0.125, "repetition_penalty": 1.5},
        Sampling(temperature=0.5, top_k=7, top_p=0.25, min_p=0.125, repetition_penalty=1.5),
    ),
    "values that switch off": (
        {"do_sample": True, "top_k": -1, "top_p": 2, "temperature": 1}, Sampling(temperature=1.0, top_k=0)
    ),
    "no top_p at all": (
        {"do_sample": True, "temperature": 0.5, "top_p": 0.0}, Sampling(temperature=0.5, top_k=50, top_p=0.0)
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SAMPLING)
def test_sampling_defaults(case: str, folder: Path) -> None:
    generation, expected = SAMPLING[case]
    said(folder, generation)
    found = {f"general.sampling.{k}": str(v) for k, v in resolved(folder).sampling.items()}
    assert Sampling.from_metadata(found) == expected


def test_sampling_defaults_are_those_of_transformers(folder: Path) -> None:
    """What `generate` would make of the file: its mode, and its own defaults where a key is not there."""
    from transformers import GenerationConfig

    for generation, expected in SAMPLING.values():
        said(folder, generation)
        theirs = GenerationConfig.from_pretrained(folder)
        theirs.update(**GenerationConfig._get_default_generation_params(), defaults_only=True)
        assert (theirs.get_generation_mode() == "sample") == (expected.temperature > 0)
        if expected.temperature:
            assert theirs.temperature == expected.temperature
            assert max(0, theirs.top_k) == expected.top_k and min(1, theirs.top_p) == expected.top_p


def test_both_formats_have_the_same_defaults(folder: Path, tmp_path: Path) -> None:
    said(folder, None, do_sample=True, top_p=0.0, temperature=0.75)
    assert [s.sampling for s in sessions(folder, tmp_path)] == [Sampling(temperature=0.75, top_k=50, top_p=0.0)] * 2
    search = json.loads((tmp_path / "o" / "genai_config.json").read_text())["search"]
    assert search == {
        "max_length": 1024, "do_sample": True, "past_present_share_buffer": True, "temperature": 0.75, "top_k": 1
    }  # fmt: skip
    written = json.loads((tmp_path / "o" / "generation_config.json").read_text())
    assert written["do_sample"] is True and written["temperature"] == 0.75 and written["top_p"] == 0.0


def test_a_token_is_left_whatever_is_asked_for() -> None:
    logits = np.array([1.0, 3.0, 2.0], np.float32)
    for s in (
        Sampling(temperature=1.0, top_p=0.0),
        Sampling(temperature=1.0, min_p=2.0),
        Sampling(1.0, top_k=-3, top_p=0),
    ):
        assert {Sampler(s, [], seed).choose(logits) for seed in range(50)} == {1}


@pytest.mark.parametrize(
    ("generation", "message"),
    [
        ({"eos_token_id": [1, 2048]}, "eos_token_id: expected token ids below 2048, found [1, 2048]"),
        ({"eos_token_id": "x"}, "eos_token_id: expected token ids below 2048, found x"),
        ({"eos_token_id": [[1]]}, "eos_token_id: expected token ids below 2048, found [[1]]"),
        ({"eos_token_id": True}, "eos_token_id: expected token ids below 2048, found True"),
        ({"do_sample": "yes"}, "do_sample: expected true or false, found yes"),
        ({"temperature": "hot"}, "temperature: expected a number, found hot"),
        ({"temperature": -1}, "temperature: expected 0 or more, found -1"),
        ({"top_p": float("inf")}, "top_p: expected a number, found inf"),
        ({"top_p": -0.1}, "top_p: expected a number from 0 to 1, found -0.1"),
        ({"top_k": 20.5}, "top_k: expected a whole number, found 20.5"),
        ({"min_p": 1.5}, "min_p: expected a number from 0 to 1, found 1.5"),
        ({"repetition_penalty": 0}, "repetition_penalty: expected more than 0, found 0"),
    ],
)
def test_settings_that_mean_nothing(generation: dict[str, Any], message: str, folder: Path) -> None:
    said(folder, generation)
    with pytest.raises(InputError) as e:
        resolved(folder)
    assert str(e.value) == f"{folder / 'generation_config.json'}: {message}"


def test_no_end_at_all(folder: Path) -> None:
    said(folder, None)
    tokenizer = read_tokenizer(folder, 2048)
    del tokenizer.special["eos"]
    with pytest.raises(InputError, match="expected an eos_token among the added tokens, found none"):
        resolve(folder, tokenizer)


def named(folder: Path, how: str) -> None:
    """The same three templates in each of the places where transformers finds them."""
    config = folder / "tokenizer_config.json"
    texts = {"default": "D{{ messages[0].content }}", "tool_use": "T{{ tools[0].function.name }}", "rag": "R"}
    tiny.edit_json(config, chat_template=None)
    if how == "files":
        (folder / "chat_template.jinja").write_text(texts.pop("default"))
        (folder / "additional_chat_templates").mkdir()
        for name, text in texts.items():
            (folder / "additional_chat_templates" / f"{name}.jinja").write_text(text)
        return
    both = [{"name": n, "template": t} for n, t in texts.items()]
    tiny.edit_json(config, chat_template=both if how == "a list" else texts)


@pytest.mark.parametrize("how", ["files", "a list", "an object"])
def test_named_templates_are_kept(how: str, folder: Path, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    named(folder, how)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    texts = [tokenizer.apply_chat_template(ASK, tools=t, tokenize=False) for t in (None, TOOLS, [])[:2]]
    assert texts == ["Dx", "Tf"]
    rag = tokenizer.apply_chat_template(ASK, tools=TOOLS, chat_template="rag", tokenize=False)
    for session in sessions(folder, tmp_path):
        with session:
            assert sorted(session.chat_templates) == ["default", "rag", "tool_use"]
            assert [session.render_chat(ASK, t) for t in (None, TOOLS)] == texts
            assert session.render_chat(ASK, TOOLS, chat_template="rag") == rag == "R"
            ids = session.tokenize_chat(ASK, sanitize_control_tokens=True, chat_template="rag")
            assert ids == session.tokenize(rag)
            with pytest.raises(InputError, match="chat_template: expected one of default, rag, tool_use, found x"):
                session.render_chat(ASK, chat_template="x")
    header = read_header(tmp_path / "o.gguf").metadata
    assert header["tokenizer.chat_templates"].value == ["rag", "tool_use"]
    assert header["tokenizer.chat_template.tool_use"].value == "T{{ tools[0].function.name }}"
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path / "o")
    assert theirs.chat_template == tokenizer.chat_template


@pytest.mark.parametrize("name", ["chat_template.jinja", "chat_template.json"])
def test_a_template_in_a_file(name: str, folder: Path, tmp_path: Path) -> None:
    if name.endswith("json"):
        tiny.edit_json(folder / "tokenizer_config.json", chat_template=None)
    text = "F{{ eos_token }}{{ bos_token is defined }}"
    (folder / name).write_text(text if name.endswith("jinja") else json.dumps({"chat_template": text}))
    assert [s.render_chat(ASK) for s in sessions(folder, tmp_path)] == ["F<|im_end|>False"] * 2


def test_templates_for_other_conversations(folder: Path, gguf: Callable[[str, str], Path]) -> None:
    tiny.edit_json(folder / "tokenizer_config.json", chat_template=[{"name": "tool_use", "template": "T"}])
    with runtime.open(gguf("trained", "q8_0"), runtime.EngineOptions(vocabulary_only=True)) as session:
        session.metadata = {"tokenizer.chat_template.tool_use": "T", "tokenizer.chat_template.rag": "R"}
        assert session.render_chat(ASK, TOOLS) == "T"
        with pytest.raises(InputError) as e:
            session.render_chat(ASK)
        assert str(e.value) == (
            "tokenizer.chat_template: the artifact's templates (rag, tool_use) are for other conversations; "
            "use a plain prompt (--raw)"
        )


def test_too_many_templates(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    for n in range(101):
        (folder / "additional_chat_templates" / f"{n}.jinja").write_text("x")
    with pytest.raises(InputError) as e:
        read_templates(folder)
    assert str(e.value) == (
        f"{folder}: additional_chat_templates holds 101 templates, more than the 100 that are read; remove some"
    )


@pytest.mark.parametrize("value", [7, [7], [{"name": "default"}], {"default": 1}])
def test_what_is_no_template(value: Any, folder: Path) -> None:
    tiny.edit_json(folder / "tokenizer_config.json", chat_template=value)
    with pytest.raises(InputError, match=r"tokenizer_config.json: chat_template: neither a text nor named texts: "):
        read_templates(folder)


def test_variables_reach_the_template(gguf: Callable[[str, str], Path]) -> None:
    with runtime.open(gguf("trained", "q8_0"), runtime.EngineOptions(vocabulary_only=True)) as session:
        session.metadata = {"tokenizer.chat_template": "{{ enable_thinking }} {{ add_generation_prompt }}"}
        assert session.render_chat(ASK, enable_thinking=False) == "False True"
        assert session.render_chat(ASK, add_generation_prompt=False) == " False"
        assert session.tokenize_chat(ASK, enable_thinking=[1]) == session.tokenize("[1] True", around=False)
