"""sampan on aarch64, compared with this processor. Run by `make test-arm`, after machine.py has made the machine.

Its name keeps it out of `make test`: it wants what machine.py makes, and no other processor has it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tiny
from arm import both, machine
from conftest import run_cli, to_gguf
from numpy.typing import NDArray
from onnx_peer import to_onnx

from sampan import registry, runtime
from sampan.errors import InputError
from sampan.validate.artifact import Stored, f32_pieces, open_artifact

pytestmark = pytest.mark.timeout(1200)
BOTH = str(Path(both.__file__))
FORMATS = ("gguf", "onnx")
ROUNDED_ONCE = {"f32", "f16", "bf16", "q8_0"}  # number types whose encoding adds no products
SAME_ERROR = 5e-3  # of the weights, as a share; q2_k is 3e-3 better on ARM by chance
FAR = 1.0  # logits of 4-bit models, whose activations are rounded to 8 bits: in another order, to other integers
# llama.cpp's kernels differ by processor, so they are tested on both; ONNX Runtime's once
RUNTIME = {
    "i8mm": ("test_runtime.py", "test_answers.py", "test_runtime_onnx.py"),
    "dotprod": ("test_runtime.py",),
}
NOT_THERE = ("test_runtime_onnx.py::test_experts_are_those_of_llama_cpp",)  # torch and transformers make its models


def on(cpu: str, *command: str, status: int = 0, first: Path | None = None, **more: str) -> str:
    """Run a command of the guest's Python on one of machine.CPUS; its standard output."""
    done = subprocess.run(
        [str(machine.PYTHON), *command],
        capture_output=True, text=True, timeout=900, stdin=subprocess.DEVNULL, cwd=both.TESTS.parent,
        env=machine.guest(cpu, first, **more),
    )  # fmt: skip
    assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def libraries(cpu: str) -> dict[str, str]:
    """The environment in which llama-cpp-python takes what is compiled for a processor; its wheel has dotprod."""
    return {"LLAMA_CPP_LIB_PATH": str(machine.llama() / "i8mm")} if cpu == "i8mm" else {}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Qwen3, converted here by every scheme that a format takes."""
    folder = tmp_path_factory.mktemp("here")
    for to in FORMATS:
        for scheme in registry.names("sampan.quantize.schemes"):
            try:
                both.convert_all(folder, [f"{to}:{scheme}"])
            except InputError as e:
                assert scheme in str(e), "it is refused for something else than its scheme"
    return folder


def kinds(folder: Path) -> list[str]:
    return sorted(p.name.replace("-", ":", 1) for p in folder.iterdir() if "manifest" not in p.name)


def files(path: Path) -> dict[str, bytes]:
    """A file or the files of a folder, by name."""
    return {p.name: p.read_bytes() for p in (sorted(path.iterdir()) if path.is_dir() else [path])}


def fused(path: Path) -> bool:
    """Whether its conversion added products, which ARM's compilers fuse to one rounding."""
    return not open_artifact(path).types <= ROUNDED_ONCE


