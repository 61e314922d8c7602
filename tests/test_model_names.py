"""What may stand for MODEL: a graph, a folder of transformers.js, several files in a folder, repositories of a hub."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
from conftest import run_cli, to_gguf
from hub_server import Hub
from hub_shell import COMMAND, MIB, OLD, REPO, STEP, Shell
from onnx import TensorProto, helper
from reference import assert_close, reference
from test_runtime_onnx import IDS
from traced import SMALL, trace

from sampan import runtime
from sampan.errors import InputError
from sampan.model import choose, find_model, names_model
from sampan.runtime import Options, Sampling

LIMA = "The capital of Peru is Lima."
ASK = ("What is the capital of Peru?", "--temperature", "0")


# Names alone

GGUF = [
    "README.md", "Tiny-Q4_K_M.gguf", "Tiny-Q8_0.gguf", "Tiny-UD-Q4_K_XL.gguf", "mmproj-F16.gguf", "imatrix_x.gguf",
    "BF16/Tiny-BF16-00001-of-00002.gguf", "BF16/Tiny-BF16-00002-of-00002.gguf", "tiny.q5_0.gguf",
]  # fmt: skip
ONNX = [
    "config.json", "onnx/model.onnx", "onnx/model.onnx_data", "onnx/model_q4.onnx", "onnx/model_q4.onnx_data",
    "onnx/model_q4.onnx_data_1", "onnx/model_q4f16.onnx", "onnx/model_quantized.onnx", "onnx/vision_encoder.onnx",
    "onnx/decoder_model_merged.onnx", "cpu/int4/model.onnx", "cpu/int4/model.onnx.data",
]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "tag", "files"),
    [
        (GGUF, "Q4_K_M", ["Tiny-Q4_K_M.gguf"]),
        (GGUF, "q8_0", ["Tiny-Q8_0.gguf"]),
        (GGUF, "Q4_K_XL", ["Tiny-UD-Q4_K_XL.gguf"]),
        (GGUF, "Q5_0", ["tiny.q5_0.gguf"]),
        (GGUF, "Tiny-Q8_0.gguf", ["Tiny-Q8_0.gguf"]),
        (GGUF, "bf16", ["BF16/Tiny-BF16-00001-of-00002.gguf", "BF16/Tiny-BF16-00002-of-00002.gguf"]),
        (ONNX, "q4", ["onnx/model_q4.onnx", "onnx/model_q4.onnx_data", "onnx/model_q4.onnx_data_1"]),
        (ONNX, "q8", ["onnx/model_quantized.onnx"]),
        (ONNX, "int4", ["cpu/int4/model.onnx", "cpu/int4/model.onnx.data"]),
        (ONNX, "onnx/model.onnx", ["onnx/model.onnx", "onnx/model.onnx_data"]),
        (["a/model.onnx"], "", ["a/model.onnx"]),
    ],
)
def test_a_tag_means_one_model(names: list[str], tag: str, files: list[str]) -> None:
    assert list(choose("r", names, tag).files) == files


@pytest.mark.parametrize(
    ("names", "tag", "message"),
    [
        (
            GGUF,
            "Q4_K",
            "r: expected a GGUF file or an ONNX graph Q4_K, found BF16/Tiny-BF16-00001-of-00002.gguf, Tiny-",
        ),
        (
            GGUF,
            "",
            "r: expected one model, found BF16/Tiny-BF16-00001-of-00002.gguf, Tiny-Q4_K_M.gguf, Tiny-Q8_0.gguf, ",
        ),
        (
            ONNX,
            "fp32",
            "r: expected one model fp32, found cpu/int4/model.onnx, onnx/decoder_model_merged.onnx, onnx/mod",
        ),
        (["a.txt"], "", "r: expected a GGUF file or an ONNX graph, found none"),
        (["a-00001-of-00003.gguf", "a-00003-of-00003.gguf"], "", "r: expected all 3 parts of a-00001-of-00003.gguf, "),
        (["../a.gguf", "/a.gguf", "b/../../a.gguf", "a\\b.gguf", "a\x1b.gguf"], "", "found none"),
        ([f"m-{n}.gguf" for n in range(99)], "", "and 87 more; name one, as in r:m-0.gguf"),
        ([f"a-00001-of-{10**5 - 1}.gguf"], "", "expected all 10000 parts of"),
    ],
)
def test_a_tag_that_means_none_or_several(names: list[str], tag: str, message: str) -> None:
    with pytest.raises(InputError) as e:
        choose("r", names, tag)
    assert message in str(e.value)


def test_paths_with_a_mistake_ask_no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sampan.model._in_hub", lambda *a: pytest.fail("a hub was asked"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for name in (
        "models/qwen",
        "models/qwen:Q4",
        "no/qwen.gguf",
        "no/model.onnx",
        "../qwen:Q4",
        "qwen",
        "qwen:Q4",
        ":a",
    ):
        assert find_model(name) == Path(name)
        with pytest.raises(InputError, match="expected an artifact, found no such file"):
            runtime.open(name)


# Folders and graphs


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trace(tiny.FIXTURE, tmp_path_factory.mktemp("traced") / "m")


def test_a_traced_graph_computes_what_transformers_does(traced: Path) -> None:
    exact = reference(tiny.FIXTURE, IDS)
    with runtime.open(traced) as s:
        assert_close(s.logits(IDS), exact)
        s._engine.keep(10)
        assert_close(np.concatenate([s._engine.evaluate([i], 1).copy() for i in IDS[10:]]), _from(exact, 10))
        s._engine.keep(20)
        assert_close(s._engine.evaluate(IDS[20:], 20), _from(exact, 20))
        assert s.context == 1024, "that of config.json"
        assert s.generate([{"role": "user", "content": ASK[0]}], Options(sampling=Sampling())) == LIMA


def _from(exact: object, start: int) -> object:
    from dataclasses import replace

    return replace(exact, logits=exact.logits[start:])  # type: ignore[attr-defined, type-var]


def test_ways_to_name_a_graph(traced: Path) -> None:
    graph = traced / "onnx" / "model.onnx"
    for name in (str(traced), f"{traced}:fp32", f"{traced}:onnx/model.onnx", str(graph), str(graph.parent)):
        assert find_model(name) in (graph, graph.parent) and names_model(name), name
    done = run_cli("run", str(graph), *ASK)
    assert (done.returncode, done.stdout) == (0, LIMA + "\n"), done.stderr
    done = run_cli("inspect", str(traced))
    assert done.returncode == 0 and "BPE, 2033 tokens" in done.stdout and str(graph) in done.stdout


def test_variants_in_a_folder(traced: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(traced, tmp_path / "m"))
    shutil.copy(folder / "onnx" / "model.onnx", folder / "onnx" / "model_q4.onnx")
    done = run_cli("run", f"{folder}:q4", *ASK)
    assert (done.returncode, done.stdout) == (0, LIMA + "\n"), done.stderr
    for arguments in (("run", str(folder), *ASK), ("inspect", str(folder))):
        done = run_cli(*arguments)
        assert done.returncode == 2 and done.stderr == (
            f"error: {folder}: expected one model, found onnx/model.onnx, onnx/model_q4.onnx; "
            f"name one, as in {folder}:model.onnx\n"
        )


def test_half_precision_logits_and_caches(traced: Path, tmp_path: Path) -> None:
    """What transformers.js calls fp16: caches and logits are float16 at the graph's border."""
    folder = Path(shutil.copytree(traced, tmp_path / "m"))
    path = folder / "onnx" / "model.onnx"
    model = onnx.load(path)
    borders = {v.name: v for v in (*model.graph.input, *model.graph.output) if v.type.tensor_type.elem_type == 1}
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [f"{n}_f32" if n in borders else n for n in names]
    for v in borders.values():
        v.type.tensor_type.elem_type = TensorProto.FLOAT16
    inside = {v.name for v in model.graph.input}
    for name in borders:
        ends, to = ([name], [f"{name}_f32"]), TensorProto.FLOAT
        if name in inside:
            model.graph.node.insert(0, helper.make_node("Cast", *ends, to=to))
        else:
            model.graph.node.append(helper.make_node("Cast", ends[1], ends[0], to=TensorProto.FLOAT16))
    path.unlink()
    onnx.save(model, folder / "onnx" / "model_fp16.onnx")
    with runtime.open(f"{folder}:fp16") as s, runtime.open(traced) as exact:
        a, b = s.logits(IDS), exact.logits(IDS)
        assert a.dtype == np.float32 and 0 < np.abs(a - b).max() < 0.02
        assert s.generate([{"role": "user", "content": ASK[0]}], Options(sampling=Sampling())) == LIMA


