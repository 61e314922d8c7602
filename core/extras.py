"""What to install for a module that is missing: the extras of pyproject.toml, as the installed package names them."""

from __future__ import annotations

import re


def advice(module: str) -> str:
    """The command that brings a module, such as `onnxruntime`; of no extra, that which brings all that is declared."""
    from importlib.metadata import requires

    name = _normal(module.split(".")[0])
    for line in requires("sampan") or ():
        found = re.match(r"([\w.-]+).*extra == [\"'](\w+)[\"']", line)
        if found and found[2] not in ("test", "lint") and re.match(rf"{name}(-python)?$", _normal(found[1])):
            return f'pip install "sampan[{found[2]}]"'
    return "pip install --force-reinstall sampan"


def installed(distribution: str) -> str | None:
    """The version of a package, None where it is not there."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
