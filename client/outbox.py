"""What leaves the hospital, staged: one directory an update, with a sheet that a person can read.

    DIR/outbox/ID/update.safetensors    the packed delta, one byte string a tensor
    DIR/outbox/ID/entry.json            what it is, for whom, in which round; the signed record once released
    DIR/outbox/ID/sheet.txt             the same in plain language
    DIR/outbox/ID/decision.json         a person's yes or no
    DIR/outbox/ID/sent.json             when it went

With `release: auto` an update is released as soon as it is staged; with `approve` it waits for a person.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from usfmae.client.site import Site, read_json, write_json
from usfmae.core import account, flower_objects
from usfmae.core.errors import PolicyError, UsageError
from usfmae.core.federated.codec import PayloadHash
from usfmae.core.federated.messages import RAW, TrainReply, TrainRequest, to_record
from usfmae.core.files import replacing, write_atomic
from usfmae.core.tensors import TensorFile
from usfmae.core.types import content_id


class EntryState(StrEnum):
    """The state of an entry of the outbox."""

    WAITING = "waiting"  # for a person
    RELEASED = "released"  # it may leave
    REJECTED = "rejected"  # it stays
    SENT = "sent"


UPDATE = "update.safetensors"
PICTURE = "probe.png"  # of an update that its probe held back: what could be read, beside the original


def key(request: TrainRequest) -> str:
    """Name of a round's work at this site. Equal for a repeated request, also under another run of the transport."""
    return f"r{request.round:05d}-{content_id(request.campaign, str(request.round), request.base)[:12]}"


def folder(site: Site, id_: str) -> Path:
    return site.root / "outbox" / id_


def stage(site: Site, request: TrainRequest, reply: TrainReply, update: Path, summary: Mapping[str, Any]) -> Path:
    """Put a finished update into the outbox; one that its probe held waits for a person in any case.

    `summary`: tensors, bytes, norm, drawn, probe. Staging again changes nothing.
    """
    place = folder(site, key(request))
    if (place / "entry.json").exists():
        return place
    place.mkdir(parents=True, exist_ok=True)
    with replacing(place / UPDATE) as partial:
        partial.unlink(missing_ok=True)
        os.link(update, partial)  # nobody writes to either again
    if (update.parent / PICTURE).exists():
        shutil.copyfile(update.parent / PICTURE, place / PICTURE)
    held = summary.get("probe", {}).get("held", "")
    entry = {
        "id": place.name,
        "campaign": request.campaign,
        "round": request.round,
        "base": request.base,
        "recipient": site.settings.server,
        "created": time.time(),
        "release": "approve" if held else site.settings.release,
        "floor": site.settings.privacy.model_dump(include={"min_images", "min_patients", "max_patient_share"}),
        **summary,
        "record": to_record(reply),
    }
    write_atomic(place / "sheet.txt", sheet(entry).encode())
    write_json(place / "entry.json", entry)
    if held:
        site.note("outbox.held", "refused", id=place.name, why=held)
    site.note("outbox.staged", id=place.name, round=request.round, content=reply.content, bytes=summary["bytes"])
    return place


def sheet(entry: Mapping[str, Any]) -> str:
    """The entry for a person who decides whether it may leave."""
    record = entry["record"]
    made = datetime.fromtimestamp(entry["created"], UTC)
    return (
        f"Update {entry['id']}, made {made:%Y-%m-%d %H:%M} UTC\n\n"
        f"  for          {entry['recipient']}\n"
        f"  campaign     {entry['campaign']}, round {entry['round']}\n"
        f"  contains     {entry['tensors']} arrays of numbers: how the encoder's weights changed here\n"
        f"  size         {entry['bytes']} bytes, packed as {record['encoding']}\n"
        f"  length       {entry['norm']:.4g} (L2 norm of the change)\n"
        f"  drawn on     {drawn_on(entry)}\n"
        f"  tested       {tested(entry)}\n"
        f"{to_decide(entry)}"
        f"  privacy      {privacy(entry)}\n"
        f"  trained      {record['steps']} steps, {record['seconds']:.0f} s; {record['images']} images were there to draw\n"
        f"  loss here    {losses(record)}\n"
        f"  content hash {record['content']}\n\n"
        "Beside the arrays only the figures above leave, signed with this site's key.\n"
        "No image, no name, date, number or path of any patient or scan is among them. The arrays were computed from\n"
        "the images, so they are no proof that nothing can be inferred: the floor is what keeps one from another.\n"
    )


