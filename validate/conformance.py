"""Do the artifact's metadata, tokenizer and chat template say what the checkpoint says?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from sampan.checkpoint import Checkpoint
from sampan.convert.formats._limits import Limit, limits
from sampan.convert.formats.gguf import expected_metadata
from sampan.convert.tokenizer import Tokenizer, read_tokenizer
from sampan.errors import InputError, brief
from sampan.runtime.chat import render

from .artifact import Artifact
from .isolated import EngineDiedError, messages
from .tokenizer import open_tokenizer
from .windows import built_in, conversations

# What describes a file or its making, not the model; and what llama.cpp derives where it is missing.
DESCRIPTIVE = ("general.", "split.", "quantize.", "tokenizer.chat_template")


@dataclass(frozen=True, slots=True)
class Check:
    """`findings` is empty when the check holds; `checked` says what was looked at, or why nothing was.

    `known`: differences that the engine is known to make, which were announced when the file was written.
    """

    name: str
    checked: str
    findings: tuple[str, ...]
    compared: bool = True
    known: tuple[str, ...] = ()

    @property
    def result(self) -> str:
        """As the reports print it."""
        if not self.compared:
            return "not compared"
        count = len(self.findings)
        if count:
            return f"{count} finding{'s' if count > 1 else ''}"
        return f"{len(self.known)} known limit{'s' if len(self.known) > 1 else ''}" if self.known else "equal"


def special_texts(t: Tokenizer) -> dict[str, str]:
    """The texts that a template may ask for."""
    return {f"{role}_token": t.tokens[t.special[role]] if role in t.special else "" for role in ("bos", "eos")}


def default_template(template: str | list[dict[str, str]] | None) -> str | None:
    """The template that a conversation is rendered with where a checkpoint names several."""
    if isinstance(template, list):
        return next((t["template"] for t in template if t["name"] == "default"), None)
    return template


def conversation_text(template: str, conversation: Mapping[str, Any], special: Mapping[str, str]) -> str:
    """A whole conversation, its last answer included."""
    return render(template, conversation["messages"], conversation.get("tools"), special, add_generation_prompt=False)


def check_metadata(checkpoint: Checkpoint, artifact: Artifact) -> Check:
    """Every key that decides what is computed, against what the converter would write."""
    expected = {k: v.value for k, v in expected_metadata(checkpoint).items()}
    wanted = {k: v for k, v in expected.items() if not k.startswith(DESCRIPTIVE) or k == "general.architecture"}
    findings = []
    for key, value in wanted.items():
        found = artifact.value(key)
        if found is None and key.startswith("tokenizer.ggml.add_"):
            continue
        if isinstance(value, list) and isinstance(found, list):
            if value != found:
                at = next((i for i, (a, b) in enumerate(zip(value, found, strict=False)) if a != b), None)
                what = f"{len(found)} values" if at is None else f"{brief(found[at])} at {at}"
                should = f"{len(value)} values" if at is None else brief(value[at])
                findings.append(f"{key}: expected {should}, found {what}")
        elif not _same(value, found):
            findings.append(f"{key}: expected {brief(value)}, found {brief(found)}")
    return Check("metadata", f"{len(wanted)} keys", tuple(findings))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, (int, float)):
        return abs(a - b) <= 1e-6 * abs(a)
    return bool(a == b)


def check_tokenizer(checkpoint: Checkpoint, artifact: Artifact, texts: Sequence[str]) -> list[Check]:
    """Ids of the artifact's engine against the checkpoint's, for texts and for conversations in its own template."""
    ours = open_tokenizer(checkpoint.folder, artifact.vocab)
    nasty: list[str] = json.loads(built_in("nasty.json"))
    control = ["<|im_end|> <|endoftext|> a<|im_start|>b"]
    plain = [(t, True, True) for t in (*texts, *nasty)] + [(t, False, True) for t in control]
    tokenizer = read_tokenizer(checkpoint.folder, artifact.vocab)
    known = limits(tokenizer) if artifact.format == "gguf" else []
    rest = [(_without(t, known), s, a) for t, s, a in plain if _without(t, known) != t]
    plain += rest  # what is left of a text without what the engine is known to read otherwise must be equal
    expected = [ours.encode(t, special=s) for t, s, _ in plain]
    template = default_template(tokenizer.chat_template)
    special = special_texts(tokenizer)
    rendered: list[tuple[str, str | None]] = []
    if template is not None:
        for conversation in conversations():
            text = conversation_text(template, conversation, special)
            rendered.append((text, _try(artifact.template, conversation, special)))
    chat = [(b, True, False) for _, b in rendered if b is not None]
    try:
        ids = next(m["ids"] for m in messages(_task(artifact, plain + chat)) if "ids" in m)
    except (EngineDiedError, InputError) as e:
        return [Check("tokenizer", "nothing", (str(e),))]
    found, chat_ids = ids[: len(plain)], iter(ids[len(plain) :])
    differ = [(t, a, b) for (t, *_), a, b in zip(plain, expected, found, strict=True) if a != b]
    unequal = {t for t, _, _ in differ}
    findings = [
        f"{brief(t, 40)!r}: {_differ(a, b)}"
        for t, a, b in differ if _without(t, known) == t or _without(t, known) in unequal
    ]  # fmt: skip
    tokens = sum(map(len, expected))
    announced = []
    for limit in known:
        touched = sum(_touched(a, b) for t, a, b in differ if limit.pattern.search(t))
        if touched:
            share = f"{100 * touched / tokens:.2g} % of the positions"
            announced.append(f"known limit of llama.cpp: it {limit.what} ({share} here)")
    checks = [Check("tokenizer", f"{len(plain)} texts, {tokens} tokens", tuple(findings), known=tuple(announced))]
    if template is None:
        return checks
    problems = []
    for n, (text, other) in enumerate(rendered, 1):
        wanted = ours.encode(text, around=False)
        got = None if other is None else next(chat_ids)
        if got != wanted:
            reason = "the artifact has no template that renders it" if got is None else _differ(wanted, got)
            problems.append(f"conversation {n}: {reason}")
    tools = sum("tools" in c for c in conversations())
    what = f"{len(rendered)} conversations, {tools} with tools"
    return [*checks, Check("chat template", what, tuple(problems))]


def _task(artifact: Artifact, texts: Sequence[tuple[str, bool, bool]]) -> dict[str, Any]:
    return {"task": "tokenize", "path": str(artifact.path), "texts": texts}


def _try(template: str | None, conversation: Mapping[str, Any], special: Mapping[str, str]) -> str | None:
    try:
        return None if template is None else conversation_text(template, conversation, special)
    except InputError:
        return None


def _without(text: str, known: Sequence[Limit]) -> str:
    """A text without what the engine is known to read otherwise."""
    for limit in known:
        text = limit.pattern.sub("", text)
    return text


def _touched(a: Sequence[int], b: Sequence[int]) -> int:
    """How many of the tokens `a` are not found in `b`, in their order."""
    start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    same = next((i for i, (x, y) in enumerate(zip(a[::-1], b[::-1], strict=False)) if x != y), 0)
    left, right = a[start : max(start, len(a) - same)], b[start : max(start, len(b) - same)]
    if len(left) * len(right) > 10**7:  # too long to be compared in detail
        return len(left)
    matcher = SequenceMatcher(None, left, right, autojunk=False)
    return max(1, len(left) - sum(block.size for block in matcher.get_matching_blocks()))


def _differ(a: Sequence[int], b: Sequence[int]) -> str:
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return f"token {at}: expected {a[at : at + 3]} of {len(a)}, found {list(b[at : at + 3])} of {len(b)}"
