"""Rules that several of llama.cpp's schemes share."""

from __future__ import annotations

from ..scheme import Rule

KEEP = (Rule(r"_norm\.weight$|ffn_gate_inp|ssm_conv1d|\.ssm_a$", "f32"),)
"""Norms, routers, short convolutions and decays stay exact in every scheme."""

EIGHT_EXPERTS = (Rule(r"attn_(k|v|qkv)\.weight$", "q8_0", when="8 experts"),)
WIDE_V = (Rule(r"attn_(v|qkv)\.weight$", "q5_k", when="wide"),)
OUT_8_EXPERTS = (Rule(r"attn_output\.weight$", "q5_k", when="8 experts"),)


def head(kind: str) -> tuple[Rule, ...]:
    """The output head, and the embedding where it serves as head."""
    return Rule(r"^output\.weight$", kind), Rule(r"^token_embd\.weight$", kind, when="tied")
