"""What runs inside the exporter's environment: `python -I _optimum_inside.py JOB`. It imports nothing of ours.

JOB is a JSON file with a `command` (export or reference), its arguments, and `result`, the JSON file to answer in.
"""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Any

TASK = "text-generation-with-past"
LOCAL = {"local_files_only": True, "trust_remote_code": False}


def export(job: dict[str, Any]) -> dict[str, Any]:
    """Trace `source` into `out`/model.onnx with external data; refuses what Optimum does not know by name."""
    import onnx
    import optimum.exporters.onnx.model_configs  # noqa: F401 - it fills the table of model types
    from optimum.exporters.onnx import main_export
    from optimum.exporters.tasks import TasksManager
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    config = json.loads((Path(job["source"]) / "config.json").read_text())
    table = TasksManager._SUPPORTED_MODEL_TYPE
    known = sorted(k for k, v in table.items() if TASK in v.get("onnx", {}) and k in CLASSES)
    kind = config.get("model_type")
    if kind not in known:
        return {"refused": ["model_type", f"one that Optimum knows: {', '.join(known)}", repr(kind)]}
    names = config.get("architectures") or [None]
    if names[0] != CLASSES[kind]:
        return {"refused": ["architectures", f"{CLASSES[kind]} with model_type {kind}", repr(names[0])]}
    out = Path(job["out"])
    main_export(
        job["source"], out, task=TASK, dtype="fp32", do_validation=False, library_name="transformers",
        pad_token_id=0, **LOCAL,
    )  # fmt: skip
    graph = out / "model.onnx"
    model = onnx.load(graph, load_external_data=False)
    if not any(i.data_location == onnx.TensorProto.EXTERNAL for i in model.graph.initializer):
        onnx.save_model(
            model, graph, save_as_external_data=True, all_tensors_to_one_file=True, location="model.onnx.data",
            size_threshold=1024, convert_attribute=False,
        )  # fmt: skip
    return {}


def reference(job: dict[str, Any]) -> dict[str, Any]:
    """Logits of `tokens` from position 0 and from each of `starts`, float32 [runs, tokens, vocabulary], as .npy."""
    sys.path.insert(0, job["packages"])
    import numpy as np
    import torch
    import transformers
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        job["source"], dtype=torch.float32, use_safetensors=True, output_loading_info=True, **LOCAL
    )
    for key, expected, found in (
        ("missing_keys", "every tensor of the model", "none of that name"),
        ("mismatched_keys", "the shape that the config gives", "another"),
        ("unexpected_keys", "only tensors that the model has", "one more"),
    ):
        names = sorted(str(n) for n in info.get(key, ()) if "rotary_emb.inv_freq" not in str(n))
        if names:
            return {"refused": [names[0], expected, found]}
    model.eval()
    ids = torch.tensor([job["tokens"]])
    moved = "position_ids" in inspect.signature(model.forward).parameters
    runs = []
    with torch.inference_mode():
        for start in [0, *(job["starts"] if moved else [])]:
            where = {"position_ids": torch.arange(start, start + ids.shape[1])[None]} if start else {}
            runs.append(model(ids, attention_mask=torch.ones_like(ids), use_cache=False, **where).logits[0].numpy())
    np.save(job["out"], np.stack(runs).astype(np.float32))
    return {"transformers": transformers.__version__}


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    answer = {"export": export, "reference": reference}[job["command"]](job)
    Path(job["result"]).write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
