"""int8 caches of ONNX graphs: the operator against numpy, the scales against a plain loop, drift, states, refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tiny
from conftest import run_cli
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx_peer import Plain, relative, to_onnx
from test_logits import tokens
from tokenizers import Tokenizer
from validating import ONE, cache, findings, kld, run

from sampan import runtime
from sampan.checkpoint import open_folder
from sampan.convert.conversion import prepare
from sampan.errors import InputError
from sampan.runtime import EngineOptions
from sampan.validate.windows import built_in

__all__ = ["cache"]  # a fixture of every test here

Floats = NDArray[np.float32]
Model = Callable[[str], Path]


@dataclass(frozen=True)
class Heads:
    """How a family's heads lie: of queries and of keys, their width, how many channels are rotated, with which base."""

    queries: int
    keys: int
    width: int
    rotated: int
    base: float
    interleaved: bool = False
    scale: float | None = None


# from tests/tiny.py, not from our reading of it
HEADS = {
    "trained": Heads(4, 2, 128, 128, 1e4),
    "qwen2": Heads(4, 2, 64, 64, 1e4),
    "glm4": Heads(4, 2, 64, 32, 1e4, interleaved=True),
}


@pytest.fixture(scope="module")
def folder(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str | None], Path]:
    """`folder(name, kv)` → a model in float32 with such a cache, made once."""
    made: dict[tuple[str, str | None], Path] = {}

    def get(name: str, kv: str | None) -> Path:
        if (name, kv) not in made:
            made[name, kv] = to_onnx(model(name), tmp_path_factory.mktemp("kv") / f"{name}-{kv}", "fp32", kv=kv).out
        return made[name, kv]

    return get


Folder = Callable[[str, str | None], Path]


def initializers(path: Path) -> dict[str, Any]:
    model = onnx.load(path / "model.onnx", load_external_data=False)
    return {t.name: t for t in model.graph.initializer}


def scales(path: Path) -> dict[str, Floats]:
    """Initializer → scales."""
    return {n: numpy_helper.to_array(t) for n, t in initializers(path).items() if n.endswith("/scale")}


class Opened:
    """A folder's graph that also gives what goes into a layer's attention and what comes out."""

    def __init__(self, path: Path, layer: int) -> None:
        model = onnx.load(path / "model.onnx", load_external_data=False)
        node = next(n for n in model.graph.node if n.name == f"/layers.{layer}/attn/GroupQueryAttention")
        self.names = [*(n for n in node.input[:3] if n), node.output[0], *node.output[1:3]]
        known = {o.name for o in model.graph.output}
        model.graph.output.extend(v for v in model.graph.value_info if v.name in self.names and v.name not in known)
        settings = ort.SessionOptions()
        settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path))
        self.session = ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
        inputs = [i for i in self.session.get_inputs() if i.name.startswith("past_")]
        assert {i.type for i in inputs} == {"tensor(int8)"}
        self.present = [i.name.replace("past_key_values", "present") for i in inputs]
        self.cache = {i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.int8) for i in inputs}
        self.done = 0

    def __call__(self, ids: list[int]) -> list[Any]:
        """[q, k, v or the three in one, attention's output, codes of keys, of values]."""
        self.done += len(ids)
        feed = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, self.done), np.int64), **self.cache}
        found = dict(
            zip([*self.present, *self.names], self.session.run([*self.present, *self.names], feed), strict=True)
        )
        self.cache = {p.replace("present", "past_key_values"): found[p] for p in self.present}
        return [found[n] for n in self.names]


def rotate(x: NDArray[np.float64], positions: NDArray[np.intp], h: Heads) -> NDArray[np.float64]:
    """Rotary embedding of [heads, tokens, width] (arXiv 2104.09864)."""
    half = h.rotated // 2
    angles = positions[:, None] * h.base ** (-np.arange(half) / half)
    turned = x.copy()
    first, second = (slice(0, h.rotated, 2), slice(1, h.rotated, 2)) if h.interleaved else (
        slice(half), slice(half, h.rotated)
    )  # fmt: skip
    a, b = x[..., first], x[..., second]
    turned[..., first] = a * np.cos(angles) - b * np.sin(angles)
    turned[..., second] = b * np.cos(angles) + a * np.sin(angles)
    return turned


def split(x: Floats, heads: int) -> NDArray[np.float64]:
    """[1, tokens, heads · width] → [heads, tokens, width]."""
    return x[0].astype(np.float64).reshape(x.shape[1], heads, -1).swapaxes(0, 1)


