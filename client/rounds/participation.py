"""A site's part in a round, whatever brought the request: is it sound, do we take part, what goes back.

The agent (agent.py) and the app for a stock SuperNode (app.py) differ in the transport alone; both call this.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from usfmae.client import outbox, site_policy
from usfmae.client.rounds import apply_step, jobs, model_inspection, replay_corpus
from usfmae.client.site import Site, read_json
from usfmae.core.config import TrainSettings
from usfmae.core.errors import PolicyError, TryLaterError
from usfmae.core.federated import messages
from usfmae.core.federated.enrolment import NAME
from usfmae.core.federated.messages import TrainReply, TrainRequest

WAIT = "wait"  # not now, but later: the request is kept


def checked(site: Site, record: Mapping[str, Any]) -> TrainRequest:
    """The request in a record from the wire. PolicyError where the coordinator did not sign it, or it cannot be."""
    asked = messages.from_record(TrainRequest, record)
    messages.verify(asked, site.coordinator)
    if not NAME.fullmatch(asked.campaign) or asked.round < 0 or asked.steps < 1 or asked.global_step < 0:
        raise PolicyError("request", "holds a campaign, round or step that cannot be", "refused")
    return asked


def unwilling(site: Site, asked: TrainRequest) -> str:
    """Why this site does not train for a request: a reason that goes out, WAIT, or nothing."""
    if site_policy.paused(site):
        return "paused"
    try:
        site_policy.check(site)
    except TryLaterError:
        return WAIT
    if jobs.images(site) < site.settings.min_images:
        return "no-images"
    recipe = recipe_of(asked)
    if asked.min_new and jobs.new_images(site, recipe) < asked.min_new:
        return "no-new-images"
    if apply_step.missing_base(site, asked):
        return apply_step.NEEDED
    lacking = replay_corpus.lacking(site, recipe)
    if lacking and not (asked.with_replay and lacking == replay_corpus.NEEDED):
        return lacking
    known = asked.with_decoder or jobs.previous(site, asked) or jobs.job(site, asked).decoder.exists()
    return "" if known else "need-decoder"


def recipe_of(asked: TrainRequest) -> TrainSettings:
    """The training settings asked for; without torch, unlike core.checkpoint.recipe_of."""
    try:
        return TrainSettings.model_validate(json.loads(asked.recipe)["train"])
    except (KeyError, ValueError, TypeError) as error:
        raise PolicyError("recipe", str(error).splitlines()[0], "update this program") from None


def accept(site: Site, work: jobs.Job, asked: TrainRequest, seen: model_inspection.Inspection | None = None) -> None:
    """Inspect what came and make the job ready to train. PolicyError, and all of it gone, where it is unfit.

    `seen`: what was seen of the base as it was written.
    """
    before = jobs.previous(site, asked)
    try:
        norms = model_inspection.inspect(
            work.base, asked.base, jobs.parent_norms(site, asked), site.settings.max_norm_ratio, seen
        )
        if before and before.base.exists():
            model_inspection.same_shapes(work.base, before.base)
        if work.decoder.exists():
            model_inspection.inspect_decoder(work.decoder, asked.decoder)
    except PolicyError:
        work.base.unlink(missing_ok=True)
        work.decoder.unlink(missing_ok=True)
        raise
    jobs.prepare(work, asked, norms)
    way = "step" if asked.step else "whole"
    site.note("base.accepted", campaign=asked.campaign, round=asked.round, base=asked.base, way=way)


def stage(site: Site, work: jobs.Job, asked: TrainRequest) -> None:
    """The finished update becomes an outbox entry."""
    result = work.result or {}
    fields = {f.name for f in dataclasses.fields(TrainReply)}
    reply = TrainReply(
        campaign=asked.campaign,
        round=asked.round,
        base=asked.base,
        site=site.fingerprint,
        **{k: v for k, v in result.items() if k in fields},
    )
    about = {k: result[k] for k in ("tensors", "bytes", "norm")}
    outbox.stage(site, asked, reply, work.place / outbox.UPDATE, about)
    jobs.prune(site, asked)


def signed_update(site: Site, asked: TrainRequest) -> TrainReply:
    """The record of a released update, signed now."""
    entry = read_json(outbox.folder(site, outbox.key(asked)) / "entry.json") or {}
    return messages.sign(messages.from_record(TrainReply, entry["record"]), site.signing_key)


def refusal(error: PolicyError) -> str:
    """What goes out where a request came to nothing here."""
    return apply_step.NEEDED if isinstance(error, apply_step.LostError) else f"refused: {error.what} {error.why}"[:200]


def declined(site: Site, record: Mapping[str, Any], why: str) -> TrainReply:
    """A signed no to whatever was asked; `record` is as it came, unchecked."""
    text = {key: value for key in ("campaign", "base") if isinstance(value := record.get(key), str)}
    number = record.get("round")
    reply = TrainReply(
        campaign=text.get("campaign", "")[:100],
        round=number if isinstance(number, int) else 0,
        base=text.get("base", "")[:100],
        declined=why[:200],
        site=site.fingerprint,
    )
    return messages.sign(reply, site.signing_key)
