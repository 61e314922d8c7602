"""Qualcomm's compiler and runtime for its NPU, through ONNX Runtime's QNN provider: sessions that run on it alone.

The package onnxruntime-qnn brings Qualcomm's SDK under Qualcomm's licence; on x86-64 it has the compiler and an
emulator. What ONNX Runtime would pass over in silence is checked here: a provider that is not there, options that it
does not know, nodes that it leaves to the CPU.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import rknn
from .errors import InputError, brief, wrong
from .extras import advice, installed

PACKAGE, PROVIDER = "onnxruntime-qnn", "QNNExecutionProvider"
OLDEST, NEXT = (2, 7), (3, 0)  # versions of the package that were tried, and that were not
# HTP version → Qualcomm's number of a chip that has it: SM8550, SM8650, SM8750, SM8850
VERSIONS: Mapping[str, str] = {"73": "43", "75": "57", "79": "69", "81": "87"}
COMPILE = "from sampan.qnn import main; main()"


def versions(target: str) -> tuple[str, ...]:
    """HTP versions that `qnn` or `qnn-v75` stands for."""
    if target == "qnn":
        return tuple(VERSIONS)
    version = target.removeprefix("qnn-v")
    if version not in VERSIONS or target != f"qnn-v{version}":
        known = ", ".join([*(f"qnn-v{v}" for v in VERSIONS), *rknn.CHIPS])
        raise wrong("--target", f"qnn, or one of {known}", repr(target))
    return (version,)


def check() -> str:
    """The package's version. Raises InputError where it is missing or is another than those that were tried."""
    found = installed(PACKAGE)
    if found is None:
        raise InputError(f"{PACKAGE}: it is not installed; {advice(PACKAGE)}")
    try:
        number = tuple(int(n) for n in found.split(".")[:2])
    except ValueError:
        number = (0, 0)
    if not OLDEST <= number < NEXT:
        want = f"version {'.'.join(map(str, OLDEST))} or newer, before {NEXT[0]}"
        raise wrong(PACKAGE, want, found, advice(PACKAGE))
    return found


def session(graph: Path, version: str, *, compile_to: Path | None = None) -> Any:
    """An ONNX Runtime session whose every node runs on the NPU, or in its emulator.

    `compile_to`: where the compiled context is written, a graph of one node and a binary beside it. Raises InputError
    where a node would be left to the CPU.
    """
    check()
    if version not in VERSIONS:
        raise wrong("HTP version", f"one of {', '.join(VERSIONS)}", repr(version))
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if compile_to is not None:
        settings.add_session_config_entry("ep.context_enable", "1")
        settings.add_session_config_entry("ep.context_file_path", str(compile_to))
        settings.add_session_config_entry("ep.context_embed_mode", "0")
    settings.add_provider_for_devices(_devices(ort), options(version))
    try:
        made = ort.InferenceSession(str(graph), settings)
    except Exception as e:  # the package's exceptions have no common base
        raise InputError(f"{graph}: QNN cannot take all of it for HTP v{version}: {brief(str(e), 300)}") from None
    if PROVIDER not in made.get_providers():
        raise wrong(graph, f"a session on {PROVIDER}", ", ".join(made.get_providers()))
    return made


def options(version: str) -> dict[str, str]:
    """Of the provider. It accepts any key, so they stand in this one place."""
    return {
        "backend_type": "htp",
        "htp_arch": version,
        "soc_model": VERSIONS[version],
        "htp_graph_finalization_optimization_mode": "3",
    }


def _devices(ort: Any) -> list[Any]:
    """What the provider offers. `providers=[…]` with its name would mean the CPU, in silence."""
    import onnxruntime_qnn

    found = [d for d in ort.get_ep_devices() if d.ep_name == PROVIDER]
    if not found:
        try:
            ort.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())
        except Exception as e:
            raise InputError(f"{PACKAGE}: ONNX Runtime cannot load its library: {brief(str(e), 300)}") from None
        found = [d for d in ort.get_ep_devices() if d.ep_name == PROVIDER]
    if not found:
        raise InputError(f"{PACKAGE}: it offers no device on this machine")
    return found


def contexts(graph: Path) -> list[str]:
    """Names of the files that a compiled graph's nodes load. Raises InputError where it has other nodes than one."""
    import onnx

    from .wire import read_message

    model = onnx.ModelProto()
    read_message(graph, model)
    nodes = [n.op_type for n in model.graph.node]
    if nodes != ["EPContext"]:
        raise wrong(graph, "one node EPContext", brief(", ".join(nodes), 100))
    found = {a.name: a for a in model.graph.node[0].attribute}
    name = found["ep_cache_context"].s.decode(errors="replace") if "ep_cache_context" in found else ""
    inside = "embed_mode" not in found or found["embed_mode"].i != 0  # which is what ONNX Runtime takes for none
    if inside or not name or Path(name).name != name:
        raise wrong(graph, "the name of a file beside it", brief(name))
    return [name]


def main() -> None:
    """Compile in a process of its own. Arguments: the graph, the compiled graph, the HTP version."""
    graph, out, version = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # the library prints
    try:
        session(Path(graph), version, compile_to=Path(out))
        answer = {"files": json.dumps(contexts(Path(out)))}
    except InputError as e:
        answer = {"refused": str(e)}
    print(json.dumps(answer), file=answers, flush=True)
    os._exit(0)  # the library's own end is not ours to wait for