@pytest.mark.parametrize("name", ["use_cache_branch", "encoder_hidden_states"])
def test_what_cannot_be_fed_is_named(name: str, traced: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(traced, tmp_path / "m"))
    model = onnx.load(folder / "onnx" / "model.onnx")
    model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.BOOL, [1]))
    onnx.save(model, folder / "onnx" / "model.onnx")
    done = run_cli("run", str(folder), "Hi")
    assert (done.returncode, done.stderr) == (
        2,
        f"error: {folder}/onnx/model.onnx: {name}: expected inputs that a text decoder with a cache has, "
        "found another one\n",
    )


def test_a_graph_that_fails_while_it_runs(traced: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(traced, tmp_path / "m"))
    model = onnx.load(folder / "onnx" / "model.onnx")
    ids = next(v for v in model.graph.input if v.name == "input_ids")
    ids.type.tensor_type.shape.dim[1].ClearField("dim_param")
    ids.type.tensor_type.shape.dim[1].dim_value = 3
    onnx.save(model, folder / "onnx" / "model.onnx")
    done = run_cli("run", str(folder), "Hi")
    assert done.returncode == 2 and f"{folder}/onnx/model.onnx: ONNX Runtime cannot run it: " in done.stderr
    assert done.stderr.count("\n") == 1


