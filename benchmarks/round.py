"""What a round costs beside training: bytes, seconds and memory; ViT-B/16, real processes over TLS on this machine.

    python benchmarks/round.py --json [--sites 2] [--many 32] [--no-plain] [--flare PYTHON]
    python benchmarks/round.py --json --encoding sparse --line 4mbit      one site on a slow line, as root

Ours: `usfmae-server run` and the site agent, int8 updates. Plain Flower: SuperLink, SuperNodes and FedAvg with fp32
weights, TLS and node authentication, in the same run, turn and turn about. "Training" is one multiplication of every
weight on both sides, so a round's seconds are what is not training:

    ours     from one commit to the next: request, download, inspection, packing, residue and outbox on disk, signature,
             upload, gate, merge, checkpoint and ledger on disk
    plain    from one aggregation's end to the next: configure, download, reply, upload, aggregation; nothing is stored
    flare    NVIDIA FLARE's FedAvg, with `--flare` (see round_flare.py): from one request's arrival to the next one's

The first round of a turn is left out on both sides: it waits for processes to start, and ours sends the decoder once.

With `--line RATE` all of it runs in a network namespace in which what goes to the aggregator, and what comes from it, has
that rate from the second round on; one site, no measurement of memory. `encoding_cpu_seconds` is what a site packs for.

With `--sealed`: sealed rounds with a custodian (A, B and sites are processes of their own) beside ordinary rounds in the
same run; `--sealed 3 8` for these numbers of sites alone, `--encoding sparse` for the sparse form of both.

Memory with many sites: uploaders share the sites (four processes), since thirty-two agents do not fit a small machine.
They speak the same fleet API with signed int8 updates of their own; the aggregator is the real one and sees no
difference. The database is measured over twenty rounds of a small model.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import round_flare
import round_line
import round_ours
import round_plain
import round_sealed

from usfmae.core.tensors import TensorFile
from usfmae.server.layout import Layout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of one turn; the first is not timed")
    parser.add_argument("--turns", type=int, default=2, help="turns of each side; medians are over all their rounds")
    parser.add_argument("--many", type=int, default=32, help="sites of the second memory measurement; 0 leaves it out")
    parser.add_argument("--long", type=int, default=20, help="rounds of the database's measurement; 0 leaves it out")
    parser.add_argument("--encoding", default="int8", help="how our updates travel")
    parser.add_argument("--line", metavar="RATE", help="rate of a site's line, as tc writes it: 4mbit")
    parser.add_argument("--plain", action=argparse.BooleanOptionalAction, default=True, help="plain Flower as well")
    parser.add_argument("--flare", metavar="PYTHON", help="NVIDIA FLARE as well: the Python that has nvflare and torch")
    parser.add_argument("--small", action="store_true", help="a small model: does the benchmark itself work?")
    parser.add_argument(
        "--sealed", type=int, nargs="*", metavar="SITES", help="sealed rounds instead, beside ordinary ones"
    )
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if asked.line:
        round_line.enter()
        asked.sites, asked.many, asked.long = 1, 0, 0
    root = Path(tempfile.mkdtemp(prefix="usfmae-round-"))
    try:
        report = sealed(root, asked) if asked.sealed is not None else measure(root, asked)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(json.dumps(report, indent=2) if asked.json else "\n".join(f"{k:28s} {v}" for k, v in report.items()))


def measure(root: Path, asked: argparse.Namespace) -> dict[str, Any]:
    ours, plain, flare = [], [], []
    for turn in range(asked.turns):
        ours.append(
            _apart(root / f"ours-{turn}", round_ours.run, asked.sites, asked.rounds, asked.small, 0, _way(asked))
        )
        if asked.plain:
            plain.append(
                _apart(
                    root / f"plain-{turn}", round_plain.run, _shapes(root, asked), asked.sites, asked.rounds, asked.line
                )
            )
        if asked.flare:
            shapes = _shapes(root, asked)
            flare.append(
                _apart(root / f"flare-{turn}", round_flare.run, asked.flare, shapes, asked.sites, asked.rounds + 1)
            )
    report = _compared(ours, plain) | _beside(flare)
    if asked.many:
        many = _apart(root / "many", round_ours.run, asked.many, 1, asked.small, 4)
        report |= {"aggregator_rss_mb_32_sites": round(many["aggregator_rss_mb"]), "many_sites": asked.many}
        report |= {"many_admitted": many["admitted"], "many_round_seconds": round(many["seconds"][0], 1)}
    if asked.long:
        begun = _apart(root / "begun", round_ours.run, asked.sites, 2, True)
        long = _apart(root / "long", round_ours.run, asked.sites, asked.long, True)
        report |= {"database_mb": round(long["database_mb"], 3), "database_mb_2_rounds": round(begun["database_mb"], 3)}
        report |= {"database_rounds": len(long["seconds"])}
    report |= {"encoding": asked.encoding, "line": asked.line or "loopback"}
    return {**report, "load_average": round(os.getloadavg()[0], 1)}


def _way(asked: argparse.Namespace) -> round_ours.Way:
    return round_ours.Way(asked.encoding, asked.line or "")


def sealed(root: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Sealed rounds of two (refused) to eight sites, each number beside ordinary rounds of as many."""
    report: dict[str, Any] = {}
    for sites in asked.sealed or range(2, 9):
        if sites < 3:
            report[f"{sites} sites"] = _apart(root / f"few-{sites}", round_sealed.refused, sites, asked.small)
            continue
        closed = _apart(root / f"sealed-{sites}", round_sealed.run, sites, asked.rounds, asked.small, asked.encoding)
        open_ = _apart(root / f"open-{sites}", round_ours.run, sites, asked.rounds, asked.small, 0, _way(asked))
        seconds, others = (statistics.median(one["seconds"][1:]) for one in (closed, open_))
        report[f"{sites} sites"] = {
            "upload_ratio": round(closed["bytes_up"] / open_["bytes_up"], 3),
            "time_ratio": round(seconds / others, 3),
            "round_seconds": round(seconds, 2),
            "ordinary_round_seconds": round(others, 2),
            **{name: closed[name] for name in ("bytes_up", "custodian_bytes", "admitted")},
            **{name: round(closed[name]) for name in ("aggregator_rss_mb", "custodian_rss_mb", "site_rss_mb")},
            "ordinary_aggregator_rss_mb": round(open_["aggregator_rss_mb"]),
        }
    return {**report, "load_average": round(os.getloadavg()[0], 1)}


