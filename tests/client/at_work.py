"""An agent that works in the test's own process: its wire is Flower's format, its training real and tiny."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import httpx

from usfmae.client.agent import Agent
from usfmae.client.flower import fleet_client
from usfmae.client.rounds import jobs, trainer
from usfmae.client.site import Site
from usfmae.core import audit
from usfmae.core.federated import messages
from usfmae.core.federated.messages import TrainReply, from_record

if TYPE_CHECKING:
    from .conftest import Aggregator


class Here:
    """Workers that train in this process, and count how often."""

    def __init__(self, site: Site) -> None:
        self.trained: list[str] = []

    def tend(self, work: jobs.Job) -> None:
        if not work.result and not work.error:
            self.trained.append(work.place.name)
            trainer.run(work, lambda: False)

    def warm_up(self) -> None:
        pass

    def stop(self, work: jobs.Job | None, wait: float) -> None:
        pass


def connected(site: Site, aggregator: Aggregator) -> Agent:
    agent = Agent(site)
    agent.connection.fleet = fleet_client.FleetClient(
        fleet_client.AggregatorAddress(site.settings.server), site.node_key, transport=httpx.MockTransport(aggregator)
    )
    agent.workers = Here(site)  # type: ignore[assignment]
    agent.wake.wait = lambda timeout=None: True  # type: ignore[method-assign]
    return agent


def turns(agent: Agent, count: int = 4) -> None:
    for _ in range(count):
        agent._turn()


def waiting(make_site: Callable[..., Site], aggregator: Aggregator) -> tuple[Site, Agent]:
    """A site that has trained, and whose update waits in the outbox for a person."""
    site = make_site(release="approve")
    aggregator.enrol(site)
    agent = connected(site, aggregator)
    aggregator.ask()
    turns(agent)
    return site, agent


def replies(aggregator: Aggregator) -> list[TrainReply]:
    return [from_record(TrainReply, r.content[messages.RECORD]) for r in aggregator.replies()]  # type: ignore[attr-defined]


def events(site: Site) -> list[str]:
    return [entry["event"] for entry in audit.entries(site.audit_log)]
