"""Campaigns: spans of rounds with one recipe, begun and ended from the command line, kept in the ledger.

The recipe is everything that decides what a round computes. It is written down when a campaign begins; a run with
other settings is refused, since figures of rounds made by two recipes say nothing. The global step goes on through all
campaigns; each warms its learning rate up again from its own origin.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from usfmae.core import audit
from usfmae.core.config import TrainRecipe
from usfmae.core.config.coordinator import CoordinatorSettings
from usfmae.core.errors import PolicyError
from usfmae.core.files import copy_atomic, is_locked
from usfmae.core.log import note
from usfmae.core.mae.lr_schedule import learning_rate
from usfmae.core.tensors import TensorFile
from usfmae.core.types import recipe_id
from usfmae.server.layout import Layout
from usfmae.server.ledger import Ledger

logger = logging.getLogger(__name__)

RECORD = "campaigns"  # the ledger's fact that holds all of them, oldest first
OPEN_ENDED = 100  # rounds that place the learning rate where a campaign has no planned length

# Settings that change how fast or where a round is computed, never what comes out.
_FREE_TRAIN = {"micro_batch", "keep", "checkpoint_steps", "checkpoint_minutes", "compile", "steps", "origin"}
_FREE_ROUNDS = {"total_steps", "quorum", "deadline", "grace", "grace_factor", "patience", "late"}
_FREE_CONTINUAL = {"alphas", "anatomies"}


@dataclass(frozen=True)
class Campaign:
    id: str  # part of every request and of what sites sign
    first: int  # number of its first round
    rounds: int  # planned rounds; 0 for no planned end
    origin: int  # global step at which it began
    steps: int  # steps that place the learning rate, from the origin on
    seed: int  # the round whose encoder it began with
    recipe: str  # recipe_id of `recipe_of`
    settings: dict[str, Any]  # that recipe in full
    began: float
    ended: float | None = None

    @property
    def end_step(self) -> int:
        """The global step at which the learning rate has annealed."""
        return self.origin + self.steps

    @property
    def last(self) -> int | None:
        """Number of its last planned round."""
        return self.first + self.rounds - 1 if self.rounds else None


def recipe_of(settings: CoordinatorSettings) -> dict[str, Any]:
    """What decides the outcome of a round, as JSON values."""
    free = {"train": _FREE_TRAIN, "rounds": _FREE_ROUNDS, "continual": _FREE_CONTINUAL}
    return {
        section: getattr(settings, section).model_dump(mode="json", exclude=free.get(section))
        for section in ("model", "train", "rounds", "merge", "continual")
    }


def campaigns(ledger: Ledger) -> list[Campaign]:
    return [Campaign(**values) for values in json.loads(ledger.fact(RECORD, "[]"))]


def current(ledger: Ledger) -> Campaign | None:
    """The campaign that runs, or None."""
    recorded = campaigns(ledger)
    return recorded[-1] if recorded and recorded[-1].ended is None else None


def resume(ledger: Ledger, settings: CoordinatorSettings, rounds: int = 0) -> Campaign:
    """The campaign to go on with. The very first one begins here without a planned end; `rounds` places its rate.

    PolicyError where it was ended, or where the settings are no longer those it began with.
    """
    recorded = campaigns(ledger)
    if not recorded:
        return _begin(ledger, settings, ledger.fact("campaign"), 0, seed=0, length=rounds)
    now = recorded[-1]
    if now.ended is not None:
        raise PolicyError(f"campaign {now.id}", "was ended", "begin the next with 'usfmae-server campaign start'")
    changed = _changed(now.settings, recipe_of(settings))
    if changed:
        raise PolicyError(
            f"campaign {now.id}: {', '.join(changed)}",
            "changed while the campaign runs",
            "put it back, or 'usfmae-server campaign end' and begin a new one with 'campaign start'",
        )
    return now


def goes_on(ledger: Ledger, running: Campaign) -> bool:
    """Whether the campaign has rounds left and was not ended."""
    now, last = current(ledger), ledger.last_round()
    planned = running.last is None or last is None or last.number < running.last
    return planned and now is not None and now.id == running.id


def placed(home: Layout, ledger: Ledger, settings: CoordinatorSettings, running: Campaign, rounds: int = 0) -> Campaign:
    """The campaign with its learning rate placed so that the next round still learns.

    A campaign without a planned end is lengthened when its schedule is over: to the end of `rounds` where so many are
    wanted, else by OPEN_ENDED rounds, and then before an `infinite` schedule begins to fall. The ledger, the audit log
    and the log say so. PolicyError where `rounds.total_steps` says that no step is left.
    """
    last = ledger.last_round()
    step, number = (last.global_step + last.steps, last.number) if last else (0, 0)
    if running.rounds:
        return running  # it ends by itself
    falls = settings.train.schedule == "infinite" and not rounds
    fall = settings.train.anneal * running.steps if falls else 0.0
    needed = settings.rounds.steps if fall else 1
    recipe = TrainRecipe.of(settings.train, origin=running.origin)
    if step + needed <= running.end_step - fall or (not fall and learning_rate(step, running.end_step, recipe) > 0):
        return running
    if settings.rounds.total_steps:
        where = f"rounds.total_steps: {settings.rounds.total_steps}"
        why = f"the learning rate is 0 from step {running.end_step} on: nothing would be learned"
        raise PolicyError(where, why, "end the campaign, or begin a new one with 'usfmae-server campaign start'")
    left = max(rounds - number, 1) if rounds else OPEN_ENDED
    longer = replace(running, steps=step - running.origin + settings.rounds.steps * left)
    ledger.set_facts({RECORD: _text([*campaigns(ledger)[:-1], longer])})
    audit.append(
        home.audit, "aggregator", "campaign-extend", campaign=running.id, steps=longer.steps, before=running.steps
    )
    note(logger, "learning rate placed anew", steps=longer.steps, before=running.steps)
    return longer


def start(home: Layout, ledger: Ledger, settings: CoordinatorSettings, rounds: int, seed: int | None) -> Campaign:
    """Begin a campaign with the settings as they are, from the last encoder or that of round `seed`.

    A start from an earlier round is written down as a round of its own, without sites or steps, so that the chain of
    checkpoints stays whole. PolicyError where a campaign runs, an aggregator still serves, or the checkpoint is gone.
    """
    if _serving(home):
        raise PolicyError(f"directory {home.root}", "an aggregator is running here", "stop it, or wait for its round")
    running = current(ledger)
    if running is not None:
        raise PolicyError(f"campaign {running.id}", "is running", "end it first: 'usfmae-server campaign end'")
    last = ledger.last_round()
    number = last.number if last else 0
    seed = number if seed is None else seed
    if seed > number or not home.checkpoint(seed).exists():
        raise PolicyError(f"round {seed}", "its checkpoint is not there", "choose another: 'usfmae-server status'")
    ledger.give_up_round()
    if seed != number:
        number = _go_back(home, ledger, seed, number + 1)
    name = f"{settings.name}-{secrets.token_hex(6)}"
    begun = _begin(ledger, settings, name, rounds, number)
    audit.append(home.audit, "coordinator", "campaign-start", campaign=name, recipe=begun.recipe, seed=seed)
    return begun


def _go_back(home: Layout, ledger: Ledger, seed: int, number: int) -> int:
    """Commit round `number` as the encoder of round `seed`; returns the number."""
    last = ledger.last_round()
    assert last is not None
    with TensorFile(home.checkpoint(seed)) as chosen, TensorFile(home.checkpoint(last.number)) as before:
        result = chosen.metadata["content"]
        opened = ledger.open_round(number, before.metadata["content"], last.global_step + last.steps, 0)
    copy_atomic(home.checkpoint(seed), home.checkpoint(number))
    summary = {"sites": 0, "images": 0, "bytes": 0, "back_to": seed, **_panel_of(ledger, seed)}
    ledger.commit_round(opened.number, result, summary, [])
    return number


def _panel_of(ledger: Ledger, number: int) -> dict[str, Any]:
    summary = next((r.summary or {} for r in ledger.rounds() if r.number == number), {})
    return {"panel": summary["panel"]} if "panel" in summary else {}


def end(home: Layout, ledger: Ledger) -> Campaign:
    """End the running campaign: an aggregator that runs commits its open round and stops; without one it is given up.

    PolicyError where none runs.
    """
    recorded = campaigns(ledger)
    if not recorded or recorded[-1].ended is not None:
        raise PolicyError("campaign", "none is running", "begin one with 'usfmae-server campaign start'")
    ended = replace(recorded[-1], ended=time.time())
    ledger.set_facts({RECORD: _text([*recorded[:-1], ended])})
    audit.append(home.audit, "coordinator", "campaign-end", campaign=ended.id)
    return ended


def _begin(
    ledger: Ledger, settings: CoordinatorSettings, name: str, rounds: int, seed: int, length: int = 0
) -> Campaign:
    last = ledger.last_round()
    recipe = recipe_of(settings)
    steps = settings.rounds.total_steps or settings.rounds.steps * (rounds or length or OPEN_ENDED)
    check_learns(settings, rounds or max(1, steps // settings.rounds.steps), steps)
    begun = Campaign(
        id=name,
        first=last.number + 1 if last else 1,
        rounds=rounds,
        origin=last.global_step + last.steps if last else 0,
        steps=steps,
        seed=seed,
        recipe=recipe_id(recipe),
        settings=recipe,
        began=time.time(),
    )
    ledger.set_facts({RECORD: _text([*campaigns(ledger), begun]), "campaign": name})
    return begun


def check_learns(settings: CoordinatorSettings, rounds: int, end: int) -> None:
    """PolicyError where a planned round would have a learning rate of 0 in all of its steps: its updates say nothing.

    `end`: steps from the campaign's first to the end of its schedule. The first step of a warm-up is at 0 by design.
    """
    recipe, steps = TrainRecipe.of(settings.train), settings.rounds.steps
    for number in range(rounds):
        first, last = max(number * steps, 1), max((number + 1) * steps - 1, 1)
        if not any(learning_rate(step, end, recipe) > 0 for step in (first, (first + last) // 2, last)):
            why = f"the learning rate is 0 from step {first} on, in round {number + 1} of {rounds}: nothing would be learned"
            raise PolicyError(
                f"train.lr {recipe.lr:g}, train.schedule {recipe.schedule}, rounds.total_steps {settings.rounds.total_steps}",
                why, "set a rate, a longer rounds.total_steps, or train.constant above 0",
            )  # fmt: skip


def _serving(home: Layout) -> bool:
    return is_locked(home.lock)


def _text(listed: list[Campaign]) -> str:
    return json.dumps([asdict(campaign) for campaign in listed], sort_keys=True)


def _changed(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Dotted keys whose values differ; a key that the older version did not know is no change."""
    return sorted(
        f"{section}.{key}"
        for section in old.keys() | new.keys()
        for key in old.get(section, {})
        if old.get(section, {}).get(key) != new.get(section, {}).get(key)
    )