def _apart(place: Path, run: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """One measurement in a directory of its own, which goes with it; its figures on standard error."""
    place.mkdir(parents=True)
    found = run(place, *arguments)
    print(json.dumps({place.name: found}), file=sys.stderr, flush=True)
    shutil.rmtree(place, ignore_errors=True)
    return found


def _shapes(root: Path, asked: argparse.Namespace) -> list[tuple[int, ...]]:
    """Shapes of the encoder's tensors."""
    place = root / "shapes"
    if not place.exists():
        round_ours.federation(place, 1, asked.small)
    with TensorFile(Layout(place / "coordinator").checkpoint(0)) as file:
        return list(file.shapes.values())


def _compared(ours: list[dict[str, Any]], plain: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = [second for turn in ours for second in turn["seconds"][1:]]
    report = {
        "bytes_up": ours[0]["bytes_up"],
        "encoding_cpu_seconds": ours[0]["encoding_cpu_seconds"],
        "round_seconds": round(statistics.median(seconds), 2),
        "rounds_seconds": [round(second, 2) for second in seconds],
        "aggregator_rss_mb": round(max(turn["aggregator_rss_mb"] for turn in ours)),
        "site_rss_mb": round(max(turn["site_rss_mb"] for turn in ours)),
        "admitted": min(turn["admitted"] for turn in ours),
    }
    if plain:
        others = [second for turn in plain for second in turn["seconds"][1:]]
        report |= {
            "overhead_ratio": round(statistics.median(seconds) / statistics.median(others), 3),
            "plain_round_seconds": round(statistics.median(others), 2),
            "plain_rounds_seconds": [round(second, 2) for second in others],
            "plain_bytes_up": plain[0]["bytes_up"],
            "plain_serverapp_rss_mb": round(max(turn["serverapp_rss_mb"] for turn in plain)),
            "plain_superlink_rss_mb": round(max(turn["superlink_rss_mb"] for turn in plain)),
        }
    return report


def _beside(flare: list[dict[str, Any]]) -> dict[str, Any]:
    """The same figures of NVIDIA FLARE; its bytes are those of fp32 weights, as plain Flower's."""
    if not flare:
        return {}
    seconds = [second for turn in flare for second in turn["seconds"][1:]]
    return {
        "flare_round_seconds": round(statistics.median(seconds), 2),
        "flare_rounds_seconds": [round(second, 2) for second in seconds],
        "flare_aggregator_rss_mb": round(max(turn["server_job_rss_mb"] for turn in flare)),
        "flare_site_rss_mb": round(max(turn["site_job_rss_mb"] for turn in flare)),
    }


if __name__ == "__main__":
    main()
