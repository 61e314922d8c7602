"""A graph in Rockchip's simulator, in the environment of rknn-toolkit2: `python -I rknn_simulator.py GRAPH CHIP`.

Each line of standard input is a folder with an array for each input, 0.npy and so on; it gets out-N.npy for each
output.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main() -> None:
    graph, chip = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import numpy as np
    from rknn.api import RKNN

    rknn = RKNN(verbose=False)
    steps = (
        lambda: rknn.config(target_platform=chip, disable_rules=["adjust_element_rs"]),
        lambda: rknn.load_onnx(graph),
        lambda: rknn.build(do_quantization=False),
        rknn.init_runtime,
    )
    assert all(step() == 0 for step in steps)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        folder = Path(line.strip())
        inputs = [np.load(folder / f"{n}.npy") for n in range(len(list(folder.iterdir())))]
        for n, values in enumerate(rknn.inference(inputs=inputs)):
            np.save(folder / f"out-{n}.npy", values)
        print("done", file=answers, flush=True)


if __name__ == "__main__":
    main()
