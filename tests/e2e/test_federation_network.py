"""A hospital behind a firewall that lets nothing in: network namespaces, one outbound port, and a line that breaks.

The hospitals' namespace may open connections to the aggregator's port and to nothing else; nobody may open one to them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.faults

OUTAGE = float(os.environ.get("FEDERATION_OUTAGE_SECONDS", "20"))
SERVER, HOSPITAL = "10.99.7.1", "10.99.7.2"
ROUNDS = 2


def sh(*words: str, given: str | None = None) -> None:
    subprocess.run(words, check=True, input=given, text=True, capture_output=True)


class Networks:
    """Two namespaces joined by a pair of virtual cards."""

    def __init__(self) -> None:
        self.server, self.hospital = f"fed-s-{os.getpid()}", f"fed-h-{os.getpid()}"
        self.card = f"fh{os.getpid() % 100000}"
        for name in (self.server, self.hospital):
            sh("ip", "netns", "add", name)
            sh("ip", "-n", name, "link", "set", "lo", "up")
        peer = f"fs{os.getpid() % 100000}"
        sh("ip", "-n", self.hospital, "link", "add", self.card, "type", "veth", "peer", "name", peer)
        sh("ip", "-n", self.hospital, "link", "set", peer, "netns", self.server)
        for name, card, address in ((self.server, peer, SERVER), (self.hospital, self.card, HOSPITAL)):
            sh("ip", "-n", name, "addr", "add", f"{address}/24", "dev", card)
            sh("ip", "-n", name, "link", "set", card, "up")

    def close_in(self, port: int) -> None:
        """Outbound only, to one address and port."""
        rules = f"""table inet hospital {{
            chain input {{ type filter hook input priority 0; policy drop;
                iif lo accept; ct state established,related accept; }}
            chain output {{ type filter hook output priority 0; policy drop;
                oif lo accept; ct state established,related accept;
                ip daddr {SERVER} tcp dport {port} accept; }}
        }}"""
        sh("ip", "netns", "exec", self.hospital, "nft", "-f", "-", given=rules)

    def line(self, state: str) -> None:
        sh("ip", "-n", self.hospital, "link", "set", self.card, state)

    def remove(self) -> None:
        for name in (self.server, self.hospital):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.fixture
def networks() -> Iterator[Networks]:
    if os.geteuid() or not (shutil.which("ip") and shutil.which("nft")):
        pytest.skip("needs root, ip and nft for network namespaces")
    try:
        made = Networks()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces cannot be made here: {error.stderr}")
    yield made
    made.remove()


def test_a_broken_line_changes_no_bit_behind_an_outbound_only_firewall(federate, networks, tmp_path: Path) -> None:
    template = federate(2, **{"rounds.steps": 12})
    calm = template.copy(tmp_path / "calm")
    calm.start_server(ROUNDS)
    calm.start_sites()
    wanted = calm.wait_rounds(ROUNDS)["hash"]
    calm.stop()

    broken = template.copy(tmp_path / "broken", SERVER)
    networks.close_in(broken.port)
    try:
        _through_an_outage(broken, networks)
        status = broken.wait_rounds(ROUNDS, 400 + OUTAGE)
    finally:
        broken.stop()
    assert status["hash"] == wanted
    assert [broken.trainings(name) for name in broken.names] == [ROUNDS] * 2
    assert [sum(v["verdict"] == "admitted" for v in r["verdicts"]) for r in status["rounds"]] == [2] * ROUNDS


def _through_an_outage(federation: Any, networks: Networks) -> None:
    """Start both sides in their namespaces; once a site trains, cut the line for a while."""
    federation.start_server(ROUNDS, prefix=("ip", "netns", "exec", networks.server))
    for name in federation.names:
        federation.start_site(name, prefix=("ip", "netns", "exec", networks.hospital))
    federation.wait("a training", lambda: _asked(federation))
    networks.line("down")
    time.sleep(OUTAGE)
    networks.line("up")


def _asked(federation: Any) -> bool:
    return any("training job" in (federation.root / f"{n}.log").read_text() for n in federation.names)


def test_nobody_reaches_into_the_hospital(networks) -> None:
    networks.close_in(8443)
    listen = "import socket; s = socket.create_server(('0.0.0.0', 9999)); s.settimeout(8); s.accept()"
    dial = f"import socket; socket.create_connection(('{HOSPITAL}', 9999), 3)"
    out = f"import socket; socket.create_connection(('{SERVER}', 9999), 3)"
    prefix = ["ip", "netns", "exec"]
    for there, here, words in ((networks.hospital, networks.server, dial), (networks.server, networks.hospital, out)):
        with subprocess.Popen([*prefix, there, "python3", "-c", listen], stderr=subprocess.DEVNULL) as waiting:
            time.sleep(1)
            tried = subprocess.run([*prefix, here, "python3", "-c", words], capture_output=True)
            waiting.terminate()
        assert tried.returncode != 0
