"""The text engines as a neighbour of other processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from usfmae.core.clean import detector_graph, foreign, ocr

PROGRAM = """
import os, threading, numpy
from usfmae.core.clean.ocr import text_probability
text_probability(numpy.zeros((640, 640, 3), numpy.uint8))  # compiling pins for a moment
main, seen, over = threading.get_native_id(), set(), threading.Event()
def look():
    while not over.wait(0.001):
        seen.add(len(os.sched_getaffinity(main)))
looking = threading.Thread(target=look)
looking.start()
for _ in range(3):
    text_probability(numpy.zeros((640, 640, 3), numpy.uint8))
over.set()
looking.join()
assert seen == {os.cpu_count()}, seen
"""


def test_the_detector_leaves_its_process_free_to_run_on_every_core() -> None:
    # Workers that are all pinned to the first core wait for each other: two were as fast as 1.2.
    if len(os.sched_getaffinity(0)) < 2 or len(os.sched_getaffinity(0)) != os.cpu_count():
        pytest.skip("needs every core of a machine of at least two")
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_streamlined_detector_computes_what_the_file_states() -> None:
    model = detector_graph.openvino().Core().read_model(str(ocr.model_path(ocr.DETECTOR)))
    stated = detector_graph.openvino().compile_model(model.clone(), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    fewer = detector_graph.openvino().compile_model(
        detector_graph.streamlined(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    batch = np.random.default_rng(0).standard_normal((1, 3, 96, 160)).astype(np.float32)
    logits = fewer(batch)[0]
    assert logits.shape == (1, 1, 96, 160)
    assert np.abs(1 / (1 + np.exp(-logits)) - stated(batch)[0]).max() < 1e-4


def test_an_unknown_network_runs_as_it_is_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = detector_graph.openvino().Core().read_model(str(ocr.model_path(ocr.DETECTOR)))
    batch = np.random.default_rng(0).standard_normal((1, 3, 64, 96)).astype(np.float32)
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    stated = detector_graph.openvino().compile_model(model.clone(), "CPU", settings)(batch)[0]
    monkeypatch.setattr(detector_graph, "_TAIL", ("Sigmoid", "Relu"))
    logits = detector_graph.openvino().compile_model(detector_graph.streamlined(model), "CPU", settings)(batch)[0]
    assert np.abs(1 / (1 + np.exp(-logits)) - stated).max() < 1e-4
    assert "not the known one" in caplog.text


@pytest.mark.parametrize(("feature", "precision"), [("amx_bf16", "bf16"), ("avx512_bf16", "f32"), ("", "f32")])
def test_networks_take_half_precision_only_where_the_processor_multiplies_tiles_of_it(
    monkeypatch: pytest.MonkeyPatch, feature: str, precision: str
) -> None:
    monkeypatch.setattr(ocr, "_has", lambda name: name == feature)
    monkeypatch.setattr(ocr, "_request", lambda model, arithmetic: arithmetic)
    ocr._fastest.cache_clear()
    try:
        assert ocr.compiled(Path(foreign.__file__).parent / "weights" / "centerface.xml") == precision
    finally:
        ocr._fastest.cache_clear()
