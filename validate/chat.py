"""Is a conversation with an artifact the one that transformers would have with the checkpoint?

transformers renders the checkpoint's template where it is installed, in a process with the limits of ours.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sampan.chat_template import choose, read_templates, special_tokens
from sampan.errors import InputError
from sampan.files import read_json, read_json_if_there
from sampan.runtime.chat import Renderer, render, with_types

from .windows import conversations

Item = dict[str, Any]  # the arguments of Session.render_chat
FILES = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "additional_chat_templates")
SECONDS = 5.0  # of computing for all conversations
_peer = Renderer("from sampan.validate.chat import serve; serve()", SECONDS)


def items() -> list[Item]:
    """The package's conversations whole, and up to the assistant's last turn."""
    whole = [{**c, "add_generation_prompt": False} for c in conversations()]
    return [*whole, *({**c, "messages": c["messages"][:-1], "add_generation_prompt": True} for c in whole)]


def own_text(templates: dict[str, str], special: Mapping[str, str], item: Mapping[str, Any]) -> str | None:
    """A conversation as our runtime has it; None where its template refuses it or there is none."""
    tools = item.get("tools")
    try:
        template = choose(templates, tools=tools is not None)
        prompt = item.get("add_generation_prompt", False)
        return render(template, item["messages"], tools, special, add_generation_prompt=prompt)
    except InputError:
        return None


def reference_texts(folder: Path, asked: Sequence[Item]) -> tuple[list[str | None], str]:
    """The checkpoint's texts, None where it refuses one, and who rendered them. Raises InputError at a limit."""
    templates = read_templates(folder)
    if find_spec("transformers") is None:
        special = special_tokens(folder)
        own_texts = [own_text(templates, special, i) for i in asked]
        return own_texts, "by sampan itself (by transformers with sampan[reference])"
    every = "".join(templates.values())
    ready = []
    for item in asked:
        tools, own = with_types(every, item.get("tools"))
        ready.append({**item, **own, "tools": tools})
    answer = _peer.ask(json.dumps({"folder": str(folder.absolute()), "items": ready}))
    if "text" not in answer:
        raise InputError(f"chat template, in transformers: {answer.get('limit') or answer.get('refused')}")
    texts: list[str | None] = json.loads(answer["text"])
    return texts, "by transformers"


def serve() -> None:
    """The process that is asked: transformers' tokenizer with a checkpoint's template and no vocabulary."""
    from transformers import PreTrainedTokenizerFast

    from sampan import jinja

    def write(request: dict[str, Any]) -> str:
        tokenizer = _tokenizer(Path(request["folder"]), PreTrainedTokenizerFast)
        return json.dumps([_text(tokenizer, item) for item in request["items"]])

    jinja.serve(write, SECONDS)


def _tokenizer(folder: Path, kind: Any) -> Any:
    """Its class and its code stay behind: only what decides on conversations is read."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for file in FILES:
            if (folder / file).exists():
                (place / file).symlink_to(folder / file)
        config = read_json_if_there(folder / FILES[0])
        config = {k: v for k, v in config.items() if k not in ("tokenizer_class", "auto_map")}
        (place / FILES[0]).unlink(missing_ok=True)
        (place / FILES[0]).write_text(json.dumps(config))
        (place / "tokenizer.json").write_text(json.dumps(EMPTY))
        tokenizer = kind.from_pretrained(place)
    processor = folder / "chat_template.json"
    if tokenizer.chat_template is None and processor.exists():  # AutoProcessor's, which stands for the tokenizer
        tokenizer.chat_template = read_json(processor)["chat_template"]
    return tokenizer


EMPTY = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}


def _text(tokenizer: Any, item: Item) -> str | None:
    try:
        text: str = tokenizer.apply_chat_template(item.pop("messages"), tokenize=False, **item)
    except (MemoryError, RecursionError):
        raise
    except Exception:  # whatever a template can do wrong, and no template
        return None
    return text
