"""The processor: the engine that claims an artifact, with a thread for each fast core that the process may use."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

from sampan import registry
from sampan.errors import wrong

from ..engine import Engine, EngineOptions
from ..machine import Machine, look
from ..processor import processor
from ..target import Target


def _found(machine: Machine) -> list[str]:
    cpu = processor(machine)
    return [f"{cpu.name or machine.architecture}: threads for {cpu.threads} of {len(machine.allowed)} cores"]


def _open(path: Path, options: EngineOptions) -> Engine:
    for name in registry.names("sampan.runtime.engines"):
        engine = importlib.import_module(f"sampan.runtime.engines.{name}")
        if engine.claims(path):
            opened: Engine = engine.open(path, replace(options, threads=options.threads or processor(look()).threads))
            return opened
    raise wrong(path, "a GGUF file or an ONNX folder", "something else", "convert it with `sampan convert` first")


TARGET = Target("CPU", "llama.cpp for GGUF files, ONNX Runtime for ONNX folders", _found, _open)
