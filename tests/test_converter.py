"""Our unquantised files against what llama.cpp's own converter wrote (tests/peer/record.py)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from describe import describe, input_hash

RECORDED = json.loads((Path(__file__).parent / "peer" / "recorded.json").read_text())

# Keys that may differ beside our own sampan.…, each with its reason in docs/decisions.md
SECTIONS = {"qwen3vl.rope.dimension_sections", "qwen3vlmoe.rope.dimension_sections"}
ONLY_OURS = SECTIONS | {
    "llama.rope.scaling.attn_factor", "qwen3.rope.scaling.attn_factor", "deepseek2.expert_gating_func",
    "kimi-linear.attention.value_length", "kimi-linear.expert_group_count", "kimi-linear.expert_weights_norm",
}  # fmt: skip
ONLY_THEIRS = SECTIONS | {
    "llama.rope.scaling.yarn_attn_factor", "qwen3.rope.scaling.yarn_attn_factor", "kimi-linear.attention.value_length",
    "kimi-linear.rope.freq_base",
}  # fmt: skip


@pytest.mark.everyday("trained", *tiny.PLAIN)
@pytest.mark.parametrize("name", RECORDED["models"])
def test_tensors_and_metadata_equal_the_converters(
    name: str, model: Callable[[str], Path], gguf: Callable[[str, str], Path]
) -> None:
    recorded: dict[str, Any] = RECORDED["models"][name]
    found = input_hash(model(name), tiny.made_from(name))
    assert found == recorded["input"], "another input than the recorded one: run tests/peer/record.py"
    for kind in ("f32", "bf16"):
        if kind not in recorded:
            continue
        ours = describe(gguf(name, kind))
        for described in (ours, recorded[kind]):  # computed: the last bit differs, see docs/decisions.md
            for computed in [n for n in described["tensors"] if n == "rope_freqs.weight" or n.endswith(".ssm_a")]:
                del described["tensors"][computed]
        assert ours["tensors"] == recorded[kind]["tensors"]
        mine = {k: v for k, v in ours["metadata"].items() if k not in ONLY_OURS and not k.startswith("sampan.")}
        theirs = {k: v for k, v in recorded[kind]["metadata"].items() if k not in ONLY_THEIRS}
        if name.startswith("qwen3_5_moe"):  # the recording calls every tiny tokenizer qwen2, transformers not this one
            found = (described.pop("tokenizer.ggml.pre") for described in (mine, theirs))
            assert tuple(found) == ('STRING "qwen35"', 'STRING "qwen2"')
        assert mine == theirs
