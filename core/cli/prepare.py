"""`usfmae prepare`: scans -> corpus."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from usfmae.core.account import user_folder
from usfmae.core.cli.shell import NewFile, NewFolder, configured, print_json
from usfmae.core.errors import ConfigError, SourceError, UsageError

if TYPE_CHECKING:
    from usfmae.core.prepare import PrepareSummary


@click.command(
    help="""Read, clean and pack scans into a corpus.

    SOURCE is a file, folder, zip archive or DICOMDIR, and is only ever read. Run the same command again after an
    interruption or when scans were added: what is done is not done again.

    \b
    usfmae prepare /data/ultrasound --corpus corpus --report report.html
    usfmae prepare /data/ultrasound --corpus corpus --set read.max_frames=500
    """
)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...", type=click.Path(path_type=Path))
@click.option("--corpus", required=True, type=NewFolder(), help="Folder to write into.")
@click.option("--profile", type=click.Choice(["safe", "paper"]), help="safe (default), or the paper's own cleaning.")
@click.option("--fps", type=float, help="Frames kept per second of a clip (default 3).")
@click.option("--workers", type=click.IntRange(1), default=None, help="Decoding processes (default: one per core).")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where workers run: here, or on a Ray cluster.",
)
@click.option("--part", metavar="I/N", help="Only every N-th shard from the I-th (0 to N-1): for job arrays.")
@click.option("--report", type=NewFile(), help="Write an HTML page for people inside.")
@click.option(
    "--name", "names", multiple=True, metavar="NAME", help="Name of the data, for the model card; one a SOURCE."
)
@click.option("--secret", type=click.Path(path_type=Path, dir_okay=False), help="File with the site's HMAC secret.")
@click.option("--json", "as_json", is_flag=True, help="End with one JSON object on stdout.")
@configured
def prepare(
    sources: tuple[Path, ...],
    corpus: Path,
    profile: str | None,
    fps: float | None,
    workers: int | None,
    engine: str,
    part: str | None,
    report: Path | None,
    names: tuple[str, ...],
    secret: Path | None,
    as_json: bool,
    config_file: Path | None,
    overrides: tuple[str, ...],
) -> None:
    from usfmae.core.config import Settings, load
    from usfmae.core.prepare import Parallel, Sources
    from usfmae.core.prepare import prepare as run
    from usfmae.core.prepare.progress import shown_progress

    short = [f"clean.profile={profile}"] if profile else []
    short += [f"read.fps={fps}"] if fps is not None else []
    settings, _ = load(Settings, config_file, (*short, *overrides))
    key = site_secret(secret)
    workers = workers or os.cpu_count() or 1
    with shown_progress() as progress:
        summary = run(
            Sources(sources, names=names_of(sources, names)),
            corpus,
            settings,
            key,
            Parallel(workers, engine, part_of(part)),
            progress,
        )
    if report:
        from usfmae.core.report.gallery import write_gallery
        from usfmae.core.sandbox.pool import Pool

        with Pool(workers, settings, key) as pool:
            write_gallery(report, sources, corpus, summary, pool)
    if as_json:
        print_json(summary.as_dict())
    else:
        print_summary(summary)
    complain_if_empty(summary.scans, [str(source) for source in sources])


def complain_if_empty(scans: int, sources: list[str]) -> None:
    """SourceError where nothing that could be a scan was found: most often a wrong path."""
    if not scans:
        raise SourceError(f"source {', '.join(sources)}", "holds no scans", "give a folder of DICOM, images or clips")


def names_of(sources: tuple[Path, ...], names: tuple[str, ...]) -> dict[Path, str]:
    """Source -> its name: none, one for all, or one for each. UsageError otherwise."""
    if len(names) not in (0, 1, len(sources)):
        raise UsageError(
            "--name", f"is given {len(names)} times for {len(sources)} sources", "give one for each, in order"
        )
    return dict(zip(sources, names * len(sources) if len(names) == 1 else names, strict=bool(names)))


def part_of(text: str | None) -> tuple[int, int]:
    """ "3/16" -> (3, 16)."""
    index, slash, count = (text or "0/1").partition("/")
    if not (slash and index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise UsageError(f"--part {text}", "is not of the form I/N with I from 0 to N-1", "write for example 0/4")
    return int(index), int(count)


def site_secret(path: Path | None) -> bytes:
    """The HMAC secret in `path`, by default `~/.config/usfmae/secret`, which is made when it is first needed.

    One secret for all corpora of a site, so that a patient has one name in all of them.
    """
    from usfmae.core.keys import new_secret, read_secret, write_secret

    instead = "give --secret FILE, or set XDG_CONFIG_HOME to a folder that stays"
    path = path or user_folder("XDG_CONFIG_HOME", ".config", instead) / "usfmae" / "secret"
    try:
        if not path.exists():
            write_secret(path, new_secret())
    except OSError as error:
        raise ConfigError(f"secret {path}", f"cannot be made: {error.strerror or error}", instead) from None
    return read_secret(path)


def print_summary(summary: PrepareSummary) -> None:
    """The counts for people, on stdout."""
    values = summary.as_dict()
    for key, value in values.items():
        if key != "reasons":
            click.echo(f"{key:18s} {value}")
    for reason, count in values["reasons"].items():
        click.echo(f"  {reason:24s} {count}")
