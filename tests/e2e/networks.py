"""Two network namespaces, like a hospital's and an aggregator's network: one outbound port, and a line that breaks."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

SERVER, HOSPITAL = "10.99.7.1", "10.99.7.2"


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

    def inside(self, name: str) -> tuple[str, ...]:
        """Words before a command that make it run in a namespace."""
        return ("ip", "netns", "exec", name)


def made() -> Networks:
    """The two namespaces; skips, saying why, where they cannot be made."""
    if os.geteuid() or not (shutil.which("ip") and shutil.which("nft")):
        pytest.skip("needs root, ip and nft for network namespaces")
    try:
        return Networks()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces cannot be made here: {error.stderr}")
