"""The frame holds: packages as declared, imports only where they are allowed, nothing heavy at start."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from sampan import registry
from sampan.errors import InputError

ROOT = Path(__file__).parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
FOLDERS = {name: ROOT / folder for name, folder in SETUPTOOLS["package-dir"].items()}

ALLOWED = {
    "core": set(),
    "quantize": {"core"},
    "runtime": {"core"},
    "convert": {"core", "quantize"},
    "validate": {"core", "quantize", "convert", "runtime"},
    "calibrate": {"core", "quantize", "convert", "runtime", "validate"},
    "cli": {"core", "quantize", "convert", "runtime", "validate", "calibrate"},
}
FACE = {
    ROOT / "core" / "api.py",
    ROOT / "core" / "__init__.py",
}  # the rest only when it is called
HEAVY = {
    "torch",
    "transformers",
    "llama_cpp",
    "onnxruntime",
    "huggingface_hub",
    "gguf",
    "jinja2",
    "prompt_toolkit",
    "tqdm",
    "yaml",
    "tokenizers",
    "re2",
    "starlette",
    "uvicorn",
    "llguidance",
}


def test_the_package_list_is_what_is_on_disk() -> None:
    on_disk = {
        ".".join(["sampan", *(p for p in init.parent.relative_to(ROOT).parts if p != "core")])
        for folder in ALLOWED
        for init in (ROOT / folder).rglob("__init__.py")
    }
    assert set(SETUPTOOLS["packages"]) == on_disk == set(FOLDERS)


def imports(path: Path) -> list[tuple[ast.AST, str, bool]]:
    """(statement, absolute module or the folder a relative import ends in, at module level) of a file."""
    tree = ast.parse(path.read_text())
    top = set(tree.body)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node, alias.name, node in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            parts = path.relative_to(ROOT).parts[: -node.level]
            assert parts, f"{path}: a relative import that leaves its folder"
            found.append((node, "." + "/".join(parts), node in top))
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{a.name}" for a in node.names] if node.module == "sampan" else [node.module]
            found += [(node, str(name), node in top) for name in names]
    return found


@pytest.mark.parametrize("folder", ALLOWED)
def test_folders_import_only_what_they_may(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        for _, module, top in imports(path):
            where = f"{path.relative_to(ROOT)}: {module}"
            assert module.split(".")[0] not in ALLOWED, f"{where}: write sampan.…"
            if module.startswith("sampan."):
                part = module.split(".")[1]
                lazily = ALLOWED["cli"] if path in FACE and not top else set()
                assert (part if part in ALLOWED else "core") in ALLOWED[folder] | {folder} | lazily, where
            if top:
                assert module.split(".")[0] not in HEAVY, f"{where}: import it inside the function that needs it"


@pytest.mark.parametrize(
    "module",
    [
        "sampan",
        "sampan.api",
        "sampan.cli",
        "sampan.runtime",
        "sampan.runtime.server.app",
        "sampan.convert.conversion",
        "sampan.hub",
        "sampan.quantize",
    ],
)
def test_importing_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & {HEAVY!r}))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == ""


def test_help_needs_no_numpy() -> None:
    code = (
        "import sys; sys.argv = ['sampan', '--help']\nfrom sampan.cli import main\n"
        "try: main()\nexcept SystemExit: pass\nassert 'numpy' not in sys.modules"
    )
    out = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert "convert" in out and "inspect" in out and "run" in out


def test_an_unknown_entry_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"--quant: expected one of a16w4, a16w8, bf16, f16, .*, found 'q9'"):
        registry.load("sampan.quantize.schemes", "q9", "SCHEME", "--quant")


def calls(*names: str, methods: bool = False) -> set[str]:
    """Files of the product that call a function of one of these names; `methods`: as a method of something."""
    found = set()
    for folder in ALLOWED:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                name = getattr(node.func, "attr" if methods else "id", "") if isinstance(node, ast.Call) else ""
                if name in names:
                    found.add(str(path.relative_to(ROOT)))
    return found


def test_small_files_are_read_in_one_way() -> None:
    """By core/files.py, which bounds them; methods of Path read only what is the system's, the package's or our own."""
    assert calls("read_text", "read_bytes", methods=True) <= {
        "cli/_export.py", "convert/environments.py", "convert/exporters/_optimum_inside.py", "core/jinja.py",
        "runtime/engines/_process.py", "runtime/server/app.py", "calibrate/text.py", "validate/windows.py",
        "convert/formats/onnx/_rknn_inside.py",
    }  # fmt: skip


def test_text_leaves_in_few_places() -> None:
    """By cli/_out.py, which escapes it; the others print a model's text, their own words, or escape it themselves."""
    own = {
        "cli/run.py", "cli/_answer.py", "cli/_converse.py", "cli/_reader.py", "cli/push.py", "cli/_terminal.py",
        "cli/__init__.py", "cli/_progress.py",
    }  # fmt: skip
    found = calls("echo", "secho", methods=True) | calls("print")
    assert {p for p in found if p.startswith("cli/")} - own == {"cli/_out.py"}
