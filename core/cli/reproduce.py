"""`usfmae reproduce`: from the data sets on disk to the paper's Table 2."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from usfmae.core.cli.datasets import CORPORA
from usfmae.core.cli.probe import weights_option
from usfmae.core.cli.shell import NewFolder, configured, print_json

if TYPE_CHECKING:
    from usfmae.core.bench.reproduce.plan import Plan

TINY_LIMIT = 20  # scans of each data set: the whole path, small


@click.command(
    help="""OpenUS-46 on disk to corpus, leak audit, pretraining, probes, fine-tuning and one report.

    ROOT holds a folder or zip for each data set; see 'usfmae datasets check --root ROOT'. What is missing is named in
    the report. Run the same command again after an interruption: a step that is done is not done again.

    \b
    usfmae reproduce --root DATASETS --out paper --dry-run
    """
)
@click.option("--root", required=True, type=click.Path(path_type=Path), help="Folder with a folder or zip a data set.")
@click.option("--out", required=True, type=NewFolder(), help="Folder of results.")
@click.option(
    "--preset",
    type=click.Choice(["paper", "official-notebook", "tiny"]),
    default="paper",
    show_default=True,
    help="Recipe of the pretraining; tiny tries the whole path with a small encoder; --dry-run says how long.",
)
@click.option(
    "--corpus", type=click.Choice(CORPORA), default="strict42", show_default=True, help="Data sets to pretrain on."
)
@click.option(
    "--licence",
    type=click.Choice(["any", "permissive"]),
    default="any",
    show_default=True,
    help="permissive leaves out data sets whose licence forbids commercial use.",
)
@click.option(
    "--profile", type=click.Choice(["safe", "paper"]), default="paper", show_default=True, help="Cleaning of the scans."
)
@click.option(
    "--limit",
    type=click.IntRange(0),
    default=None,
    help=f"Most scans read of a data set, spread evenly; 0: all. Default: {TINY_LIMIT} with --preset tiny, else all.",
)
@weights_option
@click.option("--baseline", "baselines", multiple=True, help="Model to compare with; repeatable. Default: all on disk.")
@click.option("--finetune/--no-finetune", default=None, help="Fine-tune too; default: not with --preset tiny.")
@click.option(
    "--workers", type=click.IntRange(1), default=None, help="Processes that read scans (default: one per core)."
)
@click.option("--dry-run", is_flag=True, help="Check the data, print the steps with estimated hours, and stop.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@configured
def reproduce(
    root: Path,
    out: Path,
    preset: str,
    corpus: str,
    licence: str,
    profile: str,
    limit: int | None,
    weights: Path | None,
    baselines: tuple[str, ...],
    finetune: bool | None,
    workers: int | None,
    dry_run: bool,
    as_json: bool,
    config_file: Path | None,
    overrides: tuple[str, ...],
) -> None:
    from usfmae.core.bench.reproduce.plan import CorpusChoice, ModelChoice, make
    from usfmae.core.bench.reproduce.run import Workplace
    from usfmae.core.bench.reproduce.run import reproduce as run
    from usfmae.core.mae.presets import TRIAL, configure
    from usfmae.core.openus46.registry import CorpusName, LicenceFilter
    from usfmae.core.prepare.progress import shown_progress
    from usfmae.core.report.reproduce import write_report

    tiny = preset == "tiny"
    changed = TRIAL if tiny else None
    # The paper's own evaluation: its fine-tuning recipe, images squashed to squares.
    papers = (f"clean.profile={profile}", "bench.finetune.recipe=paper", "bench.aspect=squash")
    settings = configure(preset, config_file, (*papers, *overrides), changed)
    finetuned = finetune if finetune is not None else not tiny
    most = (limit if limit is not None else TINY_LIMIT if tiny else 0) or None
    chosen = CorpusChoice(cast(CorpusName, corpus), cast(LicenceFilter, licence), most)
    plan = make(root, settings, chosen, ModelChoice(weights, baselines, finetuned))
    notes = [note for task in plan.tasks.values() for note in task.notes]
    notes += [f"at most {most} scans of each data set are read; --limit 0 reads all"] if most else []
    for note in notes:
        click.echo(f"note: {note}", err=True)
    if dry_run:
        _show(plan, as_json)
        return
    report = lambda step, what: click.echo(f"{step}: {what}", err=True)  # noqa: E731
    result = run(plan, Workplace(out, workers or os.cpu_count() or 1, shown_progress), report)
    write_report(out / "report.html", result)
    if as_json:
        print_json(result)
    else:
        click.echo(out / "report.html")


def _show(plan: Plan, as_json: bool) -> None:
    from usfmae.core.bench.reproduce.plan import estimated, steps_of
    from usfmae.core.web.templating import duration

    steps = steps_of(plan)
    click.echo("a training step of the encoder is timed on this machine ...", err=True)
    device, hours = estimated(plan, steps)
    if as_json:
        listed = [{**s, "hours": round(h, 7)} for s, h in zip(steps, hours, strict=True)]
        print_json(
            {
                "device": device,
                "hours": round(sum(hours), 7),
                "steps": listed,
                "absent": [asdict(a) for a in plan.absent],
            }
        )
        return
    for step, h in zip(steps, hours, strict=True):
        click.echo(f"{step['step']:<52} {duration(3600 * h) if h else '':>9}  {step['what']}")
    click.echo(f"{'in all, without reading scans and the audit':<52} {duration(3600 * sum(hours)):>9}  on {device}")
    absent = Counter(a.kind for a in plan.absent)
    if absent:
        click.echo(f"missing: {', '.join(f'{n} {kind}(s)' for kind, n in absent.items())}; see --json", err=True)
