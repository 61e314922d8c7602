"""Artifact → tokens. `open(path)` gives a Session, whatever engine runs it."""

from .session import EngineOptions, Session, open

__all__ = ["EngineOptions", "Session", "open"]
