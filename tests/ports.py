"""Ports for programs that must be told one before they listen."""

from __future__ import annotations

import random
import socket
from pathlib import Path

_given: set[int] = set()


def free_port() -> int:
    """A port that nobody listens on and that the kernel gives no outgoing connection meanwhile.

    One from bind(0) is of the range that outgoing connections take theirs from: it may be gone when it is wanted.
    """
    first_of_kernel = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.SystemRandom().randrange(10_000, max(first_of_kernel, 20_000))
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in _given:
            _given.add(port)
            return port