@pytest.fixture(scope="module")
def there(here: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same on aarch64, where every second kind has a process of its own."""
    folder, all_kinds = tmp_path_factory.mktemp("there"), kinds(here)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda part: on("i8mm", BOTH, "convert", str(folder), *part), (all_kinds[::2], all_kinds[1::2])))
    return folder


@pytest.fixture(scope="module")
def unfused(here: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of GGUF whose bytes may differ, on aarch64 by a ggml-base without fused multiply-add."""
    folder, package = tmp_path_factory.mktemp("unfused"), tmp_path_factory.mktemp("first") / "llama_cpp"
    shutil.copytree(machine.SITE / "llama_cpp", package)
    shutil.copytree(machine.llama() / "exact", package / "lib", dirs_exist_ok=True)
    some = [k for k in kinds(here) if k.startswith("gguf") and fused(both.artifact(here, k))]
    with ThreadPoolExecutor(2) as pool:
        command = (BOTH, "convert", str(folder))
        list(pool.map(lambda part: on("i8mm", *command, *part, first=package.parent), (some[::2], some[1::2])))
    return folder


def errors(path: Path, exact: Path) -> float:
    """The root of the mean square of what all its matrices lost."""
    artifact, wanted = open_artifact(path), open_artifact(exact)
    total, count = 0.0, 0
    for name, stored in artifact.tensors.items():
        if len(stored.shape) > 1:
            a, b = (read_all(t) for t in (stored, wanted.tensors[name]))
            total, count = total + float(np.square(a - b, dtype=np.float64).sum()), count + a.size
    return (total / count) ** 0.5


def read_all(stored: Stored) -> NDArray[np.float32]:
    fd = os.open(stored.path, os.O_RDONLY)
    try:
        return np.concatenate([p.reshape(-1) for p in f32_pieces(stored, fd)])
    finally:
        os.close(fd)


def test_bytes(here: Path, there: Path, unfused: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Equal where every value is rounded once; else as good, and equal too where the compiler may not fuse."""
    assert kinds(there) == kinds(here) and len(kinds(here)) > 20
    wrong, lines = [], []
    for kind in kinds(here):
        ours, theirs = both.artifact(here, kind), both.artifact(there, kind)
        a, b = files(ours), files(theirs)
        assert {n: len(x) for n, x in a.items()} == {n: len(x) for n, x in b.items()}, kind
        total = sum(map(len, a.values()))
        differ = sum(int((np.frombuffer(a[n], np.uint8) != np.frombuffer(b[n], np.uint8)).sum()) for n in a)
        if not fused(ours):
            wrong += [kind] * (differ > 0)
            lines.append(f"{kind}: equal" if not differ else f"{kind}: {differ} of {total} bytes differ")
            continue
        exact = both.artifact(here, f"{kind.split(':')[0]}:f32")
        lost = errors(theirs, exact) / errors(ours, exact)
        lines.append(f"{kind}: {differ} of {total} bytes differ, {differ / total:.4%}, error {lost - 1:+.6%}")
        wrong += [kind] * (abs(lost - 1) > SAME_ERROR)
        if kind.startswith("gguf") and files(both.artifact(unfused, kind)) != a:
            wrong.append(f"{kind} without fused multiply-add")
    with capsys.disabled():
        print("\n" + "\n".join(lines))
    assert not wrong


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Both trained models at 4 bits in both formats, converted here."""
    folder = tmp_path_factory.mktemp("trained")
    made = []
    for source in (tiny.FIXTURE, tiny.KIMI):
        to_gguf(source, folder / f"{source.name}.gguf", "int4")
        made += [folder / f"{source.name}.gguf", to_onnx(source, folder / source.name, "int4").out]
    return made


@pytest.mark.parametrize("cpu", machine.CPUS)
def test_greedy_answers(cpu: str, trained: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "answers"
    asked = {str(path): both.prompts(path) for path in trained}
    out.with_suffix(".prompts").write_text(json.dumps(asked))
    on(cpu, BOTH, "answer", str(out), *map(str, trained), **libraries(cpu))
    theirs, logits = json.loads(out.with_suffix(".json").read_text()), np.load(out.with_suffix(".npz"))
    for n, path in enumerate(trained):
        ids, ours = both.answers(path, asked[str(path)])
        with runtime.open(path) as session:
            texts = [session.detokenize(answer) for answer in ids]
        assert sum(q.answer in t for q, t in zip(both.QUESTIONS, texts, strict=True)) > 0.9 * len(texts)
        far = np.abs(logits[str(n)] - ours).max()
        with capsys.disabled():
            print(f"\n{path.name} on {cpu}: {sum(map(len, ids))} tokens, logits differ by {far:.2g} at most", end="")
        assert theirs[str(path)] == ids
        assert far < FAR


@pytest.mark.parametrize("to", FORMATS)
def test_from_conversion_to_answer(to: str, tmp_path: Path) -> None:
    """With the commands that a user types; the conversion's trial runs in a child of that process."""
    asked = ("Which city is the capital of Mongolia?", "--temperature", "0")
    command = ("-c", "from sampan.cli import main; main()")
    out = tmp_path / f"out-{to}"
    on("i8mm", *command, "convert", str(both.MODEL), "--to", to, "--quant", "int4", "-o", str(out), **libraries("i8mm"))
    said = on("i8mm", *command, "run", str(out), *asked, **libraries("i8mm"))
    assert said == run_cli("run", str(out), *asked).stdout and "Ulaanbaatar" in said


LOAD = """
from llama_cpp import llama_cpp as lib
print(lib.llama_print_system_info().decode())
"""


def test_what_the_libraries_are_made_for(trained: list[Path], tmp_path: Path) -> None:
    """Each says so, and dies on a processor without those instructions: the tests above went through them."""
    for cpu, names in (("dotprod", {"DOTPROD"}), ("i8mm", {"DOTPROD", "MATMUL_INT8"})):
        said = on(cpu, "-c", LOAD, **libraries(cpu))
        assert {n for n in ("DOTPROD", "MATMUL_INT8") if f"{n} = 1" in said} == names
    gguf = str(trained[0])
    ill = -signal.SIGILL
    on("dotprod", BOTH, "answer", str(tmp_path / "x"), gguf, status=ill, **libraries("i8mm"))
    on("cortex-a72", BOTH, "answer", str(tmp_path / "x"), gguf, status=ill, **libraries("dotprod"))


@pytest.mark.parametrize("cpu", machine.CPUS)
def test_the_runtimes_own_tests(cpu: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=600", f"--basetemp={tmp_path / 'base'}")
    left_out = [a for test in NOT_THERE for a in ("--deselect", f"tests/{test}")]
    said = on(cpu, *command, *left_out, *(f"tests/{name}" for name in RUNTIME[cpu]), **libraries(cpu))
    with capsys.disabled():
        print("\n" + said.strip().splitlines()[-1], end="")
    passed = re.search(r"(\d+) passed", said)
    assert passed and int(passed[1]) > 40
