"""llama.cpp through llama-cpp-python's C bindings, for GGUF files."""

from __future__ import annotations

import copy
import ctypes
import math
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sampan.errors import InputError, brief, wrong
from sampan.extras import advice, installed
from sampan.files import read_start
from sampan.generation import ENDS_KEY, end_ids
from sampan.prefix import PREFIX_KEY, WAYS, put

from ..chat import LARGEST
from ._experts import ExpertRecorder
from ._inputs import InputRecorder, Sums
from ._lanes import Lanes, Part
from ._process import errors, hear
from ._special import LONG, cut, pattern, put_around, texts

if TYPE_CHECKING:
    from ..engine import EngineOptions

NAME = "llama.cpp"
PACKAGE = "llama-cpp-python"
BATCH = 512  # tokens evaluated at once in a prefill
DEFAULT_KV = "f16"
KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8}  # ggml's numbers
VOCABULARY = {f"tokenizer.ggml.{k}" for k in ("tokens", "token_type", "merges", "scores")}  # megabytes as text
LONGEST = 4 * LARGEST + 4  # bytes of a value; a chat template that is cut there is longer than may be rendered
START = 4096  # bytes in which a file says that spaces are put in front in another way
# Pre-tokenizers whose tokenizer.json normalises to NFC first, which llama.cpp leaves to its caller.
NFC = {"qwen2", "qwen35"}

_begun = False  # llama.cpp, once in a process


def claims(path: Path) -> bool:
    """A file that starts as GGUF."""
    if not path.is_file():
        return False
    with path.open("rb") as f:
        return f.read(4) == b"GGUF"


def open(path: Path, options: EngineOptions) -> LlamaEngine:
    """Load a GGUF file (of a split one, its first part)."""
    return LlamaEngine(path, options)


def check(path: Path) -> None:
    """Load the vocabulary, and every tensor's name, type and shape; no weight is read or held.

    Raises ImportError without llama.cpp, InputError where it refuses the file.
    """
    import llama_cpp  # noqa: F401 - as an ImportError

    lib = _library()
    errors.clear()
    params = lib.llama_model_default_params()
    params.use_extra_bufts = False
    if hasattr(params, "no_alloc") and hasattr(params, "load_mode"):
        params.no_alloc, params.load_mode = True, lib.LLAMA_LOAD_MODE_NONE  # others assert that there is memory
    else:
        params.vocab_only = True
    model = lib.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise InputError("; ".join(errors) or "it gives no reason")
    lib.llama_model_free(model)


def about() -> dict[str, Any]:
    """The library's version and what it was compiled for, by ggml's own names; ImportError without it."""
    import llama_cpp  # noqa: F401 - as an ImportError

    features = re.findall(r"(\w+) = (\d+)", _library().llama_print_system_info().decode(errors="replace"))
    return {"version": installed(PACKAGE), "compiled_for": [name for name, value in features if value != "0"]}


def _library(*, quiet: bool = True) -> Any:
    """The bindings, with llama.cpp's log kept instead of printed if it shall be `quiet`."""
    global _begun
    try:
        from llama_cpp import llama_cpp as lib
    except ImportError as e:
        raise InputError(f"llama_cpp: cannot be imported ({e}); {advice('llama_cpp')}") from None
    if quiet:
        hear(lib)
    if not _begun:
        lib.llama_backend_init()
        _begun = True
    return lib


def _without_space_prefix(lib: Any) -> Any:
    """Overrides of a file's keys, with an empty one at the end."""
    found = (lib.llama_model_kv_override * 2)()
    found[0].tag, found[0].key = lib.LLAMA_KV_OVERRIDE_TYPE_BOOL, b"tokenizer.ggml.add_space_prefix"
    found[0].value.val_bool = False
    return found


def _number(text: str, key: str) -> float:
    """The value of a key as llama.cpp tells it; InputError for another kind of value."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise wrong(key, "a number", brief(text))
    return value


def amx(lib: Any) -> bool:
    """Whether ggml's AMX kernels are compiled in and the processor has them.

    They are left out: GCC 12.2 makes them crash. Its `_tile_loadconfig` names 8 of the 64 bytes that the
    instruction reads, so the others are never stored. A library does not say which compiler made it.
    """
    return b"AMX_INT8 = 1" in lib.llama_print_system_info()


def _bytes(array: NDArray[np.uint8]) -> Any:
    """An array's memory, as ctypes passes it."""
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(ctypes.c_uint8))


