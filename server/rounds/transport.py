"""The one seam of the round loop: what goes to a site, and what comes back.

server/flower/gateway_transport.py is the gateway's, server/flower/serverapp.py a stock SuperLink's, server/simulate.py has virtual hospitals. The loop,
the gate, the ledger and the merge are the same behind each of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from usfmae.core.federated.admission import Arrived
from usfmae.core.federated.messages import TrainRequest


@dataclass(frozen=True)
class RoundTask:
    """A request to one site, and the files that go with it."""

    site: str
    request: TrainRequest
    encoder: Path
    step: Path | None = None  # what leads to the encoder, where the site has the one before
    decoder: Path | None = None
    replay: Path | None = None  # folder of the public corpus, where the site has no copy
    teacher: Path | None = None  # the encoder whose features are predicted, where the site lacks it
    ttl: float = 600.0  # seconds for which an answer is wanted


@dataclass(frozen=True)
class Answer:
    """What came back for one request: a reply as it arrived, or an error of the transport."""

    message: str
    record: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Arrived] = field(default_factory=dict)
    error: str = ""
    hostile: bool = False  # the error says something about the sender, not about the line


class Transport(Protocol):
    def connected(self) -> set[str]:
        """Sites (fingerprints) that are there now; also lets in and cuts off sites as the ledger says."""

    def ask(self, task: RoundTask) -> str:
        """Send a request; returns a message id, or "" where the site is gone."""

    def answers(self, messages: Iterable[str]) -> Iterable[Answer]:
        """Answers that have arrived, each once; never blocks. One's arrays can be read until the next is taken."""

    def withdraw(self, messages: Iterable[str]) -> None:
        """Answers to these are not wanted any more."""

    def release(self) -> None:
        """Free what the round's requests hold in memory."""
