"""What a corpus of millions of scans costs: prints seconds and memory of each thing that grows with it.

    python benchmarks/scale.py [--entries 1000000] [--ten-million] [--openus46 374192] [--json]

Entries are made, not real files: folders of 100 scans that the ledger knows, walked by a generator of such listings
whose own time is told apart (`walk`). Each thing is measured in a process of its own; memory is its highest resident
size, libraries included. Version 0.1 kept JSON lines: reading them is measured beside, in the same run.
`--openus46 N` makes N real small pictures in the layout of OpenUS-46 and runs what reads all of them.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

SECRET, PER_FOLDER, PER_TASK = b"s" * 32, 100, 1024
SETTINGS = {"model": {"image_size": 64}}


# Made entries ---------------------------------------------------------------------------------------------------------


def listings(entries: int, new: int = 0) -> Iterator[Any]:
    """Folders of a walk over `entries` files; the first `new` folders hold one file more."""
    from usfmae.core.read.discover import Listing

    yield Listing("/scans", "")
    for folder in range(entries // PER_FOLDER):
        files = [(f"IM{n:05d}", 500_000 + n, 1_700_000_000_000_000_000 + folder) for n in range(PER_FOLDER)]
        if folder < new:
            files.append(("IM99999", 1, 1))
        yield Listing(f"/scans/{folder:07d}", f"{folder:07d}", "/scans", tuple(files))


class MadePool:
    """Identifies at once, as a decoding process would: what is measured is the ledger."""

    size, secret = 2, SECRET

    def __init__(self) -> None:
        from usfmae.core.config import Settings

        self.settings = Settings.model_validate(SETTINGS)

    def call(self, function: Callable[..., Any], item: Any) -> Future[Any]:
        from usfmae.core.types import content_id

        done: Future[Any] = Future()
        id_ = content_id(str(item.path))
        done.set_result({"outcome": "scan", "id": id_, "kind": "dicom", "group": id_, "study": id_, "planned": 1})
        return done


def build(corpus: Path, entries: int) -> dict[str, Any]:
    """A ledger in which all of them are cleaned: one image each, one in a hundred kept back."""
    from usfmae.core.prepare import identify
    from usfmae.core.prepare.ledger import CorpusLedger
    from usfmae.core.prepare.ledger_queries import entry_of

    ledger = CorpusLedger(corpus)
    pass_ = identify._Pass
    with ledger.working(), ledger.writing():
        ledger.open("recipe", {})
        db = ledger.db
        db.execute("PRAGMA cache_size = -3000000")
        stock = pass_(identify.Sources([]), ledger, MadePool(), None)  # type: ignore[arg-type]
        ids = random.Random(1)

        def rows() -> Iterator[tuple[str, tuple[Any, ...]]]:
            n = 0
            for number, listing in enumerate(listings(entries), 1):
                key = identify.folder_key(SECRET, listing.place)
                yield "folders", (number, key, int(number > 1), stock._hash(listing), 0, 1)
                looked_at = number < 1100  # folders that stay as they are get keys nobody asks for
                places = [identify.place_key(SECRET, c) for c in listing.candidates()] if looked_at else None
                for file in range(len(listing.files)):
                    n += 1
                    made = ids.randbytes(112)
                    id_, task = made[:32], 1 + (n - 1) // PER_TASK
                    held = n % 100 == 0
                    yield "places", (number, places[file] if places else made[96:], "scan", "", "", n)
                    yield "scans", (n, id_, "dicom", made[32:64], "", made[64:96], 1, "DICOM JPEG Baseline",
                                    "GE Vivid E95", task, n, "read", "", 1, 0, int(not held),
                                    '{"text-left": 1}' if held else "{}", "", 90.5, 0.5, 0.01)  # fmt: skip
                    yield "packed", (2 * task, (n - 1) % PER_TASK, n, "[0]")
                    if held:
                        yield "held", (entry_of(id_.hex(), 0), id_, 0, "text-left")
            for task in range(1, 2 + (n - 1) // PER_TASK):
                images = min(PER_TASK, n - (task - 1) * PER_TASK)
                yield "tasks", (task, f"0001-{task - 1:06d}", 1, 1)
                yield "shards", (2 * task, f"0001-{task - 1:06d}.gray.npy", task, images)

        waiting: dict[str, list[tuple[Any, ...]]] = {}
        for table, row in rows():
            waiting.setdefault(table, []).append(row)
            if len(waiting[table]) == 50_000:
                insert(db, table, waiting.pop(table))
        for table, left in waiting.items():
            insert(db, table, left)
        count, held = entries, entries // 100
        counts = {"scans": count, "read": count, "frames": count, "kept": count - held, "held": held}
        ledger.books.update({(True, name): value for name, value in counts.items()})
        ledger.books.update({(True, "because text-left"): held, (False, "entry text-left"): held})
    shards(corpus, -(-entries // PER_TASK))
    return {"megabytes": round(ledger.file.stat().st_size / 1e6)}


def insert(db: Any, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
    db.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)


def shards(corpus: Path, count: int) -> None:
    """Files in the place of shards, with the header of one of 1024 images and an index of nothing."""
    folder = corpus / "shards"
    folder.mkdir(parents=True)
    header = folder / "header.npy"
    np.lib.format.open_memmap(header, "w+", np.uint8, (PER_TASK, 224, 224))
    head = header.read_bytes()[:128]
    header.unlink()
    for task in range(count):
        (folder / f"0001-{task:06d}.gray.npy").write_bytes(head)
        (folder / f"0001-{task:06d}.gray.json").write_text("{}")


def run_pass(corpus: Path, entries: int, new: int) -> dict[str, Any]:
    """What `prepare` does before it cleans, and the walk alone."""
    from usfmae.core.prepare import identify
    from usfmae.core.prepare.ledger import CorpusLedger
    from usfmae.core.prepare.run import planned

    def walked(*_: object, **__: object) -> Iterator[Any]:
        return listings(entries, new)

    began = time.perf_counter()
    for _ in walked():
        pass
    walk = time.perf_counter() - began
    identify.listings = walked
    ledger = CorpusLedger(corpus)
    began = time.perf_counter()
    with ledger.working(), ledger.writing():
        ledger.open("recipe", {})
        scans = identify.identified(identify.Sources([Path("/scans")]), ledger, MadePool())  # type: ignore[arg-type]
        ledger.add_plan(planned(ledger.unplanned(), PER_TASK))
        ledger.save()
        tasks = ledger.open_tasks()
        counts = ledger.counts(present=True)
    seconds = time.perf_counter() - began
    assert counts["scans"] == entries + new and len(scans.files) == new and bool(tasks) == bool(new)
    return {"walk": walk, "beyond_the_walk": seconds - walk}


def ask(corpus: Path) -> dict[str, Any]:
    """Milliseconds of what pages and `status` ask, medians of 5 after the first."""
    from usfmae.client import status
    from usfmae.client.review import corpus_view, quarantine
    from usfmae.client.site import create
    from usfmae.core import keys
    from usfmae.core.config.site import SiteSettings
    from usfmae.core.prepare.ledger import CorpusLedger

    public = corpus.parent / "coordinator.pem"
    public.write_text(keys.public_pem(keys.new_signing_key()))
    site = create(corpus.parent / "site", SiteSettings(name="scale", server="https://fl.example:8443"), None, public)
    site.corpus.parent.mkdir(exist_ok=True)
    if site.corpus.exists():
        site.corpus.rmdir()
    site.corpus.symlink_to(corpus)
    ledger, view = CorpusLedger(corpus), corpus_view.CorpusView()
    intake = quarantine.Intake().refresh(corpus)
    (entry,) = quarantine.waiting(site, intake, "text-left", 1)
    questions: dict[str, Callable[[], object]] = {
        "counts": lambda: quarantine.Intake().refresh(corpus),
        "waiting_by_reason": lambda: quarantine.waiting_by_reason(site, intake),
        "quarantine_page": lambda: quarantine.waiting(site, intake, "", 200),
        "entry": lambda: quarantine.find(intake, entry.id),
        "way_to_scan": lambda: ledger.way_to(entry.scan),
        "origin_of_image": lambda: ledger.origin("0001-000007.gray.npy", 300),
        "images_for_status": lambda: status.summary(site),
        "kept_list": lambda: view.refresh(corpus).slice(0, 24),
    }
    began = time.perf_counter()
    corpus_view.CorpusView().refresh(corpus)
    first = {"kept_list_first": round(1000 * (time.perf_counter() - began), 2)}
    return first | {name: round(1000 * median(question), 2) for name, question in questions.items()}


def median(work: Callable[[], object]) -> float:
    taken = []
    for _ in range(6):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return float(np.median(taken[1:]))


def old_lines(corpus: Path, entries: int) -> dict[str, Any]:
    """What version 0.1 kept: a JSON line a file."""
    from usfmae.core.types import content_id

    (corpus / "ledger").mkdir(parents=True, exist_ok=True)
    with (corpus / "ledger" / "places.jsonl").open("w") as file:
        for n in range(entries):
            id_ = content_id(str(n))
            entry = {"place": id_, "outcome": "scan", "id": id_, "kind": "dicom", "group": id_, "study": id_,
                     "planned": 1, "frames": 1, "format": "DICOM JPEG Baseline", "device": "GE Vivid E95"}  # fmt: skip
            file.write(json.dumps(entry, sort_keys=True) + "\n")
    return {}


def read_old_lines(corpus: Path) -> dict[str, Any]:
    """Read whole into a dictionary, as each of five callers of version 0.1 did."""
    lines = {}
    with (corpus / "ledger" / "places.jsonl").open("rb") as file:
        for line in file:
            entry = json.loads(line)
            lines[entry.pop("place")] = entry
    return {"entries": len(lines)}


def take_over(corpus: Path) -> dict[str, Any]:
    from usfmae.core.prepare.ledger import CorpusLedger

    return {"scans": CorpusLedger(corpus).counts()["scans"]}


# OpenUS-46: real small files ------------------------------------------------------------------------------------------


def openus46(root: Path, files: int) -> dict[str, Any]:
    """Small pictures under names that each data set's layout accepts, in the shares of Table 1."""
    from usfmae.core.openus46.registry import TABLE_1_TOTAL, registry

    made, left = 0, files
    for dataset in registry().values():
        count = min(left, max(1, round(dataset.images * files / TABLE_1_TOTAL)))
        left -= count
        for number in range(count):
            path = root / dataset.folders[0] / name_for(dataset.include[0], number)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(made))
            made += 1
    return {"files": made}


