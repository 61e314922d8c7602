"""How much memory llama.cpp needs for a GGUF file, from its header alone."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from sampan.demand import Demand
from sampan.errors import InputError, brief, wrong
from sampan.files import size_of
from sampan.gguf import Header, padded, read_header

DEFAULT_CONTEXT = 4096  # tokens, or the model's own where that is less
BLOCK = re.compile(r"blk\.(\d{1,9})\.")
EMBEDDING = "token_embd.weight"
HEADS = "attention.head_count"
CELLS = 256  # llama.cpp rounds a context up to this many
BATCH = 512  # tokens of a prompt that llama.cpp computes at once: their logits and activations in float32
# The engine itself, and what its tokenizer holds for one token; the app reckons with the same numbers.
ENGINE, TOKEN = 32 << 20, 256
LARGEST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes for a context of so many tokens: weights, cache (float16 keys and values, recurrent states), the rest."""

    context: int
    weights: int
    cache: int
    margin: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.margin


def need(path: Path, context: int | None = None, sequences: int = 1) -> Need:
    """What a model in one GGUF file needs, with a context for each of so many sequences.

    Raises InputError where the header does not tell.
    """
    asked, trained, _ = asks(path)
    context = min(DEFAULT_CONTEXT, trained) if context is None else context
    rest = margin(asked.words, asked.hidden, asked.inner, sequences * context)
    return Need(context, asked.weights, sequences * asked.cache(padded(context, CELLS)), rest)


def asks(path: Path) -> tuple[Demand, int, int]:
    """What a model in one GGUF file asks of a machine, the context that it was trained for, and that of its YaRN."""
    header, size = read_header(path), size_of(path)
    keys = _Keys(path, header)
    if keys.number("split.count", 1) > 1:
        raise wrong(path, "a model in one file", "one part of a split one", "convert it without --split-size")
    layers = keys.number(f"{keys.arch}.block_count")
    if layers > len(header.tensors):
        raise wrong(f"{path}: {keys.arch}.block_count", f"at most {len(header.tensors)}, one tensor a layer", layers)
    trained = keys.number(f"{keys.arch}.context_length")
    own = layers - min(layers, keys.number(f"{keys.arch}.nextn_predict_layers", 0))
    kinds = _recurrent(keys, layers)[:own]
    bare = [keys.per_layer(f"{HEADS}_kv", i, layers, 1) == 0 for i in range(own)]  # without attention
    states = sum(map(operator.or_, kinds, bare))
    cells = [(0, 0) if kinds[i] else _cell(keys, i, layers) for i in range(own)]
    vocabulary = header.metadata.get("tokenizer.ggml.tokens")
    words = len(vocabulary.value) if vocabulary and isinstance(vocabulary.value, list) else 0
    weights, read, products, head = _weights(keys, header, size, own)
    values = sum(prod(t.shape) for t in header.tensors)
    demand = Demand(
        files=size, weights=weights, cell=sum(c for c, _ in cells),
        state=states * (_state(keys, layers, told=any(kinds)) if states else 0),
        read=read, products=products, head=head, attention=sum(a for _, a in cells),
        words=words, hidden=keys.number(f"{keys.arch}.embedding_length"),
        inner=_inner(keys, layers), bits=8 * (size - header.data_start) / max(1, values),
    )  # fmt: skip
    return demand, trained, max(trained, _stretched(keys))


def _weights(keys: _Keys, header: Header, size: int, own: int) -> tuple[int, int, int, int]:
    """Bytes in memory and read for a token, multiplications of a token without the head's, and the head's.

    llama.cpp loads the blocks behind the model's own, which predict further tokens, on demand.
    """
    starts = sorted(t.offset for t in header.tensors)
    ends = dict(zip(starts, [*starts[1:], size - header.data_start], strict=True))
    used, experts = (keys.number(f"{keys.arch}.expert_{n}", 0) for n in ("used_count", "count"))
    head = "output.weight" if any(t.name == "output.weight" for t in header.tensors) else EMBEDDING
    weights, read, products, last = size - header.data_start, 0, 0, 0
    for t in header.tensors:
        nbytes, values, rows = ends[t.offset] - t.offset, prod(t.shape), max(1, prod(t.shape[:-1]))
        if (m := BLOCK.match(t.name)) and int(m[1]) >= own:
            weights -= nbytes
        elif t.name == EMBEDDING != head:
            read += nbytes // rows
        elif t.name == head:
            read, last = read + nbytes, values
        else:
            share = min(1, used / experts) if experts and t.name.endswith("_exps.weight") else 1
            read += round(nbytes * share)
            products += round(values * share) if rows > 1 and t.shape[-1] > 1 else 0
    return weights, read, products, last


