"""A site's part in a round, whatever brought the request: is it sound, do we take part, what goes back.

The agent (agent.py) and the app for a stock SuperNode (app.py) differ in the transport alone; both call this.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from typing import Any

from usfmae.client import outbox, site_policy
from usfmae.client.rounds import apply_step, jobs, model_inspection, replay_corpus
from usfmae.client.site import Site, read_json
from usfmae.core.config import TrainSettings
from usfmae.core.errors import PolicyError, TryLaterError
from usfmae.core.federated import messages
from usfmae.core.federated.enrolment import NAME
from usfmae.core.federated.messages import DeclineReason, TrainReply, TrainRequest

WAIT = "wait"  # not now, but later: the request is kept


def checked(site: Site, record: Mapping[str, Any]) -> TrainRequest:
    """The request in a record from the wire. PolicyError where the coordinator did not sign it, or it cannot be."""
    request = messages.from_record(TrainRequest, record)
    messages.verify(request, site.coordinator)
    messages.check_addressed(request, site.fingerprint, time.time())
    if not NAME.fullmatch(request.campaign) or request.round < 0 or request.steps < 1 or request.global_step < 0:
        raise PolicyError("request", "holds a campaign, round or step that cannot be", "refused")
    return request


def unwilling(site: Site, request: TrainRequest) -> str:
    """Why this site does not train for a request: a reason that goes out, WAIT, or nothing."""
    if site_policy.paused(site):
        return DeclineReason.PAUSED
    try:
        site_policy.check(site)
    except TryLaterError:
        return WAIT
    if jobs.images(site) < site.settings.min_images:
        return DeclineReason.NO_IMAGES
    recipe = recipe_of(request)
    if request.min_new and jobs.new_images(site, recipe) < request.min_new:
        return DeclineReason.NO_NEW_IMAGES
    if apply_step.missing_base(site, request):
        return DeclineReason.NEED_BASE
    lacking = replay_corpus.lacking(site, recipe)
    if lacking and not (request.with_replay and lacking == DeclineReason.NEED_REPLAY):
        return lacking
    known = request.with_decoder or jobs.previous(site, request) or jobs.job(site, request).decoder.exists()
    return "" if known else DeclineReason.NEED_DECODER


def recipe_of(request: TrainRequest) -> TrainSettings:
    """The training settings asked for; without torch, unlike core.checkpoint.recipe_of."""
    try:
        return TrainSettings.model_validate(json.loads(request.recipe)["train"])
    except (KeyError, ValueError, TypeError) as error:
        raise PolicyError("recipe", str(error).splitlines()[0], "update this program") from None


def accept(site: Site, work: jobs.Job, request: TrainRequest, seen: model_inspection.Inspection | None = None) -> None:
    """Inspect what came and make the job ready to train. PolicyError, and all of it gone, where it is unfit.

    `seen`: what was seen of the base as it was written.
    """
    before = jobs.previous(site, request)
    try:
        norms = model_inspection.inspect(
            work.base, request.base, jobs.parent_norms(site, request), site.settings.max_norm_ratio, seen
        )
        if before and before.base.exists():
            model_inspection.same_shapes(work.base, before.base)
        if work.decoder.exists():
            model_inspection.inspect_decoder(work.decoder, request.decoder)
    except PolicyError:
        work.base.unlink(missing_ok=True)
        work.decoder.unlink(missing_ok=True)
        raise
    jobs.prepare(work, request, norms)
    way = "step" if request.delta_from else "whole"
    site.note("base.accepted", campaign=request.campaign, round=request.round, base=request.base, way=way)


def stage(site: Site, work: jobs.Job, request: TrainRequest) -> None:
    """The finished update becomes an outbox entry."""
    result = work.result or {}
    fields = {f.name for f in dataclasses.fields(TrainReply)}
    reply = TrainReply(
        campaign=request.campaign,
        round=request.round,
        base=request.base,
        site=site.fingerprint,
        **{k: v for k, v in result.items() if k in fields},
    )
    about = {k: result[k] for k in ("tensors", "bytes", "norm")}
    outbox.stage(site, request, reply, work.place / outbox.UPDATE, about)
    jobs.prune(site, request)


def signed_update(site: Site, request: TrainRequest) -> TrainReply:
    """The record of a released update, signed now."""
    entry = read_json(outbox.folder(site, outbox.key(request)) / "entry.json") or {}
    return _signed(site, messages.from_record(TrainReply, entry["record"]))


def refusal(error: PolicyError) -> str:
    """What goes out where a request came to nothing here."""
    if isinstance(error, apply_step.LostError):
        return DeclineReason.NEED_BASE
    return f"{DeclineReason.REFUSED}: {error.what} {error.why}"[:200]


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
    return _signed(site, reply)


def _signed(site: Site, reply: TrainReply) -> TrainReply:
    """The reply, signed for this site's coordinator and for a while."""
    recipient, expires = messages.fingerprint(site.coordinator), time.time() + messages.REPLY_COUNTS
    return messages.sign(dataclasses.replace(reply, recipient=recipient, expires=expires), site.signing_key)
