"""sampan on aarch64, compared with this processor. Run by `make test-arm`, after machine.py has made the machine.

Its name keeps it out of `make test`: it wants what machine.py makes, and no other processor has it.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiny
from arm import both, machine
from conftest import run_cli, to_gguf
from onnx_peer import to_onnx

from sampan import registry, runtime
from sampan.checkpoint import SINGLE
from sampan.errors import InputError
from sampan.validate.artifact import f32_pieces, open_artifact

pytestmark = pytest.mark.timeout(1800)
HERE = Path(__file__).parent
BOTH = str(Path(both.__file__))
FORMATS = ("gguf", "onnx")
ROUNDED_ONCE = {"f32", "f16", "bf16", "q8_0"}  # number types whose encoding adds no products
SAME_ERROR = 1e-3  # of the weights, as a share
FAR = 1.0  # logits of 4-bit models, whose activations are rounded to 8 bits: in another order, to other integers
# llama.cpp's kernels differ by processor, so they are tested on both; ONNX Runtime's and the tokenizers once
OF_ONNX = (
    "prefill_equals_a_plain_loop", "a_long_prefill_comes_in_parts", "token_by_token_equals_a_plain_loop",
    "the_cache_is_rewound", "greedy_answers_equal_a_plain_loop", "the_context_is_a_limit",
)  # fmt: skip
# The slices of a long prompt's logits are left out: three evaluations of 1,000 tokens take four minutes here
RUNTIME = {
    "i8mm": ("tests/test_runtime.py", *(f"tests/test_runtime_onnx.py::test_{n}" for n in OF_ONNX), "-k", "not slices"),
    "dotprod": ("tests/test_runtime.py", "-k", "not slices and not test_tokens_equal and not plain_llama_loop"),
}
LEAST = {"i8mm": 40, "dotprod": 10}  # of those tests must pass
COMPILED_FOR = {"dotprod": {"DOTPROD"}, "i8mm": {"DOTPROD", "MATMUL_INT8"}}  # of these two, as ggml says
COMMAND = ("-c", "import patience; from sampan.cli import main; main()")  # `sampan`


def on(cpu: str, *command: str, status: int = 0, first: Path = HERE, **more: str) -> str:
    """Run a command of the guest's Python on one of machine.CPUS; its standard output."""
    done = subprocess.run(
        [str(machine.PYTHON), *command],
        capture_output=True, text=True, timeout=1500, stdin=subprocess.DEVNULL, cwd=both.TESTS.parent,
        env=machine.guest(cpu, str(first), **more),
    )  # fmt: skip
    assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def libraries(cpu: str) -> dict[str, str]:
    """The environment in which llama-cpp-python takes what is compiled for a processor; its wheel has dotprod."""
    return {"LLAMA_CPP_LIB_PATH": str(machine.llama() / "i8mm")} if cpu == "i8mm" else {}


@pytest.mark.parametrize("cpu", machine.CPUS)
def test_the_runtimes_own_tests(cpu: str, tmp_path: Path) -> None:
    """First, since they take longest."""
    options = ("-q", "-p", "no:cacheprovider", "-p", "patience", "--timeout=1200", f"--basetemp={tmp_path / 'base'}")
    said = on(cpu, "-m", "pytest", *options, *RUNTIME[cpu], **libraries(cpu))
    print(f"{cpu}: {said.strip().splitlines()[-1]}")
    passed = re.search(r"(\d+) passed", said)
    assert passed and int(passed[1]) > LEAST[cpu]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained Qwen3's first layer."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("model") / "first-layer"
    shutil.copytree(tiny.FIXTURE, folder)
    kept = {k: v for k, v in load_file(folder / SINGLE).items() if not re.search(r"layers\.[1-9]", k)}
    save_file(kept, folder / SINGLE, metadata={"format": "pt"})
    tiny.edit_json(folder / "config.json", num_hidden_layers=1, layer_types=["full_attention"])
    return folder


