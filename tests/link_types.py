"""Lay the folders out as the package they are installed as, by links: mypy does not see the editable install.

python tests/link_types.py build/types
"""

from __future__ import annotations

import shutil
import sys
import tomllib
from pathlib import Path


def main(target: Path) -> None:
    root = Path(__file__).parents[1]
    mapping = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    package = target / "sampan"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    for file in (root / mapping["sampan"]).iterdir():
        (package / file.name).symlink_to(file)
    for name, folder in mapping.items():
        if name.count(".") == 1:
            (package / name.split(".")[1]).symlink_to(root / folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
