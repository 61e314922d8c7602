"""The documentation says what is there."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from sampan import registry

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_command_reference_is_current() -> None:
    generated = runpy.run_path(str(ROOT / "docs" / "generate.py"))["reference"]()
    assert (ROOT / "docs" / "commands.md").read_text() == generated, "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_and_commands_that_are_named_exist(page: Path) -> None:
    text = page.read_text()
    folders = "core|calibrate|cli|convert|quantize|runtime|tests|docs|benchmarks|examples"
    for path in re.findall(rf"`((?:{folders})/[\w./-]+\.\w+)`", text):
        assert (ROOT / path).exists(), path
    for command in re.findall(r"^\$? *sampan (\w+)", text, re.MULTILINE):
        assert command in registry.names("sampan.cli"), command
    for target in re.findall(r"`make ([\w-]+)`", text):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


def test_every_scheme_is_documented() -> None:
    page = (ROOT / "docs" / "convert.md").read_text()
    for scheme in registry.names("sampan.quantize.schemes"):
        assert f"`{scheme}`" in page, scheme