@pytest.fixture(scope="module")
def here(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`here(format)` → a folder with `small`, converted here by every scheme that the format takes."""

    @cache
    def get(to: str) -> Path:
        folder = tmp_path_factory.mktemp("here")
        for scheme in registry.names("sampan.quantize.schemes"):
            try:
                both.convert_all(small, folder, [f"{to}:{scheme}"])
            except InputError as e:
                assert scheme in str(e), "it is refused for something else than its scheme"
        return folder

    return get


def kinds(folder: Path) -> list[str]:
    return sorted(p.name.replace("-", ":", 1) for p in folder.iterdir() if "manifest" not in p.name)


def files(path: Path) -> dict[str, bytes]:
    """A file or the files of a folder, by name."""
    return {p.name: p.read_bytes() for p in (sorted(path.iterdir()) if path.is_dir() else [path])}


def fused(path: Path) -> bool:
    """Whether its conversion added products in ggml's code, which ARM's compilers fuse to one rounding."""
    return path.is_file() and not open_artifact(path).types <= ROUNDED_ONCE


def error(path: Path, exact: Path) -> float:
    """The root of the mean square of what all its matrices lost."""
    with path.open("rb") as a, exact.open("rb") as b:
        stored, wanted = open_artifact(path).tensors, open_artifact(exact).tensors
        total, count = 0.0, 0
        for name, tensor in stored.items():
            if len(tensor.shape) > 1:
                mine = np.concatenate([p.reshape(-1) for p in f32_pieces(tensor, a.fileno())])
                lost = mine - np.concatenate([p.reshape(-1) for p in f32_pieces(wanted[name], b.fileno())])
                total, count = total + float(np.square(lost, dtype=np.float64).sum()), count + lost.size
    return (total / count) ** 0.5


@pytest.mark.parametrize("to", FORMATS)
def test_bytes(to: str, small: Path, here: Callable[[str], Path], tmp_path: Path) -> None:
    """Equal where every value is rounded once; else as good."""
    all_kinds = kinds(here(to))
    on("i8mm", BOTH, "convert", str(small), str(tmp_path), *all_kinds)
    assert kinds(tmp_path) == all_kinds and len(all_kinds) > 8
    wrong, lines = [], []
    for kind in all_kinds:
        ours, theirs = both.artifact(here(to), kind), both.artifact(tmp_path, kind)
        a, b = files(ours), files(theirs)
        assert {n: len(x) for n, x in a.items()} == {n: len(x) for n, x in b.items()}, kind
        differ = sum(int((np.frombuffer(a[n], np.uint8) != np.frombuffer(b[n], np.uint8)).sum()) for n in a)
        lines.append(f"{kind}: {differ} of {sum(map(len, a.values()))} bytes differ")
        if fused(ours):
            exact = both.artifact(here(to), f"{to}:f32")
            lost = error(theirs, exact) / error(ours, exact) - 1
            lines[-1] += f", error {lost:+.5%}"
            wrong += [kind] * (abs(lost) > SAME_ERROR)
        else:
            wrong += [kind] * (differ > 0)
    print("\n".join(lines))
    assert not wrong


def test_bytes_where_the_compiler_may_not_fuse(small: Path, here: Callable[[str], Path], tmp_path: Path) -> None:
    """All are equal: by a ggml-base without fused multiply-add."""
    shutil.copytree(next(machine.CACHE.glob("site-*")) / "llama_cpp", tmp_path / "first" / "llama_cpp")
    shutil.copytree(machine.llama() / "unfused", tmp_path / "first" / "llama_cpp" / "lib", dirs_exist_ok=True)
    some = [k for k in kinds(here("gguf")) if fused(both.artifact(here("gguf"), k))]
    on("i8mm", BOTH, "convert", str(small), str(tmp_path / "out"), *some, first=tmp_path / "first")
    assert len(some) > 12
    assert not [k for k in some if files(both.artifact(here("gguf"), k)) != files(both.artifact(tmp_path / "out", k))]


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
def test_greedy_answers(cpu: str, trained: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "answers"
    asked = {str(path): both.prompts(path) for path in trained}
    out.with_suffix(".prompts").write_text(json.dumps(asked))
    said = on(cpu, BOTH, "answer", str(out), *map(str, trained), **libraries(cpu))
    assert set(said.split()) & {"DOTPROD", "MATMUL_INT8"} == COMPILED_FOR[cpu]
    theirs, logits = json.loads(out.with_suffix(".json").read_text()), np.load(out.with_suffix(".npz"))
    for n, path in enumerate(trained):
        ids, ours = both.answers(path, asked[str(path)])
        with runtime.open(path) as session:
            texts = [session.detokenize(answer) for answer in ids]
        assert sum(q.answer in t for q, t in zip(both.QUESTIONS, texts, strict=True)) > len(texts) / 2
        far = np.abs(logits[str(n)] - ours).max()
        print(f"{path.name} on {cpu}: {sum(map(len, ids))} tokens, logits differ by {far:.2g} at most")
        assert theirs[str(path)] == ids
        assert far < FAR


@pytest.mark.parametrize("to", FORMATS)
def test_from_conversion_to_answer(to: str, tmp_path: Path) -> None:
    """With the commands that a user types; the conversion's trial runs in a child of that process."""
    asked = ("Which city is the capital of Mongolia?", "--temperature", "0")
    out, source = tmp_path / f"out-{to}", str(tiny.FIXTURE)
    on("i8mm", *COMMAND, "convert", source, "--to", to, "--quant", "q4_0", "-o", str(out), **libraries("i8mm"))
    said = on("i8mm", *COMMAND, "run", str(out), *asked, **libraries("i8mm"))
    assert said == run_cli("run", str(out), *asked).stdout and "Ulaanbaatar" in said


def test_a_processor_without_the_instructions(trained: list[Path], tmp_path: Path) -> None:
    """It ends the process: so the answers above went through them."""
    (tmp_path / "x.prompts").write_text(json.dumps({str(trained[0]): ["x" * 100]}))
    command, ill = (BOTH, "answer", str(tmp_path / "x"), str(trained[0])), -signal.SIGILL
    on("dotprod", *command, status=ill, **libraries("i8mm"))
    on("cortex-a72", *command, status=ill, **libraries("dotprod"))


def test_doctor(trained: list[Path]) -> None:
    """Its processor is the one that machine.py writes into the guest's /proc/cpuinfo."""
    found = json.loads(on("dotprod", *COMMAND, "doctor", str(trained[0]), "--json"))
    processor, engines = found["processor"], found["engines"]
    assert processor["architecture"] == "aarch64" and processor["name"] == "Neoverse-N1"
    assert {"fp16", "dotprod"} == set(processor["features"])
    assert "DOTPROD" in engines["llama"]["compiled_for"] and "CPUExecutionProvider" in engines["onnx"]["providers"]
    assert found["model"]["fits"]


def test_bench(trained: list[Path]) -> None:
    """Its numbers are the emulator's, so nothing is said of them but that they are there."""
    for path in trained[:2]:
        plan = ("--prompt", "8", "--decode", "1", "--repetitions", "1", "--threads", "1", "--json")
        rows = json.loads(on("dotprod", *COMMAND, "bench", str(path), *plan))["rows"]
        assert {"pp8", "tg1"} <= {row["test"] for row in rows} and all(row["median"] > 0 for row in rows)
