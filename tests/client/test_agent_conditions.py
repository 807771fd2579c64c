"""What a site does when it may not train, cannot, or is not let in; and how it holds the line meanwhile."""

from __future__ import annotations

import gzip
from collections.abc import Callable

import httpx
import pytest

from tests.floors import LOWERED
from usfmae.client import outbox, site_policy
from usfmae.client.agent import Agent
from usfmae.client.flower import fleet_client, transport_errors
from usfmae.client.flower.connection import KeyRefusedError
from usfmae.client.flower.request_queue import PendingRequest
from usfmae.client.rounds import jobs
from usfmae.client.site import Site
from usfmae.core import flower_objects, keys
from usfmae.core.federated import messages
from usfmae.core.federated.messages import TrainReply

from .at_work import connected, events, replies, turns, waiting
from .conftest import Aggregator


def test_with_approval_an_update_waits_for_a_person(make_site: Callable[..., Site], aggregator: Aggregator) -> None:
    site, agent = waiting(make_site, aggregator)
    (entry,) = outbox.entries(site)
    assert entry["state"] == "waiting" and agent.state == "waiting for approval" and not replies(aggregator)
    assert "No image" in (outbox.folder(site, entry["id"]) / "sheet.txt").read_text()
    outbox.decide(site, entry["id"], True)
    turns(agent)
    assert len(replies(aggregator)) == 1
    assert outbox.entries(site)[0]["state"] == "sent"
    assert {"outbox.staged", "outbox.approved", "outbox.sent"} <= set(events(site))


def test_a_rejected_update_never_leaves(make_site: Callable[..., Site], aggregator: Aggregator) -> None:
    site, agent = waiting(make_site, aggregator)
    outbox.decide(site, outbox.entries(site)[0]["id"], False, "not this month")
    turns(agent)
    (reply,) = replies(aggregator)
    assert reply.declined == "refused: kept by the site"
    assert messages.UPDATE not in aggregator.replies()[0].content  # type: ignore[attr-defined]


def test_a_paused_site_declines_and_trains_again_after_resume(agent: Agent, aggregator: Aggregator, site: Site) -> None:
    site_policy.pause(site)
    aggregator.ask(1)
    turns(agent)
    site_policy.resume(site)
    aggregator.ask(2)
    turns(agent)
    assert [r.declined for r in replies(aggregator)] == ["paused", ""]


def test_quiet_hours_hold_a_request_until_they_end(make_site: Callable[..., Site], aggregator: Aggregator) -> None:
    site = make_site(quiet=["00:00-23:59", "23:59-00:00"])
    aggregator.enrol(site)
    agent = connected(site, aggregator)
    aggregator.ask()
    turns(agent)
    assert agent.state == "quiet" and not replies(aggregator) and len(PendingRequest.all(site)) == 1


def test_on_a_full_disk_no_request_is_taken_and_none_is_lost(
    make_site: Callable[..., Site], aggregator: Aggregator, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_site(disk_floor_gb=1.0)
    aggregator.enrol(site)
    agent = connected(site, aggregator)
    monkeypatch.setattr(site_policy.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 5e8}))
    aggregator.ask()
    turns(agent)
    assert "0.5 GB free" in agent.problem and not PendingRequest.all(site) and len(aggregator.queue) == 1
    monkeypatch.undo()
    turns(agent)
    assert len(replies(aggregator)) == 1


def test_a_request_that_has_expired_is_dropped_without_training(agent: Agent, aggregator: Aggregator) -> None:
    aggregator.ask()
    aggregator.clock_offset = 200.0  # the server's clock runs ahead, within what signatures allow
    aggregator.queue[0].metadata.ttl = 100.0
    turns(agent)
    assert not replies(aggregator) and not agent.workers.trained  # type: ignore[attr-defined]


def test_an_empty_corpus_is_said_not_trained(make_site: Callable[..., Site], aggregator: Aggregator) -> None:
    site = make_site(images=0)
    aggregator.enrol(site)
    agent = connected(site, aggregator)
    aggregator.ask()
    turns(agent)
    assert [r.declined for r in replies(aggregator)] == ["no-images"]


def test_an_unenrolled_key_ends_the_agent_with_exit_code_6(site: Site, aggregator: Aggregator) -> None:
    agent = connected(site, aggregator)
    with pytest.raises(KeyRefusedError) as caught:
        turns(agent, 3)
    assert caught.value.exit_code == 6 and "enrol.json" in str(caught.value) and "\n" not in str(caught.value)


def test_a_key_revoked_while_online_ends_the_agent(agent: Agent, aggregator: Aggregator) -> None:
    turns(agent, 1)
    aggregator.nodes.clear()
    with pytest.raises(KeyRefusedError):
        turns(agent, 5)


