"""`usfmae-server simulate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from usfmae.core.cli.shell import print_json

if TYPE_CHECKING:
    from usfmae.server.ledger import Round


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--sites", default=10, show_default=True, help="Virtual hospitals.")
@click.option("--rounds", default=3, show_default=True, help="Rounds; a second call with more goes on.")
@click.option("--steps", default=5, show_default=True, help="Local optimizer steps a round.")
@click.option("--images", default=16, show_default=True, help="Images at each hospital.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Any key of coordinator.yaml; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
def simulate(
    directory: Path, sites: int, rounds: int, steps: int, images: int, overrides: tuple[str, ...], as_json: bool
) -> None:
    """A federation of virtual hospitals in this process.

    Run a whole federation of virtual hospitals in this process: simulated tissue, a tiny model, the real loop,
    gate, ledger and merge; no network. Merging rules, encodings and attacks can be tried here before a campaign.
    """
    from usfmae.server.bootstrap import create
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
        create(directory, "simulation", "", 0, None, [*chosen, *overrides])

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
