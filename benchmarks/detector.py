"""The text detector's graph as the file states it, and as `clean/detector_graph.py` rewrites it: CPU time of a pass, JSON.

    python benchmarks/detector.py [--passes 40]

Both run in turn, in one process and one thread, on the same picture; the medians and their ratio are printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np

from usfmae.core.clean import detector_graph, ocr

SETTINGS = {"INFERENCE_NUM_THREADS": 1, "ENABLE_CPU_PINNING": False, "INFERENCE_PRECISION_HINT": "f32"}
SHAPE = (1, 512, 480, 3)


def requests() -> dict[str, Any]:
    core = detector_graph.openvino().Core()
    model = core.read_model(str(ocr.model_path(ocr.DETECTOR)))
    graphs = {"stated": model.clone(), "rewritten": detector_graph.streamlined(model)}
    return {
        name: core.compile_model(detector_graph.of_pixels(graph), "CPU", SETTINGS).create_infer_request()
        for name, graph in graphs.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--passes", type=int, default=40)
    options = parser.parse_args()
    compiled, picture = requests(), np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
    seconds: dict[str, list[float]] = {name: [] for name in compiled}
    for _ in range(options.passes):
        for name, request in compiled.items():
            began = time.process_time()
            request.infer([picture])
            seconds[name].append(time.process_time() - began)
    medians = {name: statistics.median(times[options.passes // 8 :]) for name, times in seconds.items()}
    print(json.dumps({**medians, "ratio": medians["rewritten"] / medians["stated"]}, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
