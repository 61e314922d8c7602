"""sampan carries big open models to small devices.

`sampan.open` and `sampan.inspect` are functions; `sampan.api` has them and `convert` and `validate`, whose names are
those of packages here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sampan.api import inspect, open

    __version__: str

__all__ = ["__version__", "inspect", "open"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """PEP 562: nothing is imported before it is asked for."""
    if name == "__version__":
        from importlib.metadata import version

        return version("sampan")
    if name in ("api", "inspect", "open"):
        from importlib import import_module

        api = import_module("sampan.api")
        return api if name == "api" else getattr(api, name)
    raise AttributeError(f"module 'sampan' has no attribute {name!r}")
