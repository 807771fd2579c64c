"""The custodian (B): it holds the masks' seeds of a sealed round and gives out one sum of masks, or nothing.

Its rules, whatever the aggregator asks: one list of sites a round, of at least three, each of which it has enrolled
itself and each of which signed a reply to the very same request; no seed twice; sketches once, with a seed that neither
party chose; one sum a round, of exactly the sites that the gate admits; and from one encoder never sums of different
sets, whose difference would be a site's update. It writes down what it was asked before it answers, so that a repeated
question after a crash has the same answer and no other question has one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from usfmae.core.errors import PolicyError
from usfmae.core.federated.messages import TrainReply, from_record
from usfmae.core.federated.sealed import count_sketch, envelope, masks, sealed_round
from usfmae.core.federated.sealed.envelope import STEPS, Envelope, Kind
from usfmae.core.federated.sealed.sealed_round import FEWEST, Opening

PIECE = 2**20  # values of a sum at a time
Record = dict[str, Any]


@dataclass(frozen=True)
class CustodianKeys:
    signing: Ed25519PrivateKey
    box: X25519PrivateKey  # opens what sites seal for the custodian


def box_subject(reply: TrainReply) -> tuple[str, ...]:
    """What the box of a reply's mask is tied to."""
    return (reply.campaign, str(reply.round), reply.base, reply.site, reply.content)


