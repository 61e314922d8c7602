"""ONNX folders beside those of onnxruntime-genai's own builder, and in onnxruntime-genai itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
from onnx_peer import Plain, at_level, build_genai, dequantised, nbytes, relative, to_onnx, with_outputs
from reference import reference
from test_logits import tokens
from tokenizers import Tokenizer

from sampan import runtime
from sampan.runtime import Options
from sampan.validate.metrics._scores import score
from sampan.validate.windows import built_in

pytestmark = pytest.mark.slow

Model = Callable[[str], Path]
PEERS = {"int4": {}, "int4_head8": {"algo_config": "k_quant_mixed"}}  # ours → the builder's options


@pytest.fixture(scope="module")
def peer(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """`peer(name, scheme)` → the builder's folder that our scheme stands beside."""
    built: dict[tuple[str, str], Path] = {}

    def get(name: str, scheme: str) -> Path:
        if (name, scheme) not in built:
            out = tmp_path_factory.mktemp("genai") / f"{name}-{scheme}"
            built[name, scheme] = build_genai(model(name), out, **PEERS[scheme])
        return built[name, scheme]

    return get


def rounding(folder: Path) -> float:
    """What int8 activations cost a graph: relative L2 of its logits from those at level 0."""
    return relative(Plain(folder)(tokens()), Plain(folder, graph=at_level(folder, 0))(tokens()))


@pytest.mark.parametrize("name", ["trained", "qwen2", "qwen3"])
@pytest.mark.parametrize("scheme", PEERS)
def test_int8_activations_cost_no_more_than_the_peers(
    name: str, scheme: str, model: Model, peer: Callable[[str, str], Path], tmp_path: Path
) -> None:
    ours = to_onnx(model(name), tmp_path / "out", scheme).out
    assert 0 < rounding(ours) <= 1.1 * rounding(peer(name, scheme))


@pytest.mark.parametrize("quant", ["int4", "int8"])
@pytest.mark.parametrize("name", ["qwen2_moe", "qwen3_moe"])
def test_int8_activations_in_experts(
    name: str, quant: str, model: Model, peer: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """The builder knows no experts: its dense graph of the same shape is the measure.

    Windows of three tokens in which any choice of experts differs are counted apart.
    """
    quantised = to_onnx(model(name), tmp_path / "quantised", quant)
    exact = dequantised(quantised, to_onnx(model(name), tmp_path / "exact", "fp32"))
    used = tiny.MODELS[name].arguments["num_experts_per_tok"]

    def run(folder: Path) -> tuple[np.ndarray, np.ndarray]:
        graph, routers = with_outputs(at_level(folder, 4), "/experts/router/Reshape")
        plain = Plain(folder, routers, graph)
        logits, chosen = [], []
        for start in range(0, 150, 3):
            plain.reset()
            logits.append(plain(tokens()[start : start + 3]))
            chosen.append([np.sort(np.argsort(-r, axis=-1)[:, :used]) for r in plain.found])
        return np.array(logits), np.array(chosen)

    (wanted, experts), (logits, other) = run(exact), run(quantised.out)
    same = (experts == other).all(axis=(1, 2, 3))
    assert same.sum() >= 15
    assert relative(logits[same], wanted[same]) <= 1.1 * rounding(peer("qwen3", "int4"))


@pytest.mark.parametrize("scheme", PEERS)
def test_less_drift_in_fewer_bytes(scheme: str, model: Model, peer: Callable[[str, str], Path], tmp_path: Path) -> None:
    """KLD from transformers in float32 on Chinese and English text, at both accuracy levels."""
    ours, theirs = to_onnx(model("trained"), tmp_path / "out", scheme).out, peer("trained", scheme)
    assert nbytes(ours) <= nbytes(theirs)
    reader = Tokenizer.from_file(str(tiny.FIXTURE / "tokenizer.json"))
    windows = [reader.encode(built_in(f"{d}.txt")).ids[i : i + 256] for d in ("zh", "en") for i in (0, 256, 512, 768)]
    exact = [reference(model("trained"), w).logits for w in windows]
    for level in (0, 4):
        drift = []
        for folder in (ours, theirs):
            plain = Plain(folder, graph=at_level(folder, level))
            klds = []
            for window, wanted in zip(windows, exact, strict=True):
                plain.reset()
                klds.append(score(wanted[:-1], plain(window)[:-1], np.array(window[1:]))[:, 0].mean())
            drift.append(float(np.mean(klds)))
        print(f"{scheme} at level {level}: KLD {drift[0]:.5f}, the builder's {drift[1]:.5f}; "
              f"bytes {nbytes(ours)}, {nbytes(theirs)}")  # fmt: skip
        assert drift[0] < drift[1]


def test_onnxruntime_genai_answers_as_our_runtime_does(tmp_path: Path) -> None:
    """Greedy tokens, in both languages; and its configuration says what the checkpoint says."""
    import onnxruntime_genai as genai

    out = to_onnx(tiny.FIXTURE, tmp_path / "out", "int4").out
    config = json.loads((out / "genai_config.json").read_text())["model"]
    tokenizer_config = json.loads((tiny.FIXTURE / "tokenizer_config.json").read_text())
    reader = Tokenizer.from_file(str(out / "tokenizer.json"))
    assert reader.token_to_id(tokenizer_config["eos_token"]) in config["eos_token_id"]
    assert config.get("bos_token_id") == json.loads((tiny.FIXTURE / "config.json").read_text()).get("bos_token_id")
    model = genai.Model(str(out))
    tokenizer = genai.Tokenizer(model)
    with runtime.open(out) as session:
        for question in ("Which city is the capital of Mongolia?", "哪座城市是中国的首都？", "Please work out 2 + 38."):
            prompt = session.render_chat([{"role": "user", "content": question}])
            ours = session.tokenize(session.generate(prompt, Options(max_tokens=48)))
            ids = tokenizer.encode(prompt)
            assert list(ids) == session.tokenize(prompt)
            options = genai.GeneratorParams(model)
            options.set_search_options(max_length=len(ids) + 48, do_sample=False)
            generator = genai.Generator(model, options)
            generator.append_tokens(ids)
            theirs = []
            while not generator.is_done():
                generator.generate_next_token()
                theirs.append(int(generator.get_next_tokens()[0]))
            assert [t for t in theirs if t not in config["eos_token_id"]] == ours
            assert theirs[-1] in config["eos_token_id"], "it ends by itself"


@pytest.mark.parametrize(
    "name",
    [
        "qwen2", "qwen2_moe", "qwen3_moe", "llama", "trained-kimi", "qwen3_next", "qwen3_5", "qwen3_5_moe",
        "kimi_linear",
    ],
)  # fmt: skip
def test_onnxruntime_genai_runs_every_kind_of_block(name: str, model: Model, tmp_path: Path) -> None:
    """The first greedy tokens after the same ids."""
    import onnxruntime_genai as genai

    out = to_onnx(model(name), tmp_path / "out", "int4").out
    prompt = [int(i) for i in np.random.default_rng(5).integers(0, 1200, 12)]
    with runtime.open(out) as session:
        ours = []
        for _ in range(4):
            ours.append(int(np.argmax(session.logits(prompt + ours)[-1])))
    loaded = genai.Model(str(out))
    options = genai.GeneratorParams(loaded)
    options.set_search_options(max_length=16, min_length=16, do_sample=False)
    generator = genai.Generator(loaded, options)
    generator.append_tokens(prompt)
    theirs = []
    for _ in range(4):
        generator.generate_next_token()
        theirs.append(int(generator.get_next_tokens()[0]))
    assert theirs == ours
