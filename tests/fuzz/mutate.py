"""Valid inputs made wrong, by a seeded random generator."""

from __future__ import annotations

import json
from random import Random
from typing import Any

NASTY: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 255, 65_537, 2**31 - 1, 2**31, 2**63, 2**64, 10**400, -(10**30),
    0.0, 0.5, 1.5, -2.0, 1e-300, 1e308, float("nan"), float("inf"),
    "", "x", "none", "1", "\0", "a\nb", "\x1b[2J", "\ud800", "\u202e", "首都", "../x", "/dev/zero", "{{", "{% for",
    "(" * 50, "[a-", "x" * 10_000,
    [], {}, [[]], [None], [0], [-1], ["x"], [1] * 1000, [[1, 2], [3]],
    {"": None}, {"a": 1}, {"type": "x"}, {"content": 1}, {"factor": 0},
)  # fmt: skip


def value(random: Random, document: Any) -> Any:
    """A copy of a JSON value with one to four changes."""
    document = json.loads(json.dumps(document))
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        document = _changed(random, document)
    return document


def _changed(random: Random, document: Any) -> Any:
    if not isinstance(document, (dict, list)) or not document or random.random() < 0.01:
        return random.choice(NASTY)
    at = document
    while True:  # a random walk to where something changes
        key = random.choice(list(at)) if isinstance(at, dict) else random.randrange(len(at))
        inside = at[key]
        if isinstance(inside, (dict, list)) and inside and random.random() < 0.8:
            at = inside
        else:
            break
    act = random.randrange(8)
    if act <= 2:
        at[key] = random.choice(NASTY)
    elif act == 3:
        at[key] = _near(random, at[key])
    elif act == 4:
        del at[key]
    elif act == 5 and isinstance(at, dict):
        at[random.choice((str(key) + "x", "type", "", "x" * 300))] = at.pop(key) if random.random() < 0.5 else at[key]
    elif act == 5:
        at.insert(random.randrange(len(at) + 1), at[key])
    elif act == 6:
        other = random.choice(list(at)) if isinstance(at, dict) else random.randrange(len(at))
        at[key], at[other] = at[other], at[key]
    else:
        at[key] = [at[key]] if random.random() < 0.5 else {"a": at[key]}
    return document


def _near(random: Random, found: Any) -> Any:
    """A value of the same kind close by."""
    if isinstance(found, bool) or found is None:
        return not found
    if isinstance(found, (int, float)):
        return random.choice((found + 1, found - 1, found * 2, -found, found / 3, str(found), float(found)))
    if isinstance(found, str) and found:
        at = random.randrange(len(found))
        return random.choice((found[:at], found[at:], found * 2, found.upper(), found[:at] + "�" + found[at:]))
    return [found, found]


def data(random: Random, raw: bytes) -> bytes:
    """Bytes with one to eight changes: flips, insertions, holes, repetitions, an early end."""
    out = bytearray(raw)
    for _ in range(random.choice((1, 1, 2, 8))):
        if not out:
            break
        at, length = random.randrange(len(out)), random.choice((1, 2, 4, 8, 100))
        act = random.randrange(7)
        if act <= 1:
            out[at] ^= 1 << random.randrange(8)
        elif act == 2:
            out[at] = random.choice((0, 1, 127, 128, 255, *b'"[]{},:\\'))
        elif act == 3:
            out[at : at + length] = random.choice((b"\xff", b"\0", b"\x7f")) * min(length, 8)
        elif act == 4:
            del out[at : at + length]
        elif act == 5:
            out[at:at] = out[at : at + length]
        else:
            del out[at:]
    return bytes(out)


def text(random: Random, document: Any) -> bytes:
    """A JSON document, changed as a value, and now and then as bytes."""
    raw = json.dumps(value(random, document)).encode()
    if random.random() < 0.2:
        raw = data(random, json.dumps(document).encode())
    return raw
