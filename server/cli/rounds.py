"""`usfmae-server run|campaign|round|simulate`: rounds, served or simulated."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import click

from usfmae.core.cli.shell import as_json, overriding, print_json
from usfmae.server.cli import federation_directory

if TYPE_CHECKING:
    from usfmae.server.ledger import Round


@click.command("run")
@federation_directory
@click.option("--rounds", default=0, show_default=True, help="End when this many rounds are committed; 0 goes on.")
@overriding
def run_(directory: Path, rounds: int, overrides: tuple[str, ...]) -> None:
    """Serve the sites and run rounds, until stopped.

    One process: the hospitals' port, the round loop, the page and the metrics. Ctrl-C and SIGTERM stop it cleanly; the
    same command goes on at the round it was in. systemd, Docker or Kubernetes starts it again after a crash.

    \b
    usfmae-server run federation
    usfmae-server run federation --rounds 20
    """
    from usfmae.server.aggregator import serve
    from usfmae.server.certificates import warning
    from usfmae.server.dashboard.serve import watched
    from usfmae.server.layout import Layout
    from usfmae.server.notices import notified

    home = Layout(directory)
    settings = home.settings(overrides)  # a mistake is reported at once
    if soon := warning(home):
        logging.getLogger(__name__).warning(soon)
    with notified(home, settings), watched(home, settings.page, settings.metrics):
        serve(home, rounds, overrides)


@click.group()
def campaign() -> None:
    """Begin, end and list campaigns: rounds with one recipe.

    Settings may change between campaigns, never within one.

    \b
    usfmae-server campaign start federation --rounds 20
    usfmae-server campaign list federation
    usfmae-server campaign rounds federation
    usfmae-server campaign end federation
    """


@campaign.command()
@federation_directory
@click.option("--rounds", default=0, show_default=True, help="Planned rounds; 0 for no planned end.")
@click.option("--from", "seed", type=int, metavar="ROUND", help="Start from this round's encoder, not the last one's.")
@overriding
@as_json
def start(directory: Path, rounds: int, seed: int | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Begin a campaign with the settings as they are now; the learning rate warms up again.

    'usfmae-server run' then runs it, and refuses settings that differ.

    \b
    usfmae-server campaign start federation --rounds 20
    usfmae-server campaign start federation --from 12 --set train.lr=1e-4
    """
    from dataclasses import asdict

    from usfmae.server import campaign as campaigns
    from usfmae.server.layout import Layout
    from usfmae.server.ledger import Ledger

    home = Layout(directory)
    begun = campaigns.start(home, Ledger(home.ledger), home.settings(overrides), rounds, seed)
    print_json(asdict(begun)) if as_json else click.echo(f"campaign {begun.id} begins with round {begun.first}")


@campaign.command()
@federation_directory
@as_json
def end(directory: Path, as_json: bool) -> None:
    """End the campaign. An aggregator that runs commits the open round first, then stops."""
    from dataclasses import asdict

    from usfmae.server import campaign as campaigns
    from usfmae.server.layout import Layout
    from usfmae.server.ledger import Ledger

    home = Layout(directory)
    ended = campaigns.end(home, Ledger(home.ledger))
    print_json(asdict(ended)) if as_json else click.echo(f"campaign {ended.id} has ended")


@campaign.command("list")
@federation_directory
@as_json
def list_(directory: Path, as_json: bool) -> None:
    """Every campaign: rounds, recipe, state."""
    from dataclasses import asdict

    from usfmae.server import campaign as campaigns
    from usfmae.server.layout import Layout
    from usfmae.server.ledger import Ledger

    listed = campaigns.campaigns(Ledger(Layout(directory).ledger))
    if as_json:
        print_json([asdict(one) for one in listed])
        return
    for one in listed:
        planned = f"to {one.last}" if one.last else "on"
        state = "ended" if one.ended else "running"
        click.echo(f"{one.id:40s} {state:8s} rounds {one.first} {planned}  recipe {one.recipe[:12]}")


@campaign.command()
@federation_directory
@as_json
def rounds(directory: Path, as_json: bool) -> None:
    """What each round gained or forgot: sites merged, what the forgetting gate did and why, each organ's panel loss."""
    from usfmae.server.layout import Layout
    from usfmae.server.ledger import Ledger
    from usfmae.server.status import history, table

    lines = history(Ledger(Layout(directory).ledger))
    print_json(lines) if as_json else click.echo(table(lines))


@click.group("round")
def round_() -> None:
    """Close the open round now.

    \b
    usfmae-server round close federation
    """


@round_.command()
@federation_directory
@as_json
def close(directory: Path, as_json: bool) -> None:
    """Merge the open round with the updates that are admitted, without waiting for the other hospitals.

    A running aggregator follows within a second. Refused while fewer than rounds.quorum updates are admitted."""
    from usfmae.server.layout import Layout
    from usfmae.server.rounds.quorum import close_now

    done = close_now(Layout(directory))
    print_json(done) if as_json else click.echo(f"round {done['round']} closes with {done['admitted']} updates")


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--sites", default=10, show_default=True, help="Virtual hospitals.")
@click.option("--rounds", default=3, show_default=True, help="Rounds; a second call with more goes on.")
@click.option("--steps", default=5, show_default=True, help="Local optimizer steps a round.")
@click.option("--images", default=16, show_default=True, help="Images at each hospital.")
@overriding
@as_json
def simulate(
    directory: Path, sites: int, rounds: int, steps: int, images: int, overrides: tuple[str, ...], as_json: bool
) -> None:
    """A federation of virtual hospitals in this process.

    Simulated tissue and a tiny model, but the real loop, gate, ledger and merge; no network. Merging rules, encodings
    and attacks can be tried here before a campaign.

    \b
    usfmae-server simulate trial --sites 5 --rounds 3
    usfmae-server simulate trial --sites 5 --set merge.rule=median
    """
    from usfmae.server.bootstrap import NewFederation, create
    from usfmae.server.layout import Layout
    from usfmae.server.ledger import Ledger
    from usfmae.server.simulate import run
    from usfmae.server.status import status

    home = Layout(directory)
    memory: dict[int, float] = {}
    if not home.ledger.exists():
        tiny = {"image_size": 32, "patch_size": 8, "width": 32, "depth": 2, "heads": 2}
        tiny |= {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
        chosen = [f"model.{key}={value}" for key, value in tiny.items()]
        chosen += [f"rounds.steps={steps}", "train.batch_size=8", "train.micro_batch=8", "train.lr=1e-3"]
        chosen += [f"rounds.quorum={sites}", "train.precision=fp32", "min_free_gib=0.1"]
        create(directory, NewFederation("simulation", port=0), [*chosen, *overrides])

    ledger = Ledger(home.ledger)

    def committed(number: int) -> None:
        memory[number] = round(resident_mb(), 1)
        done = ledger.last_round()
        assert done is not None
        click.echo(line(done, memory[number]), err=as_json)

    run(home, sites, rounds, images, committed=committed)
    if as_json:
        print_json({**status(home), "resident_mb": memory})


def line(done: Round, memory: float) -> str:
    """A committed round for people."""
    summary, seconds = done.summary or {}, (done.committed or 0.0) - done.opened
    return (
        f"round {done.number:3d}  {summary['sites']} sites  loss {summary['loss_before']:.4f} -> "
        f"{summary['loss_after']:.4f}  {seconds:.1f} s  {memory:.0f} MB  {(done.result or '')[:16]}"
    )


def resident_mb() -> float:
    """Memory of this process now, MB of 10^6 bytes (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6
