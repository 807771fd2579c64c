"""How long a person waits for the pictures of the quarantine, over the real page and decoding processes; JSON.

    python benchmarks/light_table.py SITE [--count 24] [--look 1.5]

SITE is a site with frames in quarantine whose scans are still there. `table`: the first pages' pictures asked for as a
browser does, several at once; seconds of each picture after the first, and pictures a second. `one_by_one`: a person
looks at one picture for `--look` seconds, drops it (in a copy of the site) and gets the next.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from usfmae.client.page.app import application, serving
from usfmae.client.review import quarantine
from usfmae.client.site import Site

CONNECTIONS = 6  # of a browser to one address


def measure(site: Site, count: int, look: float) -> dict[str, object]:
    """Both ways of looking at the first `count` entries."""
    intake = quarantine.Intake().refresh(site.corpus)
    held = [one for one in quarantine.waiting(site, intake) if one.index >= 0][:count]
    with serving(application(site), "127.0.0.1", 0) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as page:
        token = (site.root / "keys" / "page.token").read_text().strip()
        page.post("/login", data={"token": token, "next": "/"})
        table = _table(page, held)
    with serving(application(site), "127.0.0.1", 0) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as page:
        page.post("/login", data={"token": token, "next": "/"})
        single = _one_by_one(page, site, held, look)
    return {"cores": os.cpu_count(), "load": os.getloadavg()[0], "table": table, "one_by_one": single}


def _table(page: httpx.Client, held: list[quarantine.QuarantinedFrame]) -> dict[str, float]:
    began = time.perf_counter()
    page.get("/quarantine").raise_for_status()
    first = time.perf_counter() - began

    def picture(one: quarantine.QuarantinedFrame) -> float:
        page.get(f"/quarantine/{one.id}/changed.png", timeout=120)
        return time.perf_counter() - began

    with ThreadPoolExecutor(CONNECTIONS) as browser:
        done = sorted(browser.map(picture, held))
    gaps = [later - earlier for earlier, later in itertools.pairwise(done)]
    return {
        "page": round(first, 3),
        "first_picture": round(done[0], 3),
        "after_the_first_mean": round(statistics.mean(gaps), 3),
        "after_the_first_worst": round(max(gaps), 3),
        "pictures": len(done),
    }


def _one_by_one(
    page: httpx.Client, site: Site, held: list[quarantine.QuarantinedFrame], look: float
) -> dict[str, float]:
    waits, place = [], f"/quarantine/{held[0].id}"
    for _ in held:
        began = time.perf_counter()
        shown = page.get(place, timeout=120).raise_for_status().text
        page.get(f"{place}/changed.png", timeout=120)
        waits.append(time.perf_counter() - began)
        time.sleep(look)
        mark = shown.partition('name="form_token" value="')[2].partition('"')[0]
        answer = page.post(f"{place}/decide", data={"form_token": mark, "decision": "drop"})
        place = answer.headers["location"]
        if place == "/quarantine":  # the last of its reason
            left = quarantine.waiting(site, quarantine.Intake().refresh(site.corpus), limit=1)
            place = f"/quarantine/{left[0].id}" if left else "/"
    after = sorted(waits[1:])
    return {
        "first": round(waits[0], 3),
        "median": round(statistics.median(after), 3),
        "p90": round(after[int(0.9 * len(after))], 3),
        "within_300_ms": round(sum(wait <= 0.3 for wait in after) / len(after), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", type=Path)
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--look", type=float, default=1.5)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(chosen.site, Path(folder) / "site")
        print(json.dumps(measure(Site.open(copy), chosen.count, chosen.look), indent=1))


if __name__ == "__main__":
    main()