class Custodian:
    """Answers one coordinator. `records` is its memory, by round: what is put there must be on disk when that returns.

    `sites` gives the public keys of those it has enrolled itself. A sum is of `fewest` of them or more.
    """

    def __init__(
        self,
        keys: CustodianKeys,
        coordinator: Ed25519PublicKey,
        sites: Callable[[], Mapping[str, Ed25519PublicKey]],
        records: MutableMapping[str, Record],
        fewest: int = FEWEST,
    ) -> None:
        self.keys, self.coordinator, self.sites, self.records = keys, coordinator, sites, records
        self.fewest = max(fewest, FEWEST)

    def answer(self, ask: Envelope) -> Envelope:
        """The answer to one message of the aggregator. PolicyError where a rule forbids it."""
        kind = next((step for step in STEPS if ask.get("kind") == step), None)
        if kind is None:
            raise PolicyError("message", f"of kind {ask.get('kind')!r:.40} is not part of a sealed round", "refused")
        values = envelope.read(ask, kind, self.coordinator)
        place = _place(values) if kind is Kind.OPEN else str(values.get("place", ""))
        record = dict(self.records.get(place, {}))
        if kind in record:
            if record[kind]["text"] != ask["text"]:
                raise PolicyError(f"round {place:.80}", f"was asked for another {kind} before", "refused")
            return dict(record[kind.answer])
        self._check_order(kind, record, place)
        if before := STEPS[: STEPS.index(kind)]:
            self._check_follows(values, record[before[-1].answer])
        said = getattr(self, f"_{kind}")(values, record, place)
        answer = envelope.signed(kind.answer, {**said, "after": envelope.name(ask)}, self.keys.signing)
        self.records[place] = {**record, kind: ask, kind.answer: answer}
        return answer

    def share(self, place: str) -> Iterator[bytes]:
        """The released sum of masks of a round, in pieces of two bytes a value. PolicyError where none is."""
        record = self.records.get(place, {})
        if Kind.SUM not in record:
            raise PolicyError(f"round {place:.80}", "has no sum", "refused")
        opening, seeds = self._seeds(record)
        summed = envelope.read(record[Kind.SUM], Kind.SUM, self.coordinator)["sites"]
        return self._pieces(opening, [seeds[site] for site in summed])

    # --- the four steps

    def _open(self, values: Mapping[str, Any], record: Record, place: str) -> dict[str, Any]:
        opening = Opening.of({key: value for key, value in values.items() if key != "after"})
        seeds, refused = self._accepted(opening, place)
        opening = opening.without(refused)
        self._check_enough(opening.sites)
        known = self.records.get("bases", {}).get(opening.base, opening.commitment)
        if known != opening.commitment:
            raise PolicyError("sketch", "its seed is another than before for this encoder", "refused")
        self._forget_older(opening)
        noted = {_hash(seed): place for seed in seeds.values()}
        self.records["seeds"] = {**self.records.get("seeds", {}), **noted}
        self.records["bases"] = {**self.records.get("bases", {}), opening.base: opening.commitment}
        half = sealed_round.half_seed(self.keys.signing, opening.base)
        return {"place": place, "commitment": sealed_round.commitment(half), "refused": refused}

    def _accepted(self, opening: Opening, place: str) -> tuple[dict[str, bytes], dict[str, str]]:
        """Seeds by site, and why others have no place in the round: each costs its own site, not the round."""
        seeds: dict[str, bytes] = {}
        refused: dict[str, str] = {}
        keys, used = self.sites(), self.records.get("seeds", {})
        for site, record in zip(opening.sites, opening.replies, strict=True):
            try:
                reply = sealed_round.check_reply(opening, record, keys)
                seed = masks.opened(reply.mask, self.keys.box, box_subject(reply))
                if used.get(_hash(seed), place) != place or seed in seeds.values():
                    raise PolicyError("mask", "its seed was used before", "refused")
                seeds[site] = seed
            except PolicyError as error:
                refused[site] = f"{error.what} {error.why}"[:200]
        return seeds, refused

    def _reveal(self, values: Mapping[str, Any], record: Record, place: str) -> dict[str, Any]:
        opening = self._opening(record)
        sealed_round.check_half(values.get("half"), opening.commitment)
        return {"half": sealed_round.half_seed(self.keys.signing, opening.base)}

    def _sketch(self, values: Mapping[str, Any], record: Record, place: str) -> dict[str, Any]:
        opening, seeds = self._seeds(record)
        masked = [count_sketch.from_text(values.get("sketches", {}).get(site)) for site in opening.sites]
        sketcher = count_sketch.Sketcher(self._joint(record), len(seeds))
        for start in range(0, opening.count, PIECE):
            count = min(PIECE, opening.count - start)
            sketcher.add(start, [masks.keystream(seeds[site], start, count) for site in opening.sites])
        # The mask is taken off: its sketch goes in with the other sign. Products alone are told, never a sketch.
        sketches = [count_sketch.joined(ours, -own) for ours, own in zip(masked, sketcher.sketches(), strict=True)]
        return {"products": count_sketch.products(sketches).tolist()}

    def _sum(self, values: Mapping[str, Any], record: Record, place: str) -> dict[str, Any]:
        opening, seeds = self._seeds(record)
        told = envelope.read(record[Kind.SKETCH.answer], Kind.SKETCHED, self.keys.signing.public_key())
        _, comparison = sealed_round.judged(opening, told["products"])
        wanted = sealed_round.admitted(opening, comparison)
        if values.get("sites") != wanted:
            raise PolicyError("sum", "is asked for other sites than the gate admits", "update both sides")
        self._check_enough(wanted)
        self._check_sets(opening.base, wanted, place)
        self.records["sums"] = {**self.records.get("sums", {}), place: {"base": opening.base, "sites": wanted}}
        digest = hashlib.sha256()
        for piece in self._pieces(opening, [seeds[site] for site in wanted]):
            digest.update(piece)
        return {"sites": wanted, "share": digest.hexdigest()}

    # --- the rules

    def _check_order(self, kind: Kind, record: Record, place: str) -> None:
        if record.get("closed"):
            raise PolicyError(f"round {place:.80}", "is over: a later one was opened", "refused")
        before = STEPS[: STEPS.index(kind)]
        if missing := [step for step in before if step not in record]:
            raise PolicyError(f"round {place:.80}", f"was not asked for {missing[0]} yet", "begin with open")

    def _check_follows(self, values: Mapping[str, Any], before: Envelope) -> None:
        if values.get("after") != envelope.name(before):
            raise PolicyError("message", "does not follow the answer before it", "refused")

    def _check_enough(self, sites: list[str]) -> None:
        if len(sites) < self.fewest:
            why = f"would be of {len(sites)} sites"
            raise PolicyError("sum", why, f"a sum is of {self.fewest} or more")

    def _check_sets(self, base: str, wanted: list[str], place: str) -> None:
        """From one encoder the same updates may come again: only the same set may be summed again."""
        for other, released in self.records.get("sums", {}).items():
            if other != place and released["base"] == base and released["sites"] != wanted:
                why = f"round {other:.80} from the same encoder had other sites"
                raise PolicyError("sum", why, "a difference of both would show a site's update")

    def _forget_older(self, opening: Opening) -> None:
        """Boxes of earlier rounds are not needed any more: whoever takes this machine finds none."""
        for place in [place for place in self.records if place.startswith(f"{opening.campaign}/")]:
            if int(place.rsplit("/", 1)[1]) < opening.round and Kind.OPEN in self.records[place]:
                self.records[place] = {"closed": True}

    # --- what is in a record

    def _opening(self, record: Record) -> Opening:
        """The round without the sites that were refused."""
        answer = envelope.read(record[Kind.OPEN.answer], Kind.OPENED, self.keys.signing.public_key())
        return Opening.of(envelope.read(record[Kind.OPEN], Kind.OPEN, self.coordinator)).without(answer["refused"])

    def _seeds(self, record: Record) -> tuple[Opening, dict[str, bytes]]:
        opening = self._opening(record)
        replies = [from_record(TrainReply, reply) for reply in opening.replies]
        return opening, {r.site: masks.opened(r.mask, self.keys.box, box_subject(r)) for r in replies}

    def _joint(self, record: Record) -> bytes:
        theirs = envelope.read(record[Kind.REVEAL], Kind.REVEAL, self.coordinator)["half"]
        base = self._opening(record).base
        return sealed_round.joint_seed(str(theirs), sealed_round.half_seed(self.keys.signing, base))

    def _pieces(self, opening: Opening, seeds: list[bytes]) -> Iterator[bytes]:
        for start in range(0, opening.count, PIECE):
            count = min(PIECE, opening.count - start)
            yield masks.mask_sum(seeds, start, count).astype("<u2").tobytes()


def _place(values: Mapping[str, Any]) -> str:
    """Name of a round in the custodian's memory."""
    return f"{str(values.get('campaign', ''))[:100]}/{values.get('round', '')!s:.20}"


def _hash(seed: bytes) -> str:
    return hashlib.sha256(b"usfmae used seed" + seed).hexdigest()
