"""What a round's images are mixed of: a site's own, new and old, and a public share replayed against forgetting.

A mixture is a list of positions with repeats: the sampler draws every entry once an epoch, so a share of the list is
a share of the training. It depends on its arguments alone, so a killed worker builds the same list again. Even 1 to
5 % of old images reduce forgetting where the shift is weak (Ibrahim et al. 2024, arXiv:2403.08763).
"""

from __future__ import annotations

import numpy as np

from usfmae.core.corpus.batch import Positions
from usfmae.core.corpus.sampling import generator


def with_replay(own: Positions, public: Positions, share: float, turn: int, seed: int) -> Positions:
    """All of `own`, and as many of `public` that they make up `share` (0 to 0.5) of the list.

    `turn` (the round) moves on through `public`, so that over the rounds all of it is seen. (N,), (M,) -> (K,)
    """
    count = round(len(own) * share / (1 - share))
    if not count or not len(public):
        return own
    return np.concatenate([own, _stretch(public, count, turn * count, seed)])


def with_new(positions: Positions, uses: Positions, share: float, repeats: int) -> Positions:
    """Repeat images that were never used until they make up `share` of the list, each at most `repeats` times.

    `uses` (N,) counts how often training has drawn each of `positions` (N,). Old images are never repeated.
    """
    new, old = positions[uses == 0], positions[uses > 0]
    if not len(new) or not len(old):
        return positions
    count = round(len(old) * share / (1 - share))
    count = min(max(count, len(new)), repeats * len(new))
    return np.concatenate([old, np.resize(new, count)])


def _stretch(positions: Positions, count: int, start: int, seed: int) -> Positions:
    """`count` entries from place `start` on of endless shuffled passes over `positions`."""
    passes, places = np.divmod(np.arange(start, start + count), len(positions))
    parts = [generator(seed, 5, int(p)).permutation(positions)[places[passes == p]] for p in np.unique(passes)]
    return np.concatenate(parts)
