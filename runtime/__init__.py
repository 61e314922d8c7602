"""Artifact → tokens. `open(path)` gives a Session, whatever engine runs it."""

from sampan.errors import ContextLengthError

from .engine import EngineOptions
from .reply import ToolCall, ToolDelta
from .sampling import Sampling
from .session import Session, open
from .stream import Answer, Candidate, Chunk, Options, Stream, Usage

__all__ = [
    "Answer",
    "Candidate",
    "Chunk",
    "ContextLengthError",
    "EngineOptions",
    "Options",
    "Sampling",
    "Session",
    "Stream",
    "ToolCall",
    "ToolDelta",
    "Usage",
    "open",
]
