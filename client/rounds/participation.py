"""A site's part in a round, over any transport: is the request valid, does the site take part, what is sent back.

The agent (agent.py) and the app for a stock SuperNode (supernode_app.py) differ in the transport alone; both call this.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from usfmae.client import outbox, site_policy
from usfmae.client.flower import download
from usfmae.client.rounds import apply_step, campaigns, frozen_teacher, jobs, model_inspection, replay_corpus, sealing
from usfmae.client.rounds.campaigns import CampaignState
from usfmae.client.site import Site, read_json
from usfmae.core import flower_objects
from usfmae.core.config.train import Recipe, read_recipe
from usfmae.core.errors import CheckpointError, ConfigError, PolicyError, TryLaterError
from usfmae.core.federated import messages, privacy
from usfmae.core.federated.enrolment import NAME
from usfmae.core.federated.messages import DeclineReason, TrainReply, TrainRequest
from usfmae.core.log import note
from usfmae.core.tensors import TensorFile

logger = logging.getLogger(__name__)


class Wait(StrEnum):
    """Why a request is neither taken up nor declined now."""

    QUIET_HOURS = "quiet"
    CAMPAIGN = "campaign"  # a person has not agreed to it yet


def checked(site: Site, record: Mapping[str, Any]) -> TrainRequest:
    """The request in a record from the wire. PolicyError where the coordinator did not sign it, or it cannot be."""
    request = messages.from_record(TrainRequest, record)
    messages.verify(request, site.coordinator)
    messages.check_addressed(request, site.fingerprint, time.time())
    if not NAME.fullmatch(request.campaign) or request.round < 0 or request.steps < 1 or request.global_step < 0:
        raise PolicyError("request", "holds a campaign, round or step that cannot be", "refused")
    return request


def unwilling(site: Site, request: TrainRequest) -> str:
    """Why this site does not train for a request: a DeclineReason that goes out, a Wait, or nothing.

    PolicyError where the request is outside the site's floor, not as agreed for its campaign, or not of the next round.
    All of it is known before anything is downloaded.
    """
    recipe, settings = recipe_of(request), site.settings
    privacy.check(request, recipe, settings.privacy, settings.max_model_gb * 1e9)
    sealing.check(site, request)
    campaigns.check_turn(site, request)
    if site_policy.paused(site):
        return DeclineReason.PAUSED
    size = jobs.corpus_size(site)
    if size.images < settings.privacy.min_images or size.patients < settings.privacy.min_patients:
        return DeclineReason.NO_IMAGES
    if campaigns.state_of(site, request, recipe) is CampaignState.WAITING:
        return Wait.CAMPAIGN
    try:
        site_policy.check(site)
    except TryLaterError:
        return Wait.QUIET_HOURS
    return _lacking(site, request, recipe)


def _lacking(site: Site, request: TrainRequest, recipe: Recipe) -> str:
    """What has to come along, or be there, and is not; "" where nothing is missing."""
    if request.min_new and jobs.new_images(site, recipe.train) < request.min_new:
        return DeclineReason.NO_NEW_IMAGES
    if apply_step.missing_base(site, request):
        return DeclineReason.NEED_BASE
    if teacher := "" if request.with_teacher else frozen_teacher.lacking(site, request, recipe.train):
        return teacher
    lacking = replay_corpus.lacking(site, recipe.train)
    if lacking and not (request.with_replay and lacking == DeclineReason.NEED_REPLAY):
        return lacking
    return "" if request.with_decoder or jobs.has_decoder(site, request) else DeclineReason.NEED_DECODER


def recipe_of(request: TrainRequest) -> Recipe:
    """The model and training settings of a request. PolicyError where they are none."""
    try:
        return read_recipe(request.recipe)
    except ConfigError as error:
        raise PolicyError(error.what, error.why, error.do) from None


def fetch(
    site: Site, work: jobs.Job, request: TrainRequest, ids: Mapping[str, str], pull: flower_objects.Fetch
) -> model_inspection.Inspection | None:
    """Download what a request brings: the base, the seed's decoder and the replay corpus where they come along.

    `ids`: the request's records by name, which `pull` fetches. Returns what was seen of a base that was made here.
    PolicyError where a record is missing or unfit; ResourceError where the disk is too full.
    """
    work.place.mkdir(parents=True, exist_ok=True)
    wanted = {} if request.delta_from else {messages.ENCODER: work.base}
    if request.with_decoder:
        wanted[messages.DECODER] = work.decoder
    if request.with_teacher:
        wanted[messages.TEACHER] = work.teacher
    others = [(messages.STEP, request.delta_from), (messages.REPLAY, request.with_replay)]
    names = [*wanted, *(name for name, comes in others if comes)]
    absent = [name for name in names if name not in ids]
    if absent:
        raise PolicyError("request", f"has no record {absent[0]!r}", "refused")

    def check_room(size: int) -> None:
        site_policy.check_disk(site, size)

    for name, target in wanted.items():
        if not _whole(target):
            size = download.receive(ids[name], pull, target, site.settings.max_model_gb * 1e9, check_room)
            note(logger, "downloaded", record=name, bytes=size)
    if request.with_replay:
        replay_corpus.receive(site, recipe_of(request).train, ids[messages.REPLAY], pull, check_room)
    if not request.delta_from or work.base.exists():
        return None
    return apply_step.receive(request, work, ids[messages.STEP], pull, check_room)


def _whole(target: Path) -> bool:
    """Whether an earlier call has left this file; one that a power cut damaged is fetched again."""
    try:
        TensorFile(target).close()
    except CheckpointError:
        return False
    return True


def accept(site: Site, work: jobs.Job, request: TrainRequest, seen: model_inspection.Inspection | None = None) -> None:
    """Inspect what came and make the job ready to train. PolicyError, and all of it gone, where it is unfit.

    `seen`: what was seen of the base as it was written.
    """
    recipe = recipe_of(request)
    parent = campaigns.parent(site, request, recipe.model)
    settings = site.settings
    aligned = model_inspection.MOST_ALIGNED if settings.privacy.inspection else 1.0
    limits = model_inspection.InspectionLimits(settings.max_norm_ratio, aligned)
    try:
        seen = model_inspection.inspect(work.base, request.base, parent, limits, seen)
        if work.decoder.exists():
            model_inspection.inspect_decoder(work.decoder, request.decoder)
        if work.teacher.exists():
            model_inspection.inspect(work.teacher, recipe.train.teacher, parent, limits)
            frozen_teacher.settle(site, request, recipe.train, work.teacher)
    except PolicyError:
        for file in (work.base, work.decoder, work.teacher):
            file.unlink(missing_ok=True)
        raise
    jobs.prepare(work, request, recipe.train.seed, seen.norms, seen.shapes)
    campaigns.take_up(site, request)
    way = "step" if request.delta_from else "whole"
    site.note("base.accepted", campaign=request.campaign, round=request.round, base=request.base, way=way)


def failure(work: jobs.Job) -> str:
    """What goes out for a job that cannot be done. Figures of the corpus stay in the audit log."""
    error = work.error or {}
    if not error.get("refused"):
        return f"{DeclineReason.REFUSED}: training failed here"
    why = f"{error.get('what', '')} - {error.get('why', '')}"
    work.site.note("training.refused", "refused", job=work.place.name, why=why)
    return f"{DeclineReason.REFUSED}: this site's floor or inspection"


def stage(site: Site, work: jobs.Job, request: TrainRequest) -> None:
    """The finished update becomes an outbox entry."""
    result = work.result or {}
    fields = {f.name for f in dataclasses.fields(TrainReply)}
    reply = TrainReply(
        campaign=request.campaign,
        round=request.round,
        base=request.base,
        site=site.fingerprint,
        version=request.version,
        **{k: v for k, v in result.items() if k in fields},
    )
    summary: dict[str, Any] = {
        k: result[k] for k in ("tensors", "bytes", "norm", "drawn", "probe", "dp") if k in result
    }
    outbox.stage(site, request, reply, work.place / outbox.UPDATE, summary)
    prepared = read_json(work.place / "request.json") or {}
    campaigns.accept(site, request, prepared["norms"], prepared["shapes"])
    jobs.prune(site, request)


def stays(site: Site, state: outbox.EntryState) -> bool:
    """Whether the coordinator is told that an update stays here: one that was rejected, or held by its probe.

    With `release: auto` nobody is expected to look, so a round does not wait for a person. It is asked for again while the
    round is open, and leaves then if somebody released it meanwhile.
    """
    if state is outbox.EntryState.WAITING:
        return site.settings.release == "auto"
    return state is outbox.EntryState.REJECTED


def released(site: Site, request: TrainRequest) -> TrainReply:
    """The record of a released update, as it was staged."""
    entry = read_json(outbox.folder(site, outbox.key(request)) / "entry.json") or {}
    return messages.from_record(TrainReply, entry["record"])


def outgoing(
    site: Site, request: TrainRequest, reply: TrainReply, parts: sealing.Parts
) -> tuple[TrainReply, sealing.Parts]:
    """A released update as it leaves: masked where its round is sealed, and signed now."""
    reply, parts = sealing.sealed(site, request, reply, parts)
    return _signed(site, reply), parts


def refusal(error: PolicyError) -> str:
    """What the coordinator is told where a request failed here."""
    if isinstance(error, apply_step.LostError):
        return error.needed
    return f"{DeclineReason.REFUSED}: {error.what} {error.why}"[:200]


def declined(site: Site, record: Mapping[str, Any], why: str) -> TrainReply:
    """A signed refusal of a request; `record` is as it came, unchecked."""
    text = {key: value for key in ("campaign", "base") if isinstance(value := record.get(key), str)}
    number, version = record.get("round"), record.get("version")
    reply = TrainReply(
        campaign=text.get("campaign", "")[:100],
        round=number if isinstance(number, int) else 0,
        base=text.get("base", "")[:100],
        declined=why[:200],
        site=site.fingerprint,
        version=version if isinstance(version, int) and version in messages.SPOKEN else messages.VERSION,
    )
    return _signed(site, reply)


def _signed(site: Site, reply: TrainReply) -> TrainReply:
    """The reply, signed for this site's coordinator and for a while."""
    recipient, expires = messages.fingerprint(site.coordinator), time.time() + messages.REPLY_COUNTS
    return messages.sign(dataclasses.replace(reply, recipient=recipient, expires=expires), site.signing_key)
