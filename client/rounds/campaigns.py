"""Campaigns as this site knows them: what it agreed to, how far each has come, and the last encoder it accepted.

    DIR/campaigns/NAME/agreement.json   model, recipe and encoding of the first request; who agreed, and when
    DIR/campaigns/NAME/taken.json       the last round taken up, and when others were
    DIR/campaigns/NAME/encoder.json     norms and shapes of the last encoder that was trained on

A campaign's first request sets what every later one must ask for. A round is taken up once, and none before it
afterwards. The last encoder is what the next one is compared with, also under a new campaign's name.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from usfmae.client.site import Site, read_json, write_json
from usfmae.core import account
from usfmae.core.config.privacy import NewCampaigns
from usfmae.core.config.train import ModelSettings, Recipe, read_recipe
from usfmae.core.errors import PolicyError, UsageError
from usfmae.core.federated import privacy
from usfmae.core.federated.codec import kind_of
from usfmae.core.federated.enrolment import NAME
from usfmae.core.federated.messages import TrainRequest

DAY = 86400.0  # seconds
BY_SETTINGS = "site.yaml"  # who agreed where privacy.new_campaigns is auto
# What may differ between two requests of a campaign: the position of the learning rate, and how a step is computed.
FREE = {"steps", "origin", "micro_batch", "keep", "checkpoint_steps", "compile"}


class CampaignState(StrEnum):
    WAITING = "waiting"
    AGREED = "agreed"
    REFUSED = "refused"


@dataclass(frozen=True)
class Agreement:
    """What a campaign's first request asked for, and what this site said."""

    campaign: str
    state: CampaignState
    recipe: str
    encoding: str
    steps: int  # optimizer steps a round
    requested: float  # Unix time
    by: str = ""
    decided: float = 0.0
    reason: str = ""
    restarted: bool = False  # a person expects another encoder, or an earlier round, next


@dataclass(frozen=True)
class AcceptedEncoder:
    """The last encoder this site trained on: what the next one is compared with."""

    model: dict[str, Any]
    norms: dict[str, float]
    shapes: dict[str, list[int]]
    time: float


def folder(site: Site, campaign: str) -> Path:
    return site.root / "campaigns" / campaign


def agreement(site: Site, campaign: str) -> Agreement | None:
    """None where the campaign is new here, or what was written of it is damaged: it waits for a person again."""
    values = read_json(folder(site, campaign) / "agreement.json")
    try:
        return Agreement(**{**values, "state": CampaignState(values["state"])}) if values else None
    except (TypeError, ValueError, KeyError):
        return None


def agreements(site: Site) -> list[Agreement]:
    """Every campaign that ever asked, oldest first."""
    names = [path.parent.name for path in (site.root / "campaigns").glob("*/agreement.json")]
    listed = [agreed for name in names if (agreed := agreement(site, name))]
    return sorted(listed, key=lambda agreed: (agreed.requested, agreed.campaign))


# --- a request


def state_of(site: Site, request: TrainRequest, recipe: Recipe) -> CampaignState:
    """Whether this site agreed to the request's campaign; a new one is written down.

    PolicyError where it was refused, where the request asks for something else than was agreed, or where too many
    campaigns began today.
    """
    agreed = agreement(site, request.campaign)
    if agreed is None:
        agreed = _begin(site, request, recipe)
    if agreed.state is CampaignState.REFUSED:
        raise PolicyError(f"campaign {request.campaign}", "was refused by this site", "see 'usfmae-client campaign'")
    changed = list(_changed(agreed, request, recipe))
    if changed:
        raise PolicyError(
            f"request: {'; '.join(changed)}", f"not as agreed for campaign {request.campaign}", "begin a new campaign"
        )
    return agreed.state


def _begin(site: Site, request: TrainRequest, recipe: Recipe) -> Agreement:
    floor, now = site.settings.privacy, time.time()
    today = sum(now - other.requested < DAY for other in agreements(site))
    if today >= floor.campaigns_a_day:
        raise PolicyError(
            f"campaign {request.campaign}: {today + 1} campaigns within a day",
            f"this site allows {floor.campaigns_a_day}",
            "raise privacy.campaigns_a_day",
        )
    begun = Agreement(request.campaign, CampaignState.WAITING, request.recipe, request.encoding, request.steps, now)
    last = last_encoder(site)
    if floor.new_campaigns is NewCampaigns.AUTO and (last is None or last.model == recipe.model.model_dump()):
        begun = replace(begun, state=CampaignState.AGREED, by=BY_SETTINGS, decided=now)
    _write(site, begun)
    site.note("campaign.agreed" if begun.by else "campaign.waiting", campaign=begun.campaign, by=begun.by)
    return begun


