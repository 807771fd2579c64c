"""The learning rate as a function of the global step alone, never of a site's clock.

`cosine` suits one run of known length. `infinite` suits rounds without an end in sight: warm-up, cooldown to a lower
constant rate, constant, anneal (Singh et al. 2025, arXiv:2503.02844; Ibrahim et al. 2024, arXiv:2403.08763). It can be
cut or lengthened while the rate is constant, and a new campaign warms up again from its `origin`. The paper anneals
exponentially; here the anneal is linear, as it may end at 0.
"""

from __future__ import annotations

import math

from usfmae.core.config.train import TrainRecipe


def learning_rate(step: int, end: int, recipe: TrainRecipe) -> float:
    """Rate of the update that follows global step `step`, in a schedule from `recipe.origin` to `end`."""
    total = max(1, end - recipe.origin)
    steps = max(0, step - recipe.origin)
    warm = recipe.warmup * total
    if steps < warm:
        return recipe.lr * steps / warm
    shape = {"cosine": cosine, "infinite": infinite}[recipe.schedule]
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * shape(steps, total, warm, recipe)


def cosine(steps: int, total: int, warm: float, recipe: TrainRecipe) -> float:
    """Share of the peak rate above `min_lr`: half a cosine from the end of the warm-up."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (steps - warm) / max(1.0, total - warm))))


def infinite(steps: int, total: int, warm: float, recipe: TrainRecipe) -> float:
    """Half a cosine from the peak to the constant share, constant, then linear to 0 over the last `anneal`."""
    anneal = min(recipe.anneal * total, total - warm)
    if steps > total - anneal:
        return recipe.constant * max(0.0, (total - steps) / anneal)
    cooldown = min(recipe.cooldown * total, total - warm - anneal)
    if steps < warm + cooldown:
        fallen = 0.5 * (1 - math.cos(math.pi * (steps - warm) / cooldown))
        return 1 - (1 - recipe.constant) * fallen
    return recipe.constant
