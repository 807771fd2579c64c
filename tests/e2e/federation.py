"""A whole federation as real processes on loopback, over corpora of random blobs: TLS, node authentication and all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.floors import LOWERED
from tests.ports import free_port

MODEL = {
    "image_size": 32,
    "patch_size": 8,
    "width": 32,
    "depth": 2,
    "heads": 2,
    "decoder_width": 16,
    "decoder_depth": 1,
    "decoder_heads": 2,
}
OUTSIDE = "10.99.7.1"  # the aggregator's address where a test puts it in a network namespace of its own
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
HOLD = Path(__file__).parent / "hold"  # what stops a program at an exact point: see there


def blobs(seed: int, count: int, size: int = 32) -> np.ndarray:
    """Smooth gray images, different for each seed: (count, size, size) uint8."""
    random = np.random.default_rng(seed)
    grid = np.linspace(-1, 1, size)
    x, y = np.meshgrid(grid, grid)
    images = []
    for _ in range(count):
        a, b, c, d = random.uniform(-1, 1, 4)
        wave = np.sin(6 * (a * x + b * y) + 3 * c) * np.exp(-((x - c) ** 2 + (y - d) ** 2))
        images.append(((wave - wave.min()) / (np.ptp(wave) + 1e-6) * 255).astype(np.uint8))
    return np.stack(images)


class Program:
    """A process of the federation, with its log."""

    def __init__(self, name: str, command: list[str], log: Path, environment: dict[str, str]) -> None:
        self.name, self.log = name, log
        with log.open("ab") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file, env={**ENVIRONMENT, **environment})

    def kill(self) -> None:
        """kill -9, at once."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()


