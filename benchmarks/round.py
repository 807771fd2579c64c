"""What a round costs when training takes no time: bytes, seconds and memory, ViT-B, real processes over TLS.

    python benchmarks/round.py --json [--sites 2] [--many 32] [--no-plain]

Ours: `usfmae-server serve` and site processes on the client's fleet connection, int8 updates. Plain Flower: SuperLink,
SuperNodes and FedAvg with fp32 weights, TLS and node authentication, on the same machine in the same run. A site's
"training" is an update that lies ready on disk, different at each site so that nothing is shared by content.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve()
SMALL = ["model.width=64", "model.heads=4", "model.depth=2", "model.decoder_width=32", "model.decoder_depth=1"]
ENVIRONMENT = {
    **os.environ,
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}


def peak_mb(pid: int | str) -> float:
    """Largest resident memory of a process so far (VmHWM), MB of 10^6 bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 / 1e6 if found else 0.0


class Peaks:
    """Watches the peak of some processes until they end."""

    def __init__(self) -> None:
        self.by_pid: dict[int, float] = {}
        self.stopped = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def add(self, process: subprocess.Popen[Any]) -> None:
        self.by_pid[process.pid] = 0.0

    def _watch(self) -> None:
        while not self.stopped.wait(0.1):
            for pid in list(self.by_pid):
                try:
                    self.by_pid[pid] = max(self.by_pid[pid], peak_mb(pid))
                except OSError:
                    continue


@contextmanager
def running(*commands: list[str], log: Path, cwd: Path | None = None) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that end with the block."""
    started = []
    try:
        for number, command in enumerate(commands):
            with (log.parent / f"{log.stem}-{number}.log").open("ab") as file:
                started.append(subprocess.Popen(command, stdout=file, stderr=file, env=ENVIRONMENT, cwd=cwd))
        yield started
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- ours


def make_federation(root: Path, sites: int, small: bool) -> tuple[Path, int]:
    """An aggregator's directory and `sites` sites with a ready update each."""
    from usfmae.core import keys
    from usfmae.core.enrolment import Enrolment
    from usfmae.server.create import create
    from usfmae.server.home import Home
    from usfmae.server.ledger import Ledger

    port = free_port()
    settings = [*(SMALL if small else ()), f"rounds.quorum={sites}", "rounds.steps=1", "min_free_gib=0"]
    create(root / "coordinator", "bench", "", port, None, ["network.host=127.0.0.1", *settings])
    home = Home(root / "coordinator")
    ledger = Ledger(home.ledger)
    for number in range(sites):
        place = root / f"site-{number}"
        node, signing = keys.new_node_key(), keys.new_signing_key()
        keys.write_private(place / "node.pem", node)
        keys.write_private(place / "signing.pem", signing)
        ledger.add_site(Enrolment(f"site-{number}", keys.public_pem(node), keys.public_pem(signing), 10**6))
        (place / "about.json").write_text(json.dumps({"port": port, "ca": str(home.ca), "seed": number}))
    return home.root, port


def ready_update(place: Path, base: Path) -> None:
    """An int8 update of the right shapes with small random values, and its content hash."""
    from usfmae.core import update
    from usfmae.server.weights import TensorFile

    about = json.loads((place / "about.json").read_text())
    random = np.random.default_rng(about["seed"])
    payload: dict[str, bytes] = {}
    with TensorFile(base) as file:
        shapes = file.shapes
        for name, shape in shapes.items():
            count = int(np.prod(shape, dtype=np.int64))
            scales = np.full(update.blocks(count), 1e-5, "<f4")
            payload[name] = scales.tobytes() + random.integers(-127, 128, count, dtype=np.int8).tobytes()
    offsets, end = {}, 0
    with (place / "update.bin").open("wb") as out:
        for name, data in payload.items():
            offsets[name] = (end, len(data))
            end += out.write(data)
    about |= {"content": update.payload_id(payload), "bytes": end, "offsets": offsets}
    about["shapes"] = {name: list(shape) for name, shape in shapes.items()}
    (place / "about.json").write_text(json.dumps(about))


def _patiently(activate: Callable[[float], int]) -> None:
    """Come online as soon as the aggregator is there."""
    from usfmae.core.errors import NetworkError

    while True:
        try:
            activate(600)
            return
        except NetworkError:
            time.sleep(0.1)