def room(memory: int) -> int:
    """Bytes of weights that fit into so much memory at 4,096 tokens, beside the cache and margin of Qwen3-8B."""
    cache = 36 * 2 * 8 * (128 + 128) * DEFAULT_CONTEXT  # layers, float16, key/value heads, sizes of a key and a value
    return max(0, memory - cache - margin(151_936, 4096, 3 * 12_288, DEFAULT_CONTEXT))


def margin(words: int, width: int, inner: int, context: int) -> int:
    """Logits and activations of a batch in float32, its mask in float16, the engine, the tokenizer."""
    mask = 2 * BATCH * padded(context, CELLS)
    return 4 * BATCH * (words + 8 * width + inner) + mask + ENGINE + TOKEN * words


def _inner(keys: _Keys, layers: int) -> int:
    """Values of one token inside a feed-forward layer, or in all of its experts with what each puts out."""
    width, used, each = (
        keys.number(f"{keys.arch}.{k}", 0)
        for k in ("embedding_length", "expert_used_count", "expert_feed_forward_length")
    )
    return max(3 * keys.per_layer("feed_forward_length", 0, layers, 0) if layers else 0, used * (width + 3 * each))


def _cell(keys: _Keys, layer: int, layers: int) -> tuple[int, int]:
    """Bytes of one token in an attention layer, as llama.cpp lays them out, and multiplications of another token with
    it: latent attention keeps no values, they are in the key.
    """
    heads = keys.per_layer(HEADS, layer, layers)
    shared = keys.per_layer(f"{HEADS}_kv", layer, layers, heads)
    width = keys.number(f"{keys.arch}.embedding_length") // max(1, heads)
    key = keys.number(f"{keys.arch}.attention.key_length", width)
    value = keys.number(f"{keys.arch}.attention.value_length", width)
    latent = f"{keys.arch}.attention.key_length_mla" in keys.values
    return 2 * shared * (key + (0 if latent else value)), heads * (key + value) if shared else 0


def _state(keys: _Keys, layers: int, *, told: bool) -> int:
    """Bytes of one recurrent layer's state, in float32: those of the convolution and of the recurrence.

    `told`: the file says which layers have one, so it must say how large it is.
    """
    if head := keys.number(f"{keys.arch}.kda.head_dim", 0):  # Kimi delta attention convolves queries, keys and values
        width = head * keys.per_layer("attention.head_count", 0, layers)
        return 4 * width * (3 * (max(1, keys.number(f"{keys.arch}.ssm.conv_kernel", 4)) - 1) + head)
    kernel, inner, state, groups = (
        keys.number(f"{keys.arch}.ssm.{k}", None if told else 0)
        for k in ("conv_kernel", "inner_size", "state_size", "group_count")
    )
    return 4 * ((max(1, kernel) - 1) * (inner + 2 * groups * state) + state * inner)


def _recurrent(keys: _Keys, layers: int) -> list[bool]:
    """Which layers the file says to keep a state instead of keys and values."""
    listed = keys.values.get(f"{keys.arch}.attention.recurrent_layers")
    if listed is not None:
        if not isinstance(listed, list) or len(listed) != layers:
            raise wrong(f"{keys.path}: attention.recurrent_layers", f"{layers} values", brief(listed))
        return [bool(x) for x in listed]
    interval = keys.number(f"{keys.arch}.full_attention_interval", 1)
    return [(i + 1) % max(1, interval) != 0 for i in range(layers)]


def _stretched(keys: _Keys) -> int:
    """The positions that YaRN reaches; 0 without it."""
    rope = f"{keys.arch}.rope.scaling"
    factor = keys.values.get(f"{rope}.factor")
    if keys.values.get(f"{rope}.type") != "yarn" or not isinstance(factor, float) or not 0 < factor < LARGEST:
        return 0
    return int(keys.number(f"{rope}.original_context_length", 0) * factor)


class _Keys:
    """Metadata as whole numbers from 0 to 2³¹ - 1."""

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        self.values: dict[str, Any] = {k: v.value for k, v in header.metadata.items()}
        arch = self.values.get("general.architecture")
        if not isinstance(arch, str) or not header.tensors:
            raise InputError(f"{path}: this GGUF file holds no model: no general.architecture, or no tensors")
        self.arch = arch

    def number(self, key: str, default: int | None = None) -> int:
        return self._whole(key, self.values.get(key, default))

    def per_layer(self, name: str, layer: int, layers: int, default: int | None = None) -> int:
        """A number for all layers, or one of a list."""
        key = f"{self.arch}.{name}"
        value = self.values.get(key, default)
        if isinstance(value, list):
            if len(value) != layers:
                raise wrong(f"{self.path}: {brief(key)}", f"{layers} values", len(value))
            value = value[layer]
        return self._whole(key, value)

    def _whole(self, key: str, value: Any) -> int:
        if type(value) is not int or not 0 <= value <= LARGEST:
            found = "none" if value is None else brief(value)
            raise wrong(f"{self.path}: {brief(key)}", "a whole number below 2³¹", found, "is the file damaged?")
        return value
