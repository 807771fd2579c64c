"""The demo step by step: scans, seed, enrolment, cleaning, federated rounds, export, report."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from usfmae.core.demo import story
from usfmae.core.demo.processes import Process, running, wait_all
from usfmae.core.errors import ResourceError, SourceError, UsageError
from usfmae.core.files import write_atomic
from usfmae.core.phantom import Tissue, write_cine, write_still
from usfmae.core.phantom.tissue import Geometry

HELD_OUT = ("--set", "train.held_out=0.3")  # a demo is small: enough patients to measure on
# A demo's hospital has a few patients and nobody to agree to its campaign or to a held update. A real one keeps the default floor.
LOWERED_FLOOR = tuple(
    word
    for setting in (
        *(
            "new_campaigns=auto",
            "min_images=1",
            "min_patients=1",
            "max_patient_share=1",
            "min_batch=1",
            "min_steps=1",
            "probe=false",
        ),
    )
    for word in ("--set", f"privacy.{setting}")
)
MARK = ".usfmae-demo"  # lies in a folder that a demo made, and that the next one may clear


@dataclass
class Demo:
    """What is asked for, and what was found on the way."""

    out: Path
    data: tuple[Path, ...] = ()  # one folder of real scans per site; empty for the embedded scans
    sites: int = 2
    rounds: int = 2
    seed_steps: int = 30  # few, so that the rounds have something left to teach
    steps: int = 60  # local optimizer steps a round
    sealed: bool = False  # with a custodian: nobody sees one hospital's update
    say: Callable[[str], None] = print
    summary: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, Path] = field(default_factory=dict)  # each site's scans
    started: float = field(default_factory=time.monotonic)
    processes: list[Process] = field(default_factory=list)

    @property
    def coordinator(self) -> Path:
        return self.out / "coordinator"

    @property
    def seed(self) -> Path:
        return self.out / "seed" / "checkpoint.safetensors"

    @property
    def names(self) -> list[str]:
        return [f"hospital-{index + 1}" for index in range(self.sites)]

    @property
    def custodian(self) -> Path:
        return self.out / "custodian"

    def site(self, name: str) -> Path:
        return self.out / "sites" / name

    def panel(self, name: str) -> Path:
        """Reconstructions of a site's held-out images."""
        return self.out / "reconstructions" / f"{name}.png"

    @property
    def final(self) -> Path:
        return self.coordinator / "checkpoints" / f"round-{self.rounds:05d}.safetensors"

    def start(self, log: str, *arguments: str | Path) -> Process:
        process = Process(arguments, self.out / "logs" / f"{log}.log")
        self.processes.append(process)
        return process

    def run(self, log: str, *arguments: str | Path) -> Process:
        process = self.start(log, *arguments)
        wait_all([process])
        return process


def tell(demo: Demo) -> dict[str, Any]:
    """Run the whole demo and return its summary. Every process has ended when this returns or raises."""
    fresh(demo.out)
    with running() as demo.processes:
        demo.sources = _scans(demo)
        _seed(demo)
        _enrol(demo)
        _clean(demo)
        seed_loss = _losses(demo, demo.seed)
        _rounds(demo)
        final_loss = _losses(demo, demo.final)
        exported = _export(demo)
    demo.summary |= {
        "sites": demo.names,
        "rounds": demo.rounds,
        "images": {name: loss["images"] for name, loss in final_loss.items()},
        "held_out": {name: loss["held_out"] for name, loss in final_loss.items()},
        "seed_loss": {name: loss["loss"] for name, loss in seed_loss.items()},
        "final_loss": {name: loss["loss"] for name, loss in final_loss.items()},
        "checkpoint": str(demo.final),
        **exported,
    }
    _report(demo)
    demo.summary["seconds"] = round(time.monotonic() - demo.started, 1)
    write_atomic(demo.out / "summary.json", json.dumps(demo.summary, indent=2).encode())
    return demo.summary


def fresh(out: Path) -> None:
    """An empty folder for a demo. UsageError where it holds what no demo made."""
    if out.exists() and any(out.iterdir()):
        if not (out / MARK).exists():
            raise UsageError(f"--out {out}", "holds files that no demo made", "give an empty or new folder")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()


def _scans(demo: Demo) -> dict[str, Path]:
    """Where each site's scans lie; simulated ones are written here."""
    if demo.data:
        for folder in demo.data:
            if not folder.is_dir():
                raise SourceError(f"--data {folder}", "is no folder", "give one folder of scans per site")
        return dict(zip(demo.names, (folder.resolve() for folder in demo.data), strict=True))
    demo.say("writing simulated scans with fake names burnt in")
    return {name: story.write_site(demo.out / "scans" / name, index) for index, name in enumerate(demo.names)}


