"""The learning rate as a function of the global step alone, never of a site's clock.

`cosine` suits one run of known length. `infinite` suits rounds without an end in sight: warm-up, cooldown to a lower
constant rate, constant, anneal (Singh et al. 2025, arXiv:2503.02844; Ibrahim et al. 2024, arXiv:2403.08763). It can be
cut or lengthened while the rate is constant, and a new campaign warms up again from its `origin`. The paper anneals
exponentially; here the anneal is linear, as it may end at 0.
"""

from __future__ import annotations

import math

from usfmae.core.config.train import TrainSettings


def learning_rate(step: int, end: int, settings: TrainSettings) -> float:
    """Rate of the update that follows global step `step`, in a schedule from `settings.origin` to `end`."""
    total = max(1, end - settings.origin)
    steps = max(0, step - settings.origin)
    warm = settings.warmup * total
    if steps < warm:
        return settings.lr * steps / warm
    shape = {"cosine": cosine, "infinite": infinite}[settings.schedule]
    return settings.min_lr + (settings.lr - settings.min_lr) * shape(steps, total, warm, settings)


def cosine(steps: int, total: int, warm: float, settings: TrainSettings) -> float:
    """Share of the peak rate above `min_lr`: half a cosine from the end of the warm-up."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (steps - warm) / max(1.0, total - warm))))


def infinite(steps: int, total: int, warm: float, settings: TrainSettings) -> float:
    """Half a cosine from the peak to the constant share, constant, then linear to 0 over the last `anneal`."""
    anneal = min(settings.anneal * total, total - warm)
    if steps > total - anneal:
        return settings.constant * max(0.0, (total - steps) / anneal)
    cooldown = min(settings.cooldown * total, total - warm - anneal)
    if steps < warm + cooldown:
        fallen = 0.5 * (1 - math.cos(math.pi * (steps - warm) / cooldown))
        return 1 - (1 - settings.constant) * fallen
    return settings.constant
