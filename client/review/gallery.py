"""What this site's held-out images look like to each round's encoder: `SITE/gallery/CAMPAIGN-rNNNNN.png`. They stay here.

The same few images in every round, so that rounds can be compared: original, what the encoder saw, what it made of it.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from usfmae.client.site import Site
from usfmae.core.files import write_atomic
from usfmae.core.log import note

if TYPE_CHECKING:
    from usfmae.core.config import TrainRecipe
    from usfmae.core.corpus.batch import Corpus, Positions
    from usfmae.core.federated.messages import TrainRequest
    from usfmae.core.mae.model import MaskedAutoencoder

logger = logging.getLogger(__name__)

ROWS = 4  # images in a panel
MOST = 60  # panels kept, some 400 kB each
NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]*)-r(\d{5})\.png")


def panels(site: Site) -> list[tuple[int, str, str]]:
    """(round, campaign, file name) of every panel, newest first."""
    named = [(match, path) for path in (site.root / "gallery").glob("*.png") if (match := NAME.fullmatch(path.name))]
    newest = sorted(named, key=lambda one: one[1].stat().st_mtime_ns, reverse=True)
    return [(int(match[2]), match[1], path.name) for match, path in newest]


def draw(
    site: Site,
    request: TrainRequest,
    model: MaskedAutoencoder,
    corpus: Corpus,
    held_out: Positions,
    recipe: TrainRecipe,
) -> None:
    """Write the panel of a round. Whatever goes wrong is logged and costs the panel, never the round."""
    from usfmae.core.mae.evaluation import panel
    from usfmae.core.read.raster import encode_png

    rows = np.sort(held_out)[:: max(1, len(held_out) // ROWS)][:ROWS]
    folder: Path = site.root / "gallery"
    try:
        folder.mkdir(exist_ok=True, mode=0o700)
        file = folder / f"{request.campaign}-r{request.round:05d}.png"
        was_training = model.training
        model.eval()
        write_atomic(file, encode_png(panel(model, corpus, rows, recipe)))
        model.train(was_training)
        for _, _, name in panels(site)[MOST:]:
            (folder / name).unlink(missing_ok=True)
    except Exception as error:
        note(logger, "no panel of this round", logging.WARNING, why=f"{type(error).__name__}: {error}"[:200])
