"""GGUF for llama.cpp: metadata and layout. Keys through the gguf package, so their names are the engine's own."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sampan import gguf as container
from sampan.artifact import OutputFile
from sampan.chat_template import DEFAULT, SPECIAL_KEY, read_templates, special_tokens
from sampan.checkpoint import Checkpoint
from sampan.errors import InputError, wrong
from sampan.generation import ENDS_KEY, Generation
from sampan.prefix import PREFIX_KEY, WAYS
from sampan.quantize import NumberType, Scheme, choose_type, get_scheme
from sampan.quantize.types import is_number_type, number_type
from sampan.units import human

from ..architecture import (
    MLA,
    Architecture,
    Dense,
    LinearScaling,
    Llama3Scaling,
    MoE,
    Recurrent,
    TensorSpec,
    YarnScaling,
)
from ..binding import WITHOUT_DRAFTS, Binding, Bound, arranged, bind
from ..card import read_card
from ..family import DRAFT_HEAD, Family, Gguf, read_architecture
from ..generation import notes as generation_notes
from ..generation import resolve, roles
from ..plan import Format, Plan, PlannedTensor, Request, facts
from ..rope import llama3_factors
from ..rows import Arrangement, neighbours, turned
from ..tokenizer import Tokenizer, read_tokenizer
from ..tokenizers.byte_level import COMPOSES
from . import _kept
from ._limits import text_tokens
from ._llama import YARN_BETAS, check_engine, check_merges, check_split, notes, sections
from ._recurrent import arrange_recurrent, key_heads, recurrent_keys

ROPE_FACTORS = "rope_freqs.weight"


def plan(checkpoint: Checkpoint, family: Family, arch: Architecture, binding: Binding, request: Request) -> Plan:
    """Types, offsets and headers."""
    scheme, out = request.scheme, request.out
    for option, value in (
        ("--context", request.context), ("--accuracy-level", request.accuracy), ("--kv", request.kv)
    ):  # fmt: skip
        if value is not None:
            raise wrong(option, "none with --to gguf: it is for ONNX graphs", value)
    if not holds(scheme):
        raise wrong("--quant", "a scheme of llama.cpp, such as q4_k_m", request.scheme_name)
    llama = known(family, arch)
    check_engine(checkpoint.folder / "config.json", llama, arch)
    wide = llama.wide(arch)
    tensors = [arranged(b, arrange(family, arch, b.spec)) for b in binding.tensors]
    typed = [(b, choose_type(scheme, facts(arch, b, wide=wide, weighted=request.weighted))) for b in tensors]
    groups = _split(typed, request.split)
    tokenizer = request.tokenizer or read_tokenizer(checkpoint.folder, arch.vocab)
    check_merges(checkpoint.folder, tokenizer)
    check_split(checkpoint.folder, tokenizer)
    generation = resolve(checkpoint.folder, tokenizer)
    metadata = _metadata(checkpoint, llama, arch, tokenizer, generation, scheme, binding)
    files, planned = [], list[PlannedTensor]()
    for n, group in enumerate(groups):
        keys = dict(metadata) if n == 0 else {}
        path = out
        if len(groups) > 1:
            keys |= _split_keys(n, len(groups), len(typed))
            path = out.with_name(f"{out.stem}-{n + 1:05d}-of-{len(groups):05d}.gguf")
        infos, factors = _rope_factors(arch) if n == 0 else ([], b"")
        offsets, size = _layout(group)
        infos += [
            container.Tensor(b.spec.name, b.spec.shape, t.id, len(factors) + o)
            for (b, t), o in zip(group, offsets, strict=True)
        ]
        header = container.encode(keys, infos) + factors
        files.append(OutputFile(path, header, len(header) + size))
        planned += [PlannedTensor(b, t, n, (len(header) + o,)) for (b, t), o in zip(group, offsets, strict=True)]
    said = [
        *_drafts(arch, planned),
        *notes(arch, tokenizer),
        *generation_notes(generation, tokenizer),
        *read_card(checkpoint.folder)[1],
    ]
    return Plan(request.scheme_name, arch, tuple(files), tuple(planned), tuple(said))


def holds(scheme: Scheme) -> bool:
    """Whether llama.cpp has all of its types."""
    return all(map(is_number_type, scheme.types))


def _drafts(arch: Architecture, planned: Sequence[PlannedTensor]) -> list[str]:
    """What the blocks that predict further tokens take."""
    if not arch.drafts:
        return []
    nbytes = sum(t.nbytes for t in planned if t.bound.spec.layer >= len(arch.blocks))
    return [
        f"the {DRAFT_HEAD} takes {human(nbytes)} of the file, and no memory unless llama.cpp is told to draft with it; "
        f"{WITHOUT_DRAFTS}"
    ]


def known(family: Family, arch: Architecture) -> Gguf:
    """What llama.cpp calls the family; one that it does not know is refused."""
    if family.gguf is None:
        raise InputError(f"--to gguf: llama.cpp has no graph for {arch.family}; --to onnx converts it")
    return family.gguf


def arrange(family: Family, arch: Architecture, spec: TensorSpec) -> Arrangement | None:
    """How the rows of a canonical tensor stand in a file: a query is multiplied by k_b's transpose, and graphs that
    rotate neighbours want pairs that a checkpoint has half a head apart side by side.
    """
    if spec.layer < 0:
        return None
    attention, kind = arch.all_blocks[spec.layer].attention, spec.name.partition(f"blk.{spec.layer}.")[2]
    if isinstance(attention, Recurrent):
        return arrange_recurrent(
            attention, spec, kind, tiles_values=family.gguf is not None and family.gguf.tiles_values
        )
    if isinstance(attention, MLA):
        return turned(spec.shape) if kind == "attn_k_b.weight" else None
    neighbouring = family.gguf is not None and family.gguf.interleaved
    if kind in ("attn_q.weight", "attn_k.weight") and neighbouring and not attention.rope.interleaved:
        return neighbours(spec.shape, attention.head_dim, attention.rope.dims)
    return None


def _rope_factors(arch: Architecture) -> tuple[list[container.Tensor], bytes]:
    """The one tensor that is computed, in front of the others, and its bytes."""
    rope = next(iter(arch.ropes), None)  # see check_engine
    if rope is None or not isinstance(rope.scaling, Llama3Scaling):
        return [], b""
    factors = llama3_factors(rope, rope.scaling)
    data = factors.tobytes()
    info = container.Tensor(ROPE_FACTORS, factors.shape, number_type("f32").id, 0)
    return [info], data.ljust(container.padded(len(data)), b"\0")


_Typed = list[tuple[Bound, NumberType]]


def _nbytes(bound: Bound, kind: NumberType) -> int:
    return bound.rows * kind.row_bytes(bound.columns)


def _split(typed: _Typed, limit: int | None) -> list[_Typed]:
    """Tensors in order, a new file where the next one would pass the limit (a tensor is never cut)."""
    groups: list[_Typed] = [[]]
    size = 0
    for bound, kind in typed:
        n = _nbytes(bound, kind)
        if limit is not None and groups[-1] and size + n > limit:
            groups.append([])
            size = 0
        groups[-1].append((bound, kind))
        size += n
    return groups


def _layout(group: _Typed) -> tuple[list[int], int]:
    offsets, end = [], 0
    for bound, kind in group:
        offsets.append(end)
        end += container.padded(_nbytes(bound, kind))
    return offsets, end


def expected_metadata(checkpoint: Checkpoint, *, drafts: bool) -> dict[str, container.Value]:
    """The keys that a file of this checkpoint must hold, `general.file_type` for f32; `drafts` as in
    read_architecture.
    """
    family, arch = read_architecture(checkpoint, drafts=drafts)
    tokenizer = read_tokenizer(checkpoint.folder, arch.vocab)
    binding = bind(checkpoint, family, arch)
    generation = resolve(checkpoint.folder, tokenizer)
    return _metadata(checkpoint, known(family, arch), arch, tokenizer, generation, get_scheme("f32"), binding)


def _metadata(
    checkpoint: Checkpoint,
    llama: Gguf,
    arch: Architecture,
    tokenizer: Tokenizer,
    generation: Generation,
    scheme: Scheme,
    binding: Binding,
) -> dict[str, container.Value]:
    import gguf

    w = gguf.GGUFWriter(None, llama.architecture)
    w.add_type(gguf.GGUFType.MODEL)
    if tokenizer.prefix in WAYS:
        w.add_string(PREFIX_KEY, tokenizer.prefix)  # among the first keys: an engine looks for it before it loads
    _describe(w, checkpoint, generation, binding)
    (attention,) = arch.attentions  # see check_engine
    w.add_block_count(len(arch.all_blocks))
    if arch.drafts:
        w.add_nextn_predict_layers(len(arch.drafts))
    w.add_context_length(arch.context)
    w.add_embedding_length(arch.hidden)
    if arch.dense_width:
        w.add_feed_forward_length(arch.dense_width)
    w.add_head_count(attention.heads)
    w.add_head_count_kv(key_heads(arch))
    _rope(w, arch)
    w.add_layer_norm_rms_eps(arch.norm_eps)
    for moe in arch.mixtures:  # one at most, see check_engine
        w.add_expert_count(moe.experts)
        w.add_expert_used_count(moe.used)
        w.add_expert_feed_forward_length(moe.width)
        if moe.shared_gate:
            w.add_expert_shared_feed_forward_length(moe.shared_width)
        if moe.gating != "softmax":
            w.add_expert_gating_func(gguf.ExpertGatingFuncType[moe.gating.upper()])
        if llama.leading:
            _routing(w, arch, moe, latent=isinstance(attention, MLA))
    if isinstance(attention, MLA):
        _latent(w, attention)
    elif not llama.derives_heads:
        w.add_key_length(attention.head_dim)
        w.add_value_length(attention.head_dim)
    recurrent_keys(w, arch)
    if llama.sections and attention.rope:
        w.add_rope_dimension_sections([*sections(attention.rope, llama.sections), 0])
    if llama.deepstack:
        w.add_num_deepstack_layers(arch.deepstack)
    if llama.vocab:
        w.add_vocab_size(arch.vocab)
    if llama.rope_dims:
        w.add_rope_dimension_count(attention.rope_dims if isinstance(attention, MLA) else attention.rope.dims)
    if scheme.file_type is not None:
        w.add_file_type(scheme.file_type)
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _tokenizer(w, tokenizer, llama.pre.get(tokenizer.pre, tokenizer.pre), generation)
    _chat(w, checkpoint.folder)
    return {key: _value(value) for key, value in w.kv_data[0].items()}


def _latent(w: Any, a: MLA) -> None:
    """Keys of deepseek2: attention over the latent is one key head of kv_lora + rope."""
    if a.q_lora is not None:
        w.add_q_lora_rank(a.q_lora)
    w.add_kv_lora_rank(a.kv_lora)
    w.add_key_length(a.kv_lora + a.rope_dims)
    w.add_value_length(a.kv_lora)
    w.add_key_length_mla(a.nope + a.rope_dims)
    w.add_value_length_mla(a.v)


def _routing(w: Any, arch: Architecture, moe: MoE, *, latent: bool) -> None:
    """Keys of DeepSeek's kind of experts; `latent`: for the graph with latent attention."""
    w.add_leading_dense_block_count(sum(isinstance(b.ffn, Dense) for b in arch.blocks))
    w.add_expert_shared_count(moe.shared)
    w.add_expert_group_count(moe.groups)
    w.add_expert_group_used_count(moe.groups_used)
    w.add_expert_weights_scale(moe.scale)
    if moe.normalise or not latent:  # the converter writes a false one for the other graph
        w.add_expert_weights_norm(moe.normalise)


