"""The same rounds with plain Flower: SuperLink, SuperNodes, FedAvg, fp32, TLS and node authentication."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import round_line
from round_processes import ENVIRONMENT, Peaks, free_port, peak_mb, running

APP = """
import time
import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

client = ClientApp()

@client.train()
def train(message: Message, context: Context) -> Message:
    arrays = message.content["arrays"].to_numpy_ndarrays()
    factor = 1 + 1e-4 * (1 + context.node_id % 97 / 97)  # different at each node
    content = RecordDict({"arrays": ArrayRecord([a * np.float32(factor) for a in arrays]),
                          "metrics": MetricRecord({"num-examples": 1000})})
    return Message(content, reply_to=message)

server = ServerApp()

class Timed(FedAvg):
    started = 0.0
    def configure_train(self, *a, **k):
        self.started = self.started or time.time()
        return super().configure_train(*a, **k)
    def aggregate_train(self, *a, **k):
        value = super().aggregate_train(*a, **k)
        with open(OUT, "a") as file:
            file.write(f"{time.time() - self.started}\\n")
        self.started = time.time()
        return value

@server.main()
def main(grid: Grid, context: Context) -> None:
    shapes = SHAPES
    seeded = [np.random.default_rng(i).normal(0, 0.02, s) for i, s in enumerate(shapes)]
    weights = ArrayRecord([values.astype(np.float32) for values in seeded])
    Timed(fraction_evaluate=0.0, min_available_nodes=NODES, min_train_nodes=NODES).start(
        grid=grid, initial_arrays=weights, num_rounds=ROUNDS, timeout=3000)
    with open(OUT, "a") as file:
        file.write("done\\n")
"""

PROJECT = """
[project]
name = "plain"
version = "1.0.0"
dependencies = []
[tool.flwr.app]
publisher = "bench"
[tool.flwr.app.components]
serverapp = "plain.app:server"
clientapp = "plain.app:client"
"""


def run(
    root: Path, shapes: list[tuple[int, ...]], sites: int, rounds: int, line: str | None = None, seconds: float = 5400
) -> dict[str, Any]:
    """The same rounds with Flower's own SuperLink, SuperNodes and FedAvg, fp32, TLS and node authentication."""
    app, home, out = root / "app", root / "flwr", root / "rounds.txt"
    (app / "plain").mkdir(parents=True)
    home.mkdir()
    numbers = {"SHAPES": repr(shapes), "OUT": repr(str(out)), "NODES": str(sites), "ROUNDS": str(rounds)}
    code = APP
    for name, value in numbers.items():
        code = re.sub(rf"\b{name}\b", lambda _, value=value: value, code)
    (app / "plain" / "__init__.py").touch()
    (app / "plain" / "app.py").write_text(code)
    (app / "pyproject.toml").write_text(PROJECT)
    port, binaries = free_port(), Path(sys.executable).parent
    ENVIRONMENT.update(FLWR_HOME=str(home), PATH=f"{binaries}:{os.environ['PATH']}")
    key, certificate, ca = _certificates(root)
    (home / "config.toml").write_text(
        f'[superlink]\ndefault="bench"\n[superlink.bench]\naddress="127.0.0.1:{port}"\nroot-certificates="{ca}"\n'
    )
    link = [str(binaries / "flower-superlink"), "--ssl-certfile", certificate, "--ssl-keyfile", key]
    link += ["--ssl-ca-certfile", ca, "--enable-supernode-auth", "--host", "127.0.0.1", "--port", str(port)]
    peaks = Peaks()
    with running(link, log=root / "superlink") as [superlink]:
        peaks.add(superlink)
        _wait_port(port)
        nodes = []
        for number in range(sites):
            name = root / f"node-{number}"
            subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(name)], check=True)
            _flwr("supernode", "register", f"{name}.pub", "bench", "--name", f"node-{number}")
            node = [str(binaries / "flower-supernode"), "--superlink", f"127.0.0.1:{port}", "--root-certificates", ca]
            nodes.append([*node, "--auth-supernode-private-key", str(name), "--port", str(free_port())])
        with running(*nodes, log=root / "supernode"):
            _flwr("run", str(app), "bench")
            peak, end = 0.0, time.monotonic() + seconds
            while time.monotonic() < end and not (out.exists() and "done" in out.read_text()):
                if line and out.exists() and out.read_text():  # after the first round, as on our side
                    round_line.shape(port, line)
                    line = None
                peak = max([peak, *(peak_mb(pid) for pid in _pids("flwr-serverapp", root))])
                time.sleep(0.5)
    peaks.stop()
    lines = [line for line in (out.read_text() if out.exists() else "").split() if line != "done"]
    return {
        "seconds": [float(line) for line in lines],
        "serverapp_rss_mb": peak,
        "superlink_rss_mb": peaks.mb[superlink.pid],
        "bytes_up": sum(4 * int(np.prod(shape, dtype=np.int64)) for shape in shapes),
    }


def _flwr(*words: str) -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "flwr"), *words], env=ENVIRONMENT, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"flwr {words[0]}: {done.stdout}{done.stderr}")


def _wait_port(port: int) -> None:
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise SystemExit("the SuperLink did not start")


def _pids(name: str, root: Path) -> Iterator[int]:
    """ServerApp processes of this benchmark (their environment names its directory)."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            named = name.encode() in (entry / "cmdline").read_bytes()
            if named and str(root).encode() in (entry / "environ").read_bytes():
                yield int(entry.name)
        except OSError:
            continue


def _certificates(root: Path) -> tuple[str, str, str]:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    from usfmae.core import keys
    from usfmae.server import certificates

    ca_key, key = keys.new_node_key(), keys.new_node_key()
    ca = certificates.authority("bench", ca_key)
    made = {
        "key.pem": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        "server.pem": certificates.server(["localhost", "127.0.0.1"], key.public_key(), ca, ca_key),
        "ca.pem": ca,
    }
    for name, content in made.items():
        (root / name).write_bytes(content)
    return str(root / "key.pem"), str(root / "server.pem"), str(root / "ca.pem")
