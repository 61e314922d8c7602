"""The tokens that end an answer, resolved once for every format, and the roles in which a GGUF file can name them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sampan.errors import wrong
from sampan.generation import Generation, read_generation

from .tokenizer import Tokenizer
from .tokenizers.byte_level import KIMI

ROLES = ("eot", "eom")  # beside eos
END_WORDS = (  # ends by their text (src/llama-vocab.cpp)
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
)  # fmt: skip


def resolve(folder: Path, tokenizer: Tokenizer) -> Generation:
    """What a checkpoint says of generating; the tokenizer's eos_token is an end too, and the first of them."""
    return resolve_ends(folder, len(tokenizer.tokens), tokenizer.special.get("eos"))


def resolve_ends(folder: Path, vocab: int, eos: int | None) -> Generation:
    """The same with the tokenizer's end among `vocab` words, or None."""
    found = read_generation(folder, vocab)
    if eos is not None and not 0 <= eos < vocab:
        raise wrong(folder / "tokenizer_config.json", f"an eos_token with an id below vocab_size {vocab}", eos)
    ends = tuple(dict.fromkeys([*([] if eos is None else [eos]), *found.ends]))
    if not ends:
        raise wrong(folder / "tokenizer_config.json", "an eos_token among the added tokens", "none")
    return replace(found, ends=ends)


def roles(ends: tuple[int, ...], tokenizer: Tokenizer) -> dict[str, int]:
    """eos, and roles for ends that llama.cpp would not know by their texts, such as GLM's `<|user|>`.

    Kimi's turns end with a token that has a role whatever its text.
    """
    found = {"eos": ends[0]}
    named = ends[1:2] if tokenizer.pre == KIMI else ()
    more = [i for i in ends[1:] if i in named or tokenizer.tokens[i] not in END_WORDS]
    return found | dict(zip(ROLES, more, strict=False))


def notes(generation: Generation, tokenizer: Tokenizer | None = None) -> list[str]:
    """What answers lack: settings without a counterpart; with a tokenizer, ends that other programs do not know."""
    found = [f"generation_config.json: left out, since sampan does not do it: {what}" for what in generation.left_out]
    if tokenizer is not None:
        named = roles(generation.ends, tokenizer).values()
        lost = [t for i in generation.ends if i not in named and (t := tokenizer.tokens[i]) not in END_WORDS]
        if lost:
            found.append(f"llama.cpp's own programs do not end an answer at {', '.join(lost)}; sampan does")
    return found
