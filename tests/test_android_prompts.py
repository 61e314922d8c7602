"""What the demo app's engine makes of a conversation against sampan.runtime: texts and ids, by real templates, too."""

from __future__ import annotations

import os
import shutil
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from android_programs import Engine, user
from conftest import to_gguf
from test_chat import CONVERSATIONS, TEMPLATES, VARIABLES
from test_sentencepiece import LLAMA, NAMES, NASTY, TEXTS, write_json

from sampan import runtime
from sampan.errors import InputError
from sampan.gguf import Kind, Value, encode, read_header

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
CACHE = Path(os.environ.get("SAMPAN_ANDROID") or ROOT / "build" / "android-cache")
# the makers' own, as llama.cpp's sources hold them, which the build of the engine unpacks
PUBLISHED = "unpacked/llama-cpp-python-*/*/vendor/llama.cpp/models/templates/{}.jinja"
REAL = (
    "Qwen-Qwen2.5-7B-Instruct", "Qwen-QwQ-32B", "Qwen-Qwen3-0.6B", "Qwen3-Coder", "Qwen3.5-4B", "moonshotai-Kimi-K2",
    "Kimi-K2-Instruct", "Kimi-K2-Thinking", "Kimi-K3", "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
)  # fmt: skip
REFUSED = {  # of the project's own templates, those that llama.cpp's renderer does not render, and what it says
    "minimax": "Callee is not a function: got Undefined (hint: 'index')",
    "smollm3": "sets a variable in a generation block",
}
TALKS = {  # what the app sends: texts alone
    name: messages
    for name, messages in CONVERSATIONS.items()
    if all(k in ("role", "content", "reasoning_content") and isinstance(v, str) for m in messages for k, v in m.items())
}
Gguf = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine() as e:
        yield e


def with_template(path: Path, template: str, out: Path) -> Path:
    header = read_header(path)
    keys = header.metadata | {"tokenizer.chat_template": Value(Kind.STRING, template)}
    out.write_bytes(encode(keys, list(header.tensors)) + path.read_bytes()[header.data_start :])
    return out


def compare(engine: Engine, path: Path, refusal: str | None = None) -> int:
    """How many prompts were equal; `refusal`: what the engine says of each that the runtime renders."""
    equal = 0
    assert engine.ask("load", path=str(path), threads=1)["nfc"] is True
    with runtime.open(path, runtime.EngineOptions(vocabulary_only=True)) as session:
        for messages in TALKS.values():
            for variables in VARIABLES:
                if "bos_token" not in variables:  # undefined names are empty texts for llama.cpp, errors for jinja
                    continue
                sent = [{k: unicodedata.normalize("NFC", v) for k, v in m.items()} for m in messages]
                said = engine.ask("render", messages=sent, variables=variables)
                if refusal is not None:
                    assert said["code"] == "template" and refusal in said["message"], said
                    continue
                try:
                    text = session.render_chat(messages, **variables)
                except InputError as e:  # the template's own refusal
                    assert said["code"] == "template", said
                    assert str(e).removeprefix("chat template: ") in said["message"], said
                    continue
                assert (said["event"], said["text"]) == ("ids", unicodedata.normalize("NFC", text)), said
                assert said["ids"] == session.tokenize(text, around=False)
                equal += 1
    return equal


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_are_those_of_the_runtime(name: str, engine: Engine, gguf: Gguf, tmp_path: Path) -> None:
    """What the engine does not render it refuses by name."""
    path = with_template(gguf("trained", "q8_0"), TEMPLATES[name], tmp_path / "m.gguf")
    assert bool(compare(engine, path, REFUSED.get(name))) == (name not in REFUSED)
    assert len(TALKS) >= 4


@pytest.mark.parametrize("name", REAL)
def test_prompts_by_real_templates_of_qwen_and_kimi(name: str, engine: Engine, gguf: Gguf, tmp_path: Path) -> None:
    found = list(CACHE.glob(PUBLISHED.format(name)))
    if not found:
        assert not os.environ.get("CI"), f"{CACHE}: no template {name}"
        pytest.skip("make android-demo unpacks llama.cpp's sources")
    path = with_template(gguf("trained", "q8_0"), found[0].read_text(), tmp_path / "m.gguf")
    assert compare(engine, path) == 2 * len(TALKS)


@pytest.mark.parametrize(("config", "steps"), [(LLAMA, "prepend"), (LLAMA, "first"), (NAMES, "always")])
def test_spaces_are_where_the_tokenizer_puts_them(
    config: dict[str, Any], steps: str, engine: Engine, model: Callable[[str], Path], tmp_path: Path
) -> None:
    """llama.cpp has no way for some, so that the file itself tells of them."""
    folder, path = tmp_path / "model", tmp_path / "m.gguf"
    shutil.copytree(model("llama-linear"), folder)
    (folder / "tokenizer.json").unlink()
    write_json(folder, config, steps)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    to_gguf(folder, path, "q8_0")
    assert engine.ask("load", path=str(path), threads=1)["event"] == "loaded"
    with runtime.open(path, runtime.EngineOptions(vocabulary_only=True)) as session:
        for text in TEXTS[len(NASTY) :]:
            said = engine.ask("render", messages=user(text))
            assert said["ids"] == session.tokenize(text, around=False), text
        assert session.metadata["sampan.tokenizer.prefix"] == {"always": "missing"}.get(steps, "first")
    raw, key = path.read_bytes(), b"sampan.tokenizer.prefix"
    at = raw.index(b"first" if steps != "always" else b"missing", raw.index(key))
    path.write_bytes(raw[:at] + b"third" + raw[at + 5 :])
    said = engine.ask("load", path=str(path))
    assert said["code"] == "load" and key.decode() in said["message"], said
