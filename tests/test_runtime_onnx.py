"""The ONNX engine against plain ONNX Runtime loops, the tokenizers package, and graphs that are not ours."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
from conftest import run_cli
from onnx import TensorProto, helper, numpy_helper
from onnx_peer import Plain, at_level, build_genai, to_onnx
from test_runtime import NASTY

from sampan import runtime
from sampan.errors import InputError
from sampan.onnx import Graph
from sampan.runtime import EngineOptions, Options, Sampling
from sampan.runtime.engines import _process
from sampan.runtime.engines._routers import RouterRecorder
from sampan.runtime.engines.onnx import SETTLED

IDS = [int(i) for i in np.random.default_rng(3).integers(0, 2000, 40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return to_onnx(tiny.FIXTURE, tmp_path_factory.mktemp("onnx") / "int8", "int8").artifact


@pytest.fixture
def changed(folder: Path, tmp_path: Path) -> Callable[[Callable[[onnx.ModelProto], None]], Path]:
    """`changed(edit)` → a copy of the folder with another graph, without our manifest."""

    def get(edit: Callable[[onnx.ModelProto], None]) -> Path:
        copy = Path(shutil.copytree(folder, tmp_path / "changed"))
        (copy / "manifest.json").unlink()
        model = onnx.load(copy / "model.onnx", load_external_data=False)
        edit(model)
        (copy / "model.onnx").write_bytes(model.SerializeToString())
        return copy

    return get


# Logits: in float32, where another order of sums, by processor and by number of tokens, changes the last digits only


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return to_onnx(tiny.FIXTURE, tmp_path_factory.mktemp("onnx") / "fp32", "fp32").artifact


def test_prefill_equals_a_plain_loop(exact: Path) -> None:
    wanted = Plain(exact)(IDS)
    with runtime.open(exact) as s:
        np.testing.assert_allclose(s.logits(IDS), wanted, atol=1e-4)
        for first in (0, 1, 39):  # our mask asks the graph for the last logits only
            sliced = list(s.logit_slices(IDS, first=first))
            np.testing.assert_allclose(np.concatenate(sliced), wanted[first:], atol=1e-4)


def test_a_long_prefill_comes_in_parts(exact: Path) -> None:
    ids = (IDS * 20)[:700]
    wanted = Plain(exact)(ids)
    with runtime.open(exact) as s:
        np.testing.assert_allclose(s.logits(ids)[-5:], wanted[-5:], atol=1e-4)


def test_token_by_token_equals_a_plain_loop(exact: Path) -> None:
    wanted = Plain(exact).steps(IDS)
    with runtime.open(exact) as s:
        found = [s._engine.evaluate([i], 1)[0].copy() for i in IDS]
    np.testing.assert_allclose(np.stack(found), wanted, atol=1e-4)


def test_the_cache_is_rewound(exact: Path) -> None:
    """After a prefill some tokens are forgotten: what follows is as if they had not been there."""
    plain = Plain(exact)
    plain(IDS[:10])
    wanted = plain(IDS[30:])
    with runtime.open(exact) as s:
        s._engine.evaluate(IDS[:30], 0)
        s._engine.keep(10)
        np.testing.assert_allclose(s._engine.evaluate(IDS[30:], 10), wanted, atol=1e-4)


def test_greedy_answers_equal_a_plain_loop(folder: Path) -> None:
    with runtime.open(folder) as s:
        prompt = s.tokenize_chat([{"role": "user", "content": "What is the capital of Peru?"}])
        ours = s.generate(prompt, Options(max_tokens=20, sampling=Sampling()))
        plain, ids, last = Plain(folder), [], prompt
        while len(ids) < 20 and not s._engine.is_end(token := int(plain(last)[-1].argmax())):
            ids.append(token)
            last = [token]
        assert ours == s.detokenize(ids) and "Lima" in ours


def test_the_context_is_a_limit(folder: Path) -> None:
    with runtime.open(folder, runtime.EngineOptions(context=32)) as s:
        assert len(list(s.stream(IDS[:28], Options(max_tokens=100, sampling=Sampling(temperature=2.0))))) <= 4
        with pytest.raises(
            InputError, match="the prompt has 40 tokens, and the context 32; --context gives it up to 1024"
        ):
            s.logits(IDS)
    with pytest.raises(
        InputError, match="a context of 2048 tokens cannot be had, since the model was made for 1 to 1024"
    ):
        runtime.open(folder, runtime.EngineOptions(context=2048))


# Tokens


@pytest.mark.parametrize("text", NASTY)
def test_tokens_equal_the_tokenizers_package(text: str, folder: Path) -> None:
    from tokenizers import Tokenizer

    reader = Tokenizer.from_file(str(tiny.FIXTURE / "tokenizer.json"))
    with runtime.open(folder, runtime.EngineOptions(vocabulary_only=True)) as s:
        ids = s.tokenize(text)
        assert ids == reader.encode(text).ids
        assert s.detokenize(ids) == reader.decode(ids)  # both leave control tokens out
        plain = s.tokenize(text, special=False)
        assert s.detokenize(plain) == reader.decode(plain, skip_special_tokens=False)


# Graphs that are not ours


@pytest.mark.slow
def test_a_folder_of_genais_builder(tmp_path: Path) -> None:
    folder = build_genai(tiny.FIXTURE, tmp_path / "genai")
    ours = to_onnx(tiny.FIXTURE, tmp_path / "fp32", "fp32").artifact
    with runtime.open(folder) as peer, runtime.open(ours) as exact:
        a, b = peer.logits(IDS), exact.logits(IDS)
        assert np.linalg.norm(a - b) / np.linalg.norm(b) < 0.3
        assert (a.argmax(axis=1) == b.argmax(axis=1)).mean() > 0.7


def small(folder: Path) -> Path:
    """A graph by hand: position_ids, a cache that grows, logits that show what was fed.

    logits[j] = sum over the cached tokens (as key) + 100 · position, in every column of 2048.
    """
    f, i = TensorProto.FLOAT, TensorProto.INT64
    info = helper.make_tensor_value_info
    node = helper.make_node
    zero, one = (numpy_helper.from_array(np.array(v), n) for v, n in (([1, 1, -1, 1], "four"), ([1, -1, 1], "three")))
    wide = numpy_helper.from_array(np.ones((1, 2048), np.float32), "wide")
    hundred = numpy_helper.from_array(np.array(100, np.float32), "hundred")
    axes = numpy_helper.from_array(np.array([2]), "axes")
    nodes = [
        node("Cast", ["input_ids"], ["ids"], to=f),
        node("Reshape", ["ids", "four"], ["fresh"]),
        node("Concat", ["past_key_values.0.key", "fresh"], ["present.0.key"], axis=2),
        node("Concat", ["past_key_values.0.value", "fresh"], ["present.0.value"], axis=2),
        node("ReduceSum", ["present.0.key", "axes"], ["sum"], keepdims=0),
        node("Cast", ["position_ids"], ["at"], to=f),
        node("Reshape", ["at", "three"], ["column"]),
        node("Mul", ["column", "hundred"], ["far"]),
        node("Add", ["far", "sum"], ["value"]),
        node("MatMul", ["value", "wide"], ["logits"]),
    ]
    past = [info(f"past_key_values.0.{n}", f, [1, 1, "past", 1]) for n in ("key", "value")]
    present = [info(f"present.0.{n}", f, [1, 1, "total", 1]) for n in ("key", "value")]
    inputs = [info(n, i, [1, n]) for n in ("input_ids", "attention_mask", "position_ids")]
    graph = helper.make_graph(
        nodes,
        "small",
        [*inputs, *past],
        [info("logits", f, [1, "n", 2048]), *present],
        [zero, one, wide, hundred, axes],
    )
    folder.mkdir()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    shutil.copy(tiny.FIXTURE / "tokenizer.json", folder)
    return folder


def test_positions_and_a_cache_that_grows(tmp_path: Path) -> None:
    with runtime.open(small(tmp_path / "small")) as s:
        assert s.vocab == 2048, "the graph's, not the tokenizer's 2033"
        assert s.logits([5, 7, 9])[:, 0].tolist() == [21, 121, 221]
        assert s._engine.evaluate([11], 1)[0, 0] == 5 + 7 + 9 + 11 + 300
        s._engine.keep(2)
        assert s._engine.evaluate([1, 2], 2)[:, 0].tolist() == [5 + 7 + 3 + 200, 5 + 7 + 3 + 300]


# Refusals


def test_inputs_that_are_missing_or_unknown(
    changed: Callable[[Callable[[onnx.ModelProto], None]], Path],
) -> None:
    def more(model: onnx.ModelProto) -> None:
        model.graph.input.append(helper.make_tensor_value_info("beam_idx", TensorProto.INT32, [1]))

    with pytest.raises(InputError, match=r"model\.onnx: beam_idx: expected inputs that a text decoder"):
        runtime.open(changed(more))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("input_ids", "tokens", "expected an input input_ids, found only tokens, attention_mask"),
        ("past_key_values", "cache", "cache.0.key: expected inputs that a text decoder with a cache has"),
        ("logits", "scores", "expected an output logits, found only scores"),
    ],
)
def test_names_that_are_not_understood(
    old: str, new: str, message: str, changed: Callable[[Callable[[onnx.ModelProto], None]], Path]
) -> None:
    def rename(model: onnx.ModelProto) -> None:
        for value in (*model.graph.input, *model.graph.output):
            value.name = value.name.replace(old, new)
        for node in model.graph.node:
            for names in (node.input, node.output):
                names[:] = [new + n[len(old) :] if n.startswith(old) else n for n in names]

    with pytest.raises(InputError, match=message):
        runtime.open(changed(rename))


def test_a_graph_without_a_cache(tmp_path: Path) -> None:
    folder = small(tmp_path / "small")
    info, i = helper.make_tensor_value_info, TensorProto.INT64
    nodes = [helper.make_node("Cast", ["input_ids"], ["logits"], to=TensorProto.FLOAT)]
    inputs = [info(n, i, [1, "n"]) for n in ("input_ids", "attention_mask")]
    graph = helper.make_graph(nodes, "none", inputs, [info("logits", TensorProto.FLOAT, [1, "n"])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"expected inputs past_key_values\.0\.key, …, found a graph without a cache"):
        runtime.open(folder)


def test_files_and_options_that_are_refused(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "model.onnx").write_bytes(b"\xff" * 99)
    with pytest.raises(InputError, match=r"model\.onnx: ONNX Runtime cannot load it: "):
        runtime.open(copy)
    (copy / "tokenizer.json").write_text(json.dumps({"model": 1}))
    with pytest.raises(InputError, match=r"tokenizer\.json: expected a tokenizer\.json that the tokenizers package"):
        runtime.open(copy)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json: expected a tokenizer, found no such file"):
        runtime.open(copy)
    with pytest.raises(InputError, match=r"kv: expected f32, the cache of .*model\.onnx, found f16"):
        runtime.open(folder, runtime.EngineOptions(kv="f16"))
    with pytest.raises(InputError, match=r"flash_attention: expected None or False.*found True"):
        runtime.open(folder, runtime.EngineOptions(flash_attention=True))
    with pytest.raises(InputError, match=r"record_inputs: expected False: only llama\.cpp tells them, found True"):
        runtime.open(folder, runtime.EngineOptions(record_inputs=True))


@pytest.mark.parametrize("name", ["qwen2_moe", "qwen3_moe", "deepseek_v3-groups"])
def test_experts_are_those_of_llama_cpp(
    name: str, model: Callable[[str], Path], gguf: Callable[[str, str], Path], tmp_path: Path
) -> None:
    both = []
    for artifact in (to_onnx(model(name), tmp_path / "fp32", "fp32").artifact, gguf(name, "f32")):
        options = runtime.EngineOptions(record_experts=True, kv="f32", flash_attention=False)
        with runtime.open(artifact, options) as s:
            logits = np.concatenate([x.copy() for x in s.logit_slices(IDS)])
            both.append((logits, s.take_experts()))
            assert s.take_experts() == {}, "they are told once"
    (a, chosen), (b, wanted) = both
    np.testing.assert_allclose(a, b, atol=1e-3)
    assert chosen.keys() == wanted.keys() and len(chosen) > 1
    same = [(chosen[n] == wanted[n]).all(axis=1).mean() for n in chosen]
    assert np.mean(same) > 0.99, "all but ties"


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        ([("/layers.0/moe", ["x", "a"], 2), ("/model/layers.1/moe", ["x", "b"], None)], ["a", "b"]),
        ([("/layers.0/moe", ["x", "a"], 2), ("/moe", ["x", "b"], 2)], []),
        ([("/layers.0/moe", ["x", "a"], 2), ("/layers.0/other", ["x", "b"], 2)], []),
        ([("/layers.0/moe", ["x", "a"], 2), ("/layers.1/moe", ["x", "a"], 2)], []),
        ([("/layers.0/moe", ["x"], 2)], []),
        ([("/layers.0/moe", ["x", "a"], 0)], []),
    ],
)
def test_mixtures_that_are_not_understood_are_not_recorded(
    nodes: list[tuple[str, list[str], int | None]], outputs: list[str], tmp_path: Path
) -> None:
    made = [helper.make_node("MoE", i, [n], name=n, **({} if k is None else {"k": k})) for n, i, k in nodes]
    model = helper.make_model(helper.make_graph(made, "g", [], []))
    recorder = RouterRecorder(Graph(tmp_path, model, {}, {}))
    assert recorder.outputs == outputs
    recorder.hear(dict.fromkeys(outputs, np.array([[0.1, 0.3, 0.2]], np.float32)))
    if outputs:
        assert {layer: ids.tolist() for layer, ids in recorder.take().items()} == {0: [[1, 2]], 1: [[1]]}


def test_what_is_loaded_goes_to_huge_pages_behind_the_first_tokens(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What appears while the session is made, made up here: an allocator may put weights where others were before
    (tests/test_process_effects.py: what becomes of real memory).
    """
    seen: list[list[tuple[int, int]]] = []
    maps = iter([{(0, 1)}, {(0, 1), (2, 3)}])
    monkeypatch.setattr(_process, "collapse", seen.append)
    monkeypatch.setattr(_process, "private", lambda: next(maps))
    options, on = EngineOptions(threads=1), Options(2 * SETTLED, Sampling(logit_bias={7: 1e4}))
    with runtime.open(folder, options) as session:
        stream = session.stream("Hi", on)
        for _ in range(SETTLED):
            next(stream)
        assert not seen, "the first tokens come first"
        stream.read()
    assert seen == [[(2, 3)]], "what was there before is left alone"
    with runtime.open(folder, replace(options, process_wide=False)) as session:
        session.stream("Hi", on).read()
    assert len(seen) == 1


def test_a_graph_that_would_be_hundreds_of_times_slower_is_refused(tmp_path: Path) -> None:
    folder = to_onnx(tiny.FIXTURE, tmp_path / "int8", "int8").out
    (folder / "model.onnx").write_bytes(at_level(folder, 0))
    (folder / "manifest.json").unlink()
    line = r"model\.onnx: /.*MatMulNBits: expected accuracy level 4 for weights of 8 or 2 bits, found 0, about 300"
    with pytest.raises(InputError, match=line):
        runtime.open(folder)
    assert re.search(r"slow +\d+ products of 8 or 2 bits at accuracy level 0", run_cli("inspect", str(folder)).stdout)
    (folder / "model.onnx").write_bytes(at_level(folder, 4))
    runtime.open(folder).close()
    assert "slow" not in run_cli("inspect", str(folder)).stdout
