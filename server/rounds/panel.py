"""The server's panel: public images by organ on disk, checked once, read after each merge.

    PANEL/breast/shards/...            an organ without classes: loss and CKA
    PANEL/lung/covid/shards/...        an organ with classes: kNN and linear probe as well
    PANEL/lung/regular/shards/...

The loss is that of the encoder with the seed's decoder, the only one the server has: it rises when an encoder drifts
away from that decoder, so it warns early. kNN and probe need no decoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from usfmae.core.bench.tasks import BENCHMARKS
from usfmae.core.checkpoint import load
from usfmae.core.config import TrainSettings
from usfmae.core.config.coordinator import ContinualSettings
from usfmae.core.corpus.batch import Corpus, Positions
from usfmae.core.corpus.shard import FOLDER
from usfmae.core.errors import ConfigError, PolicyError
from usfmae.core.federated.forgetting import Tensors
from usfmae.core.federated.forgetting_panel import Floats, Organ, Reading, backward_transfer, read
from usfmae.core.mae.evaluation import evaluate
from usfmae.core.mae.model import MaskedAutoencoder, load_tensors
from usfmae.core.types import content_id
from usfmae.server.layout import Layout

FIT, MEASURE = 0.5, 42  # share of the groups that are measured, and the seed of that split


@dataclass(frozen=True)
class Panel:
    """A panel that was opened: its organs, and the hash of all its images."""

    organs: dict[str, Organ]
    fingerprint: str


class PanelReader:
    """Reads encoders of one federation. Holds one model; keep it from round to round."""

    def __init__(self, home: Layout, panel: Panel, settings: ContinualSettings) -> None:
        seed = load(home.checkpoint(0))
        self.panel, self.train, self.old = panel, seed.train, settings.old or tuple(panel.organs)
        unknown = sorted(set(self.old) - set(panel.organs))
        if unknown:
            raise ConfigError(f"continual.old: {', '.join(unknown)}", "no such organ in the panel", "correct it")
        self.decoder = load(home.decoder).tensors
        self.model = MaskedAutoencoder(seed.model, seed.train.mask_ratio, seed.train.norm_pix)
        self.features: dict[str, Floats] = {}
        self.seed, self.features = self._read(seed.tensors)

    def read(self, encoder: Tensors) -> dict[str, Reading]:
        """Every organ's reading."""
        return self._read(encoder)[0]

    def loss(self, encoder: Tensors, organ: str) -> float:
        load_tensors(self.model, {**encoder, **self.decoder}, "encoder of the round")
        chosen = self.panel.organs[organ]
        return evaluate(self.model, chosen.corpus, chosen.measured, self.train)

    def losses(self, encoder: Tensors) -> dict[str, float]:
        return {organ: self.loss(encoder, organ) for organ in self.panel.organs}

    def summary(self, readings: Mapping[str, Reading]) -> dict[str, Any]:
        """What the ledger keeps of a reading."""
        return {
            "fingerprint": self.panel.fingerprint,
            "organs": {organ: reading.as_dict() for organ, reading in readings.items()},
            "seed": {organ: reading.loss for organ, reading in self.seed.items()},
            "backward_transfer": backward_transfer(self.seed, readings, self.old),
        }

    def _read(self, encoder: Tensors) -> tuple[dict[str, Reading], dict[str, Floats]]:
        load_tensors(self.model, {**encoder, **self.decoder}, "encoder of the round")
        self.model.eval()
        readings = {
            name: read(self.model, organ, self.train, self.features.get(name))
            for name, organ in self.panel.organs.items()
        }
        return {n: r for n, (r, _) in readings.items()}, {n: f for n, (_, f) in readings.items()}


def opened(folder: Path, images: int, train: TrainSettings) -> Panel:
    """The panel in a folder. ConfigError where it is none, CorpusError where an image file is damaged."""
    places = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    organs = {place.name: _organ(place, images, train.seed) for place in places if _corpora(place)}
    if not organs:
        raise ConfigError(f"panel {folder}", "holds no organ", "prepare public scans into PANEL/ORGAN, one corpus each")
    prints = [part for name, organ in organs.items() for part in (name, organ.corpus.fingerprint)]
    return Panel(organs, content_id(*prints))


def _organ(place: Path, images: int, seed: int) -> Organ:
    roots = _corpora(place)
    corpus = Corpus(roots)
    if roots == [place]:
        return Organ(place.name, corpus, _some(np.arange(len(corpus)), images), np.zeros(0, np.int64))
    counts = [Corpus([root], verify=False) for root in roots]
    number = {id_: k for k, part in enumerate(counts) for id_ in part.ids}
    labels = np.array([number[id_] for id_ in corpus.ids])
    fit, measured = corpus.split(FIT, MEASURE)
    return Organ(place.name, corpus, _some(measured, images), _some(fit, images), labels)


def _corpora(place: Path) -> list[Path]:
    """The organ's folder where it is a corpus itself, else those of its classes."""
    if (place / FOLDER).is_dir():
        return [place]
    return sorted(path for path in place.iterdir() if (path / FOLDER).is_dir())


def _some(positions: Positions, count: int) -> Positions:
    """At most `count` positions, evenly spread."""
    if len(positions) <= count:
        return positions
    return positions[np.linspace(0, len(positions) - 1, count).astype(np.int64)]


def check_apart(panel: Panel, declared: Iterable[str], replayed: Corpus | None = None) -> None:
    """PolicyError where the panel holds a data set that sites train on or that is a benchmark, or a replayed image."""
    taken = {_plain(name): name for name in (*BENCHMARKS, *declared)}
    for organ in panel.organs.values():
        for dataset in sorted(set(organ.corpus.datasets) - {""}):
            if _plain(dataset) in taken:
                raise PolicyError(
                    f"panel, {organ.name}: data set {dataset}",
                    "is a benchmark or is trained on by a site: it would not measure forgetting",
                    "leave it out of the panel",
                )
    if replayed is not None:
        replayed_pixels = {_pixels(replayed, position) for position in range(len(replayed))}
        for organ in panel.organs.values():
            if any(_pixels(organ.corpus, position) in replayed_pixels for position in range(len(organ.corpus))):
                raise PolicyError(f"panel, {organ.name}", "holds images of the replay corpus", "part the two")


def _plain(name: str) -> str:
    """A data set's name without case and punctuation: BUS-BRA, bus_bra and busbra are one."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _pixels(corpus: Corpus, position: int) -> bytes:
    return corpus.fetch([position]).pixels[0, ..., 0].tobytes()
