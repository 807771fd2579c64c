"""Sealed rounds for benchmarks/round.py: aggregator, custodian and agents, real processes over TLS."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import round_ours
import yaml
from round_processes import Peaks, free_port, running

from usfmae.server.custodian.home import CustodianHome, CustodianSettings, create
from usfmae.server.layout import Layout
from usfmae.server.ledger import Ledger

HERE = Path(__file__).resolve().parent
STAYS_OPEN = 20.0  # seconds for which a round of too few sites must not close once all of them have answered


def run(root: Path, sites: int, rounds: int, small: bool, encoding: str) -> dict[str, Any]:
    """Serve `rounds` sealed rounds; figures as round_ours.run, with the custodian's."""
    home, keeper = federation(root, sites, small, encoding)
    peaks = Peaks()
    commands = [[sys.executable, str(HERE / "round_site.py"), "agent", str(root / f"site-{n}")] for n in range(sites)]
    server = [sys.executable, "-m", "usfmae.server", "run", str(home.root), "--rounds", str(rounds)]
    custodian = [sys.executable, "-m", "usfmae.server", "custodian", "run", str(keeper.root)]
    with running(custodian, log=root / "custodian") as [second], running(*commands, log=root / "site") as clients:
        for process in (second, *clients):
            peaks.add(process)
        time.sleep(5)
        with running(server, log=root / "server") as [aggregator]:
            peaks.add(aggregator)
            round_ours.served(aggregator, root)
    peaks.stop()
    values = json.loads(json.loads(home.transcript(1).read_text())[0]["text"])["count"]
    return {
        **round_ours.figures(home),
        "aggregator_rss_mb": peaks.mb[aggregator.pid],
        "custodian_rss_mb": peaks.mb[second.pid],
        "site_rss_mb": max(peaks.mb[client.pid] for client in clients),
        "custodian_bytes": 2 * values,  # the sum of masks; its messages are a few kilobytes
    }


def refused(root: Path, sites: int, small: bool) -> dict[str, Any]:
    """What becomes of a round of so few sites: all answer, and it does not close."""
    home, keeper = federation(root, sites, small)
    commands = [[sys.executable, str(HERE / "round_site.py"), "agent", str(root / f"site-{n}")] for n in range(sites)]
    server = [sys.executable, "-m", "usfmae.server", "run", str(home.root), "--rounds", "1"]
    custodian = [sys.executable, "-m", "usfmae.server", "custodian", "run", str(keeper.root)]
    ledger = Ledger(home.ledger)
    with running(custodian, server, *commands, log=root / "process"):
        while len(ledger.verdicts(1)) < sites:
            time.sleep(0.5)
        time.sleep(STAYS_OPEN)
    return {"committed": ledger.last_round() is not None, "sums": len(keeper.records().get("sums", {}))}


def federation(root: Path, sites: int, small: bool, encoding: str = "int8") -> tuple[Layout, CustodianHome]:
    """As round_ours.federation, with a custodian."""
    home, port = round_ours.federation(root, sites, small, encoding), free_port()
    keeper = CustodianHome(root / "keeper")
    create(keeper.root, CustodianSettings(name="institute", host="127.0.0.1", port=port), home.public_key)
    _change(home.settings_file, custodian={"url": f"https://127.0.0.1:{port}", "card": str(keeper.card)})
    settings = yaml.safe_load(home.settings_file.read_text())
    _change(home.settings_file, rounds={**settings["rounds"], "sealed": True})
    for number in range(sites):
        keeper.add_site(root / f"site-{number}" / "enrol.json")
        _change(root / f"site-{number}" / "site.yaml", custodian=json.loads(keeper.card.read_text())["box_key"])
    return home, keeper


def _change(file: Path, **values: Any) -> None:
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **values}, sort_keys=False))
