"""The coordinator's public replay corpus at a site: fetched once, checked against what was signed, then mixed in.

It comes beside a request as one array of bytes a file, in the chunks that bring the encoder too. Nothing of it is used
before every byte has been checked, and nothing is fetched where the site has switched it off or has no room.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from usfmae.client.flower import download
from usfmae.client.site import Site
from usfmae.core import flower_objects
from usfmae.core.config import TrainRecipe
from usfmae.core.corpus.batch import Corpus
from usfmae.core.corpus.shard import FOLDER
from usfmae.core.errors import CorpusError, PolicyError
from usfmae.core.federated import replay
from usfmae.core.federated.messages import DeclineReason

Room = Callable[[int], None]  # raises where so many bytes do not fit


def folder(site: Site, recipe: TrainRecipe) -> Path | None:
    """Where this site holds the very corpus that the recipe wants; None where it does not, or none is wanted."""
    if not recipe.replay:
        return None
    for place in (site.settings.replay, site.root / "replay"):
        try:
            if place is not None and replay.digest(place) == recipe.replay_corpus:
                return place
        except CorpusError:
            continue
    return None


def roots(site: Site, recipe: TrainRecipe) -> tuple[list[Path], list[str]]:
    """Where a round's images lie: the site's corpus and the replayed one, and the checksums of the latter's shards.

    PolicyError where the recipe wants a corpus that is not here.
    """
    replayed = folder(site, recipe)
    if replayed:
        return [site.corpus, replayed], [index.sha256 for index in Corpus([replayed], verify=False).shards]
    if recipe.replay:
        raise PolicyError("replay corpus", "the campaign's is not here", "have it sent, or copy it to DIR/replay")
    return [site.corpus], []


def lacking(site: Site, recipe: TrainRecipe) -> str:
    """What to answer where the corpus is wanted and not here; "" where nothing is missing."""
    if not recipe.replay or folder(site, recipe):
        return ""
    return DeclineReason.NEED_REPLAY if site.settings.replay_gb else DeclineReason.NO_REPLAY


def receive(site: Site, recipe: TrainRecipe, record: str, fetch: flower_objects.Fetch, room: Room) -> None:
    """Fetch the corpus in the ArrayRecord `record`, chunk by chunk, unless it is here already.

    An interrupted call goes on after the last chunk. PolicyError where it is not what the coordinator signed, or
    the site wants none of its size; `room` is asked before anything is written.
    """
    if not lacking(site, recipe):
        return
    arrays = {
        n: flower_objects.tensor(fetch(id_))
        for n, id_ in flower_objects.references(fetch(record), "ArrayRecord").items()
    }
    begun = _begin(site, arrays, sum(download.byte_length(name, array) for name, array in arrays.items()), room)
    for name, array in arrays.items():
        download.receive_bytes(begun / name, array, fetch)
    _install(site, recipe, begun)


def put(site: Site, recipe: TrainRecipe, files: Mapping[str, bytes], room: Room) -> None:
    """The same from files in memory, as a stock SuperNode hands them over."""
    if lacking(site, recipe):
        begun = _begin(site, files, sum(map(len, files.values())), room)
        for name, content in files.items():
            download.write_bytes(begun / name, len(content), [content])
        _install(site, recipe, begun)


def _begin(site: Site, names: Iterable[str], total: int, room: Room) -> Path:
    """The folder that is filled, if the site takes files of these names and so many bytes."""
    odd = [name for name in names if not replay.is_name(name)]
    if odd:
        raise PolicyError(f"replay file {odd[0]!r:.80}", "is not the name of a shard", "refused")
    limit = min(replay.MOST_BYTES, site.settings.replay_gb * 1e9)
    if total > limit:
        raise PolicyError(f"replay corpus of {total} bytes", f"the site allows {limit:.0f}", "raise replay_gb")
    room(total)
    begun = site.root / "replay.part" / FOLDER
    begun.mkdir(parents=True, exist_ok=True)
    return begun


def _install(site: Site, recipe: TrainRecipe, begun: Path) -> None:
    """Put a sound corpus in the place of an older campaign's; an unsound one is removed, with PolicyError."""
    try:
        sound = replay.digest(begun.parent) == recipe.replay_corpus
    except CorpusError:
        sound = False
    if not sound:
        shutil.rmtree(begun.parent)
        raise PolicyError("replay corpus", "is not the one the coordinator signed (hash)", "refused")
    shutil.rmtree(site.root / "replay", ignore_errors=True)
    begun.parent.rename(site.root / "replay")
    site.note("replay.accepted", corpus=recipe.replay_corpus)