def probed(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What an update was drawn on, and what its probe saw."""
    return {"drawn": entry.get("drawn"), "probe": entry.get("probe")}


def tested(entry: Mapping[str, Any]) -> str:
    """What the probe saw; entries of version 0.1.0 and of sites without one were not tried."""
    figures = entry.get("probe")
    if not figures:
        return "not tried"
    if figures.get("held"):
        return f"HELD BACK: {figures['held']}"
    return (
        f"one direction {figures['rank_one']:.0%}, effective rank {figures['effective_rank']:.1f}, a drawn picture "
        f"reads {figures['advantage_db']:.1f} dB better than others{membership(figures)}: nothing seen"
    )


def to_decide(entry: Mapping[str, Any]) -> str:
    """What a person does with an update that its probe held back, as a line of the sheet; "" for any other."""
    figures = entry.get("probe") or {}
    if not figures.get("held"):
        return ""
    if not figures.get("picture", True):
        advice = "reject it; more patients or fewer steps in a round tell less of each"
    else:
        advice = (
            f"compare the halves of {PICTURE}: left what was drawn, right what the update gives away. Alike: reject, and "
            "tell the coordinator. Not alike: approve. Updates of an encoder that has learned little, from a random "
            "or a short seed, are often held like this"
        )
    return f"  to decide    {advice}. Without a decision the round goes on without this site\n"


def membership(figures: Mapping[str, Any]) -> str:
    """How well drawn patients are told from held-out ones, and whether a planted name was learned."""
    text = ""
    if "membership" in figures:
        text += ", drawn patients are told from held-out ones {:.2f} ({:.2f}-{:.2f}; .5 is chance)".format(
            *figures["membership"]
        )
    if "lettering" in figures:
        text += f", a planted name {figures['lettering']:.1f} standard deviations better than others"
    return text


def privacy(entry: Mapping[str, Any]) -> str:
    """What differential privacy allows to be told of a patient."""
    dp = entry.get("dp")
    if not dp:
        return "no differential privacy"
    limit = f"{dp['limit']:g}" if dp["limit"] else "no limit set"
    return (
        f"epsilon {dp['epsilon']:.2f} at delta {dp['delta']:g} for each patient, over all rounds so far (limit: {limit}); "
        f"noise {dp['noise']:g}, clip {dp['clip']:g}, last {dp['blocks']} block(s)"
    )


def losses(record: Mapping[str, Any]) -> str:
    """The losses that leave; with differential privacy none does."""
    if not record["loss_before"] and not record["loss_after"]:
        return "not told"
    return f"{record['loss_before']:.4f} before, {record['loss_after']:.4f} after"


def drawn_on(entry: Mapping[str, Any]) -> str:
    """What an update really drew on, and the floor that it kept; entries of version 0.1.0 did not count."""
    drawn, floor = entry.get("drawn"), entry.get("floor")
    if not drawn or not floor:
        return "not counted by the version that made it"
    limits = f"{floor['min_images']} images, {floor['min_patients']} patients, {floor['max_patient_share']:.0%}"
    return (
        f"{drawn['images']} images of {drawn['patients']} patients, largest share of one patient "
        f"{drawn['largest_share']:.1%}, floor kept ({limits})"
    )


def state(place: Path) -> EntryState:
    """The state of an entry."""
    if (place / "sent.json").exists():
        return EntryState.SENT
    decision = read_json(place / "decision.json")
    if decision:
        return EntryState.RELEASED if decision.get("approved") else EntryState.REJECTED
    entry = read_json(place / "entry.json") or {}
    return EntryState.RELEASED if entry.get("release") == "auto" else EntryState.WAITING


@dataclass
class Outbox:
    """The outbox as it is read again and again: an entry that was sent never changes, so it is read once."""

    site: Site
    _sent: dict[str, dict[str, Any]] = field(default_factory=dict)

    def entries(self) -> list[dict[str, Any]]:
        """Every entry, oldest first, with its state."""
        places = (self.site.root / "outbox").glob("*")
        entries = [self._sent.get(place.name) or self._read(place) for place in places]
        return sorted((e for e in entries if e), key=lambda e: (e["created"], e["id"]))

    def _read(self, place: Path) -> dict[str, Any] | None:
        entry = read_json(place / "entry.json")
        if not entry:
            return None
        sent = read_json(place / "sent.json") or {}
        entry |= {"state": state(place), "sent": sent, "decision": read_json(place / "decision.json") or {}}
        if entry["state"] == EntryState.SENT:
            self._sent[place.name] = entry
        return entry


def entries(site: Site) -> list[dict[str, Any]]:
    """Every entry, oldest first, with its state."""
    return Outbox(site).entries()


def decide(site: Site, id_: str, approved: bool, reason: str = "", by: str = "") -> None:
    """A person's decision; `by`: their name, else the account of this process. UsageError where the entry is unknown or already decided."""
    place = folder(site, id_)
    if "/" in id_ or not (place / "entry.json").exists():
        raise UsageError(f"outbox entry {id_!r:.60}", "does not exist", f"see 'usfmae-client outbox {site.root}'")
    if state(place) != EntryState.WAITING:
        raise UsageError(f"outbox entry {id_}", f"is {state(place)} already", "nothing to decide")
    person = by or account.person()
    write_json(place / "decision.json", {"approved": approved, "by": person, "time": time.time(), "reason": reason})
    site.note("outbox.approved" if approved else "outbox.rejected", id=id_, by=person, reason=reason)


def mark_sent(site: Site, place: Path, size: int) -> None:
    """Note that the aggregator has the whole entry; the second and later times are noted in the audit log alone."""
    record = (read_json(place / "entry.json") or {}).get("record", {})
    if not (place / "sent.json").exists():
        write_json(place / "sent.json", {"time": time.time(), "bytes": size})
    site.note("outbox.sent", id=place.name, content=record.get("content", ""), bytes=size, to=site.settings.server)


def check(file: TensorFile, content: str) -> None:
    """PolicyError where an update on disk is not the one whose hash was staged, and perhaps approved."""
    digest = PayloadHash()
    for name in file.shapes:
        digest.add(name, file.raw(name))
    if digest.id() != content:
        raise PolicyError("update in the outbox", "is not the one that was staged (hash)", "look at the disk")


# --- the packed delta: a safetensors file of uint8 rows; the tensors' shapes stand in its metadata -------------------


def parts(file: TensorFile, encoding: str) -> dict[str, flower_objects.Part]:
    """An open update as the wire's tensors, read piece by piece as they are sent."""
    shapes = json.loads(file.metadata["shapes"])

    def part(name: str, size: int) -> flower_objects.Part:
        return flower_objects.Part(
            encoding, tuple(shapes[name]), RAW, size, lambda start, stop: file.raw(name, start, stop)
        )

    return {name: part(name, size) for name, (size,) in file.shapes.items()}