def _changed(agreed: Agreement, request: TrainRequest, recipe: Recipe) -> Iterator[str]:
    """Figures of a request that are not the agreed ones, with both values."""
    before_recipe = read_recipe(agreed.recipe)
    pairs: list[tuple[str, Any, Any]] = [
        ("encoding", kind_of(agreed.encoding), kind_of(request.encoding)),
        ("steps", agreed.steps, request.steps),
    ]
    for before, now in ((before_recipe.model, recipe.model), (before_recipe.train, recipe.train)):
        old, new = before.model_dump(exclude=FREE), now.model_dump(exclude=FREE)
        pairs += [(name, value, new[name]) for name, value in old.items()]
    return (f"{name} is {now!r:.60}, agreed is {before!r:.60}" for name, before, now in pairs if before != now)


def check_turn(site: Site, request: TrainRequest) -> None:
    """PolicyError where a round is not the next: an earlier one, the same one with another encoder, or one too many."""
    agreed, taken = agreement(site, request.campaign), _taken(site, request.campaign)
    mine = (request.round, request.base)
    if mine == (taken.get("round"), taken.get("base")):
        return
    if taken and not (agreed and agreed.restarted):
        last, step = int(taken["round"]), int(taken["global_step"])
        if request.round <= last or request.global_step < step:
            raise PolicyError(
                f"request for round {request.round} at step {request.global_step}",
                f"this site has taken up round {last} at step {step} of campaign {request.campaign}",
                f"'usfmae-client campaign {site.root} restart {request.campaign}' where the coordinator restored a backup",
            )
        _check_overlap(request, taken, agreed.steps if agreed else request.steps)
    limit, today = site.settings.privacy.requests_a_day, len(_today(site))
    if today >= limit:
        raise PolicyError(
            f"request: {today + 1} rounds within a day", f"this site allows {limit}", "raise privacy.requests_a_day"
        )


def _check_overlap(request: TrainRequest, taken: Mapping[str, Any], steps: int) -> None:
    """PolicyError where a round would draw some of what the last one drew, or all of it from another encoder.

    The difference of two such updates would be made of fewer images than either. A round that came to nothing is asked
    again whole: from the same encoder, at the same step.
    """
    begun = int(taken["global_step"])
    again = request.global_step == begun and request.base == taken["base"]
    if not again and request.global_step < begun + steps:
        raise PolicyError(
            f"request at step {request.global_step}",
            f"overlaps the {steps} steps from {begun} on that this site was asked for before",
            "refused; ask the coordinator",
        )


def take_up(site: Site, request: TrainRequest) -> None:
    """Write down that a round's encoder came and is trained on: no earlier round is taken up after it."""
    now, taken = time.time(), _taken(site, request.campaign)
    times = [stamp for stamp in taken.get("times", []) if now - stamp < DAY]
    if (request.round, request.base) != (taken.get("round"), taken.get("base")):
        times.append(now)
    write_json(
        folder(site, request.campaign) / "taken.json",
        {"round": request.round, "base": request.base, "global_step": request.global_step, "times": times},
    )
    agreed = agreement(site, request.campaign)
    if agreed and agreed.restarted:
        _write(site, replace(agreed, restarted=False))


def _taken(site: Site, campaign: str) -> dict[str, Any]:
    taken = read_json(folder(site, campaign) / "taken.json") or {}
    return taken if {"round", "base", "global_step", "times"} <= set(taken) else {}


def _today(site: Site) -> list[float]:
    """When rounds were taken up within the last 24 hours, over all campaigns."""
    files = (site.root / "campaigns").glob("*/taken.json")
    stamps = (stamp for file in files for stamp in (read_json(file) or {}).get("times", []))
    return [stamp for stamp in stamps if time.time() - stamp < DAY]


# --- the encoder that was accepted last


def parent(site: Site, request: TrainRequest, model: ModelSettings) -> AcceptedEncoder | None:
    """What an incoming encoder is compared with: the campaign's last one, else the last one of the same model.

    None for a site's first, for a model a person agreed to, and where a person said that the next one is another.
    """
    agreed = agreement(site, request.campaign)
    if agreed and agreed.restarted:
        return None
    last = _encoder(folder(site, request.campaign)) or last_encoder(site)
    return last if last and last.model == model.model_dump() else None


