"""A slow line on this machine: a network namespace of its own in which traffic to and from one port keeps to a rate."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

INSIDE = "USFMAE_BENCHMARK_NAMESPACE"


def enter() -> None:
    """Begin this program anew in a network namespace of its own, with a loopback. Needs root, unshare, ip and tc."""
    if os.environ.get(INSIDE):
        return
    missing = [name for name in ("unshare", "ip", "tc") if shutil.which(name) is None]
    if missing:
        raise SystemExit(f"--line needs {', '.join(missing)}: apt-get install util-linux iproute2")
    os.environ[INSIDE] = "1"
    start = 'ip link set lo up && exec "$@"'
    os.execvp("unshare", ["unshare", "--net", "sh", "-c", start, "sh", sys.executable, *sys.argv])


def shape(port: int, rate: str) -> None:
    """From now on what goes to `port` and what comes from it have `rate` each, all else what the machine gives."""
    subprocess.run(["tc", "qdisc", "del", "dev", "lo", "root"], capture_output=True, check=False)
    tc("qdisc add dev lo root handle 1: htb default 30")
    tc("class add dev lo parent 1: classid 1:30 htb rate 10gbit quantum 60000")
    for number, side in ((10, "dport"), (20, "sport")):
        # One packet of loopback has up to 64 KiB.
        tc(f"class add dev lo parent 1: classid 1:{number} htb rate {rate} burst 64k cburst 64k quantum 60000")
        tc(f"filter add dev lo parent 1: protocol ip prio 1 u32 match ip {side} {port} 0xffff flowid 1:{number}")


def tc(words: str) -> None:
    subprocess.run(["tc", *words.split()], check=True)
