"""What llama.cpp's graphs compute, whatever a file says: the limits of a GGUF."""

from __future__ import annotations

import math
from pathlib import Path

from sampan.errors import InputError, brief, wrong
from sampan.prefix import WAYS

from ..architecture import (
    HEAD,
    KDA,
    MLA,
    Architecture,
    DeltaNet,
    LinearScaling,
    Llama3Scaling,
    MoE,
    Rope,
    YarnScaling,
)  # fmt: skip
from ..config import yarn_mscale
from ..family import Gguf
from ..tokenizer import NORMAL, Tokenizer
from ..tokenizers.byte_level import CASES
from ._limits import limits

YARN_BETAS = (32.0, 1.0)  # of the graphs whose loader reads none
WITHOUT_Q_LORA = (26, 27)  # numbers of layers at which the loader of deepseek2 knows a model without q_lora
UNIT_EPS = 1e-6  # of the L2 norms of q and k in Kimi's code and transformers


def check_engine(config: Path, llama: Gguf, arch: Architecture) -> None:
    """Refuse what the Architecture can say and llama.cpp's graph would compute otherwise."""
    engine = llama.architecture
    if len(arch.attentions) != 1:
        raise InputError(f"{config}: {len(arch.attentions)} kinds of attention: llama.cpp's {engine} has one")
    if len(arch.mixtures) > 1:
        raise InputError(f"{config}: {len(arch.mixtures)} kinds of experts: llama.cpp's {engine} has one")
    if llama.leading:
        _check_leading(config, engine, arch)
    (attention,) = arch.attentions
    for delta in (b.attention for b in arch.blocks if isinstance(b.attention, DeltaNet)):
        if delta.k_dim != delta.v_dim:
            raise InputError(
                f"{config}: linear_value_head_dim: {delta.v_dim}, where llama.cpp's {engine} has the "
                f"{delta.k_dim} of linear_key_head_dim"
            )
    if llama.layers is not None and len(arch.blocks) not in llama.layers:
        expected = f"{' or '.join(map(str, llama.layers))}, at which llama.cpp's {engine} computes such a model"
        raise wrong(f"{config}: num_hidden_layers", expected, len(arch.blocks))
    if isinstance(attention, MLA):
        if any(isinstance(b.attention, KDA) for b in arch.blocks):
            _check_kimi_linear(config, arch, attention)
        else:
            _check_latent(config, arch, attention)
        return
    if llama.derives_heads and attention.head_dim * attention.heads != arch.hidden:
        raise wrong(
            f"{config}: head_dim", f"{arch.hidden // attention.heads}, which llama.cpp derives for {engine}",
            attention.head_dim,
        )  # fmt: skip
    if attention.rope.interleaved and not llama.interleaved:
        raise InputError(
            f"{config}: rotation of neighbouring dimensions: llama.cpp's {engine} rotates halves of a head"
        )
    scaling = attention.rope.scaling
    if isinstance(scaling, Llama3Scaling) and not llama.llama3:
        raise wrong(f"{config}: rope_type", f"default, linear or yarn, as llama.cpp's {engine} computes", "llama3")
    if isinstance(scaling, YarnScaling) and (scaling.beta_fast, scaling.beta_slow) != YARN_BETAS:
        raise wrong(
            f"{config}: beta_fast and beta_slow", f"32 and 1, as llama.cpp's {engine} computes",
            f"{scaling.beta_fast:g} and {scaling.beta_slow:g}",
        )  # fmt: skip
    if llama.normalises is not None:
        if any(not isinstance(b.ffn, MoE) for b in arch.blocks):
            raise wrong(
                f"{config}: mlp_only_layers, decoder_sparse_step",
                f"experts in every layer, as llama.cpp's {engine} has",
                "dense layers",
            )  # fmt: skip
        if any(moe.normalise != llama.normalises for moe in arch.mixtures):
            raise wrong(
                f"{config}: norm_topk_prob", f"{str(llama.normalises).lower()}, as llama.cpp's {engine} computes",
                str(not llama.normalises).lower(),
            )  # fmt: skip
    if llama.untied and arch.tied:
        raise wrong(f"{config}: tie_word_embeddings", f"false, since llama.cpp's {engine} needs {HEAD}", "true")


def check_split(folder: Path, tokenizer: Tokenizer) -> None:
    """Refuse a split of words that llama.cpp has in another form under its name (`LLAMA_VOCAB_PRE_TYPE_MINIMAX_M2`)."""
    if tokenizer.pre == CASES:
        raise InputError(
            f"{folder / 'tokenizer.json'}: pre_tokenizer: llama.cpp's {CASES} does not split before capitals of other "
            "scripts than Latin and splits at combining marks, this tokenizer does the opposite; --to onnx converts it"
        )


def _check_leading(config: Path, engine: str, arch: Architecture) -> None:
    """Dense layers first, then experts, some of which are always on."""
    experts = [isinstance(b.ffn, MoE) for b in arch.blocks]
    if experts != sorted(experts):
        raise InputError(f"{config}: a dense layer after layers of experts: llama.cpp's {engine} has them first")
    if not arch.mixtures:
        raise wrong(f"{config}: first_k_dense_replace", f"fewer than {len(arch.blocks)} layers", len(arch.blocks))
    if any(not moe.shared for moe in arch.mixtures):
        raise wrong(f"{config}: n_shared_experts", f"at least 1, as llama.cpp's {engine} has", 0)


