"""Which modules a stranger's lists mean: names, and expressions that run on RE2, which cannot backtrack."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

from sampan.errors import InputError, brief

MAX_PATTERN, MAX_PATTERNS, MAX_NAME = 1000, 20_000, 1000  # characters of one, of all in a list, of a module's name
MAX_SECONDS = 1.5  # of a processor for a list; 60 usual patterns take 0.2 for the 70,000 modules of the largest models
EXPRESSION = re.compile(r"[\\^$*+?{}\[\]|()]")  # what no name of a module has
OTHERWISE = re.compile(r"\{,|\[\[:|\\[QC]")  # RE2 takes these, and reads something else than Python
Matches = Callable[[str], bool]


def named(names: Iterable[str]) -> Matches:
    """Whether a module is one of `names` or lies in one: `lm_head`, `mlp.gate`, `model.layers.0`."""
    listed = [f".{n}." for n in names]
    return lambda module: any(n in f".{module}." for n in listed)


def matcher(patterns: Sequence[str], where: str) -> Matches:
    """Whether one of the expressions matches the beginning of a module's name, as `re.match` does."""
    found = _compiled(patterns, where)
    if found is None:
        return lambda module: False
    return _bounded(lambda module: found.match(_utf8(module)) is not None, where)


def wildcards(names: Sequence[str], where: str) -> Matches:
    """Whether a module is one of `names`, lies in one, or matches one with `*` in it, as `fnmatch` does."""
    found = _compiled([".*".join(map(re.escape, n.split("*"))) for n in names if "*" in n], where)
    inside = named(n for n in names if "*" not in n)
    if found is None:
        return inside
    return _bounded(lambda module: inside(module) or found.fullmatch(_utf8(module)) is not None, where)


def skipper(names: Sequence[str], where: str) -> Matches:
    """The list `modules_to_not_convert`: names of modules, ends of names, or expressions for a name up to a dot or its
    end. Source: `should_convert_module` in transformers' quantizers/quantizers_utils.py.
    """
    literal = [n for n in names if n and not EXPRESSION.search(n)]
    found = _compiled([n for n in names if EXPRESSION.search(n)], where)
    inside, ends = named(literal), tuple(literal)

    def plain(module: str) -> bool:
        return inside(module) or module.endswith(ends)

    def matches(module: str) -> bool:
        stops = [i for i in range(len(module) + 1) if module[i : i + 1] in ("", ".") or module[i - 1 : i] == "."]
        return plain(module) or any(found.fullmatch(_utf8(module[:i])) is not None for i in stops)

    return plain if found is None else _bounded(matches, where)


def _bounded(matches: Matches, where: str) -> Matches:
    """The same, refused where names are long or all of it takes long: RE2 needs time for pattern × name × modules."""
    spent = 0.0

    @cache
    def bounded(module: str) -> bool:
        nonlocal spent
        if len(module) > MAX_NAME:
            raise InputError(f"{where}: the module {brief(module)} has a name of more than {MAX_NAME} characters")
        start = time.thread_time()
        found = matches(module)
        spent += time.thread_time() - start
        if spent > MAX_SECONDS:
            raise InputError(f"{where}: its patterns take too long for so many modules; write simpler ones")
        return found

    return bounded


def _compiled(patterns: Sequence[str], where: str) -> Any:
    """One expression for all of `patterns`, or None without any."""
    import re2

    options = re2.Options()
    options.log_errors = False
    options.never_capture = True  # every nested group would cost as much time again
    if sum(map(len, patterns)) > MAX_PATTERNS:
        raise InputError(f"{where}: more than {MAX_PATTERNS} characters of patterns; write fewer, or name the modules")
    for text in patterns:
        _check(text, options, where)
    together = "|".join(f"(?:{p})" for p in patterns)
    return re2.compile(_utf8(together), options) if patterns else None


def _check(text: str, options: Any, where: str) -> None:
    """Refuse an expression that is too long, that RE2 cannot run, or that it would read otherwise."""
    import re2

    shown = f"{where}: the pattern {brief(text)}"
    if len(text) > MAX_PATTERN:
        raise InputError(f"{shown} is too long; write it in at most {MAX_PATTERN} characters")
    if OTHERWISE.search(text):
        raise InputError(f"{shown} means something else to RE2, which runs it; write it otherwise")
    try:
        re2.compile(_utf8(text), options)
    except re2.error as e:
        reason = brief(e.args[0].decode(errors="replace") if isinstance(e.args[0], bytes) else str(e))
        hint = "write it without look-around, back-references and large counts"
        raise InputError(f"{shown} cannot be run by RE2 ({reason}); {hint}") from None


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")