def _seed(demo: Demo) -> None:
    demo.say("coordinator: cleaning public scans and pretraining the seed")
    public, corpus = story.write_public(demo.out / "scans" / "public"), demo.out / "seed" / "corpus"
    demo.run("seed-prepare", "usfmae", "prepare", public, "--corpus", corpus, "--workers", "2", "--json")
    demo.run(
        "seed-pretrain",
        *("usfmae", "pretrain", "--corpus", corpus, "--out", demo.out / "seed" / "run"),
        *("--preset", "tiny", "--steps", str(demo.seed_steps), *HELD_OUT),
    )
    shutil.copyfile(demo.out / "seed" / "run" / "checkpoint.safetensors", demo.seed)


def _enrol(demo: Demo) -> None:
    """Keys, certificates and enrolment, as a coordinator and its hospitals would do it."""
    port, custodian_port = _free_port(), _free_port()
    demo.say("coordinator and hospitals: keys, certificates, enrolment")
    card, url = demo.custodian / "custodian.json", f"https://127.0.0.1:{custodian_port}"
    sealed = ("rounds.sealed=true", f"custodian.url={url}", f"custodian.card={card}") if demo.sealed else ()
    demo.run(
        "server-init",
        *("usfmae-server", "init", demo.coordinator, "--name", "demo", "--seed", demo.seed),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--set", f"rounds.steps={demo.steps}", "--set", f"rounds.quorum={demo.sites}"),
        *("--set", "min_free_gib=0.2", *HELD_OUT),
        *(word for setting in sealed for word in ("--set", setting)),
    )
    own: tuple[str, ...] = ()
    if demo.sealed:
        demo.say("custodian: keys of its own, at a second institution")
        made = demo.run(
            "custodian-init",
            *("usfmae-server", "custodian", "init", demo.custodian, "--name", "institute", "--host", "127.0.0.1"),
            *("--port", str(custodian_port), "--coordinator-key", demo.coordinator / "coordinator.pub.pem", "--json"),
        ).printed()
        own = ("--set", f"custodian={made['box_key']}")
    for name in demo.names:
        demo.run(
            f"{name}-init",
            *("usfmae-client", "init", demo.site(name), "--server", f"https://127.0.0.1:{port}"),
            *("--ca", demo.coordinator / "ca.pem", "--coordinator-key", demo.coordinator / "coordinator.pub.pem"),
            *("--name", name, "--source", demo.sources[name]),
            *("--set", "disk_floor_gb=0.2", "--set", "poll=0.5", "--set", "threads=1"),
            *LOWERED_FLOOR,
            *own,
        )
        enrolment = demo.site(name) / "enrol.json"
        demo.run(f"{name}-add", "usfmae-server", "site", "add", demo.coordinator, enrolment)
        if demo.sealed:
            demo.run(f"{name}-custodian", "usfmae-server", "custodian", "add", demo.custodian, enrolment)


def _clean(demo: Demo) -> None:
    demo.say("hospitals: reading, cleaning and packing their own scans")
    both = [demo.start(f"{n}-prepare", "usfmae-client", "prepare", demo.site(n), "--json") for n in demo.names]
    wait_all(both)
    demo.summary["prepared"] = {name: process.printed() for name, process in zip(demo.names, both, strict=True)}
    for name, counts in demo.summary["prepared"].items():
        if not counts["kept"]:
            reasons = ", ".join(f"{reason} {n}" for reason, n in counts["reasons"].items())
            raise SourceError(f"scans {demo.sources[name]}", f"none could be kept ({reasons})", "give other scans")


def _losses(demo: Demo, model: Path) -> dict[str, dict[str, Any]]:
    """Held-out masked loss of an encoder at each site, with the site's own decoder where it has one."""
    processes = [
        demo.start(
            f"{name}-loss-{model.stem}",
            *("usfmae-client", "evaluate", demo.site(name), "--model", model, "--panel", demo.panel(name), "--json"),
        )
        for name in demo.names
    ]
    wait_all(processes)
    return {name: process.printed() for name, process in zip(demo.names, processes, strict=True)}


def _rounds(demo: Demo) -> None:
    demo.say(f"{demo.rounds} federated rounds over TLS: one aggregator, {demo.sites} hospitals")
    custodians = [demo.start("custodian", "usfmae-server", "custodian", "run", demo.custodian)] if demo.sealed else []
    server = demo.start("server", "usfmae-server", "run", demo.coordinator, "--rounds", str(demo.rounds))
    clients = [demo.start(name, "usfmae-client", "run", demo.site(name)) for name in demo.names]
    wait_all([server], watched=[*clients, *custodians])
    for process in (*clients, *custodians):
        process.stop()
    if demo.sealed:
        proof = demo.run("server-verify", "usfmae-server", "verify", demo.coordinator, "--json").printed()
        demo.summary["sealed_rounds"] = proof["sealed_rounds"]
    status = demo.run("server-status", "usfmae-server", "status", demo.coordinator, "--json").printed()
    demo.summary["round_losses"] = {
        name: [v["loss_before"] for r in status["rounds"] for v in r["verdicts"] if v["name"] == name]
        for name in demo.names
    }
    sent = {n: demo.run(f"{n}-outbox", "usfmae-client", "outbox", demo.site(n), "--json") for n in demo.names}
    demo.summary["update_bytes"] = {
        name: [entry["bytes"] for entry in process.printed()] for name, process in sent.items()
    }