def _check_latent(config: Path, arch: Architecture, a: MLA) -> None:
    """deepseek2: src/models/deepseek2.cpp, and yarn in src/llama-context.cpp."""
    layers = len(arch.blocks)
    if a.q_lora is None and layers not in WITHOUT_Q_LORA:
        raise wrong(
            f"{config}: q_lora_rank", "a number, as llama.cpp's deepseek2 needs except at 26 or 27 layers", "none"
        )
    if a.rope is None:
        raise InputError(f"{config}: llama.cpp's deepseek2 rotates, this model does not")
    if not a.rope.interleaved:
        raise wrong(f"{config}: rope_interleave", "true, as llama.cpp's deepseek2 computes", "false")
    scaling = a.rope.scaling
    if isinstance(scaling, (LinearScaling, Llama3Scaling)):
        kind = "linear" if isinstance(scaling, LinearScaling) else "llama3"
        raise wrong(f"{config}: rope_scaling", "none or yarn, as llama.cpp's deepseek2 computes", kind)
    if isinstance(scaling, YarnScaling):
        factor = scaling.attention_factor
        found = yarn_mscale(scaling.factor, 1.0) if factor is None else factor
        if not scaling.mscale_all_dim or abs(found - 1) > 1e-6:
            raise wrong(
                f"{config}: mscale and mscale_all_dim", "two equal numbers, as llama.cpp's deepseek2 computes",
                f"an attention factor of {found:g} and mscale_all_dim {scaling.mscale_all_dim:g}",
            )  # fmt: skip


def _check_kimi_linear(config: Path, arch: Architecture, a: MLA) -> None:
    """kimi-linear: src/models/kimi-linear.cpp."""
    if a.rope is not None:
        raise InputError(f"{config}: llama.cpp's kimi-linear does not rotate, this model does")
    if a.q_lora is not None:
        raise wrong(f"{config}: q_lora_rank", "none, as llama.cpp's kimi-linear computes", a.q_lora)
    for kda in dict.fromkeys(b.attention for b in arch.blocks if isinstance(b.attention, KDA)):
        if kda.heads != a.heads:
            raise wrong(
                f"{config}: linear_attn_config: num_heads", f"the {a.heads} of num_attention_heads, as llama.cpp's "
                "kimi-linear has", kda.heads,
            )  # fmt: skip
    if any(isinstance(b.ffn, MoE) and not b.ffn.normalise for b in arch.blocks):
        raise wrong(f"{config}: moe_renormalize", "true, as llama.cpp's kimi-linear computes", "false")
    if arch.tied:
        raise wrong(f"{config}: tie_word_embeddings", f"false, since llama.cpp's kimi-linear needs {HEAD}", "true")


def sections(rope: Rope, usual: tuple[int, ...]) -> list[int]:
    """Pairs by time, height and width, which take turns. A pair beyond the last turn of its own llama.cpp would not
    rotate in text (`ggml_mrope_cache_init`), so each section is as long as there are turns.
    """
    return [max(n, -(-(rope.dims // 2 - k) // 3)) for k, n in enumerate(rope.sections or usual)]


def check_merges(folder: Path, t: Tokenizer) -> None:
    """SPM (src/llama-vocab.cpp) joins any two neighbours that make a token, by its score, and knows no merges."""
    if t.scores is None:
        return
    ids = {text: i for i, text in enumerate(t.tokens) if t.types[i] == NORMAL}
    score, made = math.inf, set[tuple[str, str]]()
    for left, right in (m.split(" ") for m in t.merges):
        i = ids.get(left + right)
        if i is None or t.scores[i] > score:
            expected = "merges in the order of the tokens that they make, as llama.cpp's SPM goes"
            raise wrong(f"{folder}: merge {brief(left)} {brief(right)}", expected, "another order")
        score = t.scores[i]
        made.add((left, right))
    for text in ids:
        for n in range(1, len(text)):
            pair = text[:n], text[n:]
            if pair[0] in ids and pair[1] in ids and pair not in made:
                raise InputError(
                    f"{folder}: no merge makes {brief(text)} of {brief(pair[0])} and {brief(pair[1])}, and llama.cpp's "
                    "SPM would join them; --to onnx converts it"
                )


def notes(arch: Architecture, tokenizer: Tokenizer) -> list[str]:
    """Where llama.cpp differs from the checkpoint in a way that its user can know of or mend."""
    found = []
    (attention,) = arch.attentions  # see check_engine
    scaling = attention.rope.scaling if attention.rope else None
    if isinstance(scaling, YarnScaling) and (scaling.beta_fast, scaling.beta_slow) != YARN_BETAS:
        found.append(
            "llama.cpp's own programs need --yarn-beta-fast "
            f"{scaling.beta_fast:g} --yarn-beta-slow {scaling.beta_slow:g} with this file: they do not read it there"
        )
    if isinstance(attention, MLA) and attention.latent_eps != arch.norm_eps:
        found.append(
            f"llama.cpp norms the attention's latents with epsilon {arch.norm_eps:g} (rms_norm_eps), "
            f"transformers with {attention.latent_eps:g}"
        )
    if arch.norm_eps != UNIT_EPS and any(isinstance(b.attention, KDA) for b in arch.blocks):
        found.append(
            f"llama.cpp norms q and k of the recurrent layers with epsilon {arch.norm_eps:g} (rms_norm_eps), "
            f"transformers with {UNIT_EPS:g}"
        )
    if tokenizer.prefix in WAYS:
        where = "a text" if tokenizer.prefix == "missing" else "a text and behind every special token"
        found.append(
            f"llama.cpp's own programs put a space in front of {where}, where the checkpoint's tokenizer does not if "
            "there is one; sampan does as the checkpoint"
        )
    return found + [f"llama.cpp {limit.what}" for limit in limits(tokenizer)]
