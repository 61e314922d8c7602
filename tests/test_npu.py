"""Static graphs for NPUs: against transformers in float32, and their integers in ONNX Runtime on the processor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny
from reference import assert_close, reference
from test_logits import tokens

from sampan import qnn, runtime
from sampan.artifact import OutputFile
from sampan.checkpoint import open_folder
from sampan.convert.conversion import Conversion, convert, prepare
from sampan.convert.family import read_architecture
from sampan.convert.formats.onnx import compiled, npu
from sampan.convert.formats.onnx.centres import fill
from sampan.convert.formats.onnx.channels import Channels, DataFile
from sampan.convert.formats.onnx.forms.static import Static
from sampan.convert.formats.onnx.qdq import quantity
from sampan.convert.formats.onnx.ranges import Observed, _shared, _starts
from sampan.convert.work import cut
from sampan.errors import InputError
from sampan.quantize import decode_rows, encode_rows, get_scheme, tensor_type
from sampan.quantize.channel import CHANNEL_TYPES
from sampan.static import TOKENS, read_quantities

Model = Callable[[str], Path]
CONTEXT = 256
DENSE = ("trained", "qwen2", "qwen2-linear", "qwen3-odd-widths", "qwen3-yarn", "llama", "mistral", "glm4", "qwen3_vl")


@pytest.fixture(autouse=True)
def sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan asks for the compiler's package; where nothing is compiled it need not be there."""
    if find_spec("onnxruntime_qnn") is None:
        monkeypatch.setattr(qnn, "check", lambda: "none")


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the compiler out: the graphs run on the processor."""
    monkeypatch.setattr(compiled, "compiled", lambda *a: ({}, []))


def to_npu(source: Path, out: Path, quant: str = "a16w8", **options: Any) -> Conversion:
    settings = {"target": "qnn-v75", "context": CONTEXT, "jobs": 2} | options
    made = prepare(open_folder(source), out, "onnx", quant, **settings)
    convert(made)
    return made


def float_graphs(source: Path, out: Path, kind: type[Static] = Static) -> dict[int, Static]:
    """The static graphs of a float32 model, with their weights in `out`."""
    checkpoint = open_folder(source)
    planned = prepare(checkpoint, out, "onnx", "a16w8", target="qnn-v75", context=CONTEXT, jobs=2)
    arch = read_architecture(checkpoint)[1]
    weights = Channels(arch, planned.binding, get_scheme("f32"))
    parts = [npu.Part((*range(len(arch.blocks)), -1), None)]
    data = [DataFile(1, "part-1.data", 0)]
    forms = {n: npu.static(weights, arch, CONTEXT, n, data, parts, kind) for n in TOKENS}
    embedding = replace(planned.plan.tensors[0], type=tensor_type("f32"))
    files = [OutputFile(out / "embedding.data", b"", embedding.nbytes, folder=True)]
    files.append(OutputFile(out / "part-1.data", b"", data[0].end, folder=True))
    plan = replace(planned.plan, files=tuple(files), tensors=(embedding, *weights.tensors), finish=None)
    convert(replace(planned, plan=plan, work=cut(plan.tensors, len(checkpoint.shards), 2, 10**8)))
    return forms


class Floats:
    """Run float graphs over their cache."""

    def __init__(self, folder: Path, forms: dict[int, Static]) -> None:
        import onnxruntime as ort

        self.forms, arch = forms, forms[1]._arch
        self.embedding = np.fromfile(folder / "embedding.data", np.float32).reshape(arch.vocab, arch.hidden)
        self.tables, self.position = npu.rotary(arch, CONTEXT), 0
        self.sessions, self.cache = {}, {}
        for n, form in forms.items():
            (graph,) = form.graphs
            (folder / f"{n}.onnx").write_bytes(graph.model("test", "").SerializeToString())
            self.sessions[n] = ort.InferenceSession(folder / f"{n}.onnx", providers=["CPUExecutionProvider"])
            for e in (e for e in graph.inputs if e.name.startswith("past_")):
                self.cache[e.name] = np.full(e.shape, 7, np.float32)  # that nobody may see

    def __call__(self, ids: list[int], size: int) -> np.ndarray[Any, Any]:
        padded = [*ids, *[ids[-1]] * (size - len(ids))]
        form = self.forms[size]
        tables = {k: np.resize(v, (CONTEXT + size, v.shape[1])) for k, v in self.tables.items()}
        feeds = {"hidden": self.embedding[padded], **self.cache, **_shared(form.graph, form, self.position, tables)}
        feeds = {e.name: feeds[e.name].reshape(e.shape) for e in form.graph.inputs}
        names = [o.name for o in self.sessions[size].get_outputs()]
        found = dict(zip(names, self.sessions[size].run(names, feeds), strict=True))
        for name in self.cache:
            new, at = found[name.replace("past", "present")], slice(self.position, self.position + len(ids))
            if "key" in name:
                self.cache[name][..., at] = new[..., : len(ids)]
            else:
                self.cache[name][..., at, :] = new[..., : len(ids), :]
        self.position += len(ids)
        return found["logits"][: len(ids)]


@pytest.mark.everyday("trained", "qwen2", "glm4")
@pytest.mark.parametrize("name", DENSE)
def test_float_graphs_equal_transformers(name: str, model: Model, tmp_path: Path) -> None:
    """A piece in the graph of 128, tokens one by one over the cache, another piece that does not fill its graph."""
    run = Floats(tmp_path / "out", float_graphs(model(name), tmp_path / "out"))
    ids = tokens()[:150]
    found = [run(ids[:100], 128), *(run([i], 1) for i in ids[100:110]), run(ids[110:], 128)]
    assert_close(np.concatenate(found), reference(model(name), ids))


def test_no_share_depends_on_what_all_keys_have_in_common(model: Model, tmp_path: Path) -> None:
    """Any centre gives the same logits, over the cache too."""
    forms, ids = float_graphs(model("qwen2"), tmp_path / "out"), tokens()[:120]
    plain = Floats(tmp_path / "out", forms)
    plain(ids[:100], 128)
    rng, shapes = np.random.default_rng(0), {e.name: e.shape[2:] for e in forms[1].graph.edges}
    centres = {name: rng.standard_normal(shapes[name]).astype(np.float32) for name in forms[1].keys}
    for form in forms.values():
        size = len(form.graph.model("test", "").SerializeToString())
        fill(form.graph, centres)
        assert len(form.graph.model("test", "").SerializeToString()) == size
    run = Floats(tmp_path / "out", forms)
    found = [run(ids[:100], 128), *(run([i], 1) for i in ids[100:])]
    assert_close(np.concatenate(found), reference(model("qwen2"), ids))
    for layer, centre in enumerate(centres.values()):
        a, b = (r.cache[f"past_key.{layer}"][..., :100] for r in (plain, run))
        assert np.allclose((a - b)[0], centre[:, :, None], atol=1e-3), "it is left out of the cache"


def test_texts_lie_in_all_of_the_context() -> None:
    starts = _starts(8, 512, {"cos": np.zeros((4096, 2), np.float32)})
    assert starts[0] == 0 and starts[-1] + 512 == 4096 and len({*np.diff(starts)}) == 7
    assert _starts(8, 512, {}) == _starts(8, 512, {"cos": np.zeros((512, 2), np.float32)}) == [0] * 8


def test_latent_attention_equals_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a DeepSeek whose layers are all dense: keys and values have other widths, pairs stand next to each other."""
    monkeypatch.setitem(tiny.MODELS, "dense", tiny._deepseek(first_k_dense_replace=4, v_head_dim=64))
    source = tiny.build("dense", tmp_path / "dense")
    run = Floats(tmp_path / "out", float_graphs(source, tmp_path / "out"))
    ids = tokens()[:120]
    found = [run(ids[:100], 128), *(run([i], 1) for i in ids[100:])]
    assert_close(np.concatenate(found), reference(source, ids))


