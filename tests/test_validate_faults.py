"""Every fault in an artifact is found, by the check that is made for it, and named."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from conftest import to_gguf
from validating import ONE, Silent, cache, findings, kld, rewritten, run, with_metadata

from sampan.validate.artifact import Stored, compose, open_gguf
from sampan.validate.validation import Options

__all__ = ["cache"]  # a fixture of every test here


@pytest.mark.slow
def test_a_faithful_candidate_passes(gguf: Callable[[str, str], Path]) -> None:
    report = run(gguf("trained", "q8_0"), options=Options(windows=32))
    assert report["verdict"] == "passed"
    assert findings(report) == {}
    assert [c["name"] for c in report["candidates"][0]["checks"]] == [
        "tensors",
        "metadata",
        "tokenizer",
        "chat template",
    ]
    assert report["reference"]["floor"] == 0.0
    assert list(report["domains"]) == ["zh", "en", "code", "chat"]
    assert all(d == {"windows": 32, "scored": 4096} for d in report["domains"].values())
    assert [what for _, what, _ in Silent.asked][-2:] == ["auditing the tensors", "trained-q8_0.gguf"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2", "llama", "glm4", "qwen2_moe", "deepseek_v3-yarn"])
def test_no_family_is_a_fault(name: str, model: Callable[[str], Path], gguf: Callable[[str, str], Path]) -> None:
    report = run(gguf(name, "q8_0"), model(name), ONE)
    assert findings(report) == {}
    assert 0 < kld(report) < 0.1


@pytest.mark.slow
def test_rope_factors_that_the_config_does_not_say(
    model: Callable[[str], Path], gguf: Callable[[str, str], Path], tmp_path: Path
) -> None:
    def stretch(name: str, raw: bytearray, t: Stored) -> None:
        if name == "rope_freqs.weight":
            raw[8:12] = np.float32(2).tobytes()

    bad = rewritten(gguf("llama", "q8_0"), tmp_path / "bad.gguf", stretch)
    (found,) = findings(run(bad, model("llama"), ONE))["tensors"]
    assert re.fullmatch(r"rope_freqs\.weight: value 2: expected 1, found 2", found)
    tensors = [t for t in open_gguf(bad).tensors.values() if t.name != "rope_freqs.weight"]
    compose(tmp_path / "none.gguf", open_gguf(bad).metadata, tensors, lambda t: False)
    (found,) = findings(run(tmp_path / "none.gguf", model("llama"), ONE))["tensors"]
    assert found == "rope_freqs.weight: missing in the artifact"


@pytest.mark.slow
def test_a_zeroed_tensor(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    def zero(name: str, raw: bytearray, t: Stored) -> None:
        if name == "blk.1.ffn_up.weight":
            raw[:] = bytes(len(raw))

    report = run(rewritten(gguf("trained", "q8_0"), tmp_path / "bad.gguf", zero))
    assert report["verdict"] == "failed"
    assert findings(report) == {"tensors": ["blk.1.ffn_up.weight: nothing but zeros in rows 0 to 511"]}


def test_a_norm_off_by_one(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    def shift(name: str, raw: bytearray, t: Stored) -> None:
        if name == "blk.2.ffn_norm.weight":
            raw[:] = (np.frombuffer(raw, np.float32) + 1).tobytes()

    (found,) = findings(run(rewritten(gguf("trained", "q4_0"), tmp_path / "bad.gguf", shift)))["tensors"]
    assert re.fullmatch(r"blk\.2\.ffn_norm\.weight: far from .* relative error 0\.\d+, more than f32 explains", found)


@pytest.mark.everyday("q4_k_m")
@pytest.mark.parametrize("quant", ["q4_0", "q4_k_m"])
def test_one_row_with_flipped_nibbles(quant: str, gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    def flip(name: str, raw: bytearray, t: Stored) -> None:
        if name == "blk.0.attn_q.weight":
            step, block = t.type.row_bytes(t.columns), t.type.block_bytes
            for start in range(17 * step, 18 * step, block):
                for i in range(start + block - t.type.block // 2, start + block):  # the quants end a block
                    raw[i] ^= 0xFF

    (found,) = findings(run(rewritten(gguf("trained", quant), tmp_path / "bad.gguf", flip)))["tensors"]
    assert re.match(r"blk\.0\.attn_q\.weight: row 17: relative error up to \d", found)


@pytest.mark.slow
def test_swapped_q_and_k(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same_shape = tiny.MODELS["qwen3"].arguments | {
        "num_key_value_heads": tiny.MODELS["qwen3"].arguments["num_attention_heads"]
    }
    monkeypatch.setitem(tiny.MODELS, "mha", replace(tiny.MODELS["qwen3"], arguments=same_shape))
    folder = tiny.build("mha", tmp_path / "mha")
    to_gguf(folder, tmp_path / "good.gguf", "q8_0")
    good = open_gguf(tmp_path / "good.gguf")
    other = {"blk.0.attn_q.weight": "blk.0.attn_k.weight", "blk.0.attn_k.weight": "blk.0.attn_q.weight"}
    tensors = [replace(good.tensors[other.get(n, n)], name=n) for n in good.tensors]
    compose(tmp_path / "bad.gguf", good.metadata, tensors, lambda t: False)
    found = findings(run(tmp_path / "bad.gguf", folder))["tensors"]
    assert [f.split(":")[0] for f in found] == ["blk.0.attn_q.weight", "blk.0.attn_k.weight"]
    assert all("far from the checkpoint: relative error 1.4" in f for f in found)


@pytest.mark.slow
def test_a_wrong_rope_base(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    bad = with_metadata(gguf("trained", "q8_0"), tmp_path / "bad.gguf", **{"qwen3.rope.freq_base": 10_001.0})
    assert findings(run(bad)) == {"metadata": ["qwen3.rope.freq_base: expected 10000.0, found 10001.0"]}


@pytest.mark.slow
def test_a_shifted_tokenizer(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    tokens = open_gguf(gguf("trained", "q8_0")).value("tokenizer.ggml.tokens")
    types = open_gguf(gguf("trained", "q8_0")).value("tokenizer.ggml.token_type")
    n = types.index(3)  # the first control token: ordinary tokens come before it
    shifted = [*tokens[1:n], tokens[0], *tokens[n:]]
    bad = with_metadata(gguf("trained", "q8_0"), tmp_path / "bad.gguf", **{"tokenizer.ggml.tokens": shifted})
    found = findings(run(bad))
    assert set(found) == {"metadata", "tokenizer", "chat template"}
    assert re.match(r"'.*': token 0: expected \[\d+, .*\] of \d+, found \[\d+, ", found["tokenizer"][0])
    assert found["metadata"][0].startswith("tokenizer.ggml.tokens: expected !, found ")


@pytest.mark.slow
def test_a_lost_chat_template(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    bad = with_metadata(
        gguf("trained", "q8_0"), tmp_path / "bad.gguf", **{"tokenizer.chat_template": "{{ messages[0].content }}"}
    )
    found = findings(run(bad))
    assert set(found) == {"chat template"}
    assert re.match(r"conversation 1: token 0: expected \[", found["chat template"][0])


def test_missing_misshapen_and_orphan_tensors(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    good = open_gguf(gguf("trained", "q8_0"))
    tensors = dict(good.tensors)
    moved = tensors.pop("blk.0.attn_k.weight")
    tensors["blk.9.attn_k.weight"] = replace(moved, name="blk.9.attn_k.weight")
    tensors["blk.0.attn_v.weight"] = replace(tensors["blk.0.attn_v.weight"], shape=(64, 256))
    compose(tmp_path / "bad.gguf", good.metadata, list(tensors.values()), lambda t: False)
    report = run(tmp_path / "bad.gguf")
    assert [f.split(",")[0] for f in findings(report)["tensors"]] == [
        "blk.0.attn_k.weight: missing in the artifact",
        "blk.0.attn_v.weight: expected shape [256",
        "blk.9.attn_k.weight: an orphan",
    ]
    assert report["verdict"] == "failed"
    assert "llama.cpp cannot load it" in report["candidates"][0]["decisions"][-1]["text"]


@pytest.mark.slow
def test_nan_in_a_tensor(gguf: Callable[[str, str], Path], tmp_path: Path) -> None:
    def poison(name: str, raw: bytearray, t: Stored) -> None:
        if name == "output_norm.weight":
            raw[:4] = np.float32(np.nan).tobytes()

    report = run(rewritten(gguf("trained", "q8_0"), tmp_path / "bad.gguf", poison))
    assert findings(report)["tensors"] == ["output_norm.weight: NaN or Inf in row 0"]
    assert report["verdict"] == "failed"
