"""Find the files of a plug-in folder: a file's name is its entry, there is no list to edit."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from .errors import wrong


def names(package: str) -> list[str]:
    """The entries of a package such as `sampan.convert.families`, sorted, without importing them."""
    module = importlib.import_module(package)
    return sorted(m.name for m in pkgutil.iter_modules(module.__path__) if not m.name.startswith("_"))


def load(package: str, name: str, export: str, what: str) -> Any:
    """`export` of the entry `name`; an unknown name is refused with the list of known ones.

    `what` is the noun for the message, such as "scheme".
    """
    known = names(package)
    if name not in known:
        raise wrong(what, f"one of {', '.join(known)}", repr(name))
    return getattr(importlib.import_module(f"{package}.{name}"), export)


def load_all(package: str, export: str) -> dict[str, Any]:
    """`export` of every entry, by name."""
    return {n: getattr(importlib.import_module(f"{package}.{n}"), export) for n in names(package)}