def _describe(w: Any, checkpoint: Checkpoint, generation: Generation, binding: Binding) -> None:
    """Name, authors, licence, languages, size class and sampling defaults, as the gguf package derives them."""
    import gguf

    specs = [b.spec for b in binding.tensors]
    total = sum(math.prod(s.shape) for s in specs)
    stacked = [s for s in specs if "_exps." in s.name]
    expert = sum(math.prod(s.shape[1:]) for s in stacked)
    experts = stacked[0].shape[0] if stacked else 0
    shared = total - sum(math.prod(s.shape) for s in stacked)
    name = Path(checkpoint.source)
    m = _heuristic(read_card(checkpoint.folder)[0], checkpoint, name, total)
    for key, value in generation.sampling.items():
        setattr(m, f"sampling_{key}", value)
    if checkpoint.revision is not None:  # from a hub
        m.name = checkpoint.source
    m.name = m.name or name.name
    m.size_label = m.size_label or gguf.size_label(total, shared, expert, experts)
    m.set_gguf_meta_model(w)


def _heuristic(card: dict[str, Any], checkpoint: Checkpoint, name: Path, total: int) -> Any:
    """What the gguf package makes of card, config and name; without a card that it stumbles over."""
    import gguf

    config = dict(checkpoint.config)
    if not isinstance(config.get("_name_or_path"), str):  # the package takes it for a text
        config.pop("_name_or_path", None)
    for used in (card, {}):
        with suppress(ValueError, TypeError, KeyError, AttributeError, IndexError):
            return gguf.Metadata.apply_metadata_heuristic(gguf.Metadata(), used, config, name, total)
    return gguf.Metadata()


