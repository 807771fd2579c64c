"""Tensors on disk: what a damaged or hostile file says of itself is believed in nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from usfmae.core.errors import CheckpointError
from usfmae.core.tensors import TensorFile

GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def written(path: Path, header: object, data: bytes = bytes(8)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize(
    "header",
    [
        [],
        {"a": 1},
        {"a": {"dtype": "F32", "shape": [1]}},
        {"a": {**GOOD, "dtype": "F12"}},
        {"a": {**GOOD, "dtype": ["F32"]}},
        {"a": {**GOOD, "shape": [3]}},
        {"a": {**GOOD, "shape": [-2]}},
        {"a": {**GOOD, "shape": "ab"}},
        {"a": {**GOOD, "shape": None}},
        {"a": {**GOOD, "data_offsets": [0, 80]}},
        {"a": {**GOOD, "data_offsets": [8, 0]}},
        {"a": {**GOOD, "data_offsets": [0]}},
        {"a": {**GOOD, "data_offsets": [0.0, 8.0]}},
        {"__metadata__": [], "a": GOOD},
        {"__metadata__": {"round": 1}, "a": GOOD},
        b"[" * 100_000,
        b"\xff\xfe",
        b"",
    ],
    ids=lambda header: str(header)[:60],
)
def test_a_malformed_header_is_one_error_a_person_can_read(tmp_path: Path, header: object) -> None:
    with pytest.raises(CheckpointError, match="is not readable"):
        TensorFile(written(tmp_path / "a.safetensors", header))


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\xff" * 64])
def test_a_file_that_is_cut_or_no_safetensors_is_the_same_error(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError):
        TensorFile(file)
    with pytest.raises(CheckpointError):
        TensorFile(tmp_path / "absent.safetensors")


def test_a_sound_file_of_another_writer_reads_as_it_was_written(tmp_path: Path) -> None:
    values = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "none": np.zeros((0, 4), np.float32)}
    save_file(values, tmp_path / "a.safetensors", {"round": "3"})
    with TensorFile(tmp_path / "a.safetensors") as file:
        assert file.metadata == {"round": "3"} and file.shapes == {"w": (2, 3), "none": (0, 4)}
        assert np.array_equal(file.tensor("w"), values["w"])