def _export(demo: Demo) -> dict[str, Any]:
    """Export the merged encoder for timm and load it back; the largest difference of the features."""
    demo.say("exporting the merged encoder and loading it back with timm")
    target = demo.out / "export"
    process = demo.run("export", "usfmae", "export", "--model", demo.final, "--to", "timm", "--out", target, "--json")
    return {"export": str(target), "timm_max_abs_diff": process.printed()["difference"]}


def _report(demo: Demo) -> None:
    from usfmae.core.report.demo import DemoResult, write_report

    demo.say("writing report.html")
    result = DemoResult(
        summary=demo.summary,
        sources={name: demo.sources[name] for name in demo.names},
        panels={name: demo.panel(name) for name in demo.names if demo.panel(name).exists()},
        checkpoints=[demo.seed, *sorted((demo.coordinator / "checkpoints").glob("round-*.safetensors"))],
        seconds=time.monotonic() - demo.started,
    )
    write_report(demo.out / "report.html", result)


def _free_port() -> int:
    """A port nobody listens on, below those the kernel hands to outgoing connections: it stays free for a while."""
    import random
    import socket

    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise ResourceError("a port for the demo's aggregator", "a hundred between 20000 and 30000 are taken", "free some")


STILLS, CINES, CINE_FRAMES = 20, 4, 24
WHEEL = ("examples_ybr_color.dcm", "examples_rgb_color.dcm", "examples_palette.dcm")


def write_site(folder: Path, site: int) -> Path:
    """Scans of site 0, 1, ...: linear probe at even sites, sector at odd ones; each with real scans of its own."""
    geometry: Geometry = "sector" if site % 2 else "linear"
    _phantoms(folder, 100 * (site + 1), geometry, STILLS, CINES)
    for name in WHEEL[site % 2 :: 2]:
        _copy_from_wheel(name, folder)
    return folder


def write_public(folder: Path) -> Path:
    """What the coordinator pretrains the seed on: simulated scans of both kinds, and the wheel's real ones."""
    _phantoms(folder / "linear", 1000, "linear", STILLS // 2, CINES // 2)
    _phantoms(folder / "sector", 2000, "sector", STILLS // 2, CINES // 2)
    for name in WHEEL:
        _copy_from_wheel(name, folder)
    return folder


def _phantoms(folder: Path, seed: int, geometry: Geometry, stills: int, cines: int) -> None:
    for index in range(stills):
        write_still(folder / f"still-{index:02d}.dcm", Tissue(seed + index, geometry))
    for index in range(cines):
        write_cine(folder / f"cine-{index:02d}.dcm", Tissue(seed + 50 + index, geometry), CINE_FRAMES)


def _copy_from_wheel(name: str, folder: Path) -> None:
    from pydicom.data import get_testdata_file

    source = get_testdata_file(name, download=False)
    if source:  # absent where a distributor stripped the wheel's test files
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(str(source), folder / name)


def simulate(out: Path, hospitals: int, rounds: int, steps: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the rounds, say each as it ends, and return what summary.json holds: `usfmae-server status`, memory, time."""
    fresh(out)
    began = time.monotonic()
    numbers = ("--sites", str(hospitals), "--rounds", str(rounds), "--steps", str(steps))
    say(f"{hospitals} virtual hospitals, {rounds} rounds, no network")
    with running() as processes:
        command = ("usfmae-server", "simulate", out / "coordinator", *numbers, "--json")
        processes.append(Process(command, out / "logs" / "simulate.log"))
        _relayed(processes[0], say)
        summary: dict[str, Any] = {**processes[0].printed(), "seconds": round(time.monotonic() - began, 1)}
    write_atomic(out / "summary.json", json.dumps(summary, indent=2).encode())
    return summary


def _relayed(process: Process, say: Callable[[str], None]) -> None:
    """What the process says, line by line, until it ends. UsfmaeError where it ends with an error."""
    with process.log.open() as log:
        while True:
            ended = process.popen.poll() is not None
            for line in log:
                say(line.rstrip())
            if ended:
                process.check()
                return
            time.sleep(0.2)