def _rope(w: Any, arch: Architecture) -> None:
    import gguf

    rope = next(iter(arch.ropes), None)  # see check_engine
    if rope is None:
        return
    scaling = rope.scaling
    w.add_rope_freq_base(rope.theta)
    if isinstance(scaling, LinearScaling):
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(scaling.factor)
    elif isinstance(scaling, YarnScaling):
        w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        w.add_rope_scaling_factor(scaling.factor)
        w.add_rope_scaling_orig_ctx_len(scaling.original_context)
        if any(isinstance(a, MLA) for a in arch.attentions):  # then all, see check_engine
            if (scaling.beta_fast, scaling.beta_slow) != YARN_BETAS:
                w.add_rope_scaling_yarn_beta_fast(scaling.beta_fast)
                w.add_rope_scaling_yarn_beta_slow(scaling.beta_slow)
            w.add_rope_scaling_yarn_log_mul(0.1 * scaling.mscale_all_dim)  # llama.cpp divides by 0.1 again
        elif scaling.attention_factor is not None:
            # llama.cpp multiplies this by the paper's own factor; yarn_attn_factor it reads and overrides
            w.add_rope_scaling_attn_factors(scaling.attention_factor / (1 + 0.1 * math.log(scaling.factor)))


def _tokenizer(w: Any, t: Tokenizer, pre: str, generation: Generation) -> None:
    w.add_tokenizer_model(t.model)
    w.add_tokenizer_pre(pre)
    w.add_token_list(t.tokens)
    if t.scores is None:
        w.add_token_merges(t.merges)
    else:
        w.add_token_scores(t.scores)
    w.add_token_types(t.types)
    if t.prefix == "never":
        w.add_add_space_prefix(False)
    for role, token in (t.special | roles(generation.ends, t)).items():
        getattr(w, f"add_{role}_token_id")(token)
    for role, flag in t.add.items():
        getattr(w, f"add_add_{role}_token")(flag)
    if t.nfc != (pre in COMPOSES):
        w.add_bool("sampan.tokenizer.nfc", t.nfc)
    if shown := text_tokens(t):
        w.add_string("sampan.tokenizer.text_tokens", ",".join(map(str, shown)))  # llama.cpp hands out no arrays
    w.add_string(ENDS_KEY, ",".join(map(str, generation.ends)))


