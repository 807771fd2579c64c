"""The learning rate as a function of the global step alone, never of a site's clock.

`cosine` suits one run of known length. `infinite` (warm-up, constant, anneal) suits rounds without an end in sight: it
can be cut or lengthened without having decayed too far, and a new campaign warms up again from its `origin`
(Singh et al. 2025, arXiv:2503.02844; Ibrahim et al. 2024, arXiv:2403.08763).
"""

from __future__ import annotations

import math

from usfmae.core.config.train import TrainSettings


def learning_rate(step: int, end: int, settings: TrainSettings) -> float:
    """Rate of the update that follows global step `step`, in a schedule from `settings.origin` to `end`."""
    total = max(1, end - settings.origin)
    done = max(0, step - settings.origin)
    warm = settings.warmup * total
    if done < warm:
        return settings.lr * done / warm
    shape = {"cosine": cosine, "infinite": infinite}[settings.schedule]
    return settings.min_lr + (settings.lr - settings.min_lr) * shape(done, total, warm, settings)


def cosine(done: int, total: int, warm: float, settings: TrainSettings) -> float:
    """Share of the peak rate above `min_lr`: half a cosine from the end of the warm-up."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (done - warm) / max(1.0, total - warm))))


def infinite(done: int, total: int, warm: float, settings: TrainSettings) -> float:
    """Constant, then linear to 0 over the last `anneal` of the steps; without an anneal it stays constant."""
    length = min(settings.anneal * total, total - warm)
    if done <= total - length:
        return 1.0
    return max(0.0, (total - done) / length)
