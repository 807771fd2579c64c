"""The server's panel: public images by organ on disk, checked once, read after each merge.

    PANEL/breast/shards/...            an organ without classes: losses and CKA
    PANEL/lung/covid/shards/...        an organ with classes: kNN and linear probe as well
    PANEL/lung/regular/shards/...

Sites' decoders never leave them, so the server refits a light one on half of the panel's patients before it reads a
loss on the others: from the seed's decoder, the same images and steps for every encoder, the seed's own included. The
loss with the seed's decoder as it was stands beside it. kNN and probe need no decoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from usfmae.core.bench.tasks import BENCHMARKS
from usfmae.core.checkpoint import load
from usfmae.core.config import TrainSettings
from usfmae.core.config.coordinator import ContinualSettings
from usfmae.core.corpus.batch import Corpus, Positions
from usfmae.core.corpus.shard import FOLDER
from usfmae.core.errors import ConfigError, PolicyError
from usfmae.core.federated.forgetting import Tensors
from usfmae.core.federated.forgetting_panel import Floats, Organ, Reading, backward_transfer, probes
from usfmae.core.mae.model import MaskedAutoencoder, load_tensors
from usfmae.core.mae.refit import encoded, follow, loss_of, views_for
from usfmae.core.types import content_id
from usfmae.server.layout import Layout

FIT, MEASURE = 0.5, 42  # share of the groups that are measured, and the seed of that split
REFIT_BATCH, REFIT_RATE = 16, 1e-3  # of the decoder; not tuned


@dataclass(frozen=True)
class Panel:
    """A panel that was opened: its organs, all of its images as one corpus, and their hash."""

    organs: dict[str, Organ]
    corpus: Corpus
    fingerprint: str

    @property
    def fitted(self) -> Positions:
        """Positions in `corpus` of the images that probes and decoder are fitted on."""
        ids = {organ.corpus.ids[position] for organ in self.organs.values() for position in organ.fitted}
        return np.array([position for position, id_ in enumerate(self.corpus.ids) if id_ in ids], np.int64)


class PanelReader:
    """Reads encoders of one federation. Holds one model; keep it from round to round."""

    def __init__(self, home: Layout, panel: Panel, settings: ContinualSettings) -> None:
        seed = load(home.checkpoint(0))
        self.panel, self.train, self.old = panel, seed.train, settings.old or tuple(panel.organs)
        unknown = sorted(set(self.old) - set(panel.organs))
        if unknown:
            raise ConfigError(f"continual.old: {', '.join(unknown)}", "no such organ in the panel", "correct it")
        self.decoder = load(home.decoder).tensors
        self.fit, self.steps = refit_recipe(seed.train), settings.refit_steps
        # How a loss is read belongs to what is compared: a ledger's figures of another way are measured again.
        self.fingerprint = content_id(panel.fingerprint, "refit, images encoded once", str(settings.refit_steps))
        self.model = MaskedAutoencoder(seed.model, seed.train.mask_ratio, seed.train.norm_pix)
        self.features: dict[str, Floats] = {}
        self.seed, self.features = self._read(seed.tensors)

    def read(self, encoder: Tensors) -> dict[str, Reading]:
        """Every organ's reading."""
        return self._read(encoder)[0]

    def summary(self, readings: Mapping[str, Reading]) -> dict[str, Any]:
        """What the ledger keeps of a reading."""
        return {
            "fingerprint": self.fingerprint,
            "organs": {organ: reading.as_dict() for organ, reading in readings.items()},
            "seed": {organ: reading.loss for organ, reading in self.seed.items()},
            "backward_transfer": backward_transfer(self.seed, readings, self.old),
        }

    def followed(self, encoder: Tensors) -> MaskedAutoencoder:
        """The model whose loss is read: this encoder and the decoder that follows it. The next reading changes it."""
        load_tensors(self.model, {**encoder, **self.decoder}, "encoder of the round")
        self._follow()
        return self.model.eval()

    def _follow(self) -> None:
        """Train the decoder of the model that is held on images that its encoder sees once."""
        if self.steps:
            fitted = self.panel.fitted
            views = views_for(len(fitted), self.fit, self.steps)
            follow(self.model, encoded(self.model, self.panel.corpus, fitted, self.fit, views), self.fit, self.steps)

    def _read(self, encoder: Tensors) -> tuple[dict[str, Reading], dict[str, Floats]]:
        model, organs = self.model, self.panel.organs
        load_tensors(model, {**encoder, **self.decoder}, "encoder of the round")
        model.eval()

        # Every image goes through the encoder once; the decoders start from there.
        measured = {name: encoded(model, organ.corpus, organ.measured, self.train) for name, organ in organs.items()}
        before = {name: loss_of(model, images, self.train) for name, images in measured.items()}
        self._follow()
        after = {name: loss_of(model, images, self.train) for name, images in measured.items()}

        # Whole images, for what needs no decoder.
        probed = {name: probes(model, organ, self.train, self.features.get(name)) for name, organ in organs.items()}
        readings = {name: Reading(after[name], before[name], **figures) for name, (figures, _) in probed.items()}
        return readings, {name: values for name, (_, values) in probed.items()}


def refit_recipe(train: TrainSettings) -> TrainSettings:
    """How the panel's decoder is trained: the seed's target and masks, whole images (flipped, too), a rate of its own."""
    whole = train.augment.model_copy(update={"rotation": 0.0, "zoom_min": 1.0, "zoom_max": 1.0})
    changed = {
        "target": "pixels", "optimizer": "adamw", "batch_size": REFIT_BATCH, "lr": REFIT_RATE, "min_lr": 0.0,
        "schedule": "cosine", "warmup": 0.1, "origin": 0, "proximal": 0.0, "replay": 0.0, "temperature": 1.0,
        "compile": False, "augment": whole,
    }  # fmt: skip
    return train.model_copy(update=changed)


def opened(folder: Path, images: int) -> Panel:
    """The panel in a folder. ConfigError where it is none, CorpusError where an image file is damaged."""
    places = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    organs = {place.name: _organ(place, images) for place in places if _corpora(place)}
    if not organs:
        raise ConfigError(f"panel {folder}", "holds no organ", "prepare public scans into PANEL/ORGAN, one corpus each")
    prints = [part for name, organ in organs.items() for part in (name, organ.corpus.fingerprint)]
    together = Corpus([root for name in organs for root in _corpora(folder / name)], verify=False)
    return Panel(organs, together, content_id(*prints))


def _organ(place: Path, images: int) -> Organ:
    roots = _corpora(place)
    corpus = Corpus(roots)
    if len(corpus) < 2:
        raise ConfigError(f"panel organ {place.name}", "holds one image: none is left to measure", "add images")
    fit, measured = corpus.split(FIT, MEASURE)
    if not len(fit) or not len(measured):  # one group, as of a folder that names no patients: every other image
        fit, measured = np.arange(0, len(corpus), 2), np.arange(1, len(corpus), 2)
    labels = None if roots == [place] else _classes(corpus, roots)
    return Organ(place.name, corpus, _some(measured, images), _some(fit, images), labels)


def _classes(corpus: Corpus, roots: Sequence[Path]) -> NDArray[np.int64]:
    """(len(corpus),) the number of the class folder that each image lies in."""
    number = {id_: k for k, root in enumerate(roots) for id_ in Corpus([root], verify=False).ids}
    return np.array([number[id_] for id_ in corpus.ids])


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
