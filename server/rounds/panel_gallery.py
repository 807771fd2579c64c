"""What the public panel looks like to encoders of a campaign: one image of each organ, for the campaign's report.

Each encoder fills the hidden patches with a decoder that was refitted on it, as the panel's loss is read; the same images
and the same hidden patches for every encoder, so that the pictures of two rounds can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from usfmae.core.checkpoint import load
from usfmae.core.config.coordinator import CoordinatorSettings
from usfmae.core.errors import ConfigError
from usfmae.core.mae.evaluation import panel
from usfmae.core.types import Pixels
from usfmae.server.layout import Layout
from usfmae.server.rounds.panel import PanelReader, opened

MOST_ROUNDS, MOST_ORGANS = 4, 6  # beside the seed; refitting a decoder takes the time of a panel reading


@dataclass(frozen=True)
class RoundPictures:
    """Of one round's encoder: organ -> original, what the encoder saw and what it made of it, side by side."""

    number: int  # 0: the seed
    organs: dict[str, Pixels]


def gallery(home: Layout, settings: CoordinatorSettings, committed: list[int]) -> list[RoundPictures]:
    """Pictures of the seed and of rounds spread over those `committed`, the last one always among them.

    ConfigError where the federation has no panel. Rounds whose checkpoint is gone are left out.
    """
    if not settings.continual.panel:
        raise ConfigError("continual.panel", "is not set: there are no public images to show", "leave --gallery out")
    reader = PanelReader(home, opened(settings.continual.panel, settings.continual.panel_images), settings.continual)
    there = [number for number in committed if home.checkpoint(number).exists()]
    return [RoundPictures(number, _pictures(reader, home, number)) for number in (0, *_spread(there))]


def _spread(numbers: list[int]) -> list[int]:
    """At most MOST_ROUNDS of them, evenly, with the last one."""
    places = np.linspace(0, len(numbers) - 1, min(MOST_ROUNDS, len(numbers))).round().astype(int)
    return [numbers[place] for place in np.unique(places)]


def _pictures(reader: PanelReader, home: Layout, number: int) -> dict[str, Pixels]:
    model = reader.followed(load(home.checkpoint(number)).tensors)
    organs = list(reader.panel.organs.items())[:MOST_ORGANS]
    return {name: panel(model, organ.corpus, organ.measured[:1], reader.train) for name, organ in organs}
