"""How fast both pages and both metrics endpoints answer, and what an idle aggregator keeps in memory: prints JSON.

    python benchmarks/pages.py --sites 50 --rounds 500

Everything is asked over HTTP from real servers on loopback, after one call that warms up; medians of `--calls`.
The site has one update a round in its outbox. The aggregator is the real process tree with a ViT-B, no site connected.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np

from usfmae.client.outbox import Outbox
from usfmae.client.page.app import application as site_page
from usfmae.client.page.app import serving
from usfmae.client.page.view import figures as site_figures
from usfmae.client.review.quarantine import Intake
from usfmae.client.site import Site, create, write_json
from usfmae.core import audit, keys, metrics
from usfmae.core.config.site import SiteSettings
from usfmae.core.corpus.shard import PackedImage, write_shard
from usfmae.core.federated.enrolment import Enrolment
from usfmae.core.web.server_thread import serve_metrics
from usfmae.server.dashboard.app import application as coordinator_page
from usfmae.server.dashboard.figures import figures as server_figures
from usfmae.server.dashboard.view import History
from usfmae.server.layout import Layout
from usfmae.server.ledger import Ledger, Verdict

ORGANS = ("abdomen", "breast", "fetus", "heart", "kidney", "liver", "lung", "nerve", "ovary", "thyroid")
COORDINATOR = ("/", "/sites", "/rounds", "/rounds/250", "/lineage")
SITE = ("/", "/kept", "/kept?page=900", "/kept/000003.gray/7/image.png", "/quarantine", "/outbox", "/audit")


def coordinator(root: Path, sites: int, rounds: int) -> Layout:
    """A campaign of which the last round is open, with a panel of ten organs."""
    home = Layout(root)
    home.keys.mkdir(parents=True)
    ledger = Ledger(home.ledger, create=True)
    ledger.set_fact("campaign", "consortium")
    for number in range(sites):
        public = keys.public_pem(keys.new_node_key()), keys.public_pem(keys.new_signing_key())
        ledger.add_site(Enrolment(f"hospital-{number:02d}", *public, 100_000))
    enrolled, start = sorted(ledger.sites()), time.time() - rounds * 3600.0
    with ledger._write() as db:
        for number in range(1, rounds + 1):
            begun, last = start + number * 3600.0, number == rounds
            panel = {"organs": {o: {"loss": 0.3 + 1 / number} for o in ORGANS}, "seed": dict.fromkeys(ORGANS, 0.4)}
            summary = {"loss_before": 0.3 + 1 / number, "loss_after": 0.29 + 1 / number, "panel": panel}
            state = ("open", None, None) if last else ("committed", begun + 1800, json.dumps(summary))
            row = (
                number,
                state[0],
                f"{number - 1:064x}",
                number * 200,
                200,
                begun,
                state[1],
                f"{number:064x}",
                state[2],
            )
            db.execute("INSERT INTO rounds VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            replies = [vars(_reply(number, site, begun)) for site in enrolled[: sites // 2 if last else sites]]
            names = ", ".join(replies[0])
            marks = ", ".join(f":{name}" for name in replies[0])
            db.executemany(f"INSERT INTO replies ({names}) VALUES ({marks})", replies)
    ledger.close()
    return home


def _reply(number: int, site: str, begun: float) -> Verdict:
    verdict = ("admitted", "") if hash((number, site)) % 40 else ("norm", "9.3 times the median")
    sizes = {"images": 8000, "steps": 200, "bytes": 86_400_000}
    return Verdict(number, site, *verdict, **sizes, norm=0.9, weight=0.02, loss_before=0.4, loss_after=0.39,
                   seconds=900.0, received=begun + 1200)  # fmt: skip


def hospital(root: Path, rounds: int) -> Site:
    """A site with an outbox entry a round, 20,000 scans, 40,000 images and 400 frames in quarantine."""
    public = root / "coordinator.pem"
    public.write_text(keys.public_pem(keys.new_signing_key()))
    site = create(root / "site", SiteSettings(name="st-olav", server="https://fl.example:8443"), None, public)
    tasks = site.corpus / "ledger" / "tasks"
    tasks.mkdir(parents=True)
    for task in range(200):
        scans = [_scan(task * 100 + i) for i in range(100)]
        (tasks / f"{task:06d}.json").write_text(json.dumps({"scans": scans}))
    pixels = np.zeros((16, 16), np.uint8)
    for shard in range(10):
        write_shard(site.corpus, f"{shard:06d}", [PackedImage(pixels, f"{shard}-{i}", "g") for i in range(4000)])
    record = {"encoding": "int8", "images": 8000, "steps": 200, "seconds": 900.0}
    record |= {"loss_before": 0.4, "loss_after": 0.39, "content": "c" * 64}
    for number in range(1, rounds + 1):
        place = site.root / "outbox" / f"r{number:05d}-{number:012x}"
        place.mkdir(parents=True)
        entry = {"id": place.name, "campaign": "consortium", "round": number, "base": "b" * 64, "tensors": 150}
        entry |= {"recipient": site.settings.server, "created": number * 3600.0, "release": "auto", "norm": 0.9}
        write_json(place / "entry.json", {**entry, "bytes": 86_400_000, "record": record})
        write_json(place / "sent.json", {"time": number * 3600.0 + 60, "bytes": 86_400_000})
        for event in ("request.accepted", "outbox.staged", "outbox.sent"):
            audit.append(site.audit_log, "site", event, round=number)
    return site


def _scan(number: int) -> dict[str, object]:
    held = {"text-left": [0, 1]} if number % 100 == 0 else {}
    counts = {"frames": 30, "duplicates": 20, "kept": 10 - 2 * bool(held)}
    return {"id": f"{number:064x}", "outcome": "read", "reason": "", "notes": [], "quarantined": held, **counts}


def timed(client: httpx.Client, path: str, calls: int) -> float:
    """Median milliseconds of a call that is answered with 200."""
    taken = []
    for _ in range(calls + 1):
        started = time.perf_counter()
        answer = client.get(path)
        taken.append((time.perf_counter() - started) * 1e3)
        assert answer.status_code == 200, f"{path}: {answer.status_code}"
    return round(statistics.median(taken[1:]), 1)


def pages(application: object, paths: tuple[str, ...], token: Path, calls: int) -> dict[str, float]:
    with serving(application, "127.0.0.1", 0) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        client.post("/login", data={"token": token.read_text().strip()})
        return {path: timed(client, path, calls) for path in paths}


def scraped(registry: object, calls: int) -> float:
    stop, port = serve_metrics(registry, "127.0.0.1", 0)  # type: ignore[arg-type]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            return timed(client, "/metrics", calls)
    finally:
        stop()


def megabytes(process: int) -> float:
    """Proportional set size of a process and all below it."""
    below = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    size = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{process}/smaps_rollup").read_text(), re.MULTILINE)
    assert size
    return int(size[1]) / 1000 + sum(megabytes(int(child)) for child in below)


@contextmanager
def aggregator(root: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "usfmae.server"]
    options = ["--name", "idle", "--port", "0", "--set", "page.port=0"]
    subprocess.run([*command, "init", str(root), *options], check=True, capture_output=True)
    process = subprocess.Popen([*command, "run", str(root)], stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def idle(root: Path, seconds: float) -> float:
    """Megabytes of an aggregator that waits for sites."""
    with aggregator(root) as process:
        while not Layout(root).address.exists():
            time.sleep(0.2)
        time.sleep(seconds)
        return round(megabytes(process.pid))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--calls", type=int, default=15)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        home, site = coordinator(root / "coordinator", given.sites, given.rounds), hospital(root, given.rounds)
        history, intake, shelf = History(), Intake(), Outbox(site)
        server = metrics.registry(lambda: server_figures(home, history), "server", fresh_seconds=0)
        local = metrics.registry(lambda: site_figures(site, intake, shelf), "site", fresh_seconds=0)
        tokens = home.keys / "page.token", site.root / "keys" / "page.token"
        milliseconds = {
            "coordinator": pages(coordinator_page(home), COORDINATOR, tokens[0], given.calls),
            "site": pages(site_page(site), SITE, tokens[1], given.calls),
            "metrics": {"server": scraped(server, given.calls), "site": scraped(local, given.calls)},
        }
        megabytes_ = idle(root / "idle", 20)
    sizes = {"sites": given.sites, "rounds": given.rounds}
    print(json.dumps({**sizes, "milliseconds": milliseconds, "idle_aggregator_megabytes": megabytes_}, indent=2))


if __name__ == "__main__":
    main()