# Repositories of a hub


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GGUF files as people publish them: one large enough for a download to be cut, a split one, a projector."""
    folder = tmp_path_factory.mktemp("repository")
    to_gguf(tiny.FIXTURE, folder / "Tiny-Q8_0.gguf", "q8_0")
    to_gguf(tiny.FIXTURE, folder / "Tiny-F32.gguf", "f32")
    from sampan.checkpoint import open_folder
    from sampan.convert.conversion import convert, prepare

    (folder / "BF16").mkdir()
    convert(prepare(open_folder(tiny.FIXTURE), folder / "BF16" / "Tiny-BF16.gguf", "gguf", "bf16", split=5_000_000))
    for path in folder.rglob("*.manifest.json"):
        path.unlink()
    (folder / "mmproj-F16.gguf").write_bytes(b"GGUF")
    (folder / "README.md").write_text("# Tiny")
    return folder


def weights(hub: Hub) -> set[str]:
    return {r.file for r in hub.requests if r.file and not r.storage}


def test_a_file_of_a_repository(repository: Path, serve: Callable[..., Hub], sampan: Shell) -> None:
    hub = serve(repository)
    done = sampan(hub.url, "run", f"{REPO}:q8_0", *ASK)
    assert (done.returncode, done.stdout) == (0, LIMA + "\n"), done.stderr
    assert done.stderr == f"{REPO}: fetching Tiny-Q8_0.gguf, 3.99 MB\n" and weights(hub) == {"Tiny-Q8_0.gguf"}
    before = len(hub.requests)
    done = sampan(hub.url, "run", f"{REPO}:q8_0", *ASK)
    assert (done.returncode, done.stdout, done.stderr) == (0, LIMA + "\n", "")
    assert all(r.method != "GET" or not r.file for r in hub.requests[before:]), "nothing is fetched again"
    done = sampan("http://127.0.0.1:9", "run", f"{REPO}:Q8_0", *ASK, HF_HUB_OFFLINE="1")
    assert (done.returncode, done.stdout, done.stderr) == (0, LIMA + "\n", "")
    line = sampan.refused(hub.url, "run", f"{REPO}:F32", *ASK, HF_HUB_OFFLINE="1")
    assert line == (f"{REPO} (HF_HUB_OFFLINE is set): expected a GGUF file or an ONNX graph F32, found Tiny-Q8_0.gguf")


def test_all_parts_of_a_split_file_come(repository: Path, serve: Callable[..., Hub], sampan: Shell) -> None:
    hub = serve(repository)
    done = sampan(hub.url, "run", f"{REPO}:BF16", *ASK)
    assert (done.returncode, done.stdout) == (0, LIMA + "\n"), done.stderr
    parts = {f"BF16/{p.name}" for p in (repository / "BF16").iterdir()}
    assert len(parts) > 1 and weights(hub) == parts
    total = sum(p.stat().st_size for p in (repository / "BF16").iterdir())
    assert f"-00001-of-{len(parts):05d}.gguf, {total / 1e6:.3g} MB\n" in done.stderr


@pytest.mark.slow
def test_inspect_serve_and_validate_take_the_same_names(
    repository: Path, serve: Callable[..., Hub], sampan: Shell
) -> None:
    hub = serve(repository)
    done = sampan(hub.url, "inspect", f"{REPO}:Q8_0", "--json")
    assert done.returncode == 0 and "Tiny-Q8_0.gguf" in done.stdout, done.stderr
    done = sampan(hub.url, "validate", f"{REPO}:F32", f"{REPO}:Q8_0", "--windows", "1")
    assert done.returncode == 1 and "drift as deployed" in done.stdout, done.stderr  # so little text decides nothing
    command = [*COMMAND, "serve", f"{REPO}:Q8_0", "--port", "0"]
    with subprocess.Popen(command, env=sampan.environment(hub.url), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith(f"serving {REPO}:Q8_0 on http://127.0.0.1:")
        finally:
            process.kill()


@pytest.mark.slow
def test_which_of_several_is_asked(repository: Path, serve: Callable[..., Hub], sampan: Shell) -> None:
    hub = serve(repository)
    line = sampan.refused(hub.url, "run", REPO, *ASK)
    assert line.startswith(f"{REPO}: expected one model, found BF16/Tiny-BF16-00001-of-")
    assert line.endswith(f", Tiny-F32.gguf, Tiny-Q8_0.gguf; name one, as in {REPO}:Tiny-BF16-00001-of-00002.gguf")
    line = sampan.refused(hub.url, "run", f"{REPO}:Q2_K", *ASK)
    assert line.startswith(f"{REPO}: expected a GGUF file or an ONNX graph Q2_K, found BF16/")
    assert sampan.refused(hub.url, "inspect", REPO) == (
        f"{REPO}: expected a config.json, found GGUF files; `sampan run` takes them, as "
        f"REPOSITORY:BF16/Tiny-BF16-00001-of-00002.gguf"
    )
    assert not weights(hub)
    line = sampan.refused("http://127.0.0.1:9", "run", f"{REPO}:Q8_0", *ASK)
    assert line.startswith(f"{REPO}: the connection to http://127.0.0.1:9 failed: ")
    line = sampan.refused("http://127.0.0.1:9", "run", f"{REPO}:Q8_0", *ASK, HF_HUB_OFFLINE="1")
    assert line == f"{REPO}: HF_HUB_OFFLINE is set, and the cache has nothing of it: unset it, or give a path"


@pytest.mark.slow
def test_a_download_goes_on_behind_a_reset(repository: Path, serve: Callable[..., Hub], sampan: Shell) -> None:
    hub, name = serve(repository), "Tiny-F32.gguf"
    hub.faults.cut[name] = (12 * MIB, "reset")
    line = sampan.refused_after(f"{REPO}: fetching {name}, ", hub.url, "run", f"{REPO}:F32", *ASK)
    assert line.startswith(f"{REPO}: {name}: the connection to {hub.url} failed: ")
    done = sampan(hub.url, "run", f"{REPO}:F32", *ASK)
    assert (done.returncode, done.stdout) == (0, LIMA + "\n"), done.stderr
    gets = [r for r in hub.of(name) if r.storage and r.method == "GET"]
    assert [r.headers.get("range") for r in gets] == [None, f"bytes={STEP}-"]


@pytest.mark.slow
def test_a_damaged_file_is_thrown_away(repository: Path, serve: Callable[..., Hub], sampan: Shell) -> None:
    hub, name = serve(repository), "Tiny-Q8_0.gguf"
    hub.faults.damaged.add(name)
    line = sampan.refused_after(f"{REPO}: fetching {name}, ", hub.url, "run", f"{REPO}:Q8_0", *ASK)
    assert line.startswith(f"{REPO}: {name}: expected SHA-256 ") and line.endswith("; run again")
    assert not sampan.weights()
    hub.faults.damaged.clear()
    assert sampan(hub.url, "run", f"{REPO}:Q8_0", *ASK).stdout == LIMA + "\n"


def test_a_repository_of_transformers_js(
    traced: Path, serve: Callable[..., Hub], sampan: Shell, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(traced, tmp_path / "m"))
    model = onnx.load(folder / "onnx" / "model.onnx")
    onnx.save(
        model, folder / "onnx" / "model_q4.onnx", save_as_external_data=True, all_tensors_to_one_file=True,
        location="model_q4.onnx_data", size_threshold=1024,
    )  # fmt: skip
    (folder / "README.md").write_text("# Tiny")
    hub = serve(folder)
    done = sampan(hub.url, "run", f"{REPO}:q4", *ASK)
    assert (done.returncode, done.stdout) == (0, LIMA + "\n"), done.stderr
    assert weights(hub) == {"onnx/model_q4.onnx", "onnx/model_q4.onnx_data", *SMALL}
    assert "fetching onnx/model_q4.onnx, 17 MB" in done.stderr


def test_a_revision_of_a_repository(repository: Path, traced: Path, serve: Callable[..., Hub], sampan: Shell) -> None:
    hub = serve(repository, old=traced)
    done = sampan(hub.url, "inspect", f"{REPO}:fp32", "--revision", OLD, "--json")
    assert done.returncode == 0 and f"snapshots/{OLD}/onnx" in done.stdout, done.stderr
