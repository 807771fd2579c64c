"""An aggregator that means harm: whatever it sends, the agent refuses it, says so, and goes on."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from tests.client.at_work import events, replies, turns, waiting
from tests.client.conftest import Aggregator
from usfmae.client import outbox
from usfmae.client.agent import Agent
from usfmae.client.flower import download, messages
from usfmae.client.rounds import model_inspection
from usfmae.client.site import Site
from usfmae.core import flower_objects
from usfmae.core.errors import PolicyError, ResourceError

FUZZED = 3000


def parts() -> dict[str, bytes]:
    """Every object of a message like a request."""
    arrays = ArrayRecord({"w": Array(np.ones((3, 4), "<f4")), "b": Array(np.zeros(7, "<f4"))})
    content = RecordDict({"usfmae": ConfigRecord({"round": 3, "base": "x", "deadline": 1.5}), "encoder": arrays})
    message: Message = make_message(Metadata(1, "", 1, 2, "", "1", 0.0, 60.0, "train"), content)
    return {id_: item.deflate() for id_, item in get_all_nested_objects(message).items()}


def bent(content: bytes, dice: random.Random) -> bytes:
    """The same object with a few bytes of its body changed, cut or doubled, and a length that fits."""
    head, body = content.split(b"\0", 1)
    changed = bytearray(body)
    for _ in range(dice.randint(1, 4)):
        at, what = dice.randrange(len(changed) + 1), dice.randrange(3)
        if what == 0 and changed:
            changed[min(at, len(changed) - 1)] = dice.choice(b"\0\x7f\xff'\"([{-9,eE" + bytes([dice.randrange(256)]))
        elif what == 1:
            del changed[at : at + dice.randint(1, 20)]
        else:
            changed[at:at] = dice.choice((b"[" * 60, b"'''", b"-" * 90, b"9" * 400, b'{"a":', changed[:20]))
    kind = head.rsplit(b" ", 1)[0]
    return kind + b" " + str(len(changed)).encode() + b"\0" + bytes(changed)


def test_objects_bent_in_any_way_are_read_or_refused_and_nothing_else(tmp_path: Path) -> None:
    dice, whole = random.Random(5), parts()
    root = next(id_ for id_, content in whole.items() if content.startswith(b"Message"))
    outcomes = {"read": 0, "refused": 0}
    for _ in range(FUZZED):
        victim = dice.choice(sorted(whole))
        given = {**whole, victim: bent(whole[victim], dice)}
        try:
            ids = flower_objects.records(root, given.__getitem__)
            messages.config_record(given[ids["usfmae"]])
            download.receive(ids["encoder"], given.__getitem__, tmp_path / "x.safetensors", 1e6)
            outcomes["read"] += 1
        except KeyError:  # it names an object that is not there: the line says so
            outcomes["refused"] += 1
        except PolicyError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > FUZZED / 100, outcomes


@pytest.mark.parametrize("text", ["[" * 3000, "'''", "-" * 3900 + "1", "{[]:1}", "(" * 300 + ")" * 300])
def test_a_tensor_head_that_breaks_numpys_reader_is_refused(text: str) -> None:
    head = text.encode().ljust(118) + b"\n"
    with pytest.raises(PolicyError, match="npy format"):
        download._npy_header("w", memoryview(b"\x93NUMPY\1\0" + len(head).to_bytes(2, "little") + head), (1,))


def test_a_record_of_rubbish_is_declined_and_the_next_request_is_served(
    agent: Agent, aggregator: Aggregator, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    rubbish = b"ConfigRecord  4\0\xff\xfe\xfd\xfc"
    aggregator.ask(1)
    with monkeypatch.context() as m:
        m.setattr(
            "usfmae.client.flower.fleet_client.FleetClient.fetch",
            lambda fleet, run, id_: _spoiled(aggregator.objects[id_], rubbish),
        )
        turns(agent)
    aggregator.ask(2)
    turns(agent)
    assert [r.declined.startswith("refused: message object") for r in replies(aggregator)] == [True, False]
    assert "request.refused" in events(site)


def _spoiled(content: bytes, rubbish: bytes) -> bytes:
    return rubbish if content.startswith(b"ConfigRecord") else content


@pytest.mark.parametrize("date", ["yesterday", "", "Mon, 99 Foo 99999 99:99:99 GMT", None])
def test_a_date_that_is_none_says_nothing_about_the_clock(agent: Agent, date: str | None) -> None:
    agent.connection.fleet._note_clock(date)
    assert agent.connection.fleet.clock_offset == 0.0


def test_a_disk_that_cannot_be_read_is_our_trouble_and_its_path_is_not_told(
    agent: Agent, aggregator: Aggregator, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error", str(site.root / "jobs" / "x"))

    with monkeypatch.context() as m:
        m.setattr("usfmae.client.rounds.model_inspection.np.fromfile", broken)
        aggregator.ask()
        turns(agent)
        assert "Input/output error" in agent.problem and not replies(aggregator)
    turns(agent)
    assert [r.declined for r in replies(aggregator)] == [""]


def test_an_update_that_changed_after_it_was_staged_does_not_leave(
    make_site: Callable[..., Site], aggregator: Aggregator
) -> None:
    site, agent = waiting(make_site, aggregator)
    (entry,) = outbox.entries(site)
    file = outbox.folder(site, entry["id"]) / outbox.UPDATE
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    outbox.decide(site, entry["id"], True)
    turns(agent)
    (reply,) = replies(aggregator)
    assert "not the one that was staged" in reply.declined and reply.content == ""


def test_reading_a_base_from_a_broken_disk_is_no_refusal(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="reading"):
        model_inspection.read(tmp_path / "none.safetensors")