def _chat(w: Any, folder: Path) -> None:
    """Templates as llama.cpp's converter names them, and the texts of special tokens that they can ask for."""
    import gguf

    keys, named = gguf.Keys.Tokenizer, {}
    for name, template in read_templates(folder).items():
        if name == DEFAULT:
            w.add_chat_template(template)
        else:  # names of other characters would be no keys
            named[re.sub("[^A-Za-z0-9]", "_", name)] = template
    if named:
        w.add_array(keys.CHAT_TEMPLATES, sorted(named))
    for name, template in sorted(named.items()):
        w.add_string(keys.CHAT_TEMPLATE_N.format(name=name), template)
    if texts := special_tokens(folder):
        w.add_string(SPECIAL_KEY, json.dumps(texts, ensure_ascii=False))


def _split_keys(number: int, count: int, tensors: int) -> dict[str, container.Value]:
    return {
        "split.no": container.Value(container.Kind.UINT16, number),
        "split.count": container.Value(container.Kind.UINT16, count),
        "split.tensors.count": container.Value(container.Kind.INT32, tensors),
    }


def _value(value: Any) -> container.Value:
    """The gguf package's value → ours; it leaves an array's item type to be found from the first item."""
    import gguf

    kind = container.Kind(int(value.type))
    if kind != container.Kind.ARRAY:
        return container.Value(kind, value.value)
    item = value.sub_type if value.sub_type is not None else gguf.GGUFValueType.get_type(value.value[0])
    return container.Value(kind, value.value, container.Kind(int(item)))


FORMAT = Format(
    portable={"int4": "q4_k_m", "int8": "q8_0", "fp16": "f16", "fp32": "f32"}, plan=plan, kept=_kept.llama,
    holds=holds, arrange=arrange, drafts=True,
)  # fmt: skip
