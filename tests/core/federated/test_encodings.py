"""Sparse and int4: what they send, what stays, and that both sides read the same bits."""

from __future__ import annotations

import numpy as np
import pytest

from usfmae.core.federated import codec
from usfmae.core.federated.encodings import sparse

COUNT = 3 * sparse.BLOCK + 500


def difference(seed: int, count: int = COUNT) -> np.ndarray:
    """Heavy tails, as the differences of trained encoders have."""
    return (np.random.default_rng(seed).standard_t(4, count) * 1e-3).astype(np.float32)


def test_sparse_sends_the_largest_values_of_each_block_and_the_tail_whole() -> None:
    wanted = difference(0)
    data, square = codec.express(wanted.copy(), "sparse")
    sent = codec.unpack(data, np.zeros(COUNT, np.float32), "sparse")
    assert len(data) == codec.packed_size(COUNT, "sparse") < 0.1 * COUNT
    for block in range(3):
        rows = slice(block * sparse.BLOCK, (block + 1) * sparse.BLOCK)
        chosen = np.flatnonzero(sent[rows])
        assert len(chosen) == sparse.CHOSEN
        smallest = np.abs(wanted[rows])[chosen].min()
        assert (np.abs(wanted[rows]) > smallest).sum() < sparse.CHOSEN
        assert np.array_equal(np.sign(sent[rows][chosen]), np.sign(wanted[rows][chosen]))
    assert np.abs(sent[-500:] - wanted[-500:]).max() < 1e-4
    assert np.isclose(square, np.square(sent).sum())


def test_a_block_of_equal_values_is_sent_as_well() -> None:
    data, _ = codec.express(np.ones(sparse.BLOCK, np.float32), "sparse")
    sent = codec.unpack(data, np.zeros(sparse.BLOCK, np.float32), "sparse")
    assert np.flatnonzero(sent).tolist() == list(range(sparse.CHOSEN)) and np.allclose(sent[: sparse.CHOSEN], 1)
    nothing, square = codec.express(np.zeros(sparse.BLOCK, np.float32), "sparse")
    assert square == 0 and not codec.unpack(nothing, np.zeros(sparse.BLOCK, np.float32), "sparse").any()


def test_a_place_named_twice_is_refused() -> None:
    data, _ = codec.express(difference(1, sparse.BLOCK), "sparse")
    forged = data[:4] + bytes(len(data) - 4)
    with pytest.raises(ValueError, match="rising order"):
        codec.unpack(forged, np.zeros(sparse.BLOCK, np.float32), "sparse")


@pytest.mark.parametrize("encoding", ["int4", "sparse"])
def test_what_is_left_out_and_what_is_sent_make_the_whole(encoding: str) -> None:
    wanted = difference(2)
    error = wanted.copy()
    data, _ = codec.express(error, encoding)
    zeros = np.zeros(COUNT, np.float32)
    assert np.allclose(codec.unpack(data, zeros, encoding) + error, wanted, atol=1e-7)
    kept = codec.add_residual(codec.pack_residual(error.copy(), data, encoding), zeros, encoding)
    decay = 0.95 if encoding == "sparse" else 1.0
    assert np.abs(kept - decay * error).max() < np.abs(error).max() / 100


@pytest.mark.parametrize("encoding", ["int4", "sparse"])
def test_a_step_gives_the_same_bits_as_its_pieces(encoding: str) -> None:
    base = np.random.default_rng(3).normal(size=COUNT).astype(np.float32)
    data, _ = codec.express(difference(4), encoding)
    whole = codec.stepped(data, base, encoding)
    parts = []
    for start in range(0, COUNT, sparse.BLOCK):
        stop = min(start + sparse.BLOCK, COUNT)
        cut = b"".join(data[a:b] for a, b in codec.ranges(COUNT, encoding, start, stop))
        parts.append(codec.stepped(cut, base[start:stop], encoding))
    assert np.array_equal(np.concatenate(parts), whole)
    assert np.allclose(whole, base + codec.unpack(data, base, encoding), atol=1e-6)


@pytest.mark.parametrize("encoding", ["int4", "sparse"])
def test_error_feedback_brings_small_values_home_in_time(encoding: str) -> None:
    """The same difference in each round: what is too small for one round's bytes comes with a later one's."""
    wanted, residual, total = difference(5, sparse.BLOCK), b"", np.zeros(sparse.BLOCK)
    for _ in range(200):
        change = codec.add_residual(residual, wanted.copy(), encoding) if residual else wanted.copy()
        data, _ = codec.express(change, encoding)
        total += codec.unpack(data, np.zeros(sparse.BLOCK, np.float32), encoding)
        residual = codec.pack_residual(change, data, encoding)
    cosine = total @ wanted / np.linalg.norm(total) / np.linalg.norm(wanted)
    assert cosine > (0.85 if encoding == "sparse" else 0.999)
