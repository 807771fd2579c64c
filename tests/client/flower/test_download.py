"""Objects from a peer that means harm, or from a disk that is full."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from safetensors.numpy import load_file

from usfmae.client.flower import download
from usfmae.core import flower_objects
from usfmae.core.errors import NetworkError, PolicyError, ResourceError


def store_of(record: ArrayRecord) -> dict[str, bytes]:
    return {id_: item.deflate() for id_, item in get_all_nested_objects(record).items()}


@pytest.mark.parametrize(
    "content",
    [b"", b"Array", b"Array  5\0abc", b"Array x,y nine\0", b"\xff\xfe \0", b"A B C D\0", b"Array  -1\0"],
)
def test_a_malformed_object_is_refused(content: bytes) -> None:
    with pytest.raises(PolicyError, match="malformed"):
        flower_objects.split(content)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (Array(np.zeros((2, 2), np.float64)), "float64"),
        (Array("float32", (2, 2), "pickle", b"x" * 16), "not float32"),
        (Array("float32", (2, 2), "numpy.ndarray", b"x" * 16), "not in npy format"),
        (Array("float32", (1000, 1000), "numpy.ndarray", Array(np.zeros((2, 2), "<f4")).data), "holds"),
        (Array("float32", (2, 2), "numpy.ndarray", Array(np.zeros((2, 2), "<f4")).data + b"more"), "bytes"),
        (Array("float32", (2, 2), "numpy.ndarray", Array(np.zeros((2, 2), "<f4")).data[:-4]), "bytes"),
        (Array("float32", (2, 2), "numpy.ndarray", Array(np.zeros((2, 2), ">f4")).data), "holds"),
    ],
)
def test_arrays_that_are_not_what_they_say_are_refused(tmp_path: Path, array: Array, reason: str) -> None:
    record = ArrayRecord({"w": array})
    with pytest.raises(PolicyError, match=reason):
        download.receive(record.object_id, store_of(record).__getitem__, tmp_path / "x.safetensors", 1e9)
    assert not (tmp_path / "x.safetensors").exists()


def test_a_model_larger_than_the_site_allows_is_refused_before_its_chunks_are_fetched(tmp_path: Path) -> None:
    record = ArrayRecord({"w": Array(np.zeros(3_000_000, "<f4"))})
    store = store_of(record)
    fetched = []
    with pytest.raises(PolicyError, match="max_model_gb"):
        download.receive(
            record.object_id,
            lambda id_: fetched.append(id_) or store[id_],
            tmp_path / "x.safetensors",
            1e6,  # type: ignore[func-returns-value]
        )
    assert len(fetched) == 2  # the record and the array's description


def test_names_never_become_paths(tmp_path: Path) -> None:
    record = ArrayRecord({"../../escape": Array(np.ones(2, "<f4"))})
    place = tmp_path / "a" / "b"
    place.mkdir(parents=True)
    download.receive(record.object_id, store_of(record).__getitem__, place / "x.safetensors", 1e9)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["x.safetensors"]


class Wire:
    """Objects by id, with a line that breaks once, at the `limit`th call."""

    def __init__(self, record: ArrayRecord, limit: int = 10**9) -> None:
        self.store, self.limit, self.calls = store_of(record), limit, 0

    def __call__(self, id_: str) -> bytes:
        self.calls += 1
        if self.calls == self.limit:
            raise NetworkError("line", "cut")
        return self.store[id_]


def six(value: float = 0.0) -> ArrayRecord:
    return ArrayRecord({f"t{k}": Array(np.full(1000, k + value, "<f4")) for k in range(6)})


def test_an_interrupted_download_goes_on_after_the_last_whole_tensor(tmp_path: Path) -> None:
    target, record = tmp_path / "x.safetensors", six()
    wire = Wire(record, limit=12)  # the record, six descriptions, four tensors, then the cut
    with pytest.raises(NetworkError):
        download.receive(record.object_id, wire, target, 1e9)
    wire.calls, wire.limit = 0, 10**9
    download.receive(record.object_id, wire, target, 1e9)
    assert wire.calls == 1 + 6 + 2
    assert {k: v[0] for k, v in load_file(target).items()} == {f"t{k}": k for k in range(6)}
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_what_an_attempt_before_a_power_cut_wrote_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, record = tmp_path / "x.safetensors", six()
    wire = Wire(record, limit=12)
    with pytest.raises(NetworkError):
        download.receive(record.object_id, wire, target, 1e9)
    part = target.with_suffix(".part")
    part.write_bytes(b"\0" * part.stat().st_size)  # the journal reached the disk, the tensors did not
    monkeypatch.setattr(download, "this_boot", lambda: "the next one")
    wire.calls, wire.limit = 0, 10**9
    download.receive(record.object_id, wire, target, 1e9)
    assert {k: v[0] for k, v in load_file(target).items()} == {f"t{k}": k for k in range(6)}
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_bytes_from_before_a_power_cut_are_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower_objects, "CHUNK", 100)
    chunks = {str(n): flower_objects.join("ArrayChunk", (), bytes([n]) * 100) for n in range(3)}
    array = download.Tensor("uint8", (300,), download.messages.RAW, tuple(chunks))
    (tmp_path / f"x.{download.this_boot()[:8]}.part").write_bytes(b"\0" * 200)
    monkeypatch.setattr(download, "this_boot", lambda: "the next one")
    download.receive_bytes(tmp_path / "x", array, chunks.__getitem__)
    assert (tmp_path / "x").read_bytes() == b"".join(bytes([n]) * 100 for n in range(3))
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_leftovers_of_another_model_are_not_mixed_in(tmp_path: Path) -> None:
    target, old, new = tmp_path / "x.safetensors", six(), six(0.5)
    with pytest.raises(NetworkError):
        download.receive(old.object_id, Wire(old, limit=12), target, 1e9)
    download.receive(new.object_id, Wire(new), target, 1e9)
    assert {k: v[0] for k, v in load_file(target).items()} == {f"t{k}": k + 0.5 for k in range(6)}


def test_a_full_disk_is_named_and_leaves_no_model(tmp_path: Path) -> None:
    record = ArrayRecord({"w": Array(np.zeros(200_000, "<f4"))})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(ResourceError, match="free space"):
            download.receive(record.object_id, Wire(record), tmp_path / "x.safetensors", 1e9)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not (tmp_path / "x.safetensors").exists()
