"""Rewriting a traced graph: a small decoder made by hand, its quantised form against its dequantised weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx_peer import relative

from sampan.artifact import OutputFile, manifest_bytes
from sampan.checkpoint import Checkpoint
from sampan.convert.binding import Binding
from sampan.convert.exporters._check import TOLERANCE, check
from sampan.convert.fill import fill
from sampan.convert.formats.onnx.rewrite import Rewritten, rewrite
from sampan.convert.shards import Shards
from sampan.convert.work import cut
from sampan.errors import InputError
from sampan.job import open_job
from sampan.quantize import decode_rows, encode_rows, get_scheme, tensor_type

VOCAB, WIDTH, INNER = 200, 64, 96
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]
Weights = dict[str, NDArray[np.float32]]


def weights(tied: bool = False) -> Weights:
    rng = np.random.default_rng(7)
    shapes = {"embed.weight": (VOCAB, WIDTH), "up": (WIDTH, INNER), "router": (WIDTH, 4), "down": (INNER, WIDTH)}
    made = {n: rng.standard_normal(s, dtype=np.float32) / np.float32(s[0] ** 0.5) for n, s in shapes.items()}
    made["embed.weight"] *= 10
    made["bias"] = rng.standard_normal(INNER * 8, dtype=np.float32)  # long enough for external data
    head = rng.standard_normal((WIDTH, VOCAB), dtype=np.float32)
    return made | {"head": np.ascontiguousarray(made["embed.weight"].T) if tied else head}


def decoder(folder: Path, w: Weights) -> Path:
    """A decoder whose cache holds all earlier values and whose "attention" is their sum, as a traced file."""
    node = helper.make_node
    nodes = [
        node("Gather", ["embed.weight", "input_ids"], ["x"], "/model/embed_tokens/Gather"),
        node("Unsqueeze", ["x", "one"], ["new"], "/model/cache/Unsqueeze"),
        node("Concat", ["past_key_values.0.key", "new"], ["present.0.key"], "/model/cache/Concat", axis=2),
        node("CumSum", ["present.0.key", "two"], ["sums"], "/model/CumSum"),
        node("Shape", ["input_ids"], ["length"], "/model/Shape", start=1),
        node("Neg", ["length"], ["first"], "/model/Neg"),
        node("Slice", ["sums", "first", "end", "two1"], ["recent"], "/model/Slice"),
        node("Squeeze", ["recent", "one"], ["h"], "/model/Squeeze"),
        node("MatMul", ["h", "up"], ["u"], "/model/layers.0/mlp/up_proj/MatMul"),
        node("Slice", ["bias", "zero1", "inner", "zero1"], ["b"], "/model/layers.0/mlp/Slice"),
        node("Add", ["u", "b"], ["ub"], "/model/layers.0/mlp/Add"),
        node("Tanh", ["ub"], ["t"], "/model/layers.0/mlp/Tanh"),
        node("MatMul", ["t", "down"], ["d"], "/model/layers.0/mlp/down_proj/MatMul"),
        node("MatMul", ["h", "router"], ["r"], "/model/layers.0/mlp/gate/MatMul"),
        node("ReduceSum", ["r", "last"], ["s"], "/model/layers.0/mlp/ReduceSum"),
        node("Mul", ["d", "s"], ["ds"], "/model/layers.0/mlp/Mul"),
        node("MatMul", ["ds", "head"], ["logits"], "/lm_head/MatMul"),
    ]
    ints = {"one": 1, "two": 2, "end": [2**62], "two1": [2], "zero1": [0], "inner": [INNER], "last": [-1]}
    ints["one"] = [1]
    tensors = [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in ints.items()]
    tensors += [numpy_helper.from_array(v, n) for n, v in w.items()]
    info, f, i = helper.make_tensor_value_info, TensorProto.FLOAT, TensorProto.INT64
    graph = helper.make_graph(
        nodes, "traced",
        [info("input_ids", i, ["b", "n"]), info("attention_mask", i, ["b", "total"]),
         info("past_key_values.0.key", f, ["b", 1, "past", WIDTH])],
        [info("logits", f, ["b", "n", VOCAB]), info("present.0.key", f, ["b", 1, "total", WIDTH])],
        tensors,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model)
    folder.mkdir(exist_ok=True)
    onnx.save_model(model, folder / "model.onnx", save_as_external_data=True, location="d.bin", size_threshold=1024)
    return folder / "model.onnx"


def expected(w: Weights) -> NDArray[np.float32]:
    """The same in numpy, float32 [tokens, vocabulary]."""
    h = np.cumsum(w["embed.weight"][TOKENS], axis=0, dtype=np.float32)
    d = np.tanh(h @ w["up"] + w["bias"][:INNER]) @ w["down"]
    logits: NDArray[np.float32] = (d * (h @ w["router"]).sum(axis=1, keepdims=True)) @ w["head"]
    return logits


def through(kind: str, w: NDArray[np.float32], *, turn: bool = True) -> NDArray[np.float32]:
    """A stored matrix as its type holds it."""
    rows = np.ascontiguousarray(w.T if turn else w)
    t = tensor_type(kind)
    raw, back = np.empty(rows.shape[0] * t.row_bytes(rows.shape[1]), np.uint8), np.empty_like(rows)
    encode_rows(t, rows, raw)
    decode_rows(t, raw, back)
    return np.ascontiguousarray(back.T) if turn else back


def all_through(kind: str, w: Weights) -> Weights:
    """Every matrix but the router as its type holds it."""
    same = {n: v for n, v in w.items() if v.ndim == 1 or n == "router"}
    return {n: same[n] if n in same else through(kind, v, turn=n != "embed.weight") for n, v in w.items()}


def rewritten(graph: Path, out: Path, quant: str, accuracy: int = 0, **options: Any) -> Rewritten:
    """Through the cut and the fill of every conversion."""
    new = rewrite(graph, quant, get_scheme(quant), accuracy)
    work = cut(new.tensors, len(new.shards), 2, options.pop("max_memory", 10**7))
    files = (
        OutputFile(out / "model.onnx.data", b"", new.size, folder=True),
        OutputFile(out / "model.onnx", new.model, len(new.model), folder=True),
    )
    source = Shards(Checkpoint("traced", None, graph.parent, {}, new.shards), Binding((), None, {}))
    passed: list[int] = []
    with open_job(out, files, {"test": str(out)}, overwrite=False) as job:
        fill(work, source, job, 2, progress=passed.append, **options)
        job.commit(manifest_bytes({}))
    assert sum(passed) == sum(s.size for s in new.shards)
    return new


def run(graph: Path) -> NDArray[np.float32]:
    onnx.checker.check_model(str(graph))
    session = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    feed = {"input_ids": np.array([TOKENS]), "attention_mask": np.ones((1, len(TOKENS)), np.int64)}
    logits: NDArray[np.float32] = session.run(
        ["logits"], feed | {"past_key_values.0.key": np.zeros((1, 1, 0, WIDTH), np.float32)}
    )[0][0]
    return logits


@pytest.mark.parametrize(
    ("quant", "kinds"),
    [
        ("f32", {}),
        ("f16", dict.fromkeys(("embed.weight", "up", "down", "head"), "f16")),
        ("int4", dict.fromkeys(("embed.weight", "up", "down", "head"), "u4_32")),
        ("int4_zp", dict.fromkeys(("embed.weight", "up", "down", "head"), "u4_32z")),
        ("int4_128", dict.fromkeys(("up", "down", "head"), "u4_128")),  # a row of the embedding cannot be padded
    ],
)
def test_a_quantised_graph_computes_with_the_dequantised_weights(
    quant: str, kinds: dict[str, str], tmp_path: Path
) -> None:
    w = weights()
    new = rewritten(decoder(tmp_path / "in", w), tmp_path / "out", quant, max_memory=40_000)
    held = {n: through(kinds[n], v, turn=n != "embed.weight") if n in kinds else v for n, v in w.items()}
    assert relative(run(tmp_path / "out" / "model.onnx"), expected(held)) < 1e-5
    found = {t.bound.spec.name: t.type.name for t in new.matrices}
    assert {n: found[n] for n in kinds} == kinds and found["router"] == "f32"


def test_8_bits_at_the_fast_level(tmp_path: Path) -> None:
    w = weights()
    rewritten(decoder(tmp_path / "in", w), tmp_path / "out", "q8_0", accuracy=4)
    held = all_through("q8_0", w)
    error = relative(run(tmp_path / "out" / "model.onnx"), expected(held))
    assert 1e-7 < error < 0.05, "activations are rounded to int8, and no more than that"
    with pytest.raises(InputError, match=r"--accuracy-level: expected 4 for 8-bit weights, found 0"):
        rewrite(tmp_path / "in" / "model.onnx", "q8_0", get_scheme("q8_0"), 0)


def test_a_tied_head_shares_the_bytes_of_the_embedding(tmp_path: Path) -> None:
    own, tied = (
        rewritten(decoder(tmp_path / f"in{t}", weights(t)), tmp_path / f"out{t}", "int4") for t in (False, True)
    )
    assert own.size - tied.size >= 0.99 * VOCAB * WIDTH * 4.5 / 8
    w = weights(True)
    held = all_through("u4_32", w)
    assert relative(run(tmp_path / "outTrue" / "model.onnx"), expected(held)) < 1e-5


def test_bad_weights_are_refused(tmp_path: Path) -> None:
    for n, (value, text) in enumerate({0.0: "nothing but zeros", np.nan: "finite values", np.inf: "finite"}.items()):
        w = weights()
        w["down"][:, :] = value
        with pytest.raises(InputError, match=f"down: .*{text}"):
            rewritten(decoder(tmp_path / f"in{n}", w), tmp_path / f"out{n}", "int4")
    w["down"][:, :] = 0
    rewritten(decoder(tmp_path / "zero", w), tmp_path / "allowed", "int4", allow_zero=True)


def test_a_scheme_that_onnx_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--quant: expected a scheme that ONNX can hold: .*int4.*, found q4_k_m"):
        rewrite(decoder(tmp_path / "in", weights()), "q4_k_m", get_scheme("q4_k_m"))


def test_external_data_outside_the_folder_is_refused(tmp_path: Path) -> None:
    graph = decoder(tmp_path / "in", weights())
    model = onnx.load(graph, load_external_data=False)
    for location, text in (("../d.bin", "data in a file beside"), ("d.bin", "bytes within d.bin")):
        for i in model.graph.initializer:
            for e in i.external_data:
                e.value = location if e.key == "location" else str(10**9) if e.key == "offset" else e.value
        graph.write_bytes(model.SerializeToString())
        with pytest.raises(InputError, match=text):
            rewrite(graph, "int4", get_scheme("int4"))


def test_the_check_accepts_the_model_and_nothing_else(tmp_path: Path) -> None:
    w = weights()
    graph, reference = decoder(tmp_path / "in", w), expected(w)[None]
    error, bound = check(graph, TOKENS, [], reference)
    assert 0 < error <= bound == TOLERANCE * float(np.abs(reference).max())
    with pytest.raises(InputError, match="finite logits of the reference"):
        check(graph, TOKENS, [], reference * np.float32(np.nan))
    with pytest.raises(InputError, match=r"logits: expected \[12, 190\], found \[12, 200\]"):
        check(graph, TOKENS, [], reference[..., :190])
    data = next(graph.parent.glob("d.bin"))
    up = next(i for i in onnx.load(graph, load_external_data=False).graph.initializer if i.name == "up")
    offset = int({e.key: e.value for e in up.external_data}["offset"])
    with data.open("r+b") as f:  # one weight of 31,000
        value = np.frombuffer(os.pread(f.fileno(), 4, offset), np.float32) + np.float32(0.05)
        os.pwrite(f.fileno(), value.tobytes(), offset)
    with pytest.raises(InputError, match=r"in one piece: expected the logits .*, found .*nothing was written"):
        check(graph, TOKENS, [], reference)


def test_the_check_notices_a_broken_cache(tmp_path: Path) -> None:
    """A graph that is right in one piece, but forgets the past."""
    w = weights()
    graph = decoder(tmp_path / "in", w)
    model = onnx.load(graph, load_external_data=False)
    cum = next(n for n in model.graph.node if n.op_type == "CumSum")
    cum.input[0] = "new"
    graph.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="over the cache"):
        check(graph, TOKENS, [], expected(w)[None])


def test_other_inputs_are_refused(tmp_path: Path) -> None:
    graph = decoder(tmp_path / "in", weights())
    model = onnx.load(graph, load_external_data=False)
    model.graph.input.append(helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, [1, 3]))
    graph.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"inputs of a text decoder with a cache, found .*pixel_values"):
        check(graph, TOKENS, [], np.zeros((1, 12, VOCAB), np.float32))


def test_an_array_in_two_types_is_read_for_both(tmp_path: Path) -> None:
    """The embedding is looked up in blocks, and added to something as it is: one place in the file, two readers."""
    w = weights()
    graph = decoder(tmp_path / "in", w)
    model = onnx.load(graph, load_external_data=False)
    model.graph.node.append(helper.make_node("ReduceMax", ["embed.weight"], ["largest"], "/x/ReduceMax", keepdims=0))
    model.graph.output.append(helper.make_tensor_value_info("largest", TensorProto.FLOAT, []))
    graph.write_bytes(model.SerializeToString())
    rewritten(graph, tmp_path / "out", "int4")
    assert relative(run(tmp_path / "out" / "model.onnx"), expected(all_through("u4_32", w))) < 1e-5
    session = ort.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    feed = {"input_ids": np.array([TOKENS]), "attention_mask": np.ones((1, len(TOKENS)), np.int64)}
    cache = {"past_key_values.0.key": np.zeros((1, 1, 0, WIDTH), np.float32)}
    assert session.run(["largest"], feed | cache)[0] == w["embed.weight"].max()


def test_other_numbers_than_float32_go_into_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = decoder(tmp_path / "in", weights())
    model = onnx.load(graph, load_external_data=False)
    inner = next(i for i in model.graph.initializer if i.name == "inner")
    (tmp_path / "in" / "ints.bin").write_bytes(np.array([INNER], np.int64).tobytes())
    inner.ClearField("raw_data")
    inner.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "ints.bin"), ("offset", "0"), ("length", "8")):
        inner.external_data.add(key=key, value=value)
    graph.write_bytes(model.SerializeToString())
    new = rewritten(graph, tmp_path / "out", "f32")
    assert relative(run(tmp_path / "out" / "model.onnx"), expected(weights())) < 1e-6
    assert {s.name for s in new.shards} == {"d.bin", "ints.bin"}
    monkeypatch.setattr("sampan.convert.formats.onnx.rewrite.MOST_INSIDE", 4)
    with pytest.raises(InputError, match=r"model.onnx: inner: expected at most 4 bytes of other numbers .* found 8"):
        rewrite(graph, "f32", get_scheme("f32"))
