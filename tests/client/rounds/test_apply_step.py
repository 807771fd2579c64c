"""A round's encoder made at the site, from the one it has and the step that leads on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tests.client.at_work import connected, events, replies, turns
from tests.client.conftest import MODEL, Aggregator
from usfmae.client.agent import Agent
from usfmae.client.flower import download
from usfmae.client.rounds import jobs
from usfmae.client.site import Site
from usfmae.core import flower_objects
from usfmae.core.checkpoint import encoder_of, tensors_id
from usfmae.core.errors import NetworkError
from usfmae.core.federated import codec, messages
from usfmae.core.federated.messages import TrainRequest
from usfmae.core.mae.model import fresh


@pytest.fixture
def agent(site: Site, aggregator: Aggregator) -> Agent:
    aggregator.enrol(site)
    return connected(site, aggregator)


def first_round(agent: Agent, aggregator: Aggregator, encoding: str = "int8") -> TrainRequest:
    request = aggregator.ask(1, encoding=encoding)
    turns(agent)
    return request


def step_from(seed: int, encoding: str = "int8") -> tuple[dict[str, np.ndarray], bytes]:
    """The next encoder, and the step from that of `seed`, as the aggregator makes it."""
    rng, parts, after = np.random.default_rng(1), [], {}
    for name, tensor in sorted(encoder_of(fresh(MODEL, seed=seed).state_dict()).items()):
        base = tensor.numpy()
        data, _ = codec.express(rng.normal(0, 0.01, base.size).astype(np.float32), encoding)
        after[name] = codec.stepped(data, base, encoding).reshape(base.shape)
        parts.append(data)
    return after, b"".join(parts)


def ask_second(aggregator: Aggregator, start: str, after: dict[str, np.ndarray], packed: bytes, **more: object) -> None:
    encoder = {name: torch.from_numpy(values) for name, values in after.items()}
    aggregator.ask(2, with_decoder=False, global_step=3, encoder=encoder, step_from=(start, packed), **more)


@pytest.mark.parametrize("encoding", ["int8", "bf16"])
def test_the_second_round_is_made_from_the_first_and_a_step(
    agent: Agent, aggregator: Aggregator, site: Site, encoding: str
) -> None:
    request = first_round(agent, aggregator, encoding)
    after, packed = step_from(0, encoding)
    pulled = aggregator.calls.count("pull-object")
    ask_second(aggregator, request.base, after, packed, encoding=encoding)
    turns(agent)
    assert [r.declined for r in replies(aggregator)] == ["", ""]
    base = load_file(jobs.finished(site, "demo")[1][1].base)
    assert tensors_id({n: torch.from_numpy(v) for n, v in base.items()}) == replies(aggregator)[1].base
    assert aggregator.calls.count("pull-object") - pulled == 6, "message, names, record, arrays, array, one chunk"
    assert not list((site.root / "jobs").glob("*/step.bin*"))


def test_without_the_start_the_whole_is_asked_for(agent: Agent, aggregator: Aggregator, site: Site) -> None:
    after, packed = step_from(0)
    ask_second(aggregator, "0" * 64, after, packed)
    turns(agent)
    assert [r.declined for r in replies(aggregator)] == ["need-base"]


@pytest.mark.parametrize("broken", ["start", "step", "short"])
def test_a_step_that_leads_elsewhere_is_not_trained_on_and_the_whole_is_asked_for(
    agent: Agent, aggregator: Aggregator, site: Site, broken: str
) -> None:
    request = first_round(agent, aggregator)
    after, packed = step_from(0)
    if broken == "start":
        base = jobs.finished(site, "demo")[0][1].base
        data = bytearray(base.read_bytes())
        data[-1] ^= 1
        base.write_bytes(data)
    elif broken == "step":
        packed = packed[:-1] + bytes([packed[-1] ^ 1])
    else:
        packed = packed[:-1]
    ask_second(aggregator, request.base, after, packed)
    turns(agent)
    assert [r.declined for r in replies(aggregator)] == ["", "need-base"]
    assert "request.refused" in events(site)
    assert len(agent.workers.trained) == 1  # type: ignore[attr-defined]
    aggregator.ask(
        2, with_decoder=False, global_step=3, encoder={name: torch.from_numpy(v) for name, v in after.items()}
    )
    turns(agent)
    assert [r.declined for r in replies(aggregator)] == ["", "need-base", ""]


def test_what_comes_out_is_inspected_like_an_encoder_that_came_whole(
    agent: Agent, aggregator: Aggregator, site: Site
) -> None:
    """A signed hash is not enough: the coordinator itself may be hostile, or broken."""
    request = first_round(agent, aggregator, "bf16")
    after, packed = step_from(0, "bf16")
    nan = np.full(after["norm.weight"].size, 0x7FC0, "<u2").tobytes()
    at = 2 * sum(values.size for name, values in after.items() if name < "norm.weight")
    packed = packed[:at] + nan + packed[at + len(nan) :]
    after["norm.weight"] = np.full_like(after["norm.weight"], np.nan)
    ask_second(aggregator, request.base, after, packed, encoding="bf16")
    turns(agent)
    assert "holds NaN" in replies(aggregator)[1].declined
    assert not [f for f in (site.root / "jobs").glob("r00002*/*") if f.suffix in (".safetensors", ".part")]


def test_the_pages_of_rounds_long_done_are_written_over_and_nothing_else_is(
    agent: Agent, aggregator: Aggregator, site: Site
) -> None:
    base, seed = first_round(agent, aggregator).base, encoder_of(fresh(MODEL, seed=0).state_dict())
    now = {name: tensor.numpy() for name, tensor in seed.items()}
    for number in (2, 3, 4):
        parts, after = [], {}
        for name, values in sorted(now.items()):
            data, _ = codec.express(np.full(values.size, 0.01, np.float32), "int8")
            after[name] = codec.stepped(data, values, "int8").reshape(values.shape)
            parts.append(data)
        encoder = {name: torch.from_numpy(values) for name, values in after.items()}
        aggregator.ask(
            number, with_decoder=False, global_step=3 * number, encoder=encoder, step_from=(base, b"".join(parts))
        )
        turns(agent)
        base, now = tensors_id(encoder), after
    works = [work for _, work in jobs.finished(site, "demo")]
    assert [r.declined for r in replies(aggregator)] == [""] * 4
    assert [work.base.exists() for work in works[-2:]] == [True, True]
    for name, values in load_file(works[-1].base).items():
        assert np.array_equal(values, now[name])


def test_an_array_of_bytes_that_was_cut_off_goes_on_after_the_last_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flower_objects, "CHUNK", 100)
    data = np.random.default_rng(3).bytes(1030)
    chunks = [flower_objects.join("ArrayChunk", (), data[start : start + 100]) for start in range(0, 1030, 100)]
    array = flower_objects.Tensor("uint8", (1030,), messages.RAW, tuple(map(str, range(11))))
    fetched: list[int] = []

    def fetch(id_: str) -> bytes:
        fetched.append(int(id_))
        if len(fetched) == 6:
            raise NetworkError("server", "went away", "retrying")
        return chunks[int(id_)]

    with pytest.raises(NetworkError):
        download.receive_bytes(tmp_path / "x", array, fetch)
    assert not (tmp_path / "x").exists()
    download.receive_bytes(tmp_path / "x", array, fetch)
    assert (tmp_path / "x").read_bytes() == data
    assert len(fetched) <= len(chunks) + 2, "chunks on disk are not fetched again"