@pytest.mark.slow
@pytest.mark.usefixtures("uncompiled")
def test_pieces_of_turned_weights_end_in_their_places(model: Model, tmp_path: Path) -> None:
    """A few rows at a time, two of which share a byte, give the bytes of all at once."""
    whole = to_npu(model("trained"), tmp_path / "whole", "a16w4")
    few = to_npu(model("trained"), tmp_path / "few", "a16w4", max_memory=60_000)
    assert few.work.count > 10 * whole.work.count
    for file in whole.out.iterdir():
        assert (few.out / file.name).read_bytes() == file.read_bytes(), file.name


def test_weights_of_columns_lower_the_error_of_those_that_count() -> None:
    rng, kind = np.random.default_rng(0), CHANNEL_TYPES["w4_32"]
    rows = rng.standard_normal((64, 256)).astype(np.float32)
    weights = np.exp(2 * rng.standard_normal(256)).astype(np.float32)
    errors = []
    for used in (None, weights):
        raw, back = np.empty(64 * kind.row_bytes(256), np.uint8), np.empty_like(rows)
        encode_rows(kind, rows, raw, used)
        decode_rows(kind, raw, back)
        errors.append(float((np.square(back - rows) * weights).sum()))
    assert errors[1] < 0.97 * errors[0]


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["a16w8", "a16w4"])
@pytest.mark.usefixtures("uncompiled")
def test_onnxruntime_reads_the_weights_from_their_places(quant: str, model: Model, tmp_path: Path) -> None:
    """Through the DequantizeLinear of their graph, against the checkpoint."""
    import onnxruntime as ort
    from safetensors.torch import load_file

    made = to_npu(model("qwen2"), tmp_path / "out", quant)
    graph = onnx.load(made.out / "part-1.1.onnx", load_external_data=False)
    wanted = {"/layers.1/attn/q_proj": "model.layers.1.self_attn.q_proj.weight",
              "/layers.3/mlp/down_proj": "model.layers.3.mlp.down_proj.weight",
              "/lm_head": "model.embed_tokens.weight",
              "/layers.2/input_layernorm": "model.layers.2.input_layernorm.weight",
              "/layers.0/attn/k_proj/bias": "model.layers.0.self_attn.k_proj.bias"}  # fmt: skip
    for path in wanted:
        name = f"{path}/weight/DequantizeLinear/output_0"
        graph.graph.output.append(next(v for v in graph.graph.value_info if v.name == name))
    onnx.save(graph, made.out / "more.onnx")
    session = ort.InferenceSession(made.out / "more.onnx", providers=["CPUExecutionProvider"])
    types = {"tensor(uint8)": np.uint8, "tensor(uint16)": np.uint16, "tensor(float)": np.float32}
    feeds = {i.name: np.zeros(i.shape, types[i.type]) for i in session.get_inputs()}
    stored = load_file(next(model("qwen2").glob("*.safetensors")))
    for path, name in wanted.items():
        (found,) = session.run([f"{path}/weight/DequantizeLinear/output_0"], feeds)
        exact = stored[name].float().numpy()
        four = quant == "a16w4" and path.endswith("_proj")
        found = found.T if four else found
        error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
        assert error < (0.12 if four else 0.01), path