def last_encoder(site: Site) -> AcceptedEncoder | None:
    """The last encoder that was trained on here, in any campaign."""
    encoders = [encoder for place in (site.root / "campaigns").glob("*") if (encoder := _encoder(place))]
    return max(encoders, key=lambda encoder: encoder.time, default=None)


def accept(site: Site, request: TrainRequest, norms: Mapping[str, float], shapes: Mapping[str, Any]) -> None:
    """Remember the encoder of a round whose training is done."""
    model = read_recipe(request.recipe).model.model_dump()
    encoder = AcceptedEncoder(model, dict(norms), {n: list(s) for n, s in shapes.items()}, time.time())
    write_json(folder(site, request.campaign) / "encoder.json", asdict(encoder))


def _encoder(place: Path) -> AcceptedEncoder | None:
    values = read_json(place / "encoder.json")
    try:
        return AcceptedEncoder(**values) if values else None
    except TypeError:
        return None


# --- a person


def decide(site: Site, campaign: str, approved: bool, reason: str = "", by: str = "") -> None:
    """A person's yes or no to a campaign; a no may follow a yes. `by`: their name, else the account of this process.

    UsageError where it is unknown or decided so already.
    """
    agreed = agreement_named(site, campaign)
    state = CampaignState.AGREED if approved else CampaignState.REFUSED
    if agreed.state is state:
        raise UsageError(f"campaign {campaign}", f"is {state} already", "nothing to decide")
    person = by or account.person()
    _write(site, replace(agreed, state=state, by=person, decided=time.time(), reason=reason))
    site.note(f"campaign.{state}", campaign=campaign, by=person, reason=reason)


def restart(site: Site, campaign: str, reason: str = "") -> None:
    """A person expects the coordinator to go on from an earlier round or another encoder: the next one is taken."""
    _write(site, replace(agreement_named(site, campaign), restarted=True))
    site.note("campaign.restart", campaign=campaign, by=account.person(), reason=reason)


def agreement_named(site: Site, campaign: str) -> Agreement:
    """The agreement of this name. UsageError where there is none."""
    agreed = agreement(site, campaign) if NAME.fullmatch(campaign) else None
    if agreed is None:
        raise UsageError(f"campaign {campaign!r:.60}", "is unknown", f"see 'usfmae-client campaign {site.root}'")
    return agreed


def _write(site: Site, agreed: Agreement) -> None:
    write_json(folder(site, agreed.campaign) / "agreement.json", asdict(agreed))


def in_words(agreed: Agreement) -> str:
    """A campaign for a person who decides whether this site takes part."""
    recipe = read_recipe(agreed.recipe)
    model, train, grid = recipe.model, recipe.train, recipe.model.image_size // recipe.model.patch_size
    requested = datetime.fromtimestamp(agreed.requested, UTC)
    zoom = f"zoom {train.augment.zoom_min:g} to {train.augment.zoom_max:g}"
    flips = "flips, " if train.augment.flips else ""
    lines = {
        "first request": f"{requested:%Y-%m-%d %H:%M} UTC",
        "state": f"{agreed.state}{f' by {agreed.by}' if agreed.by else ''}",
        "model": f"{model.width} wide, {model.depth} deep, {privacy.parameters(model):,d} weights with its decoder",
        "pictures": f"{model.image_size} x {model.image_size} pixels in {grid * grid} patches",
        "hidden": f"{train.mask_ratio:.0%} of the patches, to be predicted from the others",
        "each round": f"{agreed.steps} steps of {train.batch_size} pictures, drawn by this site's secret",
        "predicts": {"pixels": "pixels", "latents": "a teacher's features"}.get(train.target, "pixels and features"),
        "optimizer": f"{train.optimizer}, learning rate {train.lr:g}, weight decay {train.weight_decay:g}, gradient clip {train.clip:g}",
        "augmentation": f"rotation to {train.augment.rotation:g} degrees, {flips}{zoom}",
        "replayed": f"{train.replay:.0%} public pictures" if train.replay else "nothing",
        "leaves as": kind_of(agreed.encoding),
    }
    return f"Campaign {agreed.campaign}\n\n" + "".join(f"  {name:14s} {text}\n" for name, text in lines.items())