def name_for(glob: str, number: int) -> str:
    """A name that a glob accepts. Suffixes of clips and volumes become `.png`: each file is one small picture."""
    name = re.sub(r"\{([^,}]*)[^}]*\}", r"\1", glob).replace("**/", f"p{number % 97:02d}/")
    name = re.sub(r"(\[0-9\])+", f"{number:03d}", name)
    folder, _, last = name.rpartition("/")
    last = last.replace("*", f"{number:06d}", 1).replace("*", "")
    return f"{folder}/{last}" if folder else last


def picture(number: int) -> bytes:
    """A 64 x 64 gray PNG, each another, of a few hundred bytes."""
    import cv2

    pixels = np.zeros((64, 64), np.uint8)
    pixels[8:56, 8:56] = np.random.default_rng(number).integers(0, 255, (6, 6), np.uint8).repeat(8, 0).repeat(8, 1)
    return bytes(cv2.imencode(".png", pixels)[1])


def check_data_sets(root: Path) -> dict[str, Any]:
    from usfmae.core.openus46.layout import check_all
    from usfmae.core.openus46.registry import registry

    checks = check_all(registry().values(), root)
    return {"scans": sum(one.scans for one in checks), "data_sets": sum(one.scans > 0 for one in checks)}


def identify_files(root: Path, corpus: Path) -> dict[str, Any]:
    from usfmae.core.config import Settings
    from usfmae.core.prepare.identify import Sources, identified
    from usfmae.core.prepare.ledger import CorpusLedger
    from usfmae.core.prepare.run import planned
    from usfmae.core.sandbox.pool import Pool

    settings, ledger = Settings.model_validate(SETTINGS), CorpusLedger(corpus)
    with ledger.working(), Pool(2, settings, SECRET) as pool, ledger.writing():
        ledger.open("recipe", {})
        began = time.perf_counter()
        scans = identified(Sources([root]), ledger, pool)
        identification, began = time.perf_counter() - began, time.perf_counter()
        ledger.add_plan(planned(ledger.unplanned(), PER_TASK))
        ledger.save()
        return {"scans": len(scans.files), "identification": identification, "plan": time.perf_counter() - began}


