"""The check of conversations: against transformers, whatever a template refuses or means to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from conftest import to_gguf
from validating import ONE, cache, run  # noqa: F401 - a fixture

from sampan import runtime
from sampan.checkpoint import open_folder
from sampan.errors import InputError
from sampan.validate import chat, conformance
from sampan.validate.artifact import open_artifact

LLAMA = (Path(__file__).parent / "templates" / "llama3.jinja").read_text()
ALL = "18 conversations, 8 with tools, rendered by transformers"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.FIXTURE, tmp_path / "m"))


def checked(folder: Path, artifact: Path) -> conformance.Check:
    found = {c.name: c for c in conformance.check_tokenizer(open_folder(folder), open_artifact(artifact), ["x"])}
    assert found["tokenizer"].findings == ()
    return found["chat template"]


def converted(folder: Path, template: str, out: Path) -> Path:
    (folder / "chat_template.jinja").write_text(template)
    to_gguf(folder, out, "q8_0")
    return out


@pytest.mark.slow
def test_a_refusal_is_a_fact_to_compare(folder: Path, tmp_path: Path) -> None:
    """Llama 3.x refuses parallel calls; a candidate that takes them is another model in a conversation."""
    added = {"bos_token": "<|endoftext|>"}
    tiny.edit_json(folder / "tokenizer_config.json", **added)
    same = converted(folder, LLAMA, tmp_path / "same.gguf")
    other = converted(folder, LLAMA.replace("m.tool_calls | length != 1", "false"), tmp_path / "other.gguf")
    (folder / "chat_template.jinja").write_text(LLAMA)
    check = checked(folder, same)
    assert check.findings == () and check.checked == f"{ALL}; 4 refused by both templates"
    taken = checked(folder, other).findings
    assert len(taken) == 4 and taken[0].startswith("conversation 7: expected a refusal, found ")
    (folder / "chat_template.jinja").write_text(LLAMA.replace("m.tool_calls | length != 1", "false"))
    assert checked(folder, same).findings[0].endswith("found a refusal: chat template: One call at a time, please!")


@pytest.mark.slow
def test_validate_measures_all_the_same(folder: Path, tmp_path: Path) -> None:
    """Conversations that a template refuses are no text; the run goes on and there is a verdict."""
    report = run(converted(folder, LLAMA.replace("bos_token", "eos_token"), tmp_path / "m.gguf"), folder, ONE)
    assert report["verdict"] in ("passed", "undecided")
    assert list(report["domains"]) == ["zh", "en", "code", "chat"]
    nothing = "{{ raise_exception('no') }}"
    report = run(converted(folder, nothing, tmp_path / "n.gguf"), folder, ONE)
    assert list(report["domains"]) == ["zh", "en", "code"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "chat template, in transformers: it takes more than 5 s of computing",
        ),
        ("{{ 'a' * 10**10 }}", "chat template, in transformers: it takes more than 400 MB of memory"),
    ],
)  # fmt: skip
def test_harm_ends_neither_the_run_nor_the_machine(
    template: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(InputError) as e:
        chat.reference_texts(folder, chat.items()[:1])
    assert str(e.value) == message


def test_without_transformers_it_says_so(
    folder: Path, gguf: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "find_spec", lambda name: None)
    check = checked(folder, gguf("trained", "q8_0"))
    assert check.findings == ()
    assert check.checked.endswith("rendered by sampan itself (by transformers with sampan[reference])")


def test_kimis_tools_are_types_on_both_sides(model: Callable[[str], Path], tmp_path: Path) -> None:
    """And a candidate whose tools are JSON differs in the conversations with tools alone."""
    folder = Path(shutil.copytree(model("trained-kimi"), tmp_path / "m"))
    template = (Path(__file__).parent / "templates" / "kimi_k2_5.jinja").read_text()
    same = converted(folder, template, tmp_path / "same.gguf")
    other = converted(folder, template.replace("tools_ts_str if tools_ts_str else ", ""), tmp_path / "other.gguf")
    (folder / "chat_template.jinja").write_text(template)
    assert checked(folder, same).findings == ()
    assert len(checked(folder, other).findings) == 8


def test_end_tokens_are_compared(folder: Path, gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    """A candidate that ends elsewhere has another key, whatever its roles say."""
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [2035, 2034]}))
    check = conformance.check_metadata(open_folder(folder), open_artifact(gguf("trained", "q8_0")))
    assert "sampan.tokenizer.end_tokens: expected 2035,2034, found 2035,2033" in check.findings


def test_a_template_of_megabytes(folder: Path, tmp_path: Path) -> None:
    """In a GGUF file, whose engine reads it: it is cut there and refused where it is used."""
    from validating import with_metadata

    to_gguf(folder, tmp_path / "m.gguf", "q8_0")
    bad: Any = with_metadata(tmp_path / "m.gguf", tmp_path / "bad.gguf", **{"tokenizer.chat_template": "a" * 9_000_000})
    with runtime.open(bad, runtime.EngineOptions(vocabulary_only=True)) as session:
        assert len(session.chat_templates["default"]) < 5_000_000
        with pytest.raises(
            InputError, match=r"^chat template: it has more than the 1000000 characters that are allowed"
        ):
            session.render_chat([{"role": "user", "content": "x"}])
