"""Which recipe learns new organs without forgetting the old one? Real scans, a tiny model, the product's own parts.

    python benchmarks/continual.py [--quick] [--json] [--data DIR] [--cache DIR] [--seeds 5] [--first 0]
        [--steps 96] [--unit 12] [--all] [--workers 2] [--out DIR]

A seed learns breast; then four sites hold ovary, lung (clips), lung (frames) and fetal heads. Each arm is run from
each of the seeds with its own held-out patients, by the recipe that benchmarks/objective.py chose. A site alone has as many
images as the federation has ("alone"), or trains as long as each hospital does in it ("alone, as long"). Endpoints, fixed beforehand: the
masked loss of held-out patients with a decoder refitted alike for every arm, AUROC of BUS-BRA (old), and of ovary and
POCUS frames (new), by patient. Finished runs are kept in the cache, so an interrupted experiment goes on; --quick is one seed and
three arms. --out writes the table (Markdown), the plot (SVG) and what they show with every run (JSON).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import continual_arms as arms
import continual_data
import continual_table as table

from usfmae.core.files import replacing
from usfmae.core.types import recipe_id

ROOT = Path(__file__).parents[1]
QUICK = ("centralised", "federated", "federated, frozen seed")


def main() -> None:
    given = _arguments()
    size = arms.SMALL if given.quick else arms.Size(steps=given.steps, unit=given.unit)
    chosen = [a for a in arms.ARMS if a.main or given.all]
    names = [a.name for a in chosen if not given.quick or a.name in ("seed only", *QUICK)]
    seeds = range(given.first, given.first + (1 if given.quick else given.seeds))
    wanted = [(name, seed) for seed in seeds for name in names]
    given.cache.mkdir(parents=True, exist_ok=True)
    root = continual_data.prepare(given.data, given.cache)
    made = {"size": asdict(size), "model": arms.MODEL.model_dump(), "data": root.name}
    results_file = given.cache / f"results-{recipe_id(made)[:12]}"
    results_file.mkdir(exist_ok=True)
    if not given.report:
        _run(wanted, size, root, given.cache, results_file, given.workers)
    results = [json.loads(place.read_text()) for one in wanted if (place := _place(results_file, *one)).exists()]
    report = table.report(results, size, arms.MODEL, given.quick)
    if given.out:
        table.write(report, given.out)
    print(json.dumps(report, indent=2) if given.json else table.text(report))


def _place(results_file: Path, name: str, seed: int) -> Path:
    """Where a finished run lies; an arm that was changed is run anew."""
    arm = next(a for a in arms.ARMS if a.name == name)
    plain = "".join(c if c.isalnum() else "-" for c in name)
    return results_file / f"{seed}-{plain}-{recipe_id(asdict(arm))[:8]}.json"


def _run(
    wanted: list[tuple[str, int]], size: arms.Size, root: Path, cache: Path, results_file: Path, workers: int
) -> None:
    """Every arm and seed that is not on disk; seeds first, since all arms of a repetition start from one."""
    missing = [one for one in wanted if not _place(results_file, *one).exists()]
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for done in [pool.submit(arms.seed_model, root, size, seed, cache) for seed in sorted({s for _, s in missing})]:
            done.result()
        jobs = {}
        for name, seed in missing:
            jobs[pool.submit(arms.run, name, size, seed, root, cache)] = _place(results_file, name, seed)
        for count, job in enumerate(as_completed(jobs), 1):
            result = job.result()
            with replacing(jobs[job]) as partial:
                partial.write_text(json.dumps(result))
            print(
                f"{count}/{len(jobs)} {result['arm']}, seed {result['seed']}: {result['seconds']:.0f} s",
                file=sys.stderr,
            )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = Path(os.environ.get("USFMAE_TEST_DATA", ROOT.parent / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=data, help="folder of real ultrasound with its index.csv")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "usfmae" / "continual"
    parser.add_argument("--cache", type=Path, default=cache, help="corpora, seeds and finished runs")
    parser.add_argument("--seeds", type=int, default=5, help="repetitions of every arm")
    parser.add_argument("--steps", type=int, default=arms.Size.steps, help="optimizer steps of every site")
    parser.add_argument("--unit", type=int, default=arms.Size.unit, help="local steps of a round with E = 1")
    parser.add_argument(
        "--first", type=int, default=0, help="number of the first seed; choose on others than you report"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--all", action="store_true", help="also the arms that no target is read for")
    parser.add_argument("--quick", action="store_true", help="one seed, three arms")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--report", action="store_true", help="run nothing: report the finished runs in the cache")
    parser.add_argument("--out", type=Path, help="folder for continual-table.md, continual.svg and continual.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
