"""A Session against a loop over the bare engine that knows no cache, and interrupted at every line of the runtime."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import tiny
from both_engines import artifacts, path
from conftest import to_gguf
from onnx_peer import to_onnx

from sampan import runtime
from sampan.errors import InputError
from sampan.runtime import Chunk, Options, Sampling, Session, Stream

__all__ = ["artifacts", "path"]  # fixtures of the tests here
PROMPTS = ([5, 6, 7, 8], [5, 6, 7, 9, 10], [5, 6], [300, 301, 302, 303, 304, 305, 306])


def opened(path: Path, **more: Any) -> Session:
    return runtime.open(path, runtime.EngineOptions(**{"context": 64, "threads": 1, "kv": "f32"} | more))


class Bare:
    """The engine alone: every token from an empty cache, so that nothing can be left of what was before."""

    def __init__(self, path: Path) -> None:
        self.session = opened(path)
        self.engine = self.session._engine

    def logits(self, tokens: list[int]) -> np.ndarray[Any, Any]:
        self.engine.keep(0)
        return self.engine.evaluate(tokens, len(tokens)).copy()

    def answer(self, prompt: list[int], n: int) -> str:
        tokens = list(prompt)
        for _ in range(min(n, self.engine.context - len(prompt))):
            best = int(self.logits(tokens)[-1].argmax())
            if self.engine.is_end(best):
                break
            tokens.append(best)
        return b"".join(map(self.engine.piece, tokens[len(prompt) :])).decode(errors="replace")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_any_sequence_of_calls(seed: int, path: Path) -> None:
    """Streams that are begun, advanced in any order, left or closed, and logits whole or in slices between them."""
    rng = np.random.default_rng(seed)
    bare = Bare(path)
    known: dict[tuple[int, ...], str] = {}
    streams: list[tuple[tuple[int, ...], Stream, list[str]]] = []
    slices: list[tuple[list[int], Any, list[Any]]] = []
    with bare.session, opened(path) as session:
        for _ in range(60):
            match int(rng.integers(6)):
                case 0:
                    prompt = PROMPTS[rng.integers(len(PROMPTS))]
                    stream = session.stream(prompt, Options(max_tokens=6, sampling=Sampling()))
                    streams.append((tuple(prompt), stream, []))
                case 1 | 2 if streams:
                    _, stream, said = streams[rng.integers(len(streams))]
                    said.append(next(stream, Chunk()).text)
                case 3:
                    tokens = [int(t) for t in rng.integers(10, 300, rng.integers(1, 40))]
                    np.testing.assert_allclose(session.logits(tokens), bare.logits(tokens), atol=2e-3)
                case 4 if slices:
                    _, parts, got = slices[rng.integers(len(slices))]
                    got.extend(p for p in [next(parts, None)] if p is not None)
                case 5:
                    tokens = [int(t) for t in rng.integers(10, 300, 40)]
                    slices.append((tokens, session.logit_slices(tokens), []))
        for prompt, stream, said in streams:
            if prompt not in known:
                known[prompt] = bare.answer(list(prompt), 6)
            assert "".join([*said, *(chunk.text for chunk in stream)]) == known[prompt]
        for tokens, parts, got in slices:
            np.testing.assert_allclose(np.concatenate([*got, *parts]), bare.logits(tokens), atol=2e-3)


def interrupted(work: Callable[[], object], at: int) -> bool:
    """Run with a KeyboardInterrupt at the line `at` of the runtime's own; False if there are fewer."""
    left = at

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if not ("/runtime/session.py" in frame.f_code.co_filename or "/runtime/engines/" in frame.f_code.co_filename):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


@pytest.mark.slow
def test_an_interrupt_at_every_line(path: Path) -> None:
    """Wherever it comes, what follows is right, and no turn is held for ever."""
    with opened(path) as session:
        fine = [logits(session, PROMPTS[0]), logits(session, PROMPTS[1])]
        at = 0
        while True:
            at += 1
            session.generate(PROMPTS[0], Options(max_tokens=1))
            if not interrupted(lambda: session.generate(PROMPTS[1], Options(max_tokens=2)), at):
                break
            assert session._turn.acquire(blocking=False)
            session._turn.release()
            np.testing.assert_allclose(logits(session, PROMPTS[at % 2]), fine[at % 2], atol=1e-4)
        assert at > 50, "the runtime has more lines than that"


def logits(session: Session, prompt: list[int]) -> np.ndarray[Any, Any]:
    """Of the first token of an answer, by the way that an answer takes, cache and all."""
    with session._turn:
        return session._advance(object(), list(prompt))[0].copy()


def test_keys_that_an_f16_cache_cannot_hold(model: Callable[[str], Path], tmp_path: Path) -> None:
    """As Qwen2's biases of keys do: infinite in float16, so that the scores are no numbers."""
    import shutil

    from safetensors.numpy import load_file, save_file

    folder = Path(shutil.copytree(model("qwen2-f32-gqa4"), tmp_path / "m"))
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    for name in (n for n in tensors if n.endswith("k_proj.bias")):
        tensors[name] = np.full_like(tensors[name], 1e5)
    save_file(tensors, file, {"format": "pt"})
    to_gguf(folder, tmp_path / "m.gguf", "f32")
    with opened(tmp_path / "m.gguf", kv="f16") as session:
        line = (
            r"the model computed nan in place of a number behind token 4, so no answer can be chosen; a likely cause "
        )
        with pytest.raises(InputError, match=line + r"is its f16 cache, which holds nothing above 65504: try --kv f32"):
            session.generate(PROMPTS[0], Options(max_tokens=3))
    with opened(tmp_path / "m.gguf") as session:
        session.generate(PROMPTS[0], Options(max_tokens=3))


def test_yarn_reaches_further_than_the_files_context(tmp_path: Path) -> None:
    """Qwen's advice for long texts leaves max_position_embeddings as it is, 1024 here."""
    import shutil

    folder = Path(shutil.copytree(tiny.FIXTURE, tmp_path / "m"))
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
    tiny.edit_json(folder / "config.json", rope_scaling=yarn)
    to_gguf(folder, tmp_path / "m.gguf", "q8_0")
    to_onnx(folder, tmp_path / "onnx", "int8", context=4096)
    for artifact in (tmp_path / "m.gguf", tmp_path / "onnx"):
        with opened(artifact, context=4096) as session:
            assert session.context == 4096
        with pytest.raises(
            InputError, match="a context of 4097 tokens cannot be had, since the model was made for 1 to 4"
        ):
            opened(artifact, context=4097)
