"""What a model is, typed: the only thing that output formats know of a config.

A family parses `config.json` into an Architecture once and refuses what it does not know; GGUF and ONNX
read the Architecture and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu"]
Gating = Literal["softmax", "sigmoid"]
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
LOOKED_UP = "embedding.weight"  # an embedding beside a tied head that has other numbers
POST_ATTENTION_NORM, POST_FFN_NORM = "post_attention_norm", "post_ffw_norm"  # GGUF's names


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Positions divided by `factor`."""

    factor: float


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071). cos and sin are multiplied by `attention_factor`; None means 0.1 · ln(factor) + 1.

    `mscale_all_dim` is DeepSeek's: the softmax scale is multiplied by (0.1 · mscale_all_dim · ln(factor) + 1)².
    """

    factor: float
    original_context: int
    attention_factor: float | None
    beta_fast: float
    beta_slow: float
    mscale_all_dim: float = 0.0


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Llama 3.1's: waves longer than original_context / low_freq divided by `factor`, those shorter than
    original_context / high_freq kept, a ramp between.
    """

    factor: float
    original_context: int
    low_freq: float
    high_freq: float


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embedding over `dims` of a head: the first of a GQA head, the last of an MLA head; others are kept.

    `interleaved`: dimensions 2j and 2j+1 are a pair; otherwise j and j + dims/2 are. `sections`: how many pairs go by
    time, height and width in pictures; in text the three are one position.
    """

    theta: float
    dims: int
    scaling: LinearScaling | YarnScaling | Llama3Scaling | None
    interleaved: bool = False
    sections: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class GQA:
    """Grouped-query attention. `qk_norm` is an RMS norm of every head's q and k before the rotation.

    `gated`: q's matrix has, for each head, its rows and as many of a gate; the output is multiplied by its sigmoid.
    `whole_norm`: qk_norm is one norm over all heads of q and one over all of k.
    """

    heads: int
    kv_heads: int
    head_dim: int
    qkv_bias: bool
    qk_norm: bool
    rope: Rope
    gated: bool = False
    whole_norm: bool = False


@dataclass(frozen=True, slots=True)
class MLA:
    """Multi-head latent attention (arXiv 2405.04434, section 2.1).

    q [heads, nope + rope_dims] comes from the hidden state, through a normed latent of `q_lora` where that is not
    None. k and v come from one normed latent of `kv_lora`: per head `nope` dimensions of k and `v` of v. One
    rotated k of `rope_dims` dimensions is shared by all heads; with a `rope` of None it is not rotated either. Scores
    are scaled by 1/√(nope + rope_dims), see YarnScaling.
    `latent_eps` is the epsilon of the two latents' norms.
    """

    heads: int
    q_lora: int | None
    kv_lora: int
    nope: int
    rope_dims: int
    v: int
    latent_eps: float
    rope: Rope | None


@dataclass(frozen=True, slots=True)
class DeltaNet:
    """Gated delta net (arXiv 2412.06464): a state [k_dim, v_dim] for each of `v_heads` heads instead of a cache.

    q, k and v go through a causal convolution of `kernel` positions and silu; q and k are L2-normalised. Each of
    `k_heads` heads serves v_heads / k_heads neighbouring heads of v. With β = sigmoid(b) and g = ssm_a · softplus(a +
    ssm_dt) a position makes S = exp(g) · S, then S += β · k ⊗ (v − Sᵀk); the output is Sᵀq / √k_dim, normed and
    gated by silu(z).
    `fused_gates`: b and a are one matrix, those of each key head together.
    """

    k_heads: int
    v_heads: int
    k_dim: int
    v_dim: int
    kernel: int
    fused_gates: bool

    @property
    def channels(self) -> int:
        """Of the convolution: q, k and v."""
        return 2 * self.k_heads * self.k_dim + self.v_heads * self.v_dim


@dataclass(frozen=True, slots=True)
class KDA:
    """Kimi delta attention (arXiv 2510.26692): a gated delta net whose state decays by dimension of k.

    A state [head_dim, head_dim] for each of `heads` heads. q, k and v each go through a causal convolution of `kernel`
    positions and silu; q and k are L2-normalised. With β = sigmoid(b) and g = ssm_a · softplus(f + ssm_dt), head_dim
    values a head, a position makes S = exp(g) · S, row by row, then S += β · k ⊗ (v − Sᵀk); the output is
    Sᵀq / √head_dim, normed and multiplied by sigmoid(z). f and z come from the hidden state through `head_dim`
    dimensions.
    """

    heads: int
    head_dim: int
    kernel: int

    @property
    def width(self) -> int:
        """Of q, k and v each."""
        return self.heads * self.head_dim


Recurrent = DeltaNet | KDA  # with a state instead of a cache
Attention = GQA | MLA | Recurrent


def kv_heads(attention: GQA | MLA) -> int:
    """Key heads in the cache: attention over a latent has one."""
    return 1 if isinstance(attention, MLA) else attention.kv_heads


@dataclass(frozen=True, slots=True)
class Dense:
    """Gated feed-forward: down(act(gate(x)) · up(x)), `width` wide. `fused`: gate and up are one matrix, gate first."""

    width: int
    activation: Activation
    fused: bool = False


@dataclass(frozen=True, slots=True)
class MoE:
    """`used` of `experts` gated feed-forwards, each `width` wide, and `shared` always-on ones, together `shared_width`.

    `selection_bias`: the tensor exp_probs_b is added to the gating's scores for the choice only. `groups` > 1:
    experts lie in equal groups, and only those of the `groups_used` groups with the largest sum of two best
    scores (bias included) can be chosen. `normalise`: the chosen weights are divided by their sum; then they are
    multiplied by `scale`. `shared_gate`: the shared experts are multiplied by a sigmoid gate of their own.
    """

    experts: int
    used: int
    width: int
    activation: Activation
    gating: Gating
    normalise: bool
    shared: int
    shared_width: int
    shared_gate: bool
    selection_bias: bool = False
    groups: int = 1
    groups_used: int = 1
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Block:
    """One layer: norm, attention, residual, norm, feed-forward, residual.

    `post_norms`: what attention and feed-forward give is normed before it is added to the residual. `ffn_norm`: GGUF's
    name of the norm before the feed-forward.
    """

    attention: Attention
    ffn: Dense | MoE
    post_norms: bool = False
    ffn_norm: str = "ffn_norm"


@dataclass(frozen=True, slots=True)
class Architecture:
    """`dense_width` is the config's width of dense layers, which formats record for MoE models too; 0 if none.

    `deepstack`: how many first layers add features of pictures, whose encoder is not converted. `drafts`: blocks behind
    the last one, of a head that predicts a further token; the answers do not need them.
    """

    hidden: int
    vocab: int
    context: int
    norm_eps: float
    tied: bool
    dense_width: int
    blocks: tuple[Block, ...]
    family: str = ""
    notes: tuple[str, ...] = ()  # what its user has to know, a sentence each
    deepstack: int = 0
    drafts: tuple[Block, ...] = ()

    @property
    def all_blocks(self) -> tuple[Block, ...]:
        """By the layer of a TensorSpec: the model's own, then the drafts."""
        return self.blocks + self.drafts

    @property
    def attentions(self) -> list[GQA | MLA]:
        """The different kinds of attention with a cache, in the order of the layers."""
        return list(dict.fromkeys(b.attention for b in self.blocks if not isinstance(b.attention, Recurrent)))

    @property
    def mixtures(self) -> list[MoE]:
        """The different kinds of experts, in the order of the layers."""
        return list(dict.fromkeys(b.ffn for b in self.blocks if isinstance(b.ffn, MoE)))

    @property
    def ropes(self) -> list[Rope]:
        """The different rotations, in the order of the layers."""
        return list(dict.fromkeys(a.rope for a in self.attentions if a.rope is not None))

    @property
    def longest(self) -> int:
        """Positions that the model was made for: `context`, which may count YaRN's factor or not."""
        yarn = [s for r in self.ropes if isinstance(s := r.scaling, YarnScaling)]
        return max([self.context, *(int(s.original_context * s.factor) for s in yarn)])


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One canonical tensor: GGUF's name, row-major shape, layer (-1 outside the blocks).

    `may_be_zero`: an all-zero tensor is no sign of damage (biases).
    """

    name: str
    shape: tuple[int, ...]
    layer: int = -1
    may_be_zero: bool = False


def tensor_specs(arch: Architecture) -> list[TensorSpec]:
    """Every tensor that the architecture consists of, in the order of computation; drafts, which most runs do not
    load, come last.
    """
    specs = [TensorSpec("token_embd.weight", (arch.vocab, arch.hidden))]
    for i, block in enumerate(arch.blocks):
        specs += _numbered(i, _block(arch.hidden, block))
    specs.append(TensorSpec("output_norm.weight", (arch.hidden,)))
    if not arch.tied:
        specs.append(TensorSpec("output.weight", (arch.vocab, arch.hidden)))
    for i, block in enumerate(arch.drafts, len(arch.blocks)):
        specs += _numbered(i, _draft(arch.hidden) + _block(arch.hidden, block))
    return specs


_Shapes = list[tuple[str, tuple[int, ...]]]


def _numbered(layer: int, shapes: _Shapes) -> list[TensorSpec]:
    return [TensorSpec(f"blk.{layer}.{name}", shape, layer, name.endswith(".bias")) for name, shape in shapes]


def _block(hidden: int, block: Block) -> _Shapes:
    attention = [("attn_norm.weight", (hidden,)), *_attention(hidden, block.attention)]
    ffn = [(f"{block.ffn_norm}.weight", (hidden,)), *_ffn(hidden, block.ffn)]
    if block.post_norms:
        attention.append((f"{POST_ATTENTION_NORM}.weight", (hidden,)))
        ffn.append((f"{POST_FFN_NORM}.weight", (hidden,)))
    return attention + ffn


def _draft(hidden: int) -> _Shapes:
    """What a draft has beside its block, whose input is eh_proj of a normed embedding and a normed hidden state."""
    norms: _Shapes = [(f"nextn.{name}.weight", (hidden,)) for name in ("enorm", "hnorm", "shared_head_norm")]
    return [*norms, ("nextn.eh_proj.weight", (hidden, 2 * hidden))]


def _attention(hidden: int, a: Attention) -> _Shapes:
    if isinstance(a, MLA):
        return _latent_attention(hidden, a)
    if isinstance(a, DeltaNet):
        return _delta_net(hidden, a)
    if isinstance(a, KDA):
        return _kimi_delta(hidden, a)
    q, kv = a.heads * a.head_dim, a.kv_heads * a.head_dim
    shapes: _Shapes = []
    for part, width in (("q", 2 * q if a.gated else q), ("k", kv), ("v", kv)):
        shapes.append((f"attn_{part}.weight", (width, hidden)))
        if a.qkv_bias:
            shapes.append((f"attn_{part}.bias", (width,)))
        if a.qk_norm and part != "v":
            shapes.append((f"attn_{part}_norm.weight", (width if a.whole_norm else a.head_dim,)))
    return [*shapes, ("attn_output.weight", (hidden, q))]


def _latent_attention(hidden: int, a: MLA) -> _Shapes:
    q = a.heads * (a.nope + a.rope_dims)
    shapes: _Shapes = []
    if a.q_lora is None:
        shapes.append(("attn_q.weight", (q, hidden)))
    else:
        shapes.append(("attn_q_a.weight", (a.q_lora, hidden)))
        shapes.append(("attn_q_a_norm.weight", (a.q_lora,)))
        shapes.append(("attn_q_b.weight", (q, a.q_lora)))
    return [
        *shapes,
        ("attn_kv_a_mqa.weight", (a.kv_lora + a.rope_dims, hidden)),
        ("attn_kv_a_norm.weight", (a.kv_lora,)),
        ("attn_k_b.weight", (a.heads, a.nope, a.kv_lora)),
        ("attn_v_b.weight", (a.heads, a.v, a.kv_lora)),
        ("attn_output.weight", (hidden, a.heads * a.v)),
    ]


def _delta_net(hidden: int, d: DeltaNet) -> _Shapes:
    values = d.v_heads * d.v_dim
    gates = (("ba", 2 * d.v_heads),) if d.fused_gates else (("beta", d.v_heads), ("alpha", d.v_heads))
    return [
        ("attn_qkv.weight", (d.channels, hidden)),
        ("attn_gate.weight", (values, hidden)),
        *((f"ssm_{name}.weight", (rows, hidden)) for name, rows in gates),
        ("ssm_conv1d.weight", (d.channels, d.kernel)),
        ("ssm_dt.bias", (d.v_heads,)),
        ("ssm_a", (d.v_heads,)),
        ("ssm_norm.weight", (d.v_dim,)),
        ("ssm_out.weight", (hidden, values)),
    ]


def _kimi_delta(hidden: int, d: KDA) -> _Shapes:
    return [
        *((f"attn_{part}.weight", (d.width, hidden)) for part in "qkv"),
        *((f"ssm_conv1d_{part}.weight", (d.width, d.kernel)) for part in "qkv"),
        ("ssm_f_a.weight", (d.head_dim, hidden)),
        ("ssm_f_b.weight", (d.width, d.head_dim)),
        ("ssm_beta.weight", (d.heads, hidden)),
        ("ssm_a", (d.heads, 1)),
        ("ssm_dt.bias", (d.width,)),
        ("ssm_g_a.weight", (d.head_dim, hidden)),
        ("ssm_g_b.weight", (d.width, d.head_dim)),
        ("ssm_norm.weight", (d.head_dim,)),
        ("attn_output.weight", (hidden, d.width)),
    ]


def _ffn(hidden: int, f: Dense | MoE) -> _Shapes:
    shapes: _Shapes = []
    if isinstance(f, Dense) and f.fused:
        return [*shapes, ("ffn_up.weight", (2 * f.width, hidden)), ("ffn_down.weight", (hidden, f.width))]
    if isinstance(f, Dense):
        return shapes + _gated("ffn_{}.weight", hidden, f.width)
    shapes.append(("ffn_gate_inp.weight", (f.experts, hidden)))
    if f.selection_bias:
        shapes.append(("exp_probs_b.bias", (f.experts,)))
    shapes += [(n, (f.experts, *s)) for n, s in _gated("ffn_{}_exps.weight", hidden, f.width)]
    if f.shared_width:
        if f.shared_gate:
            shapes.append(("ffn_gate_inp_shexp.weight", (1, hidden)))
        shapes += _gated("ffn_{}_shexp.weight", hidden, f.shared_width)
    return shapes


def _gated(name: str, hidden: int, width: int) -> _Shapes:
    return [
        (name.format("gate"), (width, hidden)),
        (name.format("up"), (width, hidden)),
        (name.format("down"), (hidden, width)),
    ]