def test_a_range_has_no_more_error_than_all_values_have() -> None:
    """Against the error of codes that are really made, for a cache's 8 bits and values with rare far ones."""
    values = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    values[:20] *= 30
    seen = Observed()
    seen.add(values[:1000])
    seen.add(values[1000:])

    def error(low: float, high: float) -> float:
        q = quantity(low, high, cache=True)
        codes = np.clip(np.rint(values / q.scale) + q.zero, 0, 255)
        return float(np.square((codes - q.zero) * q.scale - values).sum())

    plain = max(-values.min(), values.max())
    low, high = seen.range(cache=True)
    assert error(low, high) < 0.8 * error(-plain, plain)
    low, high = seen.range(cache=False)  # 65,536 steps leave nothing out
    assert (low, high) == (values.min(), values.max())


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.slow
def test_a_large_bias_of_keys_takes_no_codes(model: Model, tmp_path: Path) -> None:
    """In a pair that hardly turns, as Qwen2.5-1.5B has it: codes of keys would be 2.4 apart, and 16 dB be left."""
    from safetensors.torch import load_file, save_file

    source = Path(shutil.copytree(model("qwen2"), tmp_path / "source"))
    heads = json.loads((source / "config.json").read_text())["num_key_value_heads"]
    (file,) = source.glob("*.safetensors")
    stored = load_file(file)
    for layer in range(4):
        stored[f"model.layers.{layer}.self_attn.k_proj.bias"].view(heads, 2, -1)[:, :, -1] = 300
    save_file(stored, file, metadata={"format": "pt"})
    out = to_npu(source, tmp_path / "out").out
    assert read_quantities(out)["past_key.0"][1] < 0.2
    ids = tokens()[:140]
    exact = reference(source, ids).logits
    with runtime.open(out) as session:
        error = np.square(session.logits(ids) - exact).sum() / np.square(exact).sum()
    assert error < 10**-2.5, f"{-10 * np.log10(error):.1f} dB"


