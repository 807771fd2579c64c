"""`usfmae demo`: the whole system on this machine."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(
    help="""Two hospitals and an aggregator on this machine: cleaning, a seed, federated rounds over TLS, a checked
    export, report.html and summary.json. Uses simulated scans and the real ones in pydicom's wheel; no download.

    \b
    usfmae demo
    usfmae demo --data /path/to/site-a /path/to/site-b
    """
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo-out"),
    show_default=True,
    help="Folder for everything the demo makes.",
)
@click.option("--data", is_flag=True, help="The folders named as arguments hold the scans, one folder per hospital.")
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path))
@click.option("--sites", type=click.IntRange(1, 8), default=2, show_default=True, help="Hospitals.")
@click.option("--rounds", type=click.IntRange(1, 50), default=2, show_default=True, help="Federated rounds.")
@click.option("--seed-steps", type=click.IntRange(1), default=30, show_default=True, help="Steps of the seed.")
@click.option("--steps", type=click.IntRange(1), help="Local steps in each round: 60, or 5 with --simulate.")
@click.option(
    "--simulate",
    type=click.IntRange(1, 10_000),
    metavar="N",
    help="Instead: N virtual hospitals in one process with a tiny model, through the same loop, gate and ledger.",
)
@click.option("--sealed", is_flag=True, help="With a custodian, and three hospitals or more: see docs/privacy.md.")
@click.option("--json", "as_json", is_flag=True, help="Print summary.json on stdout.")
def demo(
    out: Path,
    data: bool,
    folders: tuple[Path, ...],
    sites: int,
    rounds: int,
    seed_steps: int,
    steps: int | None,
    simulate: int | None,
    sealed: bool,
    as_json: bool,
) -> None:
    from usfmae.core.cli.shell import print_json
    from usfmae.core.demo.story import Demo, tell
    from usfmae.core.errors import UsageError

    if bool(folders) != data:
        raise UsageError("demo folders", "--data and folders go together", "write --data DIR DIR")
    if sealed and (simulate or (data and len(folders) < 3)):
        raise UsageError("--sealed", "needs three real hospitals or more", "leave --simulate out, name three folders")
    if simulate:
        if data:
            raise UsageError("--simulate", "has hospitals of its own", "leave --data and the folders out")
        _simulated(out, simulate, rounds, steps or 5, as_json)
        return
    story = Demo(
        out.resolve(),
        folders,
        len(folders) or (max(sites, 3) if sealed else sites),
        rounds,
        seed_steps,
        steps or 60,
        sealed,
        lambda line: click.echo(line, err=True),
    )
    summary = tell(story)
    if as_json:
        print_json(summary)
        return
    for name in summary["sites"]:
        before, after = summary["seed_loss"][name], summary["final_loss"][name]
        click.echo(f"{name}: {summary['images'][name]} images, held-out masked loss {before:.4f} -> {after:.4f}")
    if sealed:
        click.echo(f"{summary['sealed_rounds']} sealed rounds, each proved by its signed transcript")
    click.echo(f"timm agrees within {summary['timm_max_abs_diff']:.1e}; {summary['seconds']:.0f} s")
    click.echo(f"{out / 'report.html'}\n{out / 'summary.json'}")


def _simulated(out: Path, hospitals: int, rounds: int, steps: int, as_json: bool) -> None:
    from usfmae.core.cli.shell import print_json
    from usfmae.core.demo.story import simulate

    summary = simulate(out.resolve(), hospitals, rounds, steps, lambda line: click.echo(line, err=True))
    if as_json:
        print_json(summary)
        return
    first, last = summary["rounds"][0]["summary"], summary["rounds"][-1]["summary"]
    click.echo(f"{hospitals} hospitals: masked loss {first['loss_before']:.4f} -> {last['loss_after']:.4f}")
    click.echo(f"memory {max(summary['resident_mb'].values()):.0f} MB at most; {summary['seconds']:.0f} s")
    click.echo(f"{out / 'summary.json'}")
