"""The whole demo (cleaning, seed, two hospitals, rounds, export) in a network namespace that counts every packet which
is not for the machine itself, and every look-up of a name: none."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import needs

pytestmark = pytest.mark.system

# A default route exists, so that a program that wants to leave tries to; what it sends is counted and dropped.
NAMESPACE = """
set -e
sysctl -qw net.ipv6.conf.all.disable_ipv6=1
ip link set lo up
ip link add name out type veth peer name beyond || ip tuntap add dev out mode tun
ip address add 10.99.0.1/24 dev out
ip link set out up
[ ! -e /sys/class/net/beyond ] || ip link set beyond up
ip route add default via 10.99.0.2
nft -f - <<'RULES'
table inet egress {
  counter away { }
  counter names { }
  chain output {
    type filter hook output priority 0; policy accept;
    meta l4proto { tcp, udp } th dport 53 counter name names
    oifname != "lo" counter name away
    oifname != "lo" drop
  }
}
RULES
"$@" >"$OUT/stdout" 2>"$OUT/stderr" || echo "ended with $?" >>"$OUT/stderr"
nft list counters table inet egress
"""


def counted(tmp_path: Path, *command: str) -> dict[str, int]:
    """Packets that wanted out, and look-ups of names, while the command ran in its own network namespace."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to make a network namespace")
    for program, package in (("unshare", "util-linux"), ("nft", "nftables"), ("ip", "iproute2")):
        needs(program, package)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("FLWR_", "HF_", "OPENVINO"))}
    done = subprocess.run(
        ["unshare", "--net", "bash", "-c", NAMESPACE, "bash", *command],
        env={**environment, "OUT": str(tmp_path), "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    found = re.findall(r"counter (\w+) \{\s*packets (\d+)", done.stdout)
    assert len(found) == 2, done.stderr
    return {name: int(packets) for name, packets in found}


def test_the_counter_counts(tmp_path: Path) -> None:
    code = "import socket\ntry: socket.create_connection(('192.0.2.1', 443), 1)\nexcept OSError: pass\n"
    code += "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'x', ('127.0.0.1', 53))"
    found = counted(tmp_path, sys.executable, "-c", code)
    assert found["away"] >= 1 and found["names"] >= 1


def test_the_demo_sends_nothing_out_and_looks_up_no_name(tmp_path: Path) -> None:
    program = shutil.which("usfmae", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert program
    options = ["--out", str(tmp_path / "demo"), "--rounds", "1", "--steps", "4", "--seed-steps", "4"]
    found = counted(tmp_path, program, "demo", *options)
    assert (tmp_path / "demo" / "report.html").exists(), (tmp_path / "stderr").read_text()[-3000:]
    assert found == {"away": 0, "names": 0}