@pytest.mark.slow
@pytest.mark.usefixtures("uncompiled")
def test_the_cache_counts_in_the_smallest_context(model: Model, tmp_path: Path) -> None:
    """Ranges of what is made of the cache come from a cache that holds something, also where one piece fills it."""
    ids, out = tokens()[:100], to_npu(model("trained"), tmp_path / "out", context=128).out
    exact = reference(model("trained"), ids).logits[90:]
    with runtime.open(out) as session:
        session.logits(ids[:90])
        found = np.concatenate([session._engine.evaluate([i], 1).copy() for i in ids[90:]])
    error = np.square(found - exact).sum() / np.square(exact).sum()
    assert error < 1e-3, f"{-10 * np.log10(error):.1f} dB"


@pytest.mark.slow
@pytest.mark.usefixtures("uncompiled")
def test_both_graphs_have_one_scale_for_the_cache_around_128(model: Model, tmp_path: Path) -> None:
    made = to_npu(model("trained"), tmp_path / "out")
    found = []
    for n in TOKENS:
        graph = onnx.load(made.out / f"part-1.{n}.onnx", load_external_data=False).graph
        values = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer if not t.external_data}
        found.append({k: v for k, v in values.items() if k.startswith(("past_", "present_"))})
        factors = [i.input[1].removesuffix("/DequantizeLinear/output_0") for i in graph.node if i.op_type == "MatMul"]
        types = {values[f"{f}/zero"].dtype.name for f in factors if f"{f}/zero" in values}
        assert types == {"uint8", "int16"}, "of unsigned ones of 16 bits QNN's provider makes 8"
        for i in range(4):
            for what in ("key", "value"):
                assert values[f"past_{what}.{i}/scale"] == values[f"present_{what}.{i}/scale"] > 0
                assert values[f"past_{what}.{i}/zero"] == values[f"present_{what}.{i}/zero"] == 128
        kinds = {i.name: i.type.tensor_type.elem_type for i in graph.input}
        assert {kinds[n] for n in kinds if n.startswith("past_")} == {onnx.TensorProto.UINT8}
        assert {kinds[n] for n in kinds if not n.startswith(("past_", "hidden"))} == {onnx.TensorProto.UINT16}
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.usefixtures("uncompiled")
def test_norms_of_heads_stand_before_heads_come_in_front(model: Model, tmp_path: Path) -> None:
    """Behind that Transpose the compiler makes other numbers of them, and says nothing."""
    graph = onnx.load(to_npu(model("trained"), tmp_path / "out").out / "part-1.1.onnx", load_external_data=False).graph
    producers = {o: n for n in graph.node for o in n.output}
    norms = [n for n in graph.node if n.op_type == "RMSNormalization"]
    assert len(norms) == 4 * 4 + 1
    for norm in norms:
        node = producers.get(norm.input[0])
        while node is not None and node.op_type in ("QuantizeLinear", "DequantizeLinear", "Reshape", "Transpose"):
            assert node.op_type != "Transpose", norm.name
            node = producers.get(node.input[0])


