"""The aggregator's one process: gateway in a thread, round loop in the main thread, until the rounds are done."""

from __future__ import annotations

import logging
import resource
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from usfmae.core import audit
from usfmae.core.errors import PolicyError, ResourceError
from usfmae.core.files import locked, write_atomic
from usfmae.core.log import note
from usfmae.core.mae import allocator
from usfmae.server.layout import Federation, Layout

logger = logging.getLogger(__name__)

LINGER = 3.0  # seconds the port stays open after the last round, so that sites hear the end of it
AUDIT_REFUSALS_EVERY = 60.0  # seconds; refused calls are counted between two audit entries
MOST_KINDS = 50  # of refused calls, each with an entry of its own; others are counted together


class AggregatorStopped(Exception):  # noqa: N818 - not an error
    """SIGTERM or SIGINT."""


def serve(home: Layout, rounds: int, overrides: Iterable[str] = ()) -> None:
    """Run the federation until `rounds` are committed (0: until stopped)."""
    settings = home.settings(overrides)
    allocator.keep()
    _allow_files(8 * settings.network.connections)
    with _alone(home.lock):
        from usfmae.server.flower.gateway import Gateway
        from usfmae.server.flower.gateway_transport import GatewayTransport
        from usfmae.server.flower.link_state import LinkState
        from usfmae.server.rounds.loop import Loop

        for left in home.checkpoints.glob(".*.partial"):  # of a process that was killed as it wrote
            left.unlink()
        federation = Federation.of(home, overrides)
        ledger = federation.ledger
        ledger.check()
        seed = home.checkpoint(0).stat().st_size
        link = LinkState(home.transit, reply_limit=int(seed * 1.05) + 2**20)
        link.enrol(ledger.sites().values())
        refusals = Refusals(home.audit)
        wire = GatewayTransport(link, ledger.sites)
        with Gateway(link, settings.network, home.certificate, home.tls_key, refusals.count) as gateway:
            write_atomic(home.address, f"{settings.network.host}:{gateway.port}\n".encode())
            audit.append(home.audit, "aggregator", "start", port=gateway.port)
            note(logger, "serving", address=f"{settings.network.host}:{gateway.port}", sites=len(ledger.sites()))
            try:
                Loop(federation, wire).run(rounds)
                note(logger, "all rounds committed", rounds=rounds)
                _linger(link)
            finally:
                refusals.write()
                audit.append(home.audit, "aggregator", "stop")
                home.address.unlink(missing_ok=True)


def _allow_files(wanted: int) -> None:
    """Connections and files that may be open at once, where the system lets us have more than its usual 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def _linger(link: object) -> None:
    time.sleep(LINGER)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One aggregator per directory, ended by SIGTERM or Ctrl-C. PolicyError where another holds it."""
    with locked(lock) as free:
        if not free:
            raise PolicyError(f"directory {lock.parent}", "another aggregator is running here", "stop it first")
        signal.signal(signal.SIGTERM, _stop)
        signal.signal(signal.SIGINT, _stop)
        try:
            yield
        except AggregatorStopped:
            note(logger, "stopped; the open round goes on at the next start")


def _stop(number: int, frame: object) -> None:
    for again in (signal.SIGTERM, signal.SIGINT):
        signal.signal(again, signal.SIG_IGN)  # a second one must not cut the ending short
    raise AggregatorStopped


class Refusals:
    """Counts calls that the public port refused, and writes one audit line a minute instead of one a call."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.counts: dict[tuple[int, str, str], int] = {}
        self.written = 0.0
        self.lock = threading.Lock()

    def count(self, status: int, why: str, client: str) -> None:
        with self.lock:
            self._add((status, why, client), 1)
            due = time.monotonic() - self.written > AUDIT_REFUSALS_EVERY or not self.written
        if due:
            self.write()

    def _add(self, kind: tuple[int, str, str], times: int) -> None:
        """A caller may choose part of these texts, so the number of kinds is limited: each costs a flush to disk."""
        if kind not in self.counts and len(self.counts) >= MOST_KINDS:
            kind = (kind[0], "and others", "several")
        self.counts[kind] = self.counts.get(kind, 0) + times

    def write(self) -> None:
        with self.lock:
            taken, self.counts = self.counts, {}
            self.written = time.monotonic()
        for refusal, times in sorted(taken.items()):
            status, why, client = refusal
            try:
                audit.append(self.log, "fleet-api", "call", "refused", code=status, why=why, client=client, times=times)
            except ResourceError:  # a full disk: counted on, and written later; the caller gets its answer
                with self.lock:
                    self._add(refusal, times)
            note(logger, "call refused", level=logging.WARNING, code=status, why=why, client=client, times=times)
