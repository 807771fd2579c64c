"""The mutations of fuzz.py: real files cut, flipped, emptied, packed; and small ones that unpack to much."""

from __future__ import annotations

import gzip
import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

ZEROS = 100_000_000  # bytes a bomb unpacks to

Mutation = Callable[[bytearray, random.Random], bytes]


def truncated(data: bytearray, rng: random.Random) -> bytes:
    return bytes(data[: rng.randrange(len(data))])


def flipped(data: bytearray, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 3, 10, 100))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def flipped_header(data: bytearray, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 3, 10))):
        data[rng.randrange(min(len(data), 2048))] ^= 1 << rng.randrange(8)
    return bytes(data)


def extreme(data: bytearray, rng: random.Random) -> bytes:
    """A length or size field of the header set to an edge value: the decompression bombs are among these."""
    width = rng.choice((2, 4))
    value = rng.choice((0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)) & ((1 << 8 * width) - 1)
    at = rng.randrange(max(1, min(len(data), 4096) - width))
    data[at : at + width] = value.to_bytes(width, rng.choice(("little", "big")))
    return bytes(data)


def overwritten(data: bytearray, rng: random.Random) -> bytes:
    at, length = rng.randrange(len(data)), rng.choice((8, 64, 1024))
    data[at : at + length] = rng.randbytes(length)
    return bytes(data)


def repeated(data: bytearray, rng: random.Random) -> bytes:
    at, length = rng.randrange(len(data)), rng.choice((16, 256, 4096))
    return bytes(data[:at] + data[at : at + length] * rng.choice((2, 20)) + data[at:])


def removed(data: bytearray, rng: random.Random) -> bytes:
    at, length = rng.randrange(len(data)), rng.choice((1, 16, 1024))
    return bytes(data[:at] + data[at + length :])


def emptied(data: bytearray, rng: random.Random) -> bytes:
    return b"" if rng.random() < 0.5 else bytes(rng.randrange(1, 5000))


@lru_cache(maxsize=1)
def zip_bomb() -> bytes:
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("IM1.dcm", "w", force_zip64=True) as member,
    ):
        for _ in range(ZEROS // 1_000_000):
            member.write(bytes(1_000_000))
    return buffer.getvalue()


@lru_cache(maxsize=1)
def volume_bomb() -> bytes:
    """A NIfTI of zeros, compressed a thousandfold, that claims the size it has."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, 1000, 1000, ZEROS // 1_000_000, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 2, 8)  # unsigned 8 bits
    struct.pack_into("<2f", header, 108, 352.0, 1.0)
    header[344:348] = b"n+1\0"
    return gzip.compress(bytes(header) + bytes(ZEROS), 6)


def bomb(data: bytearray, rng: random.Random) -> bytes:
    """Little that unpacks to much, or claims to: an archive, a volume, a sound PNG header of a huge picture."""
    kind = rng.randrange(100)
    if kind < 2:
        return (zip_bomb, volume_bomb)[kind]()
    sides = rng.choice((8_001, 60_000, 2**31 - 1)), rng.choice((8_000, 60_000, 2**31 - 1))
    chunk = b"IHDR" + struct.pack(">2I5B", *sides, rng.choice((8, 16)), rng.choice((0, 2)), 0, 0, 0)
    pixels = b"IDAT" + zlib.compress(bytes(1_000_000))
    png = b"\x89PNG\r\n\x1a\n"
    for body in (chunk, pixels, b"IEND"):
        png += struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return png


def zipped(data: bytearray, rng: random.Random) -> bytes:
    """An archive with this file in it, itself damaged or holding another archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("DICOM/IM1", bytes(data))
    if rng.random() < 0.5:
        return flipped(bytearray(buffer.getvalue()), rng)
    nested = io.BytesIO()
    with zipfile.ZipFile(nested, "w") as archive:
        archive.writestr("inner.zip", buffer.getvalue())
        archive.writestr("zeros.dcm", bytes(1_000_000))
    return nested.getvalue()


MUTATIONS: dict[str, Mutation] = {
    function.__name__: function
    for function in (
        truncated, flipped, flipped, flipped_header, flipped_header, extreme, extreme, overwritten, repeated,
        removed, emptied, zipped, bomb,
    )
}  # fmt: skip
SUFFIXES = ("", "", "", ".dcm", ".png", ".mp4", ".mha", ".nii.gz", ".gif")  # often not the right one


def mutated(sources: list[Path], count: int, seed: int) -> Iterator[tuple[str, str, bytes]]:
    """(mutation, suffix, bytes), the same for the same seed and sources."""
    rng = random.Random(seed)
    names = list(MUTATIONS)
    for _ in range(count):
        path = rng.choice(sources)
        name = rng.choice(names)
        suffix = path.suffix if rng.random() < 0.7 else rng.choice(SUFFIXES)
        yield name, suffix, MUTATIONS[name](bytearray(path.read_bytes()), rng)