class LlamaEngine:
    """One llama.cpp model and context; implements `Engine` for one of its sequences, as `lanes` do for the others."""

    batch = BATCH

    def __init__(self, path: Path, options: EngineOptions) -> None:
        if options.kv is not None and options.kv not in KV_TYPES:
            raise wrong("kv", f"one of {', '.join(KV_TYPES)}", options.kv)
        if options.sequences < 1 or (options.sequences > 1 and (options.record_experts or options.record_inputs)):
            raise wrong("sequences", "1 or more, and 1 where experts or inputs are recorded", options.sequences)
        self.kv: str = options.kv or DEFAULT_KV
        self.library = f"{PACKAGE} {installed(PACKAGE)}"
        self._lib = lib = _library(quiet=options.process_wide)
        self._model: Any = None
        self._ctx: Any = None
        self._batch: Any = None
        self._lanes = Lanes(self._compute, BATCH)
        self._seq = self._position = 0
        self._sequences = options.sequences
        try:
            self._load(lib, path, options)
        except BaseException:
            self.close()
            raise

    def _load(self, lib: Any, path: Path, options: EngineOptions) -> None:
        self._inputs = InputRecorder(lib) if options.record_inputs else None
        self._experts = ExpertRecorder(lib) if options.record_experts and self._inputs is None else None
        errors.clear()
        params = lib.llama_model_default_params()
        params.vocab_only = options.vocabulary_only
        params.use_extra_bufts = not amx(lib)
        if spaced := PREFIX_KEY.encode() in read_start(path, START):
            params.kv_overrides = unspaced = _without_space_prefix(lib)  # noqa: F841 - kept alive while it loads
        self._model = lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise InputError(f"{path}: llama.cpp cannot load it: {'; '.join(errors) or 'no reason given'}")
        trained = lib.llama_model_n_ctx_train(self._model) or self._trained()
        self.longest = max(trained, self._stretched())
        self.context = 0
        self.threads = 0
        if not options.vocabulary_only:
            self.context = options.positions(path, trained, self.longest)
            self._ctx = lib.llama_init_from_model(self._model, self._context_params(options))
            if not self._ctx:
                reason = "; ".join(errors) or "no reason given"
                raise InputError(f"{path}: llama.cpp cannot make a context of {self.context} tokens: {reason}")
            self.threads = lib.llama_n_threads(self._ctx)
        self._vocab = lib.llama_model_get_vocab(self._model)
        self.vocab: int = lib.llama_vocab_n_tokens(self._vocab)
        says = self._meta("sampan.tokenizer.nfc")
        self._nfc = self._meta("tokenizer.ggml.pre") in NFC if says is None else says == "true"
        # tokens that llama.cpp keeps to itself by their look, whose text belongs to an answer
        self._text_tokens = set(map(int, re.findall(r"\d+", self._meta("sampan.tokenizer.text_tokens") or "")))
        self._prefix = self._meta(PREFIX_KEY)
        if spaced != (self._prefix in WAYS):  # else its texts would get other ids in silence
            raise wrong(f"{path}: {PREFIX_KEY}", f"{' or '.join(WAYS)}, among the first keys", brief(self._prefix))
        self._special = cache(partial(texts, lib, self._vocab, self.vocab))
        self._ends = self._end_tokens()
        self._batch = lib.llama_batch_init(BATCH, 0, 1)

    def _trained(self) -> int:
        """The positions that the file tells of; llama.cpp itself reads them with the weights only."""
        told = self._meta(f"{self._meta('general.architecture')}.context_length") or ""
        return int(told) if told.isdecimal() and len(told) < 10 else 0

    def _stretched(self) -> int:
        """The positions that YaRN reaches; 0 without it. A file's context_length may count its factor or not."""
        rope = f"{self._meta('general.architecture')}.rope.scaling"
        if self._meta(f"{rope}.type") != "yarn":
            return 0
        original, factor = (self._meta(f"{rope}.{key}") for key in ("original_context_length", "factor"))
        try:
            return int(int(original or 0) * float(factor or 0))
        except (ValueError, OverflowError):
            return 0

    def _context_params(self, options: EngineOptions) -> Any:
        p = self._lib.llama_context_default_params()
        p.n_ctx, p.n_batch, p.n_ubatch = self.context * self._sequences, BATCH, BATCH
        p.n_seq_max = self._sequences
        if options.threads:
            p.n_threads = p.n_threads_batch = options.threads
        p.type_k = p.type_v = KV_TYPES[self.kv]
        if recorder := self._inputs or self._experts:
            p.cb_eval = recorder.callback
        rope = f"{self._meta('general.architecture')}.rope.scaling"
        for end in ("fast", "slow"):  # llama.cpp's graphs do not read these keys from the file
            if (beta := self._meta(key := f"{rope}.yarn_beta_{end}")) is not None:
                setattr(p, f"yarn_beta_{end}", _number(beta, key))
        flash = options.flash_attention
        if flash is None and self.kv == "f32":
            flash = False  # its flash attention rounds a float32 cache to float16
        p.flash_attn_type = -1 if flash is None else int(flash)
        # One buffer for all sequences lets any of them into one pass. Without flash attention each would compute with
        # all others' cells; and long-rope factors are chosen by the buffer's size.
        whole = flash is not False and self._meta(f"{rope}.original_context_length") is None
        p.kv_unified = self._sequences > 1 and whole
        return p

    def tokenize(self, text: str, *, special: bool, around: bool) -> list[int]:
        text = unicodedata.normalize("NFC", text) if self._nfc else text
        if self._prefix not in WAYS and len(text) <= LONG:
            return self._tokens(text, special, around)
        if self._prefix in WAYS:
            text = put(text, pattern(self._special(special)), self._prefix)
        before, behind = put_around(self._lib, self._vocab) if around else ([], [])
        parts = cut(text, self._special(special))
        return [*before, *(i for part in parts for i in self._tokens(part, special, False)), *behind]

    def _tokens(self, text: str, special: bool, around: bool) -> list[int]:
        raw = text.encode()
        room = 2 * len(raw) + 3  # a token is a byte or more; spaces put in front of parts; BOS and EOS
        ids = (ctypes.c_int32 * room)()
        n = self._lib.llama_tokenize(self._vocab, raw, len(raw), ids, room, around, special)
        if n < 0:
            raise InputError(f"prompt: llama.cpp needs {-n} tokens for {len(raw)} bytes of text")
        return list(ids[:n])

    def piece(self, token: int, *, control: bool = False) -> bytes:
        room, shown = 64, control or token in self._text_tokens
        while True:
            buffer = ctypes.create_string_buffer(room)
            n = self._lib.llama_token_to_piece(self._vocab, token, buffer, room, 0, shown)
            if n >= 0:
                return buffer.raw[:n]
            room = -n

    def added(self) -> Mapping[str, bool]:
        lib, vocab, found = self._lib, self._vocab, {}
        for i in range(self.vocab):
            kind = lib.llama_vocab_get_attr(vocab, i)
            if kind & (lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_USER_DEFINED):
                text = lib.llama_vocab_get_text(vocab, i).decode(errors="replace")
                found[text] = bool(kind & lib.LLAMA_TOKEN_ATTR_CONTROL) and i not in self._text_tokens
        return found

    def is_end(self, token: int) -> bool:
        return bool(self._lib.llama_vocab_is_eog(self._vocab, token)) if self._ends is None else token in self._ends

    def _end_tokens(self) -> frozenset[int] | None:
        """The ends that our converter writes; without them llama.cpp's own rule holds, which goes by their texts."""
        text = self._meta(ENDS_KEY)
        ids = None if text is None else [int(i) if i.isdecimal() else i for i in text.split(",")]
        return None if ids is None else frozenset(end_ids(ids, self.vocab, ENDS_KEY))

    def lanes(self) -> list[LlamaEngine]:
        """Engines for the other sequences, to be asked for once. Whichever closes last frees the model."""
        found = [copy.copy(self) for _ in range(1, self._sequences)]
        for seq, lane in enumerate(found, 1):
            lane._seq, lane._position = seq, 0
            self._lanes.enter(seq)
        return found

    def keep(self, n: int) -> int:
        with self._lanes.alone():
            return self._keep(n)

    def _keep(self, n: int) -> int:
        memory = self._lib.llama_get_memory(self._ctx)
        if not self._lib.llama_memory_seq_rm(memory, self._seq, n, -1):  # a recurrent state
            self._lib.llama_memory_seq_rm(memory, self._seq, -1, -1)
            n = 0
        self._position = n
        return n

    def evaluate(self, tokens: Sequence[int], wanted: int) -> NDArray[np.float32]:
        logits = self._lanes.evaluate(Part(self._seq, self._position, tokens, wanted))
        self._position += len(tokens)
        return logits

    def _compute(self, parts: Sequence[Part]) -> NDArray[np.float32]:
        """As `Lanes` wants it."""
        b, n = self._batch, 0
        for part in parts:
            for i, token in enumerate(part.tokens):
                b.token[n], b.pos[n], b.n_seq_id[n], b.seq_id[n][0] = token, part.position + i, 1, part.seq
                b.logits[n] = i >= len(part.tokens) - part.wanted
                n += 1
        b.n_tokens = n
        errors.clear()
        if (code := self._lib.llama_decode(self._ctx, b)) != 0:
            raise InputError(f"llama.cpp cannot evaluate (code {code}): {'; '.join(errors) or 'no reason given'}")
        if not (rows := sum(part.wanted for part in parts)):
            return np.empty((0, self.vocab), np.float32)
        pointer = self._lib.llama_get_logits(self._ctx)
        return np.ctypeslib.as_array(pointer, shape=(rows * self.vocab,)).reshape(rows, self.vocab)

    def state_bytes(self) -> int:
        with self._lanes.alone():
            return int(self._lib.llama_state_seq_get_size(self._ctx, self._seq))

    def state_limit(self, tokens: int) -> int:
        self.keep(0)
        sizes = []
        for _ in range(min(2, self.context)):  # a recurrent state is there once, a cell for every token
            self.evaluate([0], 0)
            sizes.append(self.state_bytes())
        self.take_experts()
        self.keep(0)
        return sizes[0] + (tokens - 1) * (sizes[-1] - sizes[0])

    def copy_state(self, out: NDArray[np.uint8]) -> None:
        with self._lanes.alone():
            written = self._lib.llama_state_seq_get_data(self._ctx, _bytes(out), out.nbytes, self._seq)
        if written != out.nbytes:
            raise InputError(f"llama.cpp wrote {written} of the {out.nbytes} bytes of its state")

    def restore(self, tokens: int, state: NDArray[np.uint8]) -> None:
        with self._lanes.alone():
            self._keep(0)
            errors.clear()
            read = self._lib.llama_state_seq_set_data(self._ctx, _bytes(state), state.nbytes, self._seq)
            last = self._lib.llama_memory_seq_pos_max(self._lib.llama_get_memory(self._ctx), self._seq)
            if (read, last) != (state.nbytes, tokens - 1):
                self._keep(0)
                reason = "; ".join(errors) or f"it read {read} of {state.nbytes} bytes, up to position {last}"
                raise InputError(f"llama.cpp does not take this state: {reason}")
            self._position = tokens

    def take_experts(self) -> dict[int, NDArray[np.int32]]:
        return {} if self._experts is None else self._experts.take()

    def take_inputs(self) -> dict[str, Sums]:
        """Matrix → sums of squares of what it was multiplied with since the last call, [matrices, columns], and how
        many vectors those were: one count, or one for each expert. Names and columns are GGUF's.
        """
        return {} if self._inputs is None else self._inputs.take()

    def metadata(self) -> Mapping[str, str]:
        lib, values = self._lib, {}
        for i in range(lib.llama_model_meta_count(self._model)):
            buffer = ctypes.create_string_buffer(256)
            lib.llama_model_meta_key_by_index(self._model, i, buffer, 256)
            key = buffer.value.decode(errors="replace")
            if key not in VOCABULARY:
                values[key] = self._meta(key) or ""
        for role in ("bos", "eos"):
            token = getattr(lib, f"llama_vocab_{role}")(self._vocab)
            if token >= 0:
                values[f"tokenizer.{role}_token"] = lib.llama_vocab_get_text(self._vocab, token).decode()
        return values

    def _meta(self, key: str) -> str | None:
        room = 4096
        while True:
            buffer = ctypes.create_string_buffer(room)
            n = self._lib.llama_model_meta_val_str(self._model, key.encode(), buffer, room)
            if n < room or room > LONGEST:
                return buffer.value.decode(errors="replace") if n >= 0 else None
            room = min(n, LONGEST) + 1

    def close(self) -> None:
        if not self._lanes.leave(self._seq):
            return
        if self._batch is not None:
            self._lib.llama_batch_free(self._batch)
        if self._ctx:
            self._lib.llama_free(self._ctx)
        if self._model:
            self._lib.llama_model_free(self._model)
        self._ctx = self._model = self._batch = None