class Federation:
    """One aggregator and some hospitals under a directory."""

    def __init__(
        self, root: Path, sites: int = 2, images: int = 24, enrolled: int | None = None, **settings: Any
    ) -> None:
        from usfmae.client import site as client_site
        from usfmae.core.config.privacy import PrivacySettings
        from usfmae.core.config.site import SiteSettings
        from usfmae.core.corpus.shard import PackedImage, write_shard
        from usfmae.server.bootstrap import NewFederation, create
        from usfmae.server.layout import Layout
        from usfmae.server.sites import add

        self.root, self.port = root, free_port()
        self.names = [f"hospital-{i + 1}" for i in range(sites)]
        chosen = {
            "network.host": "127.0.0.1",
            "rounds.steps": 3,
            "rounds.quorum": sites,
            "min_free_gib": 0,
            "train.batch_size": 4,
            "train.micro_batch": 4,
            "train.precision": "fp32",
            "train.checkpoint_steps": 1,
            **{f"model.{key}": value for key, value in MODEL.items()},
            **settings,
        }
        self.home = Layout(root / "coordinator")
        overrides = [f"{key}={value}" for key, value in chosen.items()]
        create(self.home.root, NewFederation("test", host=OUTSIDE, port=self.port), overrides)
        self.running: list[Program] = []
        self.environment: dict[str, str] = {}
        self.sites: dict[str, client_site.Site] = {}
        for number, name in enumerate(self.names):
            options = SiteSettings(
                name=name,
                server=f"https://127.0.0.1:{self.port}",
                image_size=32,
                poll=0.2,
                heartbeat=10,
                disk_floor_gb=0,
                threads=1,
                device="cpu",
                stop_wait=5,
                capacity=1000,
                privacy=PrivacySettings(**LOWERED),
            )
            made = client_site.create(root / name, options, self.home.ca, self.home.public_key)
            pixels = blobs(number + 1, images + 4 * number)
            packed = [PackedImage(p, f"{number:02d}{i:062d}", f"group-{i // 4}") for i, p in enumerate(pixels)]
            write_shard(made.corpus, "all", packed)
            if enrolled is None or number < enrolled:
                add(self.home, made.root / "enrol.json")
            self.sites[name] = made

    def copy(self, to: Path, host: str = "127.0.0.1") -> Federation:
        """The same federation (keys, corpora, seed) in another place, on a port of its own."""
        from usfmae.client.site import Site
        from usfmae.server.layout import Layout

        shutil.copytree(self.root, to)
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.root, other.port, other.running, other.environment = to, free_port(), [], {}
        other.home = Layout(to / "coordinator")
        for file in [other.home.settings_file, *(to / name / "site.yaml" for name in self.names)]:
            file.write_text(file.read_text().replace(str(self.port), str(other.port)).replace("127.0.0.1:", f"{host}:"))
        settings = other.home.settings_file
        settings.write_text(settings.read_text().replace("host: 127.0.0.1\n", f"host: {host}\n", 1))
        other.sites = {name: Site.open(to / name) for name in self.names}
        return other

    def calm(self, root: Path, rounds: int, until: int = 0) -> list[str]:
        """What a copy of it makes of each round with nothing disturbed: hashes, up to round `until`."""
        other = self.copy(root)
        try:
            other.start_server(rounds)
            other.start_sites()
            other.wait_rounds(until or rounds, 1800)
            return [r["result"] for r in other.status()["rounds"]]
        finally:
            other.stop()

    # processes

    def start_server(self, rounds: int, *more: str, prefix: tuple[str, ...] = ()) -> Program:
        words = ["run", str(self.home.root), "--rounds", str(rounds), *more]
        return self._start("server", "usfmae.server.cli", words, prefix)

    def start_site(self, name: str, *more: str, prefix: tuple[str, ...] = ()) -> Program:
        return self._start(name, "usfmae.client.cli", ["run", str(self.sites[name].root), *more], prefix)

    def start_sites(self) -> list[Program]:
        return [self.start_site(name) for name in self.names]

    def _start(self, name: str, module: str, words: list[str], prefix: tuple[str, ...] = ()) -> Program:
        command = [sys.executable, "-c", f"from {module} import main; main()", *words]
        program = Program(name, [*prefix, *command], self.root / f"{name}.log", self.environment)
        self.running.append(program)
        return program

    def held(self) -> Path:
        """From now on programs can be held at the points of hold/sitecustomize.py; the folder to arm them in."""
        folder = self.root / "hold"
        folder.mkdir(exist_ok=True)
        self.environment = {"PYTHONPATH": str(HOLD), "FEDERATION_HOLD": str(folder)}
        return folder

    def kill(self, program: Program) -> None:
        """kill -9 by process id; the test goes on without it."""
        program.kill()
        self.running.remove(program)

    def stop(self) -> None:
        for program in reversed(self.running):
            program.stop()
        self.running.clear()

    # looking

    def status(self) -> dict[str, Any]:
        from usfmae.server.status import status

        return status(self.home)

    def wait(self, what: str, true: Callable[[], Any], seconds: float = 300) -> Any:
        """The value of `true()` once it is true; the end of each log where it never is."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not any(p.process.poll() for p in self.running):
            try:
                value = true()
            except (sqlite3.Error, OSError, ValueError, json.JSONDecodeError):
                value = None
            if value:
                return value
            time.sleep(0.05)
        logs = "\n".join(f"--- {p.name}\n{p.log.read_text()[-2500:]}" for p in self.running)
        raise AssertionError(f"{what}: not within {seconds} s\n{logs}")

    def wait_rounds(self, rounds: int, seconds: float = 400) -> dict[str, Any]:
        return self.wait(f"round {rounds}", lambda: (s := self.status())["round"] >= rounds and s, seconds)

    def trainings(self, name: str) -> int:
        """Local trainings this site has finished, from its audit log."""
        from usfmae.core import audit

        return sum(1 for e in audit.entries(self.sites[name].audit_log) if e["event"] == "outbox.staged")

    def admitted(self, number: int) -> list[str]:
        """Names of the sites whose update was merged in a round."""
        found = next((r for r in self.status()["rounds"] if r["round"] == number), {"verdicts": []})
        return sorted(v["name"] for v in found["verdicts"] if v["verdict"] == "admitted")

    def result(self, number: int) -> str | None:
        """Hash of the encoder after a round."""
        return next((r["result"] for r in self.status()["rounds"] if r["round"] == number), None)

    def audit(self) -> list[dict[str, Any]]:
        from usfmae.core import audit

        return list(audit.entries(self.home.audit))

    def verify_logs(self) -> None:
        """PolicyError where a line of any audit log was lost, doubled or torn."""
        from usfmae.core import audit

        for log in (self.home.audit, *(site.audit_log for site in self.sites.values())):
            audit.verify(log)

    def process(self, *words: str) -> int:
        """Process id of the one program whose command line holds all these words; 0 where there is none."""
        for entry in Path("/proc").iterdir():
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if entry.name.isdigit() and all(any(word in part for part in line) for word in words):
                return int(entry.name)
        return 0

    def worker(self, name: str) -> int:
        """Process id of a site's training process."""
        return self.process("usfmae.client.rounds.trainer", str(self.sites[name].root))
