"""What a round asks of its sites: the recipe, the place in the campaign, the coordinator's signature."""

from __future__ import annotations

from typing import Any

from usfmae.core.checkpoint_header import recipe_text
from usfmae.core.config import TrainRecipe
from usfmae.core.config.coordinator import CoordinatorSettings
from usfmae.core.errors import ConfigError
from usfmae.core.federated import replay
from usfmae.core.federated.messages import TrainRequest
from usfmae.core.federated.rules import rule_for
from usfmae.server.campaign import Campaign
from usfmae.server.ledger import Round


def train_request(
    settings: CoordinatorSettings, current: Round, running: Campaign, decoder: str, teacher: str = ""
) -> TrainRequest:
    """The round's request, the same for every site but for what comes along.

    `decoder`, `teacher`: hashes of the seed's decoder and of the campaign's frozen teacher, "" where it has none. It is
    signed for each site when it is sent.
    """
    placed = {
        "steps": running.end_step,
        "origin": running.origin,
        "proximal": rule_for(settings.merge).proximal,
        "teacher": teacher,
        **replayed(settings),
    }
    return TrainRequest(
        campaign=running.id,
        round=current.number,
        base=current.base,
        decoder=decoder,
        global_step=current.global_step,
        steps=current.steps,
        recipe=recipe_text(settings.model, TrainRecipe.of(settings.train, **placed)),
        encoding=settings.rounds.encoding,
        min_new=settings.continual.min_new,
        deadline=current.opened + settings.rounds.deadline,
    )


def replayed(settings: CoordinatorSettings) -> dict[str, Any]:
    """Which public corpus sites mix in, and how much of it; empty where none is."""
    continual = settings.continual
    if not (continual.replay and continual.replay_share):
        return {}
    if replay.size(continual.replay) > replay.MOST_BYTES:
        raise ConfigError(f"continual.replay: {continual.replay}", "is larger than 1 GiB", "choose fewer images")
    return {"replay": continual.replay_share, "replay_corpus": replay.digest(continual.replay)}
