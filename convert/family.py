"""A model family as data: which configs it reads and how, where its tensors lie, what each format calls it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from sampan.checkpoint import Checkpoint
from sampan.errors import InputError, brief, wrong
from sampan.registry import load_all

from .architecture import EMBEDDING, HEAD, Architecture
from .config import Config
from .head import has_own_head
from .quantization import read_rules
from .rows import Layout

TIED = "tie_word_embeddings"
DRAFTS = "mtp_num_hidden_layers"
DRAFT_HEAD = "multi-token prediction head"
PICTURES = "vision_config"  # what a config says of the encoder of pictures, which a reader finds beside the text


@dataclass(frozen=True, slots=True, kw_only=True)
class Gguf:
    """What llama.cpp calls a family, and what its loader and graph of that name do whatever a file says (src/models).

    `interleaved`: pairs of the rotation are neighbours. `derives_heads`: a head is hidden size / heads wide.
    `normalises`: whether the chosen experts' weights are divided by their sum; then every layer has experts; None where
    the file says. `leading`: dense layers come first, all others have experts, with shared ones. `untied`: it needs a
    head of its own. `llama3`: it reads rope factors. `rope_dims`, `vocab`: it reads a key for the number of rotated
    dimensions of a head, of the words. `sections`: it wants those of a rotation; these where a config has none.
    `deepstack`: it reads in how many layers pictures come in. `tiles_values`: heads of v that share a key stand as far
    apart as there are keys. `wide`: for which models it is what llama-quant.cpp calls 70B. `layers`: numbers of layers
    at which its graph computes this. `pre`: pre-tokenizer → another name of the same split.
    """

    architecture: str
    interleaved: bool = False
    derives_heads: bool = False
    normalises: bool | None = None
    leading: bool = False
    untied: bool = False
    llama3: bool = False
    rope_dims: bool = False
    vocab: bool = False
    sections: tuple[int, ...] = ()
    deepstack: bool = False
    tiles_values: bool = False
    layers: tuple[int, ...] | None = None
    wide: Callable[[Architecture], bool] = lambda arch: False
    pre: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """`architectures` and `model_types` are the names in config.json; `read` makes an Architecture of the rest.

    `defaults`: values of keys that a config may leave out, those of the family's config class in transformers.
    `sources`: canonical tensor → possible layouts, tried in order. `drafts`: the same for the blocks of
    Architecture.drafts. `leftovers`: tensors (regular expressions) that checkpoints carry and nobody needs. `left_out`:
    tensors (regular expressions, and what they are) of a part of the model that is not converted; those of a DRAFT_HEAD
    only where a format does not keep it. `text`: the section of config.json that describes the language model, and the
    model types that it may have. `ties_above`: whether the head is tied is said outside of that section. `gguf`: None
    where llama.cpp does not know the family. `genai`: a model type that onnxruntime-genai runs as a plain decoder.
    """

    architectures: tuple[str, ...]
    model_types: tuple[str, ...]
    read: Callable[[Config], Architecture]
    sources: Mapping[str, tuple[Layout, ...]]
    defaults: Mapping[str, object]
    leftovers: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    drafts: Mapping[str, tuple[Layout, ...]] = field(default_factory=dict)
    text: tuple[str, tuple[str, ...]] | None = None
    ties_above: bool = False
    gguf: Gguf | None
    genai: str


NOT_CONVERTED = {  # architectures that would be guesses, and what is missing
    "KimiK3ForConditionalGeneration": (
        "its attention over residuals (attn_res_block_size), experts over a latent (latent_moe_use_norm), bounded "
        "decay (gate_lower_bound) and activation situ have no class in transformers to prove a conversion against"
    ),
}


def families() -> dict[str, Family]:
    """Every family by name."""
    found: dict[str, Family] = load_all("sampan.convert.families", "FAMILY")
    return found


def find_family(checkpoint: Checkpoint) -> tuple[str, Family]:
    """The family that claims the config's architecture and model_type, with its name."""
    where = checkpoint.folder / "config.json"
    names = checkpoint.config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    known = families()
    for key, family in known.items():
        if name in family.architectures:
            kind = checkpoint.config.get("model_type")
            if kind not in family.model_types:
                raise wrong(f"{where}: model_type", f"{' or '.join(family.model_types)} with {name}", brief(kind))
            return key, family
    if isinstance(name, str) and name in NOT_CONVERTED:
        raise InputError(f"{where}: architectures: {name} is not converted: {NOT_CONVERTED[name]}")
    names = sorted(a for f in known.values() for a in f.architectures)
    hint = "`--to onnx --exporter optimum` may know it" if name else ""
    nearest = difflib.get_close_matches(str(name), names, 3, 0)
    raise wrong(f"{where}: architectures", f"one of {len(names)}, such as {', '.join(nearest)}", brief(name), hint)


def read_architecture(checkpoint: Checkpoint, *, drafts: bool = False) -> tuple[Family, Architecture]:
    """Parse the config once; what would change the model and is not implemented is refused by name.

    `drafts`: with the blocks that predict further tokens, where the checkpoint holds any tensor of them.
    """
    key, family = find_family(checkpoint)
    config = _text_config(checkpoint, family)
    read_rules(checkpoint)
    arch = replace(family.read(config), family=key)
    if arch.tied and has_own_head(checkpoint, family.sources[HEAD], family.sources[EMBEDDING]):
        note = "the head is written, since it is not the embedding, although tie_word_embeddings is true"
        arch = replace(arch, tied=False, notes=(*arch.notes, note))
    if arch.drafts and not any(is_draft(family, name) for name in checkpoint.tensors()):
        note = f"the {DRAFT_HEAD} that config.json names ({DRAFTS}) is not in the checkpoint"
        arch = replace(arch, drafts=(), notes=(*arch.notes, note) if drafts and config.get(DRAFTS) else arch.notes)
    return family, arch if drafts else replace(arch, drafts=())


def is_draft(family: Family, name: str) -> bool:
    """Whether a tensor of the checkpoint belongs to the head that predicts further tokens."""
    return any(what == DRAFT_HEAD and re.fullmatch(p, name) for p, what in family.left_out.items())


def _text_config(checkpoint: Checkpoint, family: Family) -> Config:
    """The config of the language model, which may be a section of the checkpoint's."""
    config = Config(checkpoint.config, str(checkpoint.folder / "config.json"))
    if family.text is None:
        return Config({**family.defaults, **config.values}, config.where)
    name, kinds = family.text
    text, pictures = config.section(name), config.values.get(PICTURES)
    if text.get("model_type") not in kinds:
        raise wrong(text.at("model_type"), " or ".join(kinds), brief(text.get("model_type")))
    if family.ties_above:
        tied = config.flag(TIED, False)
    else:
        tied = text.flag(TIED, False)
        config.is_default(TIED, tied)
    return Config({**family.defaults, PICTURES: pictures, **text.values, TIED: tied}, text.where)
