"""ONNX Runtime, for folders with a model.onnx: ours, and others whose inputs are understood."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sampan.chat_template import DEFAULT, KEY, SPECIAL_KEY, read_templates, special_tokens
from sampan.errors import InputError, brief, wrong
from sampan.extras import advice, installed
from sampan.files import read_json_if_there
from sampan.generation import end_ids, flat, read_generation
from sampan.onnx import graph_file, home, read_graph, refuse_slow

from ..engine import DEFAULT_CONTEXT
from ._process import Loaded
from ._routers import RouterRecorder
from ._tokenizer import JsonTokenizer

if TYPE_CHECKING:
    from ..engine import EngineOptions

NAME = "ONNX Runtime"
PACKAGE = "onnxruntime"
BATCH = 512  # tokens evaluated at once in a prefill
SETTLED = 32  # tokens one by one, after which weights move to huge pages: 100 tokens more earn that back
PAST = re.compile(r"past_key_values\.(\d+)\.(key|value)")
STATE = re.compile(r"past_(conv|recurrent)\.\d+")  # of fixed size, and no positions that could be cut off
TRAINED = "max_position_embeddings"  # of config.json, where there is no genai_config.json
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
CACHES = TYPES | {"tensor(int8)": np.int8}  # with scales inside the graph
KV = {"tensor(float)": "f32", "tensor(float16)": "f16", "tensor(int8)": "int8"}


def claims(path: Path) -> bool:
    """A folder with a graph in it, or a graph."""
    return graph_file(path).is_file() and (path.is_dir() or path.suffix == ".onnx")


def open(path: Path, options: EngineOptions) -> OnnxEngine:
    """Load the graph of a folder, or a graph whose small files lie beside it or above its folder."""
    return OnnxEngine(path, options)


def check(path: Path) -> None:
    """Load the tokenizer and the graph as it stands: weights are mapped and not read, nothing is optimised.

    Raises ImportError without ONNX Runtime or tokenizers, InputError where one of them refuses its file.
    """
    import onnxruntime as ort
    import tokenizers  # noqa: F401 - as an ImportError

    JsonTokenizer(path / "tokenizer.json")
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = 1
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.add_session_config_entry("session.disable_prepacking", "1")
    try:
        ort.InferenceSession(str(graph_file(path)), settings, providers=["CPUExecutionProvider"])
    except Exception as e:  # the package's exceptions have no common base
        raise InputError(brief(str(e), 300)) from None


def about() -> dict[str, Any]:
    """The library's version and what it can compute on; ImportError without it."""
    import onnxruntime as ort

    return {"version": installed(PACKAGE), "providers": ort.get_available_providers()}


