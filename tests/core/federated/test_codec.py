"""A packed difference says what it should, in the bytes promised, and loses nothing in the long run."""

import numpy as np
import pytest

from usfmae.core.errors import PolicyError
from usfmae.core.federated import codec
from usfmae.core.federated.encodings import int8


def tensors(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "blocks.0.weight": random.normal(0, scale, (33, 50)).astype(np.float32),
        "norm.bias": random.normal(0, scale, 7).astype(np.float32),
        "empty": np.zeros((0, 3), np.float32),
    }


def moved(base: dict[str, np.ndarray], step: float = 0.01, seed: int = 9) -> dict[str, np.ndarray]:
    change = tensors(seed, step)
    return {name: base[name] + change[name] for name in base}


def read(packed: codec.EncodedUpdate, base: dict[str, np.ndarray], encoding: str) -> dict[str, np.ndarray]:
    return {n: codec.unpack(packed.payload[n], base[n], encoding).reshape(base[n].shape) for n in base}


def test_fp32_gives_the_trained_encoder_back_bit_for_bit_even_across_magnitudes():
    base, trained = tensors(1), tensors(2)
    trained["norm.bias"] = np.array([1e-30, -1e30, 0, 1e-7, 3, -0.0, 5e-39], np.float32)
    packed = codec.pack(base, trained, "fp32")
    for name, values in trained.items():
        got = codec.trained(packed.payload[name], base[name], "fp32").astype(np.float32)
        assert got.tobytes() == values.tobytes()
    assert packed.residual == {}


@pytest.mark.parametrize(("encoding", "bytes_per_value", "bound"), [("int8", 1.02, 1 / 254), ("bf16", 2, 2**-8)])
def test_lossy_encodings_hold_their_size_and_error(encoding, bytes_per_value, bound):
    base = {"w": np.random.default_rng(0).normal(size=(400, 512)).astype(np.float32)}
    trained = {"w": base["w"] + np.random.default_rng(1).normal(0, 0.01, (400, 512)).astype(np.float32)}
    packed = codec.pack(base, trained, encoding)
    delta = trained["w"] - base["w"]
    got = read(packed, base, encoding)["w"]
    assert len(packed.payload["w"]) <= bytes_per_value * delta.size
    assert np.abs(got - delta).max() <= np.abs(delta).max() * bound * 1.001
    assert np.isclose(packed.norm, np.linalg.norm(got))


@pytest.mark.parametrize("encoding", ["int8", "bf16"])
def test_what_is_left_out_packs_as_well_and_the_two_hold_it_twice_as_finely(encoding):
    wanted = np.random.default_rng(3).normal(0, 0.01, 256 * 300 + 17).astype(np.float32)
    error = wanted.copy()
    data, _ = codec.express(error, encoding)
    rest = codec.pack_residual(error.copy(), data, encoding)
    assert len(rest) == len(data)
    zeros = np.zeros(wanted.size, np.float32)
    once = codec.unpack(data, zeros, encoding)
    twice = once + codec.unpack(rest, zeros, encoding)
    assert np.abs(twice - wanted).max() < np.abs(once - wanted).max() / 100
    assert np.array_equal(codec.stepped(data, zeros, encoding), once.astype(np.float32))


@pytest.mark.parametrize("encoding", ["int8", "bf16"])
def test_error_feedback_adds_up_to_the_whole_difference(encoding):
    base = tensors(1)
    residual: dict[str, np.ndarray] = {}
    total = {name: np.zeros(values.shape) for name, values in base.items()}
    steps = [moved(base, seed=seed) for seed in range(20)]
    for trained in steps:
        packed = codec.pack(base, trained, encoding, residual)
        residual = packed.residual
        for name, delta in read(packed, base, encoding).items():
            total[name] += delta
    for name in base:
        exact = sum(trained[name].astype(np.float64) - base[name] for trained in steps)
        assert np.allclose(total[name] + residual[name], exact, atol=1e-5)


def test_the_bytes_of_a_slice_are_the_packing_of_the_slice():
    base = np.random.default_rng(1).normal(size=5 * 4096 + 300).astype(np.float32)
    trained = base + np.random.default_rng(2).normal(0, 0.01, base.size).astype(np.float32)
    for encoding in codec.ENCODINGS:
        data = codec.pack({"w": base}, {"w": trained}, encoding).payload["w"]
        whole, parts = codec.unpack(data, base, encoding), []
        size = 2 * max(256, codec.block(encoding))
        for start in range(0, base.size, size):
            stop = min(start + size, base.size)
            cut = b"".join(data[a:b] for a, b in codec.ranges(base.size, encoding, start, stop))
            parts.append(codec.unpack(cut, base[start:stop], encoding))
        assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("encoding", codec.ENCODINGS)
def test_lengths_and_products_are_those_of_the_differences_as_they_are_read(encoding):
    base = tensors(1)["blocks.0.weight"]
    packed = [codec.pack({"w": base}, {"w": tensors(k)["blocks.0.weight"]}, encoding) for k in (2, 3, 4)]
    rows = np.stack([codec.unpack(p.payload["w"], base, encoding) for p in packed])
    squares = [codec.square_norm(p.payload["w"], base, encoding) for p in packed]
    assert np.allclose(squares, np.square(rows).sum(axis=1), rtol=1e-12)
    assert np.allclose([p.norm**2 for p in packed], squares, rtol=1e-12)
    products = codec.products([p.payload["w"] for p in packed], base.reshape(-1), encoding)
    assert np.allclose(products, rows @ rows.T, rtol=1e-12)


@pytest.mark.parametrize("scale", [np.nan, np.inf, 3e38])
def test_a_difference_that_makes_a_weight_infinite_has_no_length(scale):
    base = np.ones((2, 300), np.float32)
    scales = np.full(int8.blocks(600), 1e-5, "<f4")
    scales[1] = scale
    with pytest.raises(ValueError, match="not finite"):
        codec.square_norm(scales.tobytes() + bytes([127] * 600), base, "int8")


def test_the_content_hash_covers_names_and_bytes_and_no_order():
    payload = {"a": b"12", "b": b"3"}
    same = {"b": b"3", "a": b"12"}
    assert codec.payload_id(payload) == codec.payload_id(same)
    assert codec.payload_id(payload) != codec.payload_id({"a": b"1", "b": b"23"})
    assert codec.payload_id(payload) != codec.payload_id({"a": b"12", "c": b"3"})


def test_packing_refuses_what_the_aggregator_would_refuse():
    base = tensors(1)
    broken = moved(base)
    broken["norm.bias"] = np.full(7, np.nan, np.float32)
    with pytest.raises(PolicyError, match="NaN"):
        codec.pack(base, broken)
    with pytest.raises(PolicyError, match="not those of the base"):
        codec.pack(base, {"norm.bias": base["norm.bias"]})
    with pytest.raises(PolicyError, match="shape"):
        codec.pack(base, {**base, "norm.bias": np.zeros(8, np.float32)})
    with pytest.raises(PolicyError, match="none of"):
        codec.pack(base, moved(base), "int3")


def test_bytes_of_the_wrong_length_are_no_tensor():
    with pytest.raises(ValueError, match="expected"):
        codec.unpack(b"123", np.zeros(7, np.float32), "int8")
