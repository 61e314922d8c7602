"""Folders with graphs of fixed size, made for an NPU: on it, or in ONNX Runtime on the processor."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sampan.chat_template import DEFAULT, KEY, SPECIAL_KEY, read_templates, special_tokens
from sampan.errors import InputError, brief, wrong
from sampan.extras import advice, installed
from sampan.files import size_of
from sampan.generation import read_generation
from sampan.static import (
    EMBEDDING_FILE,
    QUANTITIES,
    TABLES_FILE,
    TOKENS,
    is_static,
    read_layout,
    read_quantities,
    visible,
)
from sampan.wire import read_message

from ._tokenizer import JsonTokenizer
from .onnx import PACKAGE
from .onnx import about as about

if TYPE_CHECKING:
    from ..engine import EngineOptions

NAME = "ONNX Runtime with static graphs"
FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
FEW = 8  # tokens that are evaluated one by one rather than as a prompt's piece
WIDEST = 1 << 20  # values that a layer's cache may have of a token
Loader = Callable[[Path], Any]
"""A graph's file → an ONNX Runtime session."""
Change = Callable[[Any], None]
"""What is done to a graph, the onnx package's ModelProto, before it is loaded."""


def claims(path: Path) -> bool:
    return is_static(path)


def open(path: Path, options: EngineOptions, change: Change | None = None) -> StaticEngine:
    """On the processor: the graphs as they stand before they are compiled."""
    library = f"{PACKAGE} {installed(PACKAGE)}"
    return StaticEngine(path, options, lambda graph: _on_processor(graph, options.threads, change), library)


def check(path: Path) -> None:
    """Read the layout and the tokenizer; the graphs are opened when they are compiled."""
    import tokenizers  # noqa: F401 - as an ImportError

    read_layout(path)
    JsonTokenizer(path / "tokenizer.json")


def _on_processor(graph: Path, threads: int | None, change: Change | None) -> Any:
    try:
        import onnxruntime as ort
    except ImportError as e:
        raise InputError(f"onnxruntime: cannot be imported ({e}); {advice('onnxruntime')}") from None
    size_of(graph)  # ONNX Runtime would wait for a FIFO
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads or 0
    settings.log_severity_level = 4  # what it says is in the exception
    settings.add_session_config_entry("session.disable_quant_qdq", "1")  # fused products would round otherwise
    model: str | bytes = str(graph)
    if change is not None:
        settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(graph.parent))
        model = _changed(graph, change)
    try:
        return ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    except Exception as e:  # the package's exceptions have no common base
        raise InputError(f"{graph}: ONNX Runtime cannot load it: {brief(str(e), 300)}") from None


def _changed(graph: Path, change: Change) -> bytes:
    import onnx

    model = onnx.ModelProto()
    read_message(graph, model)
    change(model)
    return bytes(model.SerializeToString())


