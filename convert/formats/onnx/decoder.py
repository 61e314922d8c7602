"""A decoder in the vocabulary of a form: embedding, blocks, head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sampan.registry import load

from ...architecture import EMBEDDING, HEAD, POST_ATTENTION_NORM, POST_FFN_NORM, Architecture
from .form import Form
from .graph import Edge

BLOCKS = "sampan.convert.formats.onnx.blocks"


def write(form: Form, arch: Architecture) -> None:
    """Embedding, blocks, head. A norm takes the residual sum before it along."""
    x = form.embedding()
    normed = form.norm("/layers.0/input_layernorm", x, "blk.0.attn_norm.weight")
    for i, block in enumerate(arch.blocks):
        attention = _block(block.attention)(form, block.attention, i, normed)
        if block.post_norms:
            attention = form.norm(f"/layers.{i}/attn/post_norm", attention, f"blk.{i}.{POST_ATTENTION_NORM}.weight")
        x, normed = form.add_norm(
            f"/layers.{i}/post_attention_layernorm", x, attention, f"blk.{i}.{block.ffn_norm}.weight"
        )
        last = i == len(arch.blocks) - 1
        if last:  # nothing after the last attention looks at other positions
            x, normed = form.wanted(x, normed)
        ffn = _block(block.ffn)(form, block.ffn, i, normed)
        if block.post_norms:
            ffn = form.norm(f"/layers.{i}/mlp/post_norm", ffn, f"blk.{i}.{POST_FFN_NORM}.weight")
        path, name = ("/norm", "output_norm.weight") if last else (
            f"/layers.{i + 1}/input_layernorm", f"blk.{i + 1}.attn_norm.weight"
        )  # fmt: skip
        x, normed = form.add_norm(path, x, ffn, name)
    form.logits(normed, EMBEDDING if arch.tied else HEAD)


def _block(part: object) -> Callable[[Form, Any, int, Edge], Edge]:
    """The writer of a block's kind."""
    write: Callable[[Form, Any, int, Edge], Edge] = load(BLOCKS, type(part).__name__.lower(), "write", "--to onnx")
    return write
