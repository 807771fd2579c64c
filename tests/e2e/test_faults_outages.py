"""Outages of five minutes: of the aggregator, of a hospital, of the network between them; at the same time, apart.

The hospitals' network may open connections to the aggregator's port and to nothing else; nobody may open one to them.
FEDERATION_OUTAGE_SECONDS makes the outages shorter.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.e2e import networks, tables
from tests.e2e.federation import OUTSIDE, Federation

pytestmark = pytest.mark.faults

OUTAGE = float(os.environ.get("FEDERATION_OUTAGE_SECONDS", "300"))
ROUNDS = 2


def asked(federation: Federation) -> bool:
    return any("training job" in (federation.root / f"{n}.log").read_text() for n in federation.names)


def aggregator_away(federation: Federation) -> None:
    server = federation.start_server(ROUNDS)
    federation.start_sites()
    federation.wait("a training", lambda: asked(federation))
    federation.kill(server)
    federation.wait("the aggregator to end", lambda: not federation.process("usfmae.server", str(federation.home.root)))
    time.sleep(OUTAGE)
    federation.start_server(ROUNDS)


def hospital_away(federation: Federation) -> None:
    federation.start_server(ROUNDS)
    away, _ = federation.start_sites()
    federation.wait("a worker", lambda: asked(federation) and federation.worker("hospital-1"))
    federation.kill(away)
    os.kill(federation.worker("hospital-1"), 9)
    time.sleep(OUTAGE)
    federation.start_site("hospital-1")


def line_down(federation: Federation, lines: networks.Networks) -> None:
    """Outbound only, through a firewall; the link of the hospitals' card goes down while they train."""
    lines.close_in(federation.port)
    federation.start_server(ROUNDS, prefix=lines.inside(lines.server))
    for name in federation.names:
        federation.start_site(name, prefix=lines.inside(lines.hospital))
    federation.wait("a training", lambda: asked(federation))
    lines.line("down")
    time.sleep(OUTAGE)
    lines.line("up")


@pytest.fixture(scope="module")
def lines() -> Iterator[networks.Networks]:
    pair = networks.made()
    yield pair
    pair.remove()


@pytest.fixture(scope="module")
def outages(tmp_path_factory, lines) -> Iterator[tuple[str, dict[str, tuple[Federation, Future[float]]]]]:
    """The undisturbed hash, and for each outage its federation and the seconds it will have taken."""
    root = tmp_path_factory.mktemp("outages")
    template = Federation(root / "template", 2, **{"rounds.steps": 12})
    wanted = template.calm(root / "calm", ROUNDS)[-1]
    kinds: dict[str, Callable[[Federation], None]] = {
        "aggregator": aggregator_away,
        "hospital": hospital_away,
        "network": lambda federation: line_down(federation, lines),
    }
    pool = ThreadPoolExecutor(len(kinds))
    running = {}
    for kind, cause in kinds.items():
        federation = template.copy(root / kind, OUTSIDE if kind == "network" else "127.0.0.1")
        running[kind] = (federation, pool.submit(_through, cause, federation))
    yield wanted, running
    for federation, _ in running.values():
        federation.stop()
    pool.shutdown(cancel_futures=True)


def _through(cause: Callable[[Federation], None], federation: Federation) -> float:
    """Seconds it took."""
    began = time.monotonic()
    cause(federation)
    federation.wait_rounds(ROUNDS)
    return time.monotonic() - began


@pytest.mark.parametrize("kind", ["aggregator", "hospital", "network"])
def test_an_outage_of_minutes_changes_no_bit(outages, kind):
    wanted, running = outages
    federation, outcome = running[kind]
    began, sites, rounds = time.monotonic() - outcome.result(OUTAGE + 600), federation.names, range(1, ROUNDS + 1)
    found = tables.fault(federation, f"training, outage of {OUTAGE:.0f} s", kind, wanted, rounds, sites, began)
    assert found == (True, 0, [sites] * ROUNDS)
    federation.verify_logs()


def test_nobody_reaches_into_the_hospital(lines) -> None:
    lines.close_in(8443)
    listen = "import socket; s = socket.create_server(('0.0.0.0', 9999)); print(flush=True); s.accept()"
    into = f"import socket; socket.create_connection(('{networks.HOSPITAL}', 9999), 3)"
    out = f"import socket; socket.create_connection(('{networks.SERVER}', 9999), 3)"
    for there, here, words in ((lines.hospital, lines.server, into), (lines.server, lines.hospital, out)):
        with subprocess.Popen([*lines.inside(there), "python3", "-c", listen], stdout=subprocess.PIPE) as waiting:
            assert waiting.stdout and waiting.stdout.readline() == b"\n"  # it listens
            tried = subprocess.run([*lines.inside(here), "python3", "-c", words], capture_output=True)
            waiting.terminate()
        assert tried.returncode and b"refused" not in tried.stderr, tried.stderr
