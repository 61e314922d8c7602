"""ONNX folders against transformers, against their own dequantised weights, and against GGUF."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
from onnx_peer import Plain, at_level, dequantised, nbytes, relative, to_onnx
from reference import assert_close, reference
from test_logits import tokens

from sampan import gguf as container
from sampan import runtime
from sampan.artifact import OutputFile
from sampan.checkpoint import open_folder
from sampan.convert.conversion import convert, prepare
from sampan.errors import InputError
from sampan.job import work_folder
from sampan.quantize import decode_rows, number_type, tensor_type

SCHEMES = ("int4", "int4_head8", "int4_128", "int4_zp", "int4_128_zp", "int8", "q4_0")
Model = Callable[[str], Path]


@pytest.mark.everyday("trained*", *tiny.PLAIN)
@pytest.mark.parametrize("name", ["trained", "trained-kimi", *tiny.MODELS])
def test_fp32_equals_transformers(name: str, model: Model, tmp_path: Path) -> None:
    """Prefill; and with the cache, tokens one by one before and after a piece."""
    to_onnx(model(name), tmp_path / "out", "fp32")
    ids, plain = tokens(), Plain(tmp_path / "out")
    wanted = reference(model(name), ids)
    assert_close(plain(ids), wanted)
    plain.reset()
    pieces = [*([i] for i in ids[:20]), ids[20:120], *([i] for i in ids[120:])]
    assert_close(np.concatenate([plain(piece) for piece in pieces]), wanted)


def test_fp16_holds_bfloat16_weights_exactly(model: Model, tmp_path: Path) -> None:
    """Weights near one lose nothing in float16."""
    to_onnx(model("qwen3"), tmp_path / "fp16", "fp16")
    to_onnx(model("qwen3"), tmp_path / "fp32", "fp32")
    a, b = (Plain(tmp_path / n)(tokens()) for n in ("fp16", "fp32"))
    assert relative(a, b) < 1e-6
    assert nbytes(tmp_path / "fp16") < 0.6 * nbytes(tmp_path / "fp32")


@pytest.mark.everyday("qwen2", "qwen3-yarn")
@pytest.mark.parametrize("name", ["qwen2", "qwen3-yarn", "qwen2_moe", "qwen3_moe", "deepseek_v3"])
def test_old_and_new_config_styles_give_one_graph(name: str, model: Model, tmp_path: Path) -> None:
    config = json.loads((model(name) / "config.json").read_text())
    assert "rope_parameters" in config, "transformers 5 writes the new style"
    rope = dict(config["rope_parameters"])
    old = tmp_path / "old"
    shutil.copytree(model(name), old)
    changes = {"rope_parameters": None, "rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    if rope.get("rope_type") == "default":
        changes["rope_scaling"] = None
    if "num_experts" in config:
        changes |= {"num_experts": None, "num_local_experts": config["num_experts"]}
    tiny.edit_json(old / "config.json", **changes)
    for style, source in (("old", old), ("new", model(name))):
        to_onnx(source, tmp_path / style / "out", "int4")
    for file in ("model.onnx", "model.onnx.data", "genai_config.json"):
        assert (tmp_path / "old/out" / file).read_bytes() == (tmp_path / "new/out" / file).read_bytes(), file


@pytest.mark.slow
@pytest.mark.parametrize("quant", SCHEMES)
@pytest.mark.parametrize("name", ["trained", "qwen2", "qwen3-odd-widths"])
def test_quantised_graphs_compute_their_dequantised_weights(
    name: str, quant: str, model: Model, tmp_path: Path
) -> None:
    quantised = to_onnx(model(name), tmp_path / "quantised", quant)
    exact = Plain(dequantised(quantised, to_onnx(model(name), tmp_path / "exact", "fp32")))(tokens())
    assert relative(Plain(quantised.out, graph=at_level(quantised.out, 0))(tokens()), exact) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["int4", "int4_zp", "q4_0"])
@pytest.mark.parametrize(
    "name",
    [
        "qwen2_moe", "qwen3_moe", "deepseek_v3", "deepseek_v3-groups", "qwen3_5_moe", "kimi_linear", "qwen3_vl_moe",
        "glm4_moe", "minimax_m2",
    ],
)  # fmt: skip
def test_quantised_experts_compute_their_dequantised_weights(
    name: str, quant: str, model: Model, tmp_path: Path
) -> None:
    """8-bit experts round activations at every level: tests/test_onnx_peer.py has them."""
    quantised = to_onnx(model(name), tmp_path / "quantised", quant)
    exact = Plain(dequantised(quantised, to_onnx(model(name), tmp_path / "exact", "fp32")))(tokens())
    assert relative(Plain(quantised.out, graph=at_level(quantised.out, 0))(tokens()), exact) <= 1e-4


@pytest.mark.parametrize("quant", ["q4_0", "q8_0"])
def test_q4_0_and_q8_0_hold_ggufs_numbers(
    quant: str, model: Model, gguf: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """Every tensor of the same type in both files, value by value."""
    ours = to_onnx(model("qwen3_moe"), tmp_path / "out", quant)
    header = container.read_header(gguf("qwen3_moe", quant))
    theirs = {t.name: t for t in header.tensors}
    data = np.memmap(gguf("qwen3_moe", quant), np.uint8, "r")
    weights = np.memmap(ours.out / "model.onnx.data", np.uint8, "r")
    compared = 0
    for t in ours.plan.tensors:
        arrays = zip(t.offsets, t.type.part_bytes(t.bound.columns), strict=True)
        raw = np.concatenate([weights[o : o + t.bound.rows * r] for o, r in arrays])
        rows = np.empty((t.bound.rows, t.bound.columns), np.float32)
        decode_rows(t.type, raw, rows)
        for s in t.slices:
            tensor = theirs[s.name]
            kind = number_type(t.type.name)
            if tensor.type_id != kind.id:
                assert t.type.name in ("f32", "q8_0")  # the head, which GGUF holds in q6_k
                continue
            n, columns = (s.shape[0], 1) if len(s.shape) == 1 else (int(np.prod(s.shape[:-1])), s.shape[-1])
            start = header.data_start + tensor.offset
            expected = np.empty((n, columns), np.float32)
            decode_rows(kind, data[start : start + n * kind.row_bytes(columns)], expected)
            assert np.array_equal(rows[s.at : s.at + n * s.step : s.step], expected), s.name
            compared += 1
    assert compared >= 4 * 8


def test_a_tied_head_is_written_once(model: Model, tmp_path: Path) -> None:
    conversion = to_onnx(model("qwen3"), tmp_path / "out", "int8")
    source = sum(f.stat().st_size for f in model("qwen3").glob("*.safetensors"))
    assert nbytes(conversion.out) < source
    graph = onnx.load(conversion.out / "model.onnx", load_external_data=False).graph
    places = {t.name: {e.key: e.value for e in t.external_data} for t in graph.initializer}
    assert places["/embed_tokens/weight"] == places["/lm_head/weight"]
    assert places["/embed_tokens/scales"] == places["/lm_head/scales"]


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["int4", "int4_zp", "int4_head8", "int8", "fp16", "fp32"])
@pytest.mark.parametrize(
    "name",
    [
        "qwen2", "qwen3", "llama", "qwen2_moe", "qwen3_moe", "deepseek_v3", "qwen3_next", "qwen3_5", "kimi_linear",
        "minimax_m2",
    ],
)  # fmt: skip
def test_graphs_are_clean(name: str, quant: str, model: Model, tmp_path: Path) -> None:
    """The checker, a type and shape on every edge, names that are paths, and no word from ONNX Runtime."""
    path = to_onnx(model(name), tmp_path / "out", quant).out / "model.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    graph = onnx.load(path, load_external_data=False).graph
    known = {v.name for v in (*graph.value_info, *graph.input, *graph.output, *graph.initializer)}
    edges = {e for n in graph.node for e in (*n.input, *n.output) if e}
    assert edges <= known
    names = [n.name for n in graph.node]
    assert len(set(names)) == len(names) and all(n.startswith("/") for n in names)
    assert any(re.match(r"/layers\.3/attn/(qkv_proj|q_proj|kv_a_proj)/", n) for n in names)
    load = "import onnxruntime as o, sys; o.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])"
    run = subprocess.run([sys.executable, "-c", load, str(path)], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_a_mask_above_one_asks_for_the_last_logits(model: Model, tmp_path: Path) -> None:
    plain = Plain(to_onnx(model("qwen3"), tmp_path / "out", "fp32").out)
    ids = tokens()
    whole = plain(ids)
    past = {n: np.zeros(s, np.float32) for n, s in plain.past.items()}
    mask = np.full((1, len(ids)), 1 + 140)
    (last,) = plain.session.run(["logits"], {"input_ids": np.array([ids]), "attention_mask": mask, **past})
    assert last.shape[1] == len(ids) - 140
    assert np.abs(last[0] - whole[140:]).max() < 1e-5


def test_context_trims_the_rotary_tables(model: Model, tmp_path: Path) -> None:
    sizes = {}
    for context in (64, 512):
        conversion = to_onnx(model("qwen3"), tmp_path / "out", "int4", context=context)
        sizes[context] = conversion.plan.files[0].size
        config = json.loads((conversion.out / "genai_config.json").read_text())
        assert config["model"]["context_length"] == context
        with pytest.raises(InputError, match=f"made for 1 to {context}:"):
            runtime.open(conversion.out, runtime.EngineOptions(context=context + 1))
    assert sizes[512] - sizes[64] == 2 * (512 - 64) * 64 * 4  # cos and sin of half a head


def test_rotary_tables_are_the_same_without_vector_instructions() -> None:
    code = (
        "import hashlib\nfrom sampan.convert.architecture import Rope\n"
        "from sampan.convert.formats.onnx.rope import tables\n"
        "print([hashlib.sha256(t.tobytes()).hexdigest() for t in tables(Rope(1e6, 64, None), 1024)])"
    )
    features = "AVX2 FMA3 AVX512F AVX512CD AVX512_SKX X86_V3 X86_V4"  # those that numpy does not know are left alone
    found = {
        subprocess.check_output([sys.executable, "-c", code], env=os.environ | more, text=True)
        for more in ({}, {"NPY_DISABLE_CPU_FEATURES": features})
    }
    assert len(found) == 1


def test_an_interrupted_folder_is_continued(model: Model, tmp_path: Path) -> None:
    whole = to_onnx(model("qwen3_moe"), tmp_path / "whole", "int4").out
    out = tmp_path / "out"

    def stop(n: int) -> None:
        stop.passed += n  # type: ignore[attr-defined]
        if stop.passed > 2_000_000:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    stop.passed = 0  # type: ignore[attr-defined]
    conversion = prepare(open_folder(model("qwen3_moe")), out, "onnx", "int4", jobs=1, max_memory=1_500_000)
    with pytest.raises(KeyboardInterrupt):
        convert(conversion, progress=stop)
    assert not out.exists() and (work_folder(out) / "data" / "model.onnx.data").exists()
    convert(conversion)
    assert {p.name for p in tmp_path.iterdir()} == {"whole", "out"}
    for file in ("model.onnx", "model.onnx.data"):
        assert (out / file).read_bytes() == (whole / file).read_bytes()
    assert json.loads((out / "manifest.json").read_text())["scheme"] == "int4"


@pytest.mark.parametrize(
    ("quant", "options", "message"),
    [
        ("q4_k_m", {}, "--quant: expected a scheme that ONNX can hold: f16, f32, int4, "),
        ("int4", {"split": 10**9}, "--split-size: expected none with --to onnx"),
        ("int4", {"context": 10**6}, "--context: expected at most the model's own "),
        ("int8", {"accuracy": 0}, "--accuracy-level: expected 4 for 8-bit weights, found 0"),
        ("int4_head8", {"accuracy": 0}, "at which /layers.0/attn/qkv_proj would be about 300 times slower"),
    ],
)  # fmt: skip
def test_refusals(quant: str, options: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as e:
        to_onnx(tiny.FIXTURE, tmp_path / "out", quant, **options)
    assert message in str(e.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "head_dim", "message"),
    [
        ("qwen3-odd-blocks", 40, "heads of a multiple of 16 dimensions.* found 40"),
        ("glm4", 48, "rotations of a multiple of 16 dimensions.* found 24"),
    ],
)
def test_heads_that_the_operator_cannot_take_are_refused(
    name: str, head_dim: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = tiny.MODELS[name]
    monkeypatch.setitem(tiny.MODELS, "odd", replace(row, arguments=row.arguments | {"head_dim": head_dim}))
    with pytest.raises(InputError, match=f"--to onnx: expected {message}"):
        to_onnx(tiny.build("odd", tmp_path / "model"), tmp_path / "out", "int4")
    assert not (tmp_path / "out").exists()


def test_gguf_refuses_what_is_for_onnx(tmp_path: Path) -> None:
    for quant, options, message in (
        ("int4_zp", {}, "--quant: expected a scheme of llama.cpp, such as q4_k_m, found int4_zp"),
        ("q4_0", {"context": 64}, "--context: expected none with --to gguf"),
        ("q4_0", {"accuracy": 4}, "--accuracy-level: expected none with --to gguf"),
    ):
        with pytest.raises(InputError) as e:
            prepare(open_folder(tiny.FIXTURE), tmp_path / "x.gguf", "gguf", quant, **options)  # type: ignore[arg-type]
        assert message in str(e.value)


def test_only_artifacts_are_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("months of work")
    with pytest.raises(InputError, match="expected a new folder name, found a folder with other files in it"):
        to_onnx(tiny.FIXTURE, out, "int4")
    assert (out / "thesis.txt").read_text() == "months of work"
    (out / "thesis.txt").unlink()
    to_onnx(tiny.FIXTURE, out, "int4")
    with pytest.raises(InputError, match="found an existing artifact; use --overwrite to replace it"):
        convert(prepare(open_folder(tiny.FIXTURE), out, "onnx", "int8"))
    to_onnx(tiny.FIXTURE, out, "int8")
    assert json.loads((out / "manifest.json").read_text())["scheme"] == "q8_0"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_whole_folder_is_planned(tmp_path: Path) -> None:
    conversion = prepare(open_folder(tiny.FIXTURE), tmp_path / "out", "onnx", "int4")
    planned: dict[str, OutputFile] = {f.path.name: f for f in conversion.plan.files}
    convert(conversion)
    for name, file in planned.items():
        assert (tmp_path / "out" / name).stat().st_size == file.size
    assert set(planned) | {"manifest.json"} == {p.name for p in (tmp_path / "out").iterdir()}
    assert tensor_type("u4_32").bits == 4.5