def site(places: list[Path], rounds: int) -> None:
    """A site's process (or many sites taking turns in one): receive the base, send the update, every round."""
    from usfmae.client import node, objects
    from usfmae.core import keys, protocol
    from usfmae.core.protocol import RAW, TrainReply, TrainRequest

    lines = []
    for place in places:
        about = json.loads((place / "about.json").read_text())
        key = keys.read_private(place / "node.pem", keys.EllipticCurvePrivateKey)
        fleet = node.Fleet(f"https://127.0.0.1:{about['port']}", Path(about["ca"]), key, timeout=300)
        _patiently(fleet.activate)
        lines.append((place, about, fleet, keys.read_private(place / "signing.pem", keys.Ed25519PrivateKey), [0]))
    while any(done[0] < rounds for *_, done in lines):
        for place, about, fleet, signing, done in lines:
            request = fleet.pull() if done[0] < rounds else None
            if request is None:
                time.sleep(0.1 / len(lines))
                continue
            fetch = lambda id_, fleet=fleet, run=request.run: fleet.fetch(run, id_)  # noqa: E731
            ids = node.record_ids(request.id, fetch)
            asked = protocol.from_record(TrainRequest, node.config_record(fetch(ids[protocol.RECORD])))
            if place is places[0]:  # many sites in one process: the first downloads, the others only upload
                objects.receive(ids[protocol.ENCODER], fetch, place / "base.safetensors", 4e9)
            fleet.confirm(request)
            reply = TrainReply(asked.campaign, asked.round, asked.base, about["content"], 1000, 1, "int8")
            handle = os.open(place / "update.bin", os.O_RDONLY)
            parts = {}
            for name, (start, size) in about["offsets"].items():
                read = lambda a, b, start=start, handle=handle: os.pread(handle, b - a, start + a)  # noqa: E731
                parts[name] = objects.Part("int8", tuple(about["shapes"][name]), RAW, size, read)
            record = protocol.to_record(protocol.sign(reply, signing))
            metadata = node.reply_metadata(request, time.time())
            fleet.push(node.reply(metadata, {protocol.RECORD: record}, {protocol.UPDATE: parts}, 0.0))
            os.close(handle)
            done[0] += 1


def ours(root: Path, sites: int, rounds: int, small: bool, together: bool = False) -> dict[str, float]:
    """Rounds of our own; `together` serves all sites from one process."""
    from usfmae.server.home import Home
    from usfmae.server.ledger import Ledger

    directory, _ = make_federation(root, sites, small)
    home, peaks = Home(directory), Peaks()
    places = [root / f"site-{number}" for number in range(sites)]
    for place in places:
        ready_update(place, home.checkpoint(0))
    server = [sys.executable, "-m", "usfmae.server", "serve", str(directory), "--rounds", str(rounds)]
    groups = [places] if together else [[place] for place in places]
    processes = [[sys.executable, str(HERE), "--site", *map(str, group), "--rounds", str(rounds)] for group in groups]
    # Sites first: the round is timed from the moment the aggregator is up, not while Python starts.
    with running(*processes, log=root / "site.log") as clients:
        for client in clients:
            peaks.add(client)
        time.sleep(8 if small else 20)
        with running(server, log=root / "server.log") as [aggregator]:
            peaks.add(aggregator)
            if aggregator.wait(3600):
                raise SystemExit((root / "server-0.log").read_text())
    peaks.stopped.set()
    ledger = Ledger(home.ledger)
    done = [r for r in ledger.rounds() if r.committed]
    verdicts = list(ledger.verdicts(1).values())
    database = sum(f.stat().st_size for f in [home.ledger, *home.transit.glob("*"), *home.spool.rglob("*")])
    return {
        "bytes_up": verdicts[0].bytes,
        "seconds": statistics.median(r.committed - r.opened for r in done),
        "aggregator_rss_mb": peaks.by_pid[aggregator.pid],
        "site_rss_mb": max(peaks.by_pid[client.pid] for client in clients),
        "database_mb": database / 1e6,
        "rounds": len(done),
        "admitted": sum(v.verdict == "admitted" for v in verdicts),
    }


# --- plain Flower

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
    factor = 1 + (context.node_id % 97) * 1e-6  # different at each node
    content = RecordDict({"arrays": ArrayRecord([a * np.float32(factor) for a in arrays]),
                          "metrics": MetricRecord({"num-examples": 1000})})
    return Message(content, reply_to=message)