def know_files(root: Path, corpus: Path) -> dict[str, Any]:
    """The same again: nothing is new."""
    from usfmae.core.prepare.ledger import CorpusLedger

    before = CorpusLedger(corpus).counts()["scans"]
    done = identify_files(root, corpus)
    assert CorpusLedger(corpus).counts()["scans"] == before
    return {"again": done["identification"]}


def pack(corpus: Path, images: int) -> dict[str, Any]:
    """A corpus of noise, 64 x 64, in 46 data sets."""
    from usfmae.core.corpus.shard import PackedImage, write_shard

    rng = np.random.default_rng(0)
    for first in range(0, images, 4096):
        block = rng.integers(0, 255, (min(4096, images - first), 64, 64), np.uint8)
        items = [PackedImage(one, f"{first + n:064x}", f"{(first + n) // 50:064x}", f"set-{(first + n) * 46 // images}")
                 for n, one in enumerate(block)]  # fmt: skip
        write_shard(corpus, f"0001-{first // 4096:06d}", items)
    return {}


def open_corpus(corpus: Path) -> dict[str, Any]:
    from usfmae.core.corpus.batch import Corpus
    from usfmae.core.corpus.sampling import Sampler

    began = time.perf_counter()
    opened = Corpus([corpus])
    opening, began = time.perf_counter() - began, time.perf_counter()
    train, _ = opened.split(0.01, 0)
    sampler = Sampler(train, opened.datasets, 256, 0)
    for step in range(100):
        sampler.batch(step)
    return {"images": len(opened), "opening": opening, "split_and_100_batches": time.perf_counter() - began}


