"""A hospital's network: one way out, to one host and port; the cable is pulled in the middle of a round."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.floors import lowered
from usfmae.core.corpus.shard import PackedImage, write_shard

pytestmark = pytest.mark.system

SERVER, SITE, PORT = "10.213.77.1", "10.213.77.2", 8443
RULES = f"""
table inet hospital {{
  counter refused_in {{ }}
  counter refused_out {{ }}
  chain incoming {{
    type filter hook input priority 0; policy drop;
    iif lo accept
    ct state established,related accept
    ip protocol icmp accept
    counter name refused_in
  }}
  chain outgoing {{
    type filter hook output priority 0; policy drop;
    oif lo accept
    ct state established,related accept
    ip daddr {SERVER} tcp dport {PORT} accept
    meta l4proto ipv6-icmp drop
    counter name refused_out
  }}
}}
"""


def run(*command: object, **options: object) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


class Network:
    """Two network namespaces joined by a cable: the coordinator's, and the hospital's behind its firewall."""

    def __init__(self) -> None:
        self.centre, self.hospital = f"usfmae-c{os.getpid()}", f"usfmae-h{os.getpid()}"
        run("ip", "netns", "add", self.centre)
        run("ip", "netns", "add", self.hospital)
        run(
            "ip",
            "link",
            "add",
            "veth-c",
            "netns",
            self.centre,
            "type",
            "veth",
            "peer",
            "veth-h",
            "netns",
            self.hospital,
        )
        for name, end, address in ((self.centre, "veth-c", SERVER), (self.hospital, "veth-h", SITE)):
            run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", end)
            run("ip", "-n", name, "link", "set", end, "up")
            run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "netns", "exec", self.hospital, "nft", "-f", "-", input=RULES)

    def command(self, name: str, program: str, *arguments: object) -> list[str]:
        return ["ip", "netns", "exec", name, sys.executable, "-m", f"usfmae.{program}", *map(str, arguments)]

    def cable(self, state: str) -> None:
        run("ip", "-n", self.hospital, "link", "set", "veth-h", state)

    def refused(self, which: str) -> int:
        found = json.loads(
            run("ip", "netns", "exec", self.hospital, "nft", "-j", "list", "counter", "inet", "hospital", which)
        )
        return int(next(item["counter"]["packets"] for item in found["nftables"] if "counter" in item))

    def close(self) -> None:
        for name in (self.centre, self.hospital):
            subprocess.run(["ip", "netns", "del", name], check=False)


@pytest.fixture
def network() -> Iterator[Network]:
    if os.geteuid() or not shutil.which("ip") or not shutil.which("nft"):
        pytest.skip("needs root, ip and nft")
    made = Network()
    yield made
    made.close()


def until(what: Callable[[], object], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def test_a_round_behind_an_outbound_only_firewall_survives_a_pulled_cable(network: Network, tmp_path: Path) -> None:
    home, site = tmp_path / "server", tmp_path / "site"
    tiny = {"image_size": 32, "patch_size": 8, "width": 16, "depth": 1, "heads": 2}
    tiny |= {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
    sets = [f"model.{key}={value}" for key, value in tiny.items()]
    sets += ["rounds.steps=300", "train.batch_size=16", "train.micro_batch=1", "train.precision=fp32"]
    run(*network.command(network.centre, "server", "init", home, "--name", "n", "--host", SERVER, "--port", PORT),
        *(x for s in sets for x in ("--set", s)))  # fmt: skip
    where = ["--server", f"https://{SERVER}:{PORT}", "--ca", home / "ca.pem"]
    where += ["--coordinator-key", home / "coordinator.pub.pem", "--set", "poll=0.5", "--set", "heartbeat=10"]
    where += lowered()
    run(*network.command(network.hospital, "client", "init", site, "--name", "h", *where))
    run(*network.command(network.centre, "server", "site", "add", home, site / "enrol.json"))
    rng = np.random.default_rng(0)
    images = [PackedImage(rng.integers(0, 255, (32, 32), dtype=np.uint8), str(k), str(k)) for k in range(24)]
    write_shard(site / "corpus", "t", images)
    log = (tmp_path / "site.log").open("wb")
    server = subprocess.Popen(network.command(network.centre, "server", "run", home, "--rounds", 1), stderr=log)
    agent = subprocess.Popen(network.command(network.hospital, "client", "run", site), stderr=log)
    try:
        until(lambda: _step(site) > 5)
        network.cable("down")
        until(lambda: _status(site).get("state") == "offline")
        at = _step(site)
        until(lambda: _step(site) > at or (_step(site) == 300), 60)  # training does not need the network
        time.sleep(5)
        network.cable("up")
        assert server.wait(240) == 0
    finally:
        for process in (agent, server):
            process.terminate()
            process.wait(60)
        log.close()
    assert network.refused("refused_out") == 0, "the site spoke to nobody but the aggregator"
    assert network.refused("refused_in") == 0, "nobody tried to come in"
    (entry,) = json.loads(run(*network.command(network.hospital, "client", "outbox", site, "--json")))
    assert entry["state"] == "sent"


def _step(site: Path) -> int:
    found = list((site / "jobs").glob("*/progress.json"))
    return int(json.loads(found[0].read_text()).get("step", 0)) if found else 0


def _status(site: Path) -> dict[str, object]:
    try:
        return dict(json.loads((site / "status.json").read_text()))
    except (OSError, ValueError):
        return {}