@pytest.mark.parametrize("name", HEADS)
def test_the_operator_equals_numpy(name: str, folder: Folder) -> None:
    """Keys are rotated, rounded by their channel's scale, and then looked at, the new ones like the old ones: in one
    piece, behind a cache, and a token alone.
    """
    h, layer, path = HEADS[name], 1, folder(name, "int8")
    found, graph, at = scales(path), Opened(path, layer), 0
    by_part = {n: found[f"/layers.{layer}/attn/{n}/scale"].reshape(h.keys, 1, h.width) for n in ("key", "value")}
    for count in (70, 40, 1, 1):
        *qkv, out, key_codes, value_codes = graph(tokens()[at : at + count])
        if len(qkv) == 1:
            qkv = np.split(qkv[0], np.cumsum([h.queries * h.width, h.keys * h.width]), axis=-1)
        positions = np.arange(at, at + count)
        q = rotate(split(qkv[0], h.queries), positions, h)
        new = {"key": rotate(split(qkv[1], h.keys), positions, h), "value": split(qkv[2], h.keys)}
        for part, codes in (("key", key_codes), ("value", value_codes)):
            wanted = np.clip(np.rint(new[part] / by_part[part]), -128, 127)
            off = np.abs(wanted - codes[0, :, at:])
            assert off.max() <= 1 and (off > 0).mean() < 1e-3  # halves, which float32 may round the other way
        k, v = (c[0].astype(np.float64) * by_part[n] for n, c in (("key", key_codes), ("value", value_codes)))
        k, v = (np.repeat(x, h.queries // h.keys, axis=0) for x in (k, v))
        scores = q @ k.swapaxes(1, 2) / np.sqrt(h.width)
        scores[:, np.arange(at + count) > positions[:, None]] = -np.inf
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        wanted = (shares / shares.sum(axis=-1, keepdims=True)) @ v
        np.testing.assert_allclose(split(out, h.queries), wanted, atol=2e-5 * np.abs(wanted).max())
        at += count


@pytest.mark.parametrize("name", HEADS)
def test_scales_are_what_the_calibration_text_reaches(name: str, folder: Folder) -> None:
    """A plain loop with float32 caches over the same text: every length of a rotated pair and every value fits, and the
    largest ones are at the end of the codes.
    """
    h, plain = HEADS[name], Plain(folder(name, "f32"))
    tokenizer = Tokenizer.from_file(str(folder(name, "f32") / "tokenizer.json"))
    texts = Path(__file__).parents[1] / "calibrate" / "texts"
    most: dict[str, Floats] = {}
    for text in ("en", "zh", "code", "maths"):
        ids = np.resize(tokenizer.encode((texts / f"{text}.txt").read_text(encoding="utf-8")).ids, 1024)
        for part in np.split(ids, 2):
            plain.reset()
            plain([int(i) for i in part])
            for cached, values in plain.cache.items():
                x = np.abs(values[0].astype(np.float64))
                if cached.endswith("key"):
                    half = h.rotated // 2
                    pairs = [(2 * n, 2 * n + 1) if h.interleaved else (n, n + half) for n in range(half)]
                    for a, b in pairs:
                        x[..., a] = x[..., b] = np.sqrt(x[..., a] ** 2 + x[..., b] ** 2)
                most[cached] = np.maximum(most.get(cached, 0), x.max(axis=1))
    found = scales(folder(name, "int8"))
    assert len(found) == len(most)
    for cached, reached in most.items():
        _, layer, part = cached.split(".")
        np.testing.assert_allclose(found[f"/layers.{layer}/attn/{part}/scale"], (reached / 127).reshape(-1), rtol=1e-3)


@pytest.mark.everyday("qwen3")
@pytest.mark.parametrize(
    "name", ["trained", "trained-kimi", "qwen2", "qwen3", "qwen3_moe", "qwen3_5", "qwen3_5_moe", "kimi_linear"]
)
def test_drift_is_small(name: str, folder: Folder) -> None:
    """Dense ones, latents (kimi), hybrids, in one piece and token by token. A median: where the choice of experts of a
    model without training tips over, a position is another one; in other tiny mixtures that is so at most positions.
    """
    with runtime.open(folder(name, "f32")) as session:
        ids = session.tokenize(built_in("en.txt"))[:120]
        wanted = session.logits(ids)
    with runtime.open(folder(name, "int8")) as session:
        assert session._engine.kv == "int8"
        found = session.logits(ids)
        session._engine.keep(0)
        steps = np.stack([session._engine.evaluate([i], 1)[0].copy() for i in ids])
    for logits in (found, steps):
        errors = [relative(a, b) for a, b in zip(logits, wanted, strict=True)]
        assert 0 < np.median(errors) < 0.03


def test_codes_are_where_they_were_before(folder: Folder) -> None:
    """New keys are rounded before they are looked at: pieces change what another order of sums changes, no more."""
    path = folder("trained", "int8")
    with runtime.open(path) as session:
        whole = session.logits(tokens())
        session._engine.keep(0)
        parts = [session._engine.evaluate(tokens()[at : at + 30], 30).copy() for at in range(0, len(tokens()), 30)]
    assert relative(np.concatenate(parts), whole) < 2e-3


def test_genai_runs_the_same_folder(folder: Folder) -> None:
    import onnxruntime_genai as genai

    path = folder("trained", "int8")
    with runtime.open(path) as session:
        ids = session.tokenize(built_in("en.txt"))[:60]
        ours = session.stream(ids, runtime.Options(max_tokens=24, sampling=runtime.Sampling())).read().tokens
    model = genai.Model(str(path))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(ids) + len(ours), do_sample=False, repetition_penalty=1.0)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array([ids], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    theirs = [int(i) for i in generator.get_sequence(0)[len(ids) :]]  # without the end token
    assert len(theirs) > 3
    assert theirs == list(ours)[: len(theirs)]


def test_a_state_is_a_quarter_and_goes_on(folder: Folder, tmp_path: Path) -> None:
    how = EngineOptions(threads=1, context=256)
    sizes = {}
    for kv in ("f32", "int8"):
        with runtime.open(folder("trained", kv), how) as session:
            session.stream(tokens(), runtime.Options(max_tokens=1)).read()
            session.save(tmp_path / kv)
            sizes[kv] = session._engine.state_bytes()
            wanted = session._engine.evaluate([7], 1)[0].copy()
        with runtime.open(folder("trained", kv), how) as session:
            assert session.load(tmp_path / kv) == len(tokens())
            np.testing.assert_array_equal(session._engine.evaluate([7], 1)[0], wanted)
    assert sizes["f32"] == 4 * sizes["int8"]
    with runtime.open(folder("trained", "f32"), how) as session, pytest.raises(InputError, match=": model: expected"):
        session.load(tmp_path / "int8")


def test_what_else_is_refused(folder: Folder, tmp_path: Path) -> None:
    source = open_folder(tiny.FIXTURE)
    with pytest.raises(InputError, match=r"--kv: expected none with --to gguf: it is for ONNX graphs, found int8"):
        prepare(source, tmp_path / "out.gguf", "gguf", "int4", kv="int8")
    with pytest.raises(InputError, match=r"--kv: expected one of f32, int8, found f16"):
        prepare(source, tmp_path / "out", "onnx", "int4", kv="f16")
    for target in ("rk3588", "qnn-v75"):
        with pytest.raises(InputError, match=rf"--kv: expected none with --target {target}.*, found int8"):
            prepare(source, tmp_path / "out", "onnx", "int4", kv="int8", target=target)
    with pytest.raises(InputError, match=r"kv: expected int8, the cache of .*model\.onnx, found f32"):
        runtime.open(folder("trained", "int8"), EngineOptions(kv="f32"))
    with pytest.raises(InputError, match=r"--kv: expected int8, the cache of the ONNX folder .*, found f32"):
        run(folder("trained", "int8"), options=replace(ONE, kv="f32"))


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    """The engine opens it while it is written, the manifest and `inspect` say what it is, the plan what it takes."""
    arguments = ("convert", str(tiny.FIXTURE), "--to", "onnx", "--quant", "int4", "--kv", "int8")
    done = run_cli(*arguments, "-o", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["options"] == {"kv": "int8"}
    shown = run_cli("inspect", str(tmp_path / "out"))
    assert "8 of int8 [1, 2, past, 128]" in shown.stdout
    planned = run_cli(*arguments, "--plan", "--json", "-o", str(tmp_path / "planned"))
    other = run_cli(*arguments[:-2], "--plan", "--json", "-o", str(tmp_path / "planned"))
    assert json.loads(planned.stdout)["peak_memory"] > json.loads(other.stdout)["peak_memory"]


# What `sampan validate` sees


@pytest.mark.slow
def test_a_faithful_folder_passes(folder: Folder) -> None:
    report = run(folder("trained", "int8"))
    assert not findings(report)
    assert 1e-6 < kld(report) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "message"),
    [(0.0, "expected scales above 0, found 0"), (-1.0, "found -1"), (np.nan, "found nan"), (np.inf, "found inf")],
)
def test_scales_that_are_none(value: float, message: str, folder: Folder, tmp_path: Path) -> None:
    bad = Path(shutil.copytree(folder("trained", "int8"), tmp_path / "bad"))
    model = onnx.load(bad / "model.onnx", load_external_data=False)
    name = "/layers.2/attn/key/scale"
    tensor = next(t for t in model.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values[3] = value
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    (bad / "model.onnx").write_bytes(model.SerializeToString())
    found = findings(run(bad, options=ONE))
    assert any(message in f and name in f for f in found["metadata"])
