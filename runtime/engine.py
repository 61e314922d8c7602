"""What an engine is, and how it is opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from sampan.errors import InputError, wrong

DEFAULT_CONTEXT = 4096
KV = Literal["f32", "f16", "q8_0"]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """`context` in tokens (None: the model's own, at most 4096); `kv` is the cache's number type (None: the
    engine's own: f16 in llama.cpp, the graph's in ONNX Runtime); `threads` (None: the target's choice,
    runtime/targets).
    """

    context: int | None = None
    threads: int | None = None
    kv: KV | None = None
    flash_attention: bool | None = None  # None: the engine decides
    vocabulary_only: bool = False  # tokenise only: no weights are loaded
    record_experts: bool = False  # for `Session.take_experts`; slower
    prompt_cache: int = 0  # bytes in which a Session keeps what it evaluated of other conversations
    process_wide: bool = True  # what engines/_process.py does: llama.cpp's log, huge pages, files that are cut
    sequences: int = 1  # that llama.cpp computes together, each with such a context: runtime/lanes.py
    record_inputs: bool = False  # for `LlamaEngine.take_inputs`, in place of experts; slower

    def positions(self, path: Path, trained: int, longest: int) -> int:
        """The size of the context. `trained` is what the artifact says, `longest` counts what its rope scaling adds.

        Raises InputError beyond `longest`: the model was made for no such positions.
        """
        wanted = min(trained, DEFAULT_CONTEXT) if self.context is None else self.context
        if not 0 < wanted <= longest:
            raise InputError(
                f"{path}: a context of {wanted} tokens cannot be had, since the model was made for 1 to {longest}: "
                "beyond that it answers nonsense"
            )
        return wanted

    def without_llama(self) -> None:
        """Raises InputError for what only llama.cpp can do."""
        if self.flash_attention:
            raise wrong("flash_attention", "None or False: ONNX graphs name their attention themselves", "True")
        if self.sequences != 1:
            raise wrong("sequences", "1: only llama.cpp computes several together", self.sequences)
        if self.record_inputs:
            raise wrong("record_inputs", "False: only llama.cpp tells them", "True")


def suspect(kv: str) -> str:
    """What to try where a model computes no numbers, with a cache of this type."""
    if kv in ("f32", "int8"):  # what int8 cannot hold is cut off
        return f"the cache is {kv}, so the weights are to blame: `sampan validate` compares them"
    cache = f"a likely cause is its {kv} cache, which holds nothing above 65504"
    return f'{cache}: try --kv f32, in Python EngineOptions(kv="f32")'


class Engine(Protocol):
    """What an engine offers. It keeps a cache of the tokens evaluated so far."""

    vocab: int
    context: int
    longest: int  # most that `context` can be
    kv: str  # number type of the cache
    batch: int  # most tokens of one `evaluate`
    library: str  # what computes, with its version
    threads: int  # that compute; 0: as many as the library likes

    def tokenize(self, text: str, *, special: bool, around: bool) -> list[int]:
        """Token ids, as `Session.tokenize`."""

    def piece(self, token: int, *, control: bool = False) -> bytes:
        """The bytes that a token stands for; control tokens stand for none, or with `control` for their own text."""

    def added(self) -> Mapping[str, bool]:
        """Tokens that are recognised as a whole, by their text; whether each is a control token."""

    def is_end(self, token: int) -> bool:
        """Whether generation ends with this token."""

    def keep(self, n: int) -> int:
        """Forget all but the first `n` cached tokens; returns how many are left: a state that cannot be cut back to
        that point is forgotten altogether.
        """

    def evaluate(self, tokens: Sequence[int], wanted: int) -> NDArray[np.float32]:
        """Append at most `batch` tokens to the cache; logits [wanted, vocab] of the last `wanted` ones.

        The array is the engine's own memory, valid until the next call.
        """

    def state_bytes(self) -> int:
        """Size of what the cache holds, as `copy_state` writes it."""

    def state_limit(self, tokens: int) -> int:
        """Most bytes that the state of so many tokens has. It may use the cache, which is empty then."""

    def copy_state(self, out: NDArray[np.uint8]) -> None:
        """Write what the cache holds, `state_bytes` bytes in the engine's own form."""

    def restore(self, tokens: int, state: NDArray[np.uint8]) -> None:
        """Make the cache hold what `copy_state` wrote of so many tokens.

        Raises InputError where it does not fit; the cache is empty then.
        """

    def take_experts(self) -> dict[int, NDArray[np.int32]]:
        """As `Session.take_experts`."""

    def metadata(self) -> Mapping[str, str]:
        """The artifact's metadata, values as text."""

    def close(self) -> None: ...
