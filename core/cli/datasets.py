"""`usfmae datasets`: what OpenUS-46 is, and what of it lies on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from usfmae.core.cli.shell import print_json

if TYPE_CHECKING:
    from usfmae.core.openus46.layout import Found

CORPORA = ("paper46", "readme43", "strict42")
REGISTRATION = {"yes": "register", "no": "open", "unknown": "unknown"}
corpus_option = click.option(
    "--corpus", type=click.Choice(CORPORA), default=None, help="Only the data sets of this pretraining corpus."
)
licence_option = click.option(
    "--licence",
    type=click.Choice(["any", "permissive"]),
    default="any",
    show_default=True,
    help="permissive: only data sets whose licence allows any use.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")


@click.group(
    help="""OpenUS-46: the 46 public data sets of the paper, what they are and what lies on disk.

    \b
    usfmae datasets list
    usfmae datasets check --root DATASETS --missing
    usfmae datasets unpack --root DATASETS
    """
)
def datasets() -> None:
    pass


@datasets.command("list", help="Anatomy, count, licence, registration and link of each data set.")
@corpus_option
@licence_option
@json_option
def list_(corpus: str | None, licence: str, as_json: bool) -> None:
    chosen = _chosen(corpus, licence)
    total = sum(d.images for d in chosen)
    if as_json:
        print_json({"images": total, "datasets": [d.model_dump(mode="json") for d in chosen]})
        return
    for d in chosen:
        click.echo(
            f"{d.id:<19} {d.images:>7,}  {d.anatomy:<26} {d.licence_class:<15} "
            f"{REGISTRATION[d.registration.split()[0]]:<9} {d.link}"
        )
    click.echo(f"{len(chosen)} data sets, {total:,} images", err=True)


@datasets.command(help="Which data sets are present, partial or missing below a folder, and what does not match.")
@click.option("--root", required=True, type=click.Path(path_type=Path), help="Folder with a folder or zip a data set.")
@click.option("--accept", multiple=True, metavar="ID", help="Accept the unverified layout of this data set.")
@click.option("--missing", "with_missing", is_flag=True, help="List missing data sets too.")
@corpus_option
@licence_option
@json_option
def check(
    root: Path, accept: tuple[str, ...], with_missing: bool, corpus: str | None, licence: str, as_json: bool
) -> None:
    from usfmae.core.openus46.layout import check_all

    checks = check_all(_chosen(corpus, licence), root, accept)
    counts = {status: sum(f.status == status for f in checks) for status in sorted({f.status for f in checks})}
    unknown = _unknown(root)
    if as_json:
        print_json(
            {"root": str(root), "counts": counts, "not_openus46": unknown, "datasets": [f.as_dict() for f in checks]}
        )
        return
    for f in checks:
        if f.status != "missing" or with_missing:
            click.echo(_line(f))
    click.echo(", ".join(f"{n} {status}" for status, n in counts.items()), err=True)
    if unknown:
        click.echo(f"not of OpenUS-46: {', '.join(unknown)}", err=True)


@datasets.command(
    help="Write the clips of a data set that is published as HDF5 (thyroid_cineclip) as volumes beside it."
)
@click.option("--root", required=True, type=click.Path(path_type=Path), help="Folder with a folder a data set.")
def unpack(root: Path) -> None:
    from usfmae.core.errors import SourceError
    from usfmae.core.openus46.hdf5 import unpack as clips_of
    from usfmae.core.openus46.layout import locate
    from usfmae.core.openus46.registry import dataset

    cineclip = dataset("thyroid_cineclip")
    archives = [path for place in locate(cineclip, root) for path in place.rglob("dataset.hdf5")]
    if not archives:
        raise SourceError(f"root {root}", f"holds no dataset.hdf5 of {cineclip.name}", f"fetch it from {cineclip.link}")

    def progress(done: int, clips: int) -> None:
        click.echo(f"\r{done} of {clips} clips", err=True, nl=done == clips)

    for path in archives:
        clips_of(path, path.parent / "clips", progress)
        click.echo(path.parent / "clips")


def _line(f: Found) -> str:
    of = f" of {f.expected:,}" if f.expected is not None else ""
    text = f"{f.dataset.id:<19} {f.status:<10} {f.scans:>6,}{of} files; Table 1: {f.dataset.images:,}"
    text += f"; {f.dataset.licence_class} ({f.dataset.licence})"
    text += f"; overlaps {', '.join(f.overlaps)}" if f.overlaps else ""
    text += f"; get it at {f.dataset.link}" if f.status != "present" else ""
    return text + (f"; {f.detail}" if f.detail else "")


def _chosen(corpus: str | None, licence: str) -> list[Any]:
    from typing import cast

    from usfmae.core.openus46.registry import CorpusName, LicenceFilter
    from usfmae.core.openus46.registry import corpus as corpus_of

    return corpus_of(cast(CorpusName, corpus or "paper46"), cast(LicenceFilter, licence))


def _unknown(root: Path) -> list[str]:
    """Folders below the root that no data set claims."""
    from usfmae.core.openus46.registry import registry

    names = {name.lower() for d in registry().values() for name in d.folders}
    return sorted(p.name for p in root.iterdir() if p.is_dir() and p.name.lower() not in names)


@datasets.command(
    help="""The registry as Croissant metadata (JSON-LD), for catalogues of data sets.

    \b
    usfmae datasets croissant > openus46.croissant.json"""
)
def croissant() -> None:
    from usfmae.core.openus46.croissant import metadata

    print_json(metadata())