server = ServerApp()

class Timed(FedAvg):
    started = 0.0
    def configure_train(self, *a, **k):
        self.started = time.time()
        return super().configure_train(*a, **k)
    def aggregate_train(self, *a, **k):
        value = super().aggregate_train(*a, **k)
        with open(OUT, "a") as file:
            file.write(f"{time.time() - self.started}\\n")
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


def plain(
    root: Path, shapes: list[tuple[int, ...]], sites: int, rounds: int, seconds: float = 1500
) -> dict[str, float]:
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
    with running(link, log=root / "superlink.log"):
        _wait_port(port)
        nodes = []
        for number in range(sites):
            name = root / f"node-{number}"
            subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(name)], check=True)
            _flwr("supernode", "register", f"{name}.pub", "bench", "--name", f"node-{number}")
            node = [str(binaries / "flower-supernode"), "--superlink", f"127.0.0.1:{port}", "--root-certificates", ca]
            nodes.append([*node, "--auth-supernode-private-key", str(name), "--port", str(free_port())])
        with running(*nodes, log=root / "supernode.log"):
            _flwr("run", str(app), "bench")
            peak, end = 0.0, time.monotonic() + seconds
            while time.monotonic() < end and not (out.exists() and "done" in out.read_text()):
                peak = max([peak, *(peak_mb(pid) for pid in _pids("flwr-serverapp", root))])
                time.sleep(0.5)
    lines = [line for line in (out.read_text() if out.exists() else "").split() if line != "done"]
    return {
        "seconds": statistics.median(map(float, lines)) if lines else float("nan"),
        "serverapp_rss_mb": peak,
        "rounds": len(lines),
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1, choices=[1], help=argparse.SUPPRESS)
    parser.add_argument("--many", type=int, default=32, help="sites of the second memory measurement; 0 leaves it out")
    parser.add_argument("--plain", action=argparse.BooleanOptionalAction, default=True, help="plain Flower as well")
    parser.add_argument("--small", action="store_true", help="a small model: does the benchmark itself work?")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--site", nargs="+", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.site:
        site(asked.site, asked.rounds)
        return
    root = Path(tempfile.mkdtemp(prefix="usfmae-round-"))
    try:
        report = measure(root, asked)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(json.dumps(report, indent=2) if asked.json else "\n".join(f"{k:28s} {v}" for k, v in report.items()))


def measure(root: Path, asked: argparse.Namespace) -> dict[str, Any]:
    (root / "few").mkdir()
    few = ours(root / "few", asked.sites, asked.rounds, asked.small)
    report: dict[str, Any] = {
        "bytes_up": few["bytes_up"],
        "round_seconds": round(few["seconds"], 2),
        "aggregator_rss_mb": round(few["aggregator_rss_mb"]),
        "site_rss_mb": round(few["site_rss_mb"]),
        "database_mb": round(few["database_mb"], 2),
        "admitted": few["admitted"],
    }
    print(json.dumps(report), file=sys.stderr, flush=True)
    if asked.plain:
        from usfmae.server.home import Home
        from usfmae.server.weights import TensorFile

        with TensorFile(Home(root / "few" / "coordinator").checkpoint(0)) as file:
            shapes = list(file.shapes.values())
        (root / "plain").mkdir()
        other = plain(root / "plain", shapes, asked.sites, asked.rounds)
        report |= {
            "plain_bytes_up": other["bytes_up"],
            "plain_round_seconds": round(other["seconds"], 2),
            "plain_serverapp_rss_mb": round(other["serverapp_rss_mb"]),
            "overhead_ratio": round(few["seconds"] / other["seconds"], 3),
        }
        print(json.dumps(other), file=sys.stderr, flush=True)
    shutil.rmtree(root / "few", ignore_errors=True)
    if asked.many:
        (root / "many").mkdir()
        many = ours(root / "many", asked.many, 1, asked.small, together=True)
        report |= {"aggregator_rss_mb_32_sites": round(many["aggregator_rss_mb"]), "many_sites": asked.many}
        report |= {"many_round_seconds": round(many["seconds"], 2), "many_admitted": many["admitted"]}
    report["load_average"] = round(os.getloadavg()[0], 1)
    return report


if __name__ == "__main__":
    main()