@pytest.mark.slow
@pytest.mark.usefixtures("uncompiled")
def test_parts_give_the_same_numbers(model: Model, tmp_path: Path) -> None:
    whole = to_npu(model("trained"), tmp_path / "whole")
    cut = to_npu(model("trained"), tmp_path / "cut", split=1_500_000)
    names = {f.path.name for f in cut.plan.files}
    assert {"part-1.data", "part-2.data", "part-3.data", "part-3.128.onnx"} <= names
    assert all(f.size <= 1_600_000 for f in cut.plan.files if f.path.name.startswith("part-"))
    for made in (whole, cut):
        for f in made.plan.files:
            assert f.path.stat().st_size == f.size, "every byte is in the plan"
    ids = tokens()[:140]
    with runtime.open(whole.out) as a, runtime.open(cut.out) as b:
        exact = a.logits(ids)
        assert np.array_equal(exact, b.logits(ids))
        engine = b._engine
        state = np.empty(engine.state_bytes(), np.uint8)
        engine.copy_state(state)
        engine.keep(0)
        engine.evaluate(ids[::-1][:100], 0)
        engine.restore(len(ids), state)
        assert engine.state_limit(len(ids)) == state.nbytes
        last = engine.evaluate([5], 1)[0].copy()
        engine.keep(0)
        for start in range(0, len(ids), engine.batch):
            engine.evaluate(ids[start : start + engine.batch], 0)
        assert np.array_equal(engine.evaluate([5], 1)[0], last)
        with pytest.raises(InputError, match=r"the state: expected .* bytes"):
            engine.restore(3, state)


@pytest.mark.slow
def test_a_killed_conversion_goes_on(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*a: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compiled, "compiled", die)
    with pytest.raises(KeyboardInterrupt):
        to_npu(model("trained"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(compiled, "compiled", lambda *a: ({}, []))
    to_npu(model("trained"), tmp_path / "out")
    to_npu(model("trained"), tmp_path / "again")
    for file in (tmp_path / "again").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("qwen3_moe", {}, "--target: expected blocks of the kinds dense, gqa, mla, found one of moe"),
        ("qwen3_5", {}, "--target: expected blocks of the kinds dense, gqa, mla, found one of deltanet"),
        ("kimi_linear", {}, "found one of kda"),
        *((name, {}, "found one of moe") for name in ("deepseek_v3", "qwen3_vl_moe", "glm4_moe", "minimax_m2")),
        ("qwen3-odd-widths", {"quant": "a16w4"}, "blocks of 32 columns and pairs of rows, for a16w4, found 96 × 176"),
        ("trained", {"context": 64}, "--context: expected 128 to the model's own 1024, found 64"),
        ("trained", {"context": 4096}, "--context: expected 128 to the model's own 1024, found 4096"),
        ("trained", {"quant": "q4_0"}, r"--quant: expected a16w8 or a16w4 \(int8, int4\) with --target"),
        ("trained", {"target": "qnn-v68"}, "--target: expected qnn, or one of qnn-v73, .*, found 'qnn-v68'"),
        ("trained", {"target": "hexagon"}, "--target: expected qnn, .*qnn-v81, rk3588, rk3576, found 'hexagon'"),
        ("trained", {"split": 10_000}, "--split-size: expected at least the .* of layer 0, found 10"),
        ("trained", {"split": 0}, "--split-size: expected at least the .* of layer 0, found 0 B"),
        ("trained", {"split": 2 * 10**9 + 1}, "--split-size: expected at most 2 GB, .*, found 2000000001 bytes"),
        ("trained", {"accuracy": 4}, "--accuracy-level: expected none with --target"),
    ],
)  # fmt: skip
def test_what_the_target_cannot_hold_is_refused(
    name: str, options: dict[str, Any], message: str, model: Model, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        to_npu(model(name), tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_gguf_has_no_target(model: Model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--target: expected none with --to gguf"):
        prepare(open_folder(model("trained")), tmp_path / "out.gguf", "gguf", "q4_0", target="qnn")
