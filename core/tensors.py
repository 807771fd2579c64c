"""Tensors on disk, one at a time: encoders and updates never stand in memory whole.

The files are ordinary safetensors (github.com/huggingface/safetensors, "Format"): eight bytes length, a JSON header,
the tensors. They are read with plain reads, not memory maps, so that the page cache does not count as the
process's memory, and written in one pass, so that a merge needs no second copy. Torch is never loaded here;
core.checkpoint reads what is written here.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from usfmae.core.errors import CheckpointError

TYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "U8": np.dtype("u1"), "F64": np.dtype("<f8")}
NAMES = {"F32": "float32", "U8": "uint8", "F64": "float64"}
LARGEST_HEADER = 100_000_000  # bytes
UNKNOWN = "0" * 64  # stands for a hash until the last byte is written


class TensorFile:
    """An open safetensors file. CheckpointError where it is not readable."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise self._unreadable(error.strerror or str(error)) from None
        try:
            self.metadata, self._entries, self._start = self._header()
        except BaseException:
            self._file.close()
            raise

    def _unreadable(self, why: str) -> CheckpointError:
        return CheckpointError(f"file {self.path}", f"is not readable: {why}", "restore it from a backup")

    def _header(self) -> tuple[dict[str, str], dict[str, dict[str, Any]], int]:
        """Metadata, entries by name, and where the tensors begin; CheckpointError where any of it is malformed."""
        length = int.from_bytes(self._file.read(8), "little")
        size = os.fstat(self._file.fileno()).st_size
        if length > min(size, LARGEST_HEADER):
            raise self._unreadable("it is shorter than its header")
        try:
            header = json.loads(self._file.read(length))
        except (OSError, ValueError, RecursionError) as error:
            raise self._unreadable(str(error)) from None
        if not isinstance(header, dict):
            raise self._unreadable("its header is no object")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise self._unreadable("its metadata is no text")
        for name, entry in header.items():
            if not _sound(entry, size - 8 - length):
                raise self._unreadable(f"its header says nothing sound of tensor {name!r:.60}")
        return metadata, header, 8 + length

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name, in the order of names."""
        return {name: tuple(self._entries[name]["shape"]) for name in sorted(self._entries)}

    @property
    def size(self) -> int:
        """Bytes that the whole file should have."""
        return self._start + max((entry["data_offsets"][1] for entry in self._entries.values()), default=0)

    def raw(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """The bytes of one tensor, or a part of them."""
        begin, end = self._entries[name]["data_offsets"]
        end = end if stop is None else min(begin + stop, end)
        begin += start
        data = os.pread(self._file.fileno(), end - begin, self._start + begin)
        if len(data) != end - begin:
            raise CheckpointError(f"file {self.path}", "is shorter than its header says", "restore it from a backup")
        return data

    def tensor(self, name: str) -> NDArray[Any]:
        entry = self._entries[name]
        return np.frombuffer(self.raw(name), TYPES[entry["dtype"]]).reshape(entry["shape"])

    def id(self) -> str:
        """The hash core.checkpoint.tensors_id gives these tensors."""
        digest = hashlib.sha256()
        for name, shape in self.shapes.items():
            digest.update(tensor_head(name, NAMES[self._entries[name]["dtype"]], shape))
            digest.update(self.raw(name))
        return digest.hexdigest()


class TensorMapping(Mapping[str, NDArray[Any]]):
    """The tensors of an open file by name, each read when it is asked for."""

    def __init__(self, file: TensorFile) -> None:
        self._file, self._shapes = file, file.shapes

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._shapes:
            raise KeyError(name)
        return self._file.tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def _sound(entry: object, size: int) -> bool:
    """Whether a header's entry describes a tensor that can lie in `size` bytes."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]  # type: ignore[index]
        whole = all(isinstance(number, int) and number >= 0 for number in (begin, end, *shape))
        return whole and begin <= end <= size and math.prod(shape) * TYPES[dtype].itemsize == end - begin
    except (KeyError, TypeError, ValueError):
        return False


def square_sum(values: NDArray[np.float32]) -> float:
    """Sum of squares: short stretches in float32, added up in double precision."""
    flat = values.reshape(-1)
    return sum(float(part @ part) for part in np.array_split(flat, -(-flat.size // 2**16) or 1))


def tensor_head(name: str, dtype: str, shape: Iterable[int]) -> bytes:
    return f"{name}\0{dtype}\0{','.join(map(str, shape))}\0".encode()


class Writer:
    """Writes tensors of one type in the order of their names; `finish` gives the hash of them all, where asked for."""

    def __init__(
        self,
        file: BinaryIO,
        shapes: Mapping[str, tuple[int, ...]],
        metadata: Mapping[str, str],
        dtype: str,
        hashed: bool = True,
    ) -> None:
        self._file, self._shapes, self._dtype = file, shapes, dtype
        self._metadata = dict(metadata)
        self._digest, self._hashed = hashlib.sha256(), hashed
        self._file.write(self._header())

    def _header(self) -> bytes:
        entries: dict[str, Any] = {"__metadata__": self._metadata}
        end = 0
        for name, shape in sorted(self._shapes.items()):
            begin, end = end, end + int(np.prod(shape, dtype=np.int64)) * TYPES[self._dtype].itemsize
            entries[name] = {"dtype": self._dtype, "shape": list(shape), "data_offsets": [begin, end]}
        text = json.dumps(entries).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def begin(self, name: str) -> None:
        self._digest.update(tensor_head(name, NAMES[self._dtype], self._shapes[name]))

    def write(self, values: NDArray[Any]) -> None:
        data = np.ascontiguousarray(values).astype(TYPES[self._dtype], copy=False).reshape(-1).view(np.uint8).data
        if self._hashed:
            self._digest.update(data)
        self._file.write(data)

    def add(self, name: str, values: NDArray[Any] | bytes | memoryview) -> None:
        """A whole tensor."""
        self.begin(name)
        self.write(values if isinstance(values, np.ndarray) else np.frombuffer(values, np.uint8))

    def finish(self) -> str:
        """Put the hash where UNKNOWN stands in the metadata, and return it."""
        content = self._digest.hexdigest()
        self._metadata = {key: text.replace(UNKNOWN, content) for key, text in self._metadata.items()}
        self._file.truncate()
        self._file.seek(0)
        self._file.write(self._header())
        self._file.flush()
        return content
