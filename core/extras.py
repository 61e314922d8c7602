"""What to install for a module that is missing: the extras of pyproject.toml, as the installed package names them."""

from __future__ import annotations

import re


def advice(module: str) -> str:
    """The command that brings a module, such as `onnxruntime`; of no extra, that which brings all that is declared."""
    name = _normal(module.split(".")[0])
    for extra, packages in extras().items():
        if any(re.match(rf"{name}(-python)?$", _normal(package)) for package in packages):
            return install(extra)
    return "pip install --force-reinstall sampan"


def install(extra: str) -> str:
    """The command that brings an extra."""
    return f'pip install "sampan[{extra}]"'


def extras() -> dict[str, list[str]]:
    """The packages of each extra that a user may want."""
    from importlib.metadata import requires

    found: dict[str, list[str]] = {}
    for line in requires("sampan") or ():
        parts = re.match(r"([\w.-]+).*extra == [\"'](\w+)[\"']", line)
        if parts and parts[2] not in ("test", "lint"):
            found.setdefault(parts[2], []).append(parts[1])
    return found


def installed(distribution: str) -> str | None:
    """The version of a package, None where it is not there."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