class OnnxEngine:
    """One ONNX Runtime session and its cache; implements `Engine`."""

    batch = BATCH
    kv = "f32"

    def __init__(self, path: Path, options: EngineOptions) -> None:
        if options.kv not in (None, *KV.values()):
            raise wrong("kv", f"one of {', '.join(KV.values())}, the caches of ONNX graphs", options.kv)
        options.without_llama()
        self._graph, path = graph_file(path), home(path)
        self._path = path
        self._tokenizer = JsonTokenizer(path / "tokenizer.json")
        self._config = read_json_if_there(self._graph.parent / "genai_config.json")
        model = self._config.get("model", {})
        if not isinstance(model, dict):
            raise wrong(f"{self._graph.parent / 'genai_config.json'}: model", "an object", brief(model))
        ours = read_json_if_there(path / "manifest.json").get("graph") == "sampan"
        self._ours = ours and self._graph == graph_file(path)
        self.vocab = self._size(model, "vocab_size", 0) or self._tokenizer.size
        self._generation = read_generation(path, self.vocab)
        self._ends = frozenset(self._end_tokens(model.get("eos_token_id")))
        trained = flat(read_json_if_there(path / "config.json"))
        self.longest = self._size(model, "context_length", 0) or self._size(trained, TRAINED, DEFAULT_CONTEXT)
        self.context = 0 if options.vocabulary_only else options.positions(path, self.longest, self.longest)
        self._session: Any = None
        self._position = self._steps = 0
        self.library, self.threads = f"{PACKAGE} {installed(PACKAGE)}", options.threads or 0
        if not options.vocabulary_only:
            self._load(options)

    def _size(self, model: dict[str, Any], key: str, default: int) -> int:
        value = model.get(key, default)
        if type(value) is not int or not 0 <= value < 2**31:
            file = self._path / "config.json" if key == TRAINED else self._graph.parent / "genai_config.json"
            raise wrong(f"{file}: {key}", "a number of tokens", brief(value))
        return value

    def _load(self, options: EngineOptions) -> None:
        try:
            import onnxruntime as ort
        except ImportError as e:
            raise InputError(f"onnxruntime: cannot be imported ({e}); {advice('onnxruntime')}") from None
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = self.threads
        settings.log_severity_level = 3
        # small blocks that idle threads fetch: cores differ, or have other work
        settings.add_session_config_entry("session.dynamic_block_base", "4")
        # threads wait busily between operators (decode is 8 % faster for it), not between tokens
        settings.add_session_config_entry("session.force_spinning_stop", "1")
        self._weights = Loaded(wanted=options.process_wide)
        graph = self._graph
        model: str | bytes = str(graph)
        self._routers: RouterRecorder | None = None
        if not self._ours:
            refuse_slow(read_graph(graph))
        if options.record_experts:
            self._routers = RouterRecorder(read_graph(graph))
            model = self._routers.model
            settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(graph.parent))
        try:
            with self._weights:
                self._session = ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
        except Exception as e:  # the package's exceptions have no common base
            raise InputError(f"{graph}: ONNX Runtime cannot load it: {brief(str(e), 300)}") from None
        inputs = {i.name: i for i in self._session.get_inputs()}
        outputs = {o.name: o for o in self._session.get_outputs()}
        self._past = {n: i for n, i in inputs.items() if PAST.fullmatch(n)}
        self._present = [n.replace("past_key_values", "present") for n in self._past]
        for name in ("input_ids", "attention_mask"):
            if name not in inputs:
                raise wrong(graph, f"an input {name}", f"only {', '.join(inputs)}")
        self._states = {n: self._zeros(i) for n, i in inputs.items() if STATE.fullmatch(n)}
        self._next_states = {n.replace("past", "present"): np.empty_like(s) for n, s in self._states.items()}
        known = {"input_ids", "attention_mask", "position_ids", *self._past, *self._states}
        for name in (n for n in inputs if n not in known):
            raise wrong(f"{graph}: {name}", "inputs that a text decoder with a cache has", "another one")
        for name in ("logits", *self._present, *self._next_states):
            if name not in outputs:
                raise wrong(graph, f"an output {name}", f"only {', '.join(list(outputs)[:4])} …")
        if not self._past:
            raise wrong(graph, "inputs past_key_values.0.key, …", "a graph without a cache")
        self.kv = " and ".join(dict.fromkeys(KV.get(i.type, i.type) for i in self._past.values()))
        if options.kv not in (None, self.kv):
            raise wrong("kv", f"{self.kv}, the cache of {graph}", options.kv)
        logits = outputs["logits"]
        if logits.type not in TYPES or len(logits.shape) != 3:
            raise wrong(f"{graph}: logits", "float [1, tokens, words]", f"{logits.type} {logits.shape}")
        if type(size := logits.shape[-1]) is int:  # a tokenizer may have fewer tokens
            self.vocab = size
        routers = self._routers.outputs if self._routers else []
        self._outputs = [*self._present, *self._next_states, "logits", *routers]  # in the order in which they are bound
        self._positions = "position_ids" in inputs
        self._shared = bool(self._config.get("search", {}).get("past_present_share_buffer"))
        self._mask = np.ones((1, self.context), np.int64)
        self._binding = self._session.io_binding()
        self._cache = {n: self._empty(i, self.context if self._shared else 0) for n, i in self._past.items()}
        if self._shared:  # bound once: the operator appends in place
            for name, present in zip(self._past, self._present, strict=True):
                self._bind(self._binding.bind_input, name, self._cache[name])
                self._bind(self._binding.bind_output, present, self._cache[name])
        self._next = np.empty((1, 1, self.vocab), TYPES[logits.type])

    def _empty(self, past: Any, tokens: int) -> NDArray[Any]:
        """Zeros [1, key/value heads, tokens, head size]: memory is taken as the cache fills."""
        shape = list(past.shape)
        if len(shape) == 4 and type(shape[3]) is not int:  # onnxruntime-genai's graphs leave it open
            shape[3] = self._config.get("model", {}).get("decoder", {}).get("head_size")
        if past.type not in CACHES or len(shape) != 4 or not all(type(shape[d]) is int for d in (1, 3)):
            raise wrong(f"{self._graph}: {past.name}", "float or int8 [1, heads, tokens, head size]", past.shape)
        return np.zeros((1, shape[1], tokens, shape[3]), CACHES[past.type])

    def _zeros(self, state: Any) -> NDArray[Any]:
        """A state before the first token."""
        if state.type not in TYPES or not all(type(n) is int for n in state.shape):
            raise wrong(f"{self._graph}: {state.name}", "a float state of fixed size", state.shape)
        return np.zeros(state.shape, TYPES[state.type])

    @staticmethod
    def _bind(bind: Any, name: str, array: NDArray[Any]) -> None:
        bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def tokenize(self, text: str, *, special: bool, around: bool) -> list[int]:
        return self._tokenizer.encode(text, special=special, around=around)

    def piece(self, token: int, *, control: bool = False) -> bytes:
        return self._tokenizer.piece(token, control=control)

    def added(self) -> Mapping[str, bool]:
        return self._tokenizer.added()

    def is_end(self, token: int) -> bool:
        return token in self._ends

    def keep(self, n: int) -> int:
        if self._states and n < self._position:
            n = 0
            for state in self._states.values():
                state[:] = 0
        self._position = n
        if not self._shared:
            self._cache = {k: np.ascontiguousarray(v[:, :, :n]) for k, v in self._cache.items()}
        return n

    def evaluate(self, tokens: Sequence[int], wanted: int) -> NDArray[np.float32]:
        n, total = len(tokens), self._position + len(tokens)
        self._steps += n == 1
        if self._steps == SETTLED:
            self._weights.settle()
        # our graphs compute the logits from position n − wanted when the mask says so
        cut = n - max(wanted, 1) if self._ours else 0
        mask = self._mask[:, :total]
        mask[:] = 1 + cut
        ids = np.array([tokens], np.int64)
        b = self._binding
        self._bind(b.bind_input, "input_ids", ids)
        self._bind(b.bind_input, "attention_mask", mask)
        if self._positions:
            positions = np.arange(self._position, total, dtype=np.int64)[None]
            self._bind(b.bind_input, "position_ids", positions)
        if not self._shared:
            for name in self._past:
                self._bind(b.bind_input, name, self._cache[name])
            for name in self._present:
                b.bind_output(name, "cpu")
        for name, state in self._states.items():
            self._bind(b.bind_input, name, state)
        for name, state in self._next_states.items():
            self._bind(b.bind_output, name, state)
        single = n - cut == 1
        if single:
            self._bind(b.bind_output, "logits", self._next)
        else:
            b.bind_output("logits", "cpu")
        for name in self._routers.outputs if self._routers else ():
            b.bind_output(name, "cpu")
        try:
            self._session.run_with_iobinding(b)
        except Exception as e:  # the package's exceptions have no common base
            raise InputError(f"{self._graph}: ONNX Runtime cannot run it: {brief(str(e), 300)}") from None
        self._position = total
        for (name, old), (new, state) in zip(self._states.items(), self._next_states.items(), strict=True):
            self._states[name], self._next_states[new] = state, old
        known = single and self._shared and not self._routers  # where all outputs lie
        outputs = {} if known else dict(zip(self._outputs, b.get_outputs(), strict=True))
        if self._routers:
            self._routers.hear({n: outputs[n].numpy() for n in self._routers.outputs})
        if not self._shared:
            self._cache = {p: outputs[q].numpy() for p, q in zip(self._past, self._present, strict=True)}
        found = self._next if single else outputs["logits"].numpy()
        logits: NDArray[np.float32] = (found[0, -wanted:] if wanted else found[0, :0]).astype(np.float32, copy=False)
        return logits

    def _held(self, tokens: int) -> list[NDArray[Any]]:
        """The parts of the state of so many tokens, in the order of the graph's inputs."""
        return [*(c[:, :, :tokens] for c in self._cache.values()), *self._states.values()]

    def state_bytes(self) -> int:
        return self.state_limit(self._position)

    def state_limit(self, tokens: int) -> int:
        rows: int = sum(c.shape[1] * c.shape[3] * c.itemsize for c in self._cache.values())
        states: int = sum(s.nbytes for s in self._states.values())
        return tokens * rows + states

    def copy_state(self, out: NDArray[np.uint8]) -> None:
        at = 0
        for part in self._held(self._position):
            out[at : at + part.nbytes] = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
            at += part.nbytes

    def restore(self, tokens: int, state: NDArray[np.uint8]) -> None:
        self.keep(0)
        if state.nbytes != (wanted := self.state_limit(tokens)):
            raise wrong("the state", f"{wanted} bytes", state.nbytes)
        if not self._shared:
            self._cache = {n: np.empty((1, c.shape[1], tokens, c.shape[3]), c.dtype) for n, c in self._cache.items()}
        at = 0
        for part in self._held(tokens):
            part[...] = state[at : at + part.nbytes].view(part.dtype).reshape(part.shape)
            at += part.nbytes
        self._position = tokens

    def take_experts(self) -> dict[int, NDArray[np.int32]]:
        return self._routers.take() if self._routers else {}

    def _end_tokens(self, named: Any) -> tuple[int, ...]:
        """The ends of genai_config.json; without them those of the other files, and the tokenizer's eos_token."""
        if named is not None:
            return end_ids(named, self.vocab, f"{self._graph.parent / 'genai_config.json'}: model.eos_token_id")
        eos = special_tokens(self._path).get("eos_token")
        ids = self._tokenizer.encode(eos, special=True, around=False) if eos else []
        return (*self._generation.ends, *(ids if len(ids) == 1 else []))

    def metadata(self) -> Mapping[str, str]:
        """The keys of GGUF that a Session asks for."""
        values = {f"general.sampling.{k}": str(v) for k, v in self._generation.sampling.items()}
        for name, template in read_templates(self._path).items():
            values[KEY if name == DEFAULT else f"{KEY}.{name}"] = template
        return values | {SPECIAL_KEY: json.dumps(special_tokens(self._path))}

    def close(self) -> None:
        self._session = None