def audit_leaks(corpus: Path, benchmark: int) -> dict[str, Any]:
    from usfmae.core.corpus.batch import Corpus
    from usfmae.core.openus46.leak import same_pictures

    opened = Corpus([corpus], verify=False)
    squares = opened.fetch(np.arange(benchmark)).pixels.copy()
    pairs = same_pictures("made", [str(n) for n in range(benchmark)], squares, opened, np.arange(len(opened)), 10)
    return {"benchmark_images": benchmark, "found": len(pairs)}


# Each in a process of its own -----------------------------------------------------------------------------------------

MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    function.__name__: function
    for function in (
        build,
        run_pass,
        ask,
        old_lines,
        read_old_lines,
        take_over,
        openus46,
        check_data_sets,
        identify_files,
        know_files,
        pack,
        open_corpus,
        audit_leaks,
    )
}


def measured(name: str, *values: object) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", name, *(str(value) for value in values)]
    print(name, *values[1:], file=sys.stderr)
    return dict(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))


def measure(name: str, values: Sequence[str]) -> dict[str, Any]:
    began = time.perf_counter()
    done = MEASURES[name](*(int(value) if value.isdigit() else Path(value) for value in values))
    rounded = {key: round(value, 2) if isinstance(value, float) else value for key, value in done.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": round(time.perf_counter() - began, 2), "peak_mib": round(peak), **rounded}


def ledger_figures(root: Path, entries: int, with_old: bool) -> dict[str, Any]:
    corpus = root / "corpus"
    figures = {
        "build": measured("build", corpus, entries),
        "nothing_new": measured("run_pass", corpus, entries, 0),
        "thousand_new": measured("run_pass", corpus, entries, 1000),
        "milliseconds": measured("ask", corpus),
    }
    if with_old:
        measured("old_lines", root / "old", entries)
        figures["json_lines_of_0.1"] = measured("read_old_lines", root / "old")
        figures["take_over"] = measured("take_over", root / "old")
    return figures


def openus46_figures(root: Path, files: int) -> dict[str, Any]:
    data, corpus, packed = root / "data", root / "identified", root / "packed"
    figures = {
        "made": measured("openus46", data, files),
        "datasets_check": measured("check_data_sets", data),
        "identification": measured("identify_files", data, corpus),
        "identification_again": measured("know_files", data, corpus),
    }
    measured("pack", packed, files)
    return figures | {
        "corpus_and_sampler": measured("open_corpus", packed),
        "leak_audit": measured("audit_leaks", packed, min(1875, files)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--ten-million", action="store_true")
    parser.add_argument("--openus46", type=int, default=0, metavar="FILES")
    parser.add_argument("--folder", type=Path, help="Where to work (default: a temporary folder).")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure[0], given.measure[1:])))
        return 0
    entries = 10_000_000 if given.ten_million else given.entries
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        figures: dict[str, Any] = {"entries": entries}
        if entries:
            figures["ledger"] = ledger_figures(Path(folder), entries, with_old=not given.ten_million)
        if given.openus46:
            figures["openus46"] = openus46_figures(Path(folder), given.openus46)
    text = json.dumps(figures, indent=2)
    print(text if given.json else re.sub(r'[{}",]', "", text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