class StaticEngine:
    """The sessions of all parts and the cache; implements `Engine`. `load`: opens a graph, by `library`."""

    batch = TOKENS[0]

    def __init__(self, path: Path, options: EngineOptions, load: Loader, library: str) -> None:
        self._path, self._layout = path, read_layout(path)
        self._floats = bool(self._layout.type)
        self.kv = "f16" if self._floats else "q8_0"
        if options.kv not in (None, self.kv):
            raise wrong("kv", f"{self.kv}, the cache of static graphs", options.kv)
        options.without_llama()
        if options.record_experts:
            raise wrong("record_experts", "no experts in a static graph", "asked for")
        self.library, self.threads = library, options.threads or 0
        self._tokenizer = JsonTokenizer(path / "tokenizer.json")
        self.vocab, self._slots = self._layout.vocab, self._layout.context
        self.longest = self._slots
        if options.context is not None and options.context > self._slots:
            most = self._layout.longest
            fits = options.context <= most
            hint = f"convert it with --context {options.context}" if fits else f"its model was made for {most}"
            raise wrong(f"{path}: context", f"at most the {self._slots} slots of its graphs", options.context, hint)
        self.context = 0 if options.vocabulary_only else options.positions(path, self.longest, self.longest)
        self._generation = read_generation(path, self.vocab)
        self._position = 0
        self._sessions: list[dict[int, Any]] = []
        if not options.vocabulary_only:
            self._load(load)

    def _load(self, load: Loader) -> None:
        layout, path = self._layout, self._path
        self._quantities = {} if self._floats else read_quantities(path)
        floats = (np.float32(0), np.float32(layout.far))
        self._mask: tuple[Any, Any] = floats if self._floats else (np.uint16(65535), np.uint16(0))
        self._embedding = np.memmap(path / EMBEDDING_FILE, np.float16, "r").reshape(layout.vocab, layout.hidden)
        flat, start = np.fromfile(path / TABLES_FILE, np.float32), 0
        self._tables: dict[str, NDArray[Any]] = {}
        for name, (rows, columns) in layout.tables.items():
            self._tables[name] = self._codes(name, flat[start : start + rows * columns].reshape(rows, columns))
            start += rows * columns
        self._sessions = [{n: load(path / name) for n, name in part.items()} for part in layout.parts]
        self._cache: dict[str, NDArray[Any]] = {}
        kinds, dims = (tuple(FLOATS), 3) if self._floats else (("tensor(uint8)",), 4)
        for part in self._sessions:
            for i in (i for i in part[1].get_inputs() if i.name.startswith("past_")):
                if i.type not in kinds or len(i.shape) != dims or not all(type(n) is int for n in i.shape):
                    found = f"{i.type} {brief(i.shape)}"
                    raise wrong(f"{path}: {brief(i.name)}", f"{kinds[0]} [heads, width, slots]", found)
                shape = i.shape[-3:]
                if shape[self._axis(i.name)] != self._slots or math.prod(shape) > self._slots * WIDEST:
                    raise wrong(f"{path}: {brief(i.name)}", f"{self._slots} slots", brief(i.shape))
                self._cache[i.name] = np.zeros(shape, np.float16) if self._floats else np.full(shape, 128, np.uint8)
        for size in TOKENS:
            self._check(size)

    def _check(self, size: int) -> None:
        """Every graph is given what it takes, gives what the cache takes, and the last one gives the logits."""
        known = {"hidden", "mask", *self._tables, *self._cache}
        for part, names in zip(self._sessions, self._layout.parts, strict=True):
            where = f"{self._path / names[size]}"
            given = {i.name for i in part[size].get_inputs()}
            if odd := sorted(given - known):
                raise wrong(f"{where}: {brief(odd[0])}", "an input that parts before it give", "none that does")
            outputs = {o.name: list(o.shape) for o in part[size].get_outputs()}
            new = {n.replace("present", "past"): shape for n, shape in outputs.items() if n.startswith("present_")}
            if {*new} != given & {*self._cache}:
                raise wrong(where, "an output for each cache that it takes", brief(", ".join(outputs)))
            for past, shape in new.items():
                wanted = list(self._cache[past].shape)
                wanted[self._axis(past)] = size
                if shape[-3:] != wanted:
                    raise wrong(f"{where}: output for {brief(past)}", wanted, brief(shape))
            known |= {*outputs} - {n.replace("past", "present") for n in new}
        if "logits" not in known or outputs.get("logits") != [size, self.vocab]:
            raise wrong(where, f"logits [{size}, {self.vocab}] of the last part", brief(outputs.get("logits")))

    @staticmethod
    def _axis(name: str) -> int:
        """Where the slots of a cache [heads, ., .] are: keys lie turned."""
        return 2 if name.startswith("past_key") else 1

    def _quantity(self, name: str) -> tuple[int, float, int]:
        if name not in self._quantities:
            raise wrong(self._path / QUANTITIES, f"an entry {brief(name)}", "none")
        return self._quantities[name]

    def _codes(self, name: str, values: NDArray[np.float32]) -> NDArray[Any]:
        """What the graphs take: floats as they are, or codes as of QuantizeLinear, halves to even."""
        if self._floats:
            return values
        _, scale, zero = self._quantity(name)
        found = np.rint(values / np.float32(scale)) + zero
        codes: NDArray[np.uint16] = np.clip(found, 0, 65535, out=found).astype(np.uint16)
        return codes

    def tokenize(self, text: str, *, special: bool, around: bool) -> list[int]:
        return self._tokenizer.encode(text, special=special, around=around)

    def piece(self, token: int, *, control: bool = False) -> bytes:
        return self._tokenizer.piece(token, control=control)

    def added(self) -> Mapping[str, bool]:
        return self._tokenizer.added()

    def is_end(self, token: int) -> bool:
        return token in self._layout.ends

    def keep(self, n: int) -> int:
        self._position = n
        return n

    def evaluate(self, tokens: Sequence[int], wanted: int) -> NDArray[np.float32]:
        """A prompt's piece in one call, filled up with its last token; few tokens one by one."""
        if len(tokens) <= FEW:
            rows = [self._call([token], 1)[0] for token in tokens]
        else:
            rows = list(self._call(tokens, TOKENS[0]))
        if not wanted:
            return np.empty((0, self.vocab), np.float32)
        codes = np.stack(rows[len(tokens) - wanted : len(tokens)])
        if self._floats:
            return codes.astype(np.float32, copy=False)
        _, scale, zero = self._quantity("logits")
        return (codes.astype(np.float32) - np.float32(zero)) * np.float32(scale)

    def _call(self, tokens: Sequence[int], size: int) -> NDArray[Any]:
        """Logits as the graph gives them [size, vocab]; the keys and values of `tokens` go into their slots."""
        n, position = len(tokens), self._position
        ids = np.array([*tokens, *[tokens[-1]] * (size - n)], np.int64)
        rows = np.minimum(np.arange(position, position + size), self._slots - 1)
        feeds: dict[str, NDArray[Any]] = {
            "hidden": self._embedding[ids].astype(np.float32),
            "mask": np.where(visible(position, size, self._slots), *self._mask),
            **{name: table[rows].reshape(1, size, 1, -1) for name, table in self._tables.items()},
            **self._cache,
        }
        for part in self._sessions:
            session = part[size]
            names = [o.name for o in session.get_outputs()]
            given = {i.name: self._given(i, feeds[i.name]) for i in session.get_inputs()}
            found = dict(zip(names, session.run(names, given), strict=True))
            for name in [n for n in names if n.startswith("present_")]:
                past = name.replace("present", "past")
                slots, new = [slice(None)] * 3, [slice(None)] * 3
                axis = self._axis(past)
                slots[axis], new[axis] = slice(position, position + n), slice(0, n)
                self._cache[past][tuple(slots)] = found.pop(name)[tuple(new)]
            feeds |= found
        self._position += n
        logits: NDArray[Any] = feeds["logits"]
        return logits

    def _given(self, wanted: Any, values: NDArray[Any]) -> NDArray[Any]:
        """In the shape of an input, and floats in its type."""
        fits = wanted.type in FLOATS if values.dtype.kind == "f" else wanted.type == f"tensor({values.dtype})"
        if not fits or math.prod(wanted.shape) != values.size:
            found = f"{wanted.type} {brief(wanted.shape)}"
            raise wrong(f"{self._path}: {brief(wanted.name)}", f"{values.dtype} {list(values.shape)}", found)
        return values.astype(FLOATS.get(wanted.type, values.dtype), copy=False).reshape(wanted.shape)

    def _held(self, tokens: int) -> list[NDArray[Any]]:
        """The slots of so many tokens, in the order of the graphs' inputs."""
        return [c[..., :tokens] if self._axis(n) == 2 else c[:, :tokens] for n, c in self._cache.items()]

    def state_bytes(self) -> int:
        return self.state_limit(self._position)

    def state_limit(self, tokens: int) -> int:
        return sum(part.nbytes for part in self._held(tokens))

    def copy_state(self, out: NDArray[np.uint8]) -> None:
        at = 0
        for part in self._held(self._position):
            out[at : at + part.nbytes] = np.ascontiguousarray(part).view(np.uint8).reshape(-1)
            at += part.nbytes

    def restore(self, tokens: int, state: NDArray[np.uint8]) -> None:
        self.keep(0)
        if state.nbytes != (wanted := self.state_limit(tokens)):
            raise wrong("the state", f"{wanted} bytes", state.nbytes)
        at = 0
        for part in self._held(tokens):
            part[...] = state[at : at + part.nbytes].view(part.dtype).reshape(part.shape)
            at += part.nbytes
        self._position = tokens

    def take_experts(self) -> dict[int, NDArray[np.int32]]:
        return {}

    def metadata(self) -> Mapping[str, str]:
        """The keys of GGUF that a Session asks for."""
        values = {f"general.sampling.{k}": str(v) for k, v in self._generation.sampling.items()}
        for name, template in read_templates(self._path).items():
            values[KEY if name == DEFAULT else f"{KEY}.{name}"] = template
        return values | {SPECIAL_KEY: json.dumps(special_tokens(self._path))}

    def close(self) -> None:
        for session in (s for part in self._sessions for s in part.values() if hasattr(s, "release")):
            session.release()
        self._sessions = []
