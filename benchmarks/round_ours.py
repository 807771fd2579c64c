"""Rounds of our own: `usfmae-server run` and sites, real processes over TLS."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import round_line
from round_processes import Peaks, free_port, running, size

from usfmae.client.site import create as create_site
from usfmae.core.config import validated
from usfmae.core.config.site import SiteSettings
from usfmae.core.corpus.shard import PackedImage, write_shard
from usfmae.core.federated.enrolment import load as load_enrolment
from usfmae.server.bootstrap import NewFederation, create
from usfmae.server.layout import Layout
from usfmae.server.ledger import Ledger

HERE = Path(__file__).resolve().parent
SMALL = ["model.width=64", "model.heads=4", "model.depth=2", "model.decoder_width=32", "model.decoder_depth=1"]


@dataclass(frozen=True)
class Way:
    """How updates travel: their encoding, and the rate of the line ("" for the machine's own)."""

    encoding: str = "int8"
    line: str = ""


def federation(root: Path, sites: int, small: bool, encoding: str = "int8") -> Layout:
    """An aggregator's directory and `sites` enrolled sites beside it; ViT-B/16 unless `small`."""
    port = free_port()
    settings = [*(SMALL if small else ()), f"rounds.quorum={sites}", "rounds.steps=1", "min_free_gib=0"]
    settings.append(f"rounds.encoding={encoding}")
    create(root / "coordinator", NewFederation("bench", port=port), ["network.host=127.0.0.1", *settings])
    home = Layout(root / "coordinator")
    ledger = Ledger(home.ledger)
    for number in range(sites):
        # One image stands for a corpus, one step for a round: the floor is measured in benchmarks/leak.py.
        values: dict[str, Any] = {"name": f"site-{number}", "server": f"https://127.0.0.1:{port}", "disk_floor_gb": 0.0}
        values["privacy"] = {"new_campaigns": "auto", "min_steps": 1, "min_images": 1, "min_patients": 1}
        values["privacy"]["max_patient_share"] = 1.0
        chosen = validated(SiteSettings, values, "benchmark")
        site = create_site(root / f"site-{number}", chosen, home.ca, home.public_key)
        write_shard(site.corpus, "all", [PackedImage(np.zeros((16, 16), np.uint8), f"{number:064d}", "group")])
        ledger.add_site(load_enrolment(site.root / "enrol.json"))
    ledger.close()
    return home


def run(root: Path, sites: int, rounds: int, small: bool, processes: int = 0, way: Way = Way()) -> dict[str, Any]:
    """Serve `rounds` rounds. With `processes`, that many uploaders share the sites instead of an agent for each."""
    home = federation(root, sites, small, way.encoding)
    places = [str(root / f"site-{number}") for number in range(sites)]
    groups = [["upload", *places[i::processes]] for i in range(processes)] or [["agent", place] for place in places]
    commands = [[sys.executable, str(HERE / "round_site.py"), *group] for group in groups]
    server = [sys.executable, "-m", "usfmae.server", "run", str(home.root), "--rounds", str(rounds)]
    peaks = Peaks()
    peaks.directories[home.transit] = 0
    # Sites first: a round is timed from the moment the aggregator is up, not while Python starts.
    with running(*commands, log=root / "site") as clients:
        for client in clients:
            peaks.add(client)
        time.sleep(5)
        with running(server, log=root / "server") as [aggregator]:
            peaks.add(aggregator)
            if way.line:
                _first_round(home, aggregator)
                round_line.shape(port_of(home), way.line)
            served(aggregator, root)
    peaks.stop()
    return {
        **figures(home),
        "encoding_cpu_seconds": None if processes else round(_encoding_seconds(root, sites), 2),
        "aggregator_rss_mb": peaks.mb[aggregator.pid],
        "site_rss_mb": max(peaks.mb[client.pid] for client in clients),
        "transit_peak_mb": peaks.directories[home.transit] / 1e6,
        "database_mb": (size(home.transit) + sum(f.stat().st_size for f in home.root.glob("ledger.sqlite*"))) / 1e6,
    }


def port_of(home: Layout) -> int:
    return home.settings().network.port


def _first_round(home: Layout, aggregator: subprocess.Popen[bytes]) -> None:
    """Until the first round is committed: it brings the whole base once, which a line of a site takes minutes for."""
    while aggregator.poll() is None and not any(r.committed for r in rounds_of(home)):
        time.sleep(0.1)


def rounds_of(home: Layout) -> list[Any]:
    ledger = Ledger(home.ledger)
    try:
        return list(ledger.rounds())
    finally:
        ledger.close()


def _encoding_seconds(root: Path, sites: int) -> float:
    """CPU seconds of packing, the median of every round of every site."""
    taken = [
        float(line) for n in range(sites) for line in (root / f"site-{n}" / "encoding-seconds").read_text().split()
    ]
    return statistics.median(taken)


def served(aggregator: subprocess.Popen[bytes], root: Path) -> None:
    if aggregator.wait(3600):
        raise SystemExit((root / "server-0.log").read_text())


def figures(home: Layout) -> dict[str, Any]:
    """Seconds from one commit to the next, the first from the opening of its round; bytes; verdicts."""
    ledger = Ledger(home.ledger)
    done = [r for r in ledger.rounds() if r.committed]
    starts = [done[0].opened, *(r.committed for r in done[:-1])]
    verdicts = list(ledger.verdicts(1).values())
    return {
        "bytes_up": verdicts[0].bytes,
        "seconds": [r.committed - start for r, start in zip(done, starts, strict=True)],
        "admitted": sum(v.verdict == "admitted" for v in verdicts),
    }
