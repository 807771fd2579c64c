"""UltraBench's folders as benchmarks, encoders as ONNX files, and whether a model was trained on what it is scored on."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from usfmae.core.bench import provenance
from usfmae.core.bench.encoders import load as load_encoder
from usfmae.core.bench.provenance import Standing
from usfmae.core.bench.tasks import load
from usfmae.core.bench.tasks.base import BenchmarkTask
from usfmae.core.corpus.shard import PackedImage, write_shard
from usfmae.core.errors import CheckpointError, SourceError


def picture(seed: int) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 255, (9, 9), dtype=np.uint8)
    return cv2.resize(small, (64, 64), interpolation=cv2.INTER_CUBIC)


def prepared(root: Path, patients: bool = True) -> Path:
    """A folder as `ultrabench butterfly` leaves it."""
    folder = root / "butterfly_v1.0.1"
    (folder / "images").mkdir(parents=True)
    for number, (part, count) in enumerate({"train": 8, "validation": 4, "test": 4}.items()):
        rows = []
        for k in range(count):
            name = f"images/{part}{k}.png"
            cv2.imwrite(str(folder / name), picture(100 * number + k))
            row = {"image": name, "class": ["carotid", "lungs"][k % 2], "label": k % 2, "scan_mask": "x"}
            rows.append({**row, "patient": 100 * number + k // 2} if patients else row)
        (folder / f"{part}.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture
def task(tmp_path: Path) -> BenchmarkTask:
    return load("ultrabench", prepared(tmp_path))


def test_the_published_splits_are_kept(task: BenchmarkTask) -> None:
    (split,) = task.splits
    assert (task.name, task.classes) == ("ultrabench-butterfly", ("carotid", "lungs"))
    assert [len(part) for part in (split.train, split.validation, split.test)] == [8, 4, 4]
    assert task.examples[split.test[0]].id == "images/test0.png" and task.groups_known


def test_without_patients_it_says_so(tmp_path: Path) -> None:
    task = load("ultrabench", prepared(tmp_path, patients=False))
    assert not task.groups_known and "both sides" in task.notes[0]


def test_a_segmentation_folder_with_labels_is_no_second_task(tmp_path: Path) -> None:
    """`ultrabench aul` writes the labels of aul_mass into aul_liver too."""
    folder = prepared(tmp_path).rename(tmp_path / "aul_liver_v1.0.1")
    with pytest.raises(SourceError, match="is a segmentation task"):
        load("ultrabench", folder)


def test_a_segmentation_folder_and_a_missing_image_are_refused(tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    (folder / "images" / "test1.png").unlink()
    with pytest.raises(SourceError, match=r"test1\.png"):
        load("ultrabench", folder)
    (folder / "test.json").write_text(json.dumps([{"image": "images/test0.png", "mask": "m.png"}]))
    with pytest.raises(SourceError, match="label"):
        load("ultrabench", folder)


def test_a_corpus_that_holds_the_benchmark_is_told(task: BenchmarkTask, tmp_path: Path) -> None:
    write_shard(tmp_path / "with", "a", [PackedImage(cv2.resize(picture(3), (96, 96)), "i" * 64, "g")])
    write_shard(tmp_path / "without", "a", [PackedImage(picture(999), "j" * 64, "g")])
    trained = provenance.judged("ckpt", task, [tmp_path / "with"])
    assert trained.standing is Standing.TRAINED and trained.why.startswith("1 of its images")
    assert provenance.judged("ckpt", task, [tmp_path / "without"]).standing is Standing.MAY


def test_what_cannot_be_shown_is_unknown(task: BenchmarkTask) -> None:
    assert provenance.judged("onnx:usfm.onnx", task).standing is Standing.UNKNOWN
    assert provenance.judged("timm:resnet50.tv_in1k", task).standing is Standing.MAY
    assert provenance.judged("random:x", task).standing is Standing.MAY


def test_an_encoder_as_an_onnx_file(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    import onnx
    from onnx import TensorProto, helper

    shape = ["b", 3, 32, 32]
    pool = helper.make_node("ReduceMean", ["images"], ["out"], axes=[2], keepdims=0)
    graph = helper.make_graph(
        [pool],
        "encoder",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["b", 3, 32])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=9)
    onnx.save(model, tmp_path / "e.onnx")
    encoder = load_encoder(f"onnx:{tmp_path / 'e.onnx'}")
    assert (encoder.width, encoder.size) == (32, 32)
    images = torch.randint(0, 255, (2, 48, 48, 3), dtype=torch.uint8)
    assert torch.allclose(encoder(images), encoder.prepare(images).mean(2).mean(1), atol=1e-5)
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(CheckpointError, match="no encoder"):
        load_encoder(f"onnx:{tmp_path / 'bad.onnx'}")
