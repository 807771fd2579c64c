"""Sparse and int4: what they send, what stays, and that both sides read the same bits."""

from __future__ import annotations

import numpy as np
import pytest

from usfmae.core.errors import PolicyError
from usfmae.core.federated import codec, downlink
from usfmae.core.federated.encodings import part, sparse

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


def test_of_equal_values_the_first_are_sent_whatever_else_the_block_holds() -> None:
    wanted = np.full(sparse.BLOCK, 1e-3, np.float32)
    wanted[[7, 4000]] = 1
    sent = codec.unpack(codec.express(wanted.copy(), "sparse")[0], wanted, "sparse")
    assert np.flatnonzero(sent).tolist() == [*range(sparse.CHOSEN - 1), 4000]


def forged(kind: str) -> bytes:
    data = bytearray(codec.express(difference(1), "sparse")[0])
    head = codec.head_size(COUNT, "sparse")
    if kind == "one place twice":
        data[head : head + sparse.WIDTH] = bytes(sparse.WIDTH)
    elif kind == "places that fall":
        data[head : head + sparse.WIDTH] = data[head + 7 : head + sparse.WIDTH] + data[head : head + 7]
    elif kind == "a level that is no number":
        data[:4] = b"\xff\xff\xff\xff"
    elif kind == "a level without end":
        data[:4] = b"\x80\x7f\x80\x7f"
    elif kind == "a scale that is no number":
        data[head + 3 * sparse.WIDTH : head + 3 * sparse.WIDTH + 4] = b"\0\0\xc0\x7f"
    elif kind == "a byte too many":
        data.append(0)
    elif kind == "a byte too few":
        data.pop()
    elif kind == "a block too few":
        del data[:4], data[head - 4 : head - 4 + sparse.WIDTH]
    return bytes(data)


@pytest.mark.parametrize(
    "kind",
    ["one place twice", "places that fall", "a level that is no number", "a level without end", "a scale that is no number",
     "a byte too many", "a byte too few", "a block too few"],
)  # fmt: skip
def test_forged_bytes_are_refused_and_change_nothing(kind: str) -> None:
    base = np.ones(COUNT, np.float32)
    with pytest.raises(ValueError, match=r".+"):
        codec.square_norm(forged(kind), base, "sparse")
    if "number" not in kind and "end" not in kind:  # these would be refused by the hash of what comes out
        with pytest.raises(ValueError, match=r".+"):
            codec.stepped(forged(kind), base, "sparse")
    assert (base == 1).all()


def test_any_bytes_are_refused_or_give_finite_values() -> None:
    random, base, outcomes = np.random.default_rng(7), np.zeros(COUNT, np.float32), set()
    whole = bytearray(codec.express(difference(1), "sparse")[0])
    for _ in range(300):
        data = bytearray(whole)
        for place in random.integers(0, len(data), 3):
            data[place] = random.integers(256)
        try:
            square = codec.square_norm(bytes(data), base, "sparse")
            assert np.isclose(square, np.square(codec.unpack(bytes(data), base, "sparse")).sum())
            outcomes.add("admitted")
        except ValueError:
            outcomes.add("refused")
    assert outcomes == {"admitted", "refused"}


def test_values_that_grew_beyond_float32_do_not_leave() -> None:
    base, trained = {"w": np.full(5000, -3e38, np.float32)}, {"w": np.full(5000, 3e38, np.float32)}
    for encoding in ("int8", "int4", "sparse", "bf16"):
        with pytest.raises(PolicyError, match="NaN or infinity"):
            codec.pack(base, trained, encoding)


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


# --- part: what sealed rounds send where they are sparse


PART_COUNT = 3 * part.PARTS * 256 + 5 * 256 + 100


def sealed_name(number: int, inner: str = "shared:0.0001") -> str:
    return part.name(inner, number)


@pytest.mark.parametrize("inner", ["int8", "shared:0.0001", "sum:0.0001:3"])
def test_sixteen_rounds_send_every_value_once_and_nothing_of_the_others(inner: str) -> None:
    wanted, seen = difference(3, PART_COUNT), np.zeros(PART_COUNT, int)
    for number in range(1, part.PARTS + 1):
        error = wanted.copy()
        if inner.startswith("sum"):
            size = codec.packed_size(PART_COUNT, sealed_name(number, inner))
            data = np.full(size // 2, 3, "<i2").tobytes()
        else:
            data, square = codec.express(error, sealed_name(number, inner))
            sent = codec.unpack(data, wanted, sealed_name(number, inner))
            assert np.isclose(square, np.square(sent).sum()) and np.allclose(sent + error, wanted, atol=1e-7)
        assert len(data) == codec.packed_size(PART_COUNT, sealed_name(number, inner)) < 0.2 * PART_COUNT
        seen += codec.unpack(data, wanted, sealed_name(number, inner)) != 0
    assert seen.max() == 1 and seen.mean() > 0.9  # a value that rounds to nothing is not seen


def test_a_stretch_of_a_part_is_cut_out_of_the_whole() -> None:
    wanted, name = difference(4, PART_COUNT), part.name("int8", 7)
    data, _ = codec.express(wanted.copy(), name)
    block = codec.block(name)
    pieces = []
    for start in range(0, PART_COUNT, block):
        stop = min(start + block, PART_COUNT)
        cut = b"".join(data[a:b] for a, b in codec.ranges(PART_COUNT, name, start, stop))
        pieces.append(codec.unpack(cut, wanted[start:stop], name))
    assert np.array_equal(np.concatenate(pieces), codec.unpack(data, wanted, name))


def test_both_sides_step_to_the_same_bits_and_what_waits_comes_decayed() -> None:
    base, change, name = difference(5, PART_COUNT), difference(6, PART_COUNT), part.name("int8", 2)
    made = downlink.stepped((base + change).astype(np.float64), base, b"", name)
    assert np.array_equal(codec.stepped(made.packed, base, name), made.values)
    rest = codec.add_residual(made.left, np.zeros(PART_COUNT, np.float32), name)
    waits = codec.unpack(made.packed, base, name) == 0
    assert np.allclose(rest[waits], 0.95 * change[waits], atol=1e-4)


def test_a_bound_cuts_what_is_sent_and_leaves_what_waits() -> None:
    base, change = {"w": np.zeros(PART_COUNT, np.float32)}, difference(7, PART_COUNT)
    (sent,) = codec.encode(base, {"w": change}, sealed_name(3), bound=1e-3)
    assert sent.norm == pytest.approx(1e-3, rel=0.1)
    assert sent.error is not None and np.array_equal(sent.error[:256], change[:256])  # block 0 waits whole


@pytest.mark.parametrize(
    "name", ["shared:0.1@16/16", "shared:0.1@3/8", "shared:0.1@", "sparse@3/16", "int4x@1/16", "@1/16"]
)
def test_what_names_no_part_is_refused(name: str) -> None:
    with pytest.raises(PolicyError):
        codec.lossy(name)
