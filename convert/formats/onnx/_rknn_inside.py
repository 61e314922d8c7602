"""What runs inside the environment of rknn-toolkit2: `python -I _rknn_inside.py JOB`. It imports nothing of ours.

JOB is a JSON file: `graph` is compiled for `chip` into `out`, with integers of `type` over the calls of `samples`
(None: float16), and the simulator's outputs for the call `check` go into `found`. A call is a folder with an array for
each input, 0.npy and so on; `found` gets one for each output. The answer goes into `result`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def done(step: str, code: int) -> None:
    """Most errors are exceptions of the toolkit; where it returns a code it has said why before."""
    if code != 0:
        sys.exit(f"its {step} gave {code}")


def call(folder: str, count: int) -> list[Any]:
    import numpy as np

    return [np.load(Path(folder) / f"{n}.npy") for n in range(count)]


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    os.chdir(Path(sys.argv[1]).parent)  # where the samples are; and it leaves files where it runs
    import numpy as np
    from rknn.api import RKNN

    rknn = RKNN(verbose=False)
    kind = {"quantized_dtype": job["type"], **job["options"]} if job["type"] else {}
    # without its rule the build ends in an exception on these graphs
    done("config", rknn.config(target_platform=job["chip"], disable_rules=["adjust_element_rs"], **kind))
    done("load_onnx", rknn.load_onnx(job["graph"]))
    dataset = None
    if job["type"]:
        dataset = "dataset.txt"
        lines = [" ".join(f"{name}/{n}.npy" for n in range(job["inputs"])) for name in job["samples"]]
        Path(dataset).write_text("\n".join(lines) + "\n")
    done("build", rknn.build(do_quantization=bool(job["type"]), dataset=dataset))
    done("export_rknn", rknn.export_rknn(job["out"]))
    done("init_runtime", rknn.init_runtime())
    found = rknn.inference(inputs=call(job["check"], job["inputs"]))
    if found is None:
        sys.exit("its simulator gave nothing")
    for n, values in enumerate(found):
        np.save(Path(job["found"]) / f"{n}.npy", np.asarray(values, np.float32))
    Path(job["result"]).write_text(json.dumps({"outputs": len(found)}))
    sys.stdout.flush()
    os._exit(0)  # its own end is not ours to wait for


if __name__ == "__main__":
    main()
