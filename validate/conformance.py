"""Do the artifact's metadata, tokenizer and chat template say what the checkpoint says?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from sampan.chat_template import read_templates
from sampan.checkpoint import Checkpoint
from sampan.convert.formats._limits import Limit, limits
from sampan.convert.formats.gguf import expected_metadata
from sampan.convert.tokenizer import read_tokenizer
from sampan.errors import InputError, brief

from . import chat
from .artifact import Artifact
from .isolated import EngineDiedError, messages
from .tokenizer import Reader, open_tokenizer
from .windows import built_in

# What describes a file or its making, not the model; and what llama.cpp derives where it is missing.
DESCRIPTIVE = ("general.", "split.", "quantize.", "tokenizer.chat_template")
OPTIONAL = ("tokenizer.ggml.add_", "sampan.")


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


def check_metadata(checkpoint: Checkpoint, artifact: Artifact) -> Check:
    """Every key that decides what is computed, against what the converter would write."""
    expected = {k: v.value for k, v in expected_metadata(checkpoint, drafts=artifact.drafts).items()}
    wanted = {k: v for k, v in expected.items() if not k.startswith(DESCRIPTIVE) or k == "general.architecture"}
    findings = []
    for key, value in wanted.items():
        found = artifact.value(key)
        if found is None and key.startswith(OPTIONAL):
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
    asked = chat.items()
    try:
        task = {"task": "tokenize", "path": str(artifact.path), "texts": plain, "items": asked}
        said = list(messages(task))
    except (EngineDiedError, InputError) as e:
        return [Check("tokenizer", "nothing", (str(e),))]
    found = next(m["ids"] for m in said if "ids" in m)
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
    if not artifact.templates and not read_templates(checkpoint.folder):
        return checks
    answers = next(m["conversations"] for m in said if "conversations" in m)
    return [*checks, _chat(checkpoint, ours, known, asked, answers)]


def _chat(
    checkpoint: Checkpoint, ours: Reader, known: Sequence[Limit], asked: Sequence[chat.Item],
    answers: Sequence[dict[str, Any]],
) -> Check:  # fmt: skip
    """Conversations by the artifact's template and engine against those of the checkpoint. Both may refuse one."""
    try:
        texts, renderer = chat.reference_texts(checkpoint.folder, asked)
    except InputError as e:
        return Check("chat template", "nothing", (str(e),))
    problems, refused = [], 0
    for n, (text, got) in enumerate(zip(texts, answers, strict=True), 1):
        if text is None:
            refused += "refused" in got
            if "refused" not in got:
                problems.append(f"conversation {n}: expected a refusal, found {len(got['ids'])} tokens")
            continue
        wanted = ours.encode(text, around=False)
        if "refused" in got:
            problems.append(f"conversation {n}: expected {len(wanted)} tokens, found a refusal: {got['refused']}")
        elif wanted != got["ids"] and (text != got["text"] or _without(text, known) == text):
            problems.append(f"conversation {n}: {_differ(wanted, got['ids'])}")
    what = f"{len(texts)} conversations, {sum('tools' in i for i in asked)} with tools, rendered {renderer}"
    if refused:
        what += f"; {refused} refused by both templates"
    return Check("chat template", what, tuple(problems))


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