def test_a_server_that_learns_its_sites_a_moment_late_does_not_lose_them(site: Site, aggregator: Aggregator) -> None:
    agent = connected(site, aggregator)
    turns(agent, 2)
    aggregator.enrol(site)
    aggregator.ask()
    turns(agent)
    assert len(replies(aggregator)) == 1


@pytest.mark.parametrize(("offset", "word"), [(600.0, "10 min behind"), (-600.0, "10 min ahead of")])
def test_a_clock_ten_minutes_off_is_named(agent: Agent, aggregator: Aggregator, offset: float, word: str) -> None:
    aggregator.clock_offset = offset
    agent._turn()
    assert word in agent.problem and "NTP" in agent.problem


def test_after_a_kill_the_old_node_id_goes_on_without_a_new_activation(
    agent: Agent, aggregator: Aggregator, site: Site
) -> None:
    aggregator.ask()
    agent._see_to_requests()
    again = connected(site, aggregator)  # the first one dies without a word; its activation has not lapsed
    again.current = jobs.unfinished(site)
    turns(again)
    assert len(replies(aggregator)) == 1
    assert aggregator.calls.count("activate-node") == 1


def test_the_agent_never_asks_for_code(agent: Agent, aggregator: Aggregator) -> None:
    aggregator.ask()
    turns(agent)
    assert not {"get-fab", "get-run"} & set(aggregator.calls)


def test_what_leaves_is_the_signed_record_and_the_delta_alone(agent: Agent, aggregator: Aggregator, site: Site) -> None:
    aggregator.ask()
    turns(agent)
    content = aggregator.replies()[0].content  # type: ignore[attr-defined]
    assert set(content) == {messages.RECORD, messages.UPDATE}
    assert set(content[messages.RECORD]) == set(TrainReply.__dataclass_fields__)
    text = " ".join(str(v) for v in content[messages.RECORD].values())
    assert str(site.root) not in text and site.settings.name not in text


@pytest.mark.parametrize("images", [1, 2, 3])
def test_a_site_with_fewer_images_than_a_batch_trains_with_a_smaller_one(
    make_site: Callable[..., Site], aggregator: Aggregator, images: int
) -> None:
    site = make_site(images=images)
    aggregator.enrol(site)
    aggregator.ask()
    turns(connected(site, aggregator))
    (reply,) = replies(aggregator)
    assert reply.declined == "" and reply.steps == 3 and 1 <= reply.images <= images


def test_a_site_below_its_own_least_number_of_images_sits_out(
    make_site: Callable[..., Site], aggregator: Aggregator
) -> None:
    site = make_site(images=3, privacy={**LOWERED, "min_images": 4})
    aggregator.enrol(site)
    aggregator.ask()
    turns(connected(site, aggregator))
    assert [reply.declined for reply in replies(aggregator)] == ["no-images"]


def test_an_answer_that_is_packed_is_not_unpacked() -> None:
    """A kilobyte of gzip could become a gigabyte in the agent's memory."""
    packed = gzip.compress(bytes(10**6))
    transport = httpx.MockTransport(
        lambda request: httpx.Response(200, headers={"content-encoding": "gzip"}, stream=httpx.ByteStream(packed))
    )
    fleet = fleet_client.FleetClient(
        fleet_client.AggregatorAddress("https://127.0.0.1:1"), keys.new_node_key(), transport=transport
    )
    with pytest.raises(transport_errors.UnreachableError, match="packs its answers"):
        fleet.activate(60)


def test_a_site_with_nothing_to_do_lets_its_call_be_held_and_signs_once_for_many_calls(
    make_site: Callable[..., Site], aggregator: Aggregator
) -> None:
    site = make_site(poll=3.0)
    aggregator.enrol(site)
    agent = connected(site, aggregator)
    heard: list[tuple[str, str]] = []

    def listening(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("pull-messages"):
            heard.append(
                (request.headers.get(flower_objects.HOLD_HEADER, ""), request.headers[flower_objects.SIGNATURE_HEADER])
            )
        return aggregator(request)

    agent.connection.fleet.http = httpx.Client(base_url=site.settings.server, transport=httpx.MockTransport(listening))
    agent._see_to_requests()
    aggregator.ask()
    agent._see_to_requests()  # takes the request
    agent._see_to_requests()  # has something to do: no time for waiting
    assert [hold for hold, _ in heard] == ["3", "3", ""]
    assert len({signature for _, signature in heard}) == 1
    agent.connection.fleet.proved -= fleet_client.SIGNED_FOR
    agent._see_to_requests()
    assert len({signature for _, signature in heard}) == 2
