"""What llama.cpp's graphs compute, whatever a file says: the limits of a GGUF."""

from __future__ import annotations

from pathlib import Path

from sampan.errors import InputError, wrong

from ..architecture import HEAD, MLA, Architecture, DeltaNet, LinearScaling, Llama3Scaling, MoE, Rope, YarnScaling
from ..config import yarn_mscale
from ..family import Gguf
from ..tokenizer import CASES, Tokenizer
from ._limits import limits

YARN_BETAS = (32.0, 1.0)  # of the graphs whose loader reads none
WITHOUT_Q_LORA = (26, 27)  # numbers of layers at which the loader of deepseek2 knows a model without q_lora


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
    if isinstance(attention, MLA):
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


def sections(rope: Rope, usual: tuple[int, ...]) -> list[int]:
    """Pairs by time, height and width, which take turns. A pair beyond the last turn of its own llama.cpp would not
    rotate in text (`ggml_mrope_cache_init`), so each section is as long as there are turns.
    """
    return [max(n, -(-(rope.dims // 2 - k) // 3)) for k, n in enumerate(rope.sections or usual)]


def notes(arch: Architecture, tokenizer: Tokenizer) -> list[str]:
    """Where llama.cpp differs from the checkpoint in a way that its user can know of or mend."""
    found = []
    (attention,) = arch.attentions  # see check_engine
    scaling = attention.rope.scaling
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
    return found + [f"llama.cpp {limit.what}" for limit in limits(tokenizer)]
