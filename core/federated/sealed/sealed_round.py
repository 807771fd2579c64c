"""A sealed round, as both parties compute it: who is in it, the sketch's seed, the gate's verdicts, the transcript.

    site        masked codes -> aggregator (A); the mask's seed, in a box -> through A to the custodian (B)
    open        A names the sites and commits itself to half of a seed; B commits itself to the other half
    reveal      both halves
    sketch      A sends sketches of the masked updates; B adds those of the masks and so has sketches of what was really
                sent; it answers with their inner products alone
    gate        both compute lengths and cosines from these, and so the same verdicts, site by site
    sum         B adds up the masks of the admitted; A takes that off the sum of their masked updates

server/rounds/sealing.py runs A's side, custody.py is B. What neither learns: the update of any one site. The sketches
stay with B: who holds them beside the sum could tell the updates of a few sites in it apart, where these are of low rank.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from numpy.typing import NDArray
from pydantic import ValidationError

from usfmae.core.config.coordinator import GateSettings
from usfmae.core.errors import PolicyError
from usfmae.core.federated.admission import Comparison, Prior, compare
from usfmae.core.federated.encodings import part
from usfmae.core.federated.encodings.shared import Shared
from usfmae.core.federated.messages import TrainReply, from_record, verify
from usfmae.core.federated.sealed import envelope
from usfmae.core.federated.sealed.count_sketch import WIDTH
from usfmae.core.federated.sealed.envelope import STEPS, Envelope, Kind
from usfmae.core.federated.sealed.masks import MOST_SITES

FEWEST = 3  # sites in a sum: the sum of two tells each of them the other's update
# Values of an update: the products of a few values would be these values, and a custodian must come to an end.
VALUES = range(8 * WIDTH, 2**33)


LEAST_CHANGE = 1e-6  # of a weight, where nothing says how far a round will move: a schedule that begins at rate 0


def bounded(prior: Prior, count: int, gate: GateSettings) -> Prior:
    """What is known before, with the bound that sites cut their updates of `count` values to."""
    return dataclasses.replace(prior, bound=gate.clip_limit * (prior.usual or LEAST_CHANGE * math.sqrt(count)))


@dataclass(frozen=True)
class Yardstick:
    """What the gate measures a round's updates by, beside themselves."""

    prior: Prior
    base_norm: float
    gate: GateSettings
    strikes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Opening:
    """A round as A puts it to B."""

    campaign: str
    round: int
    base: str
    task: str
    count: int  # codes of an update
    unit: float  # what code 1 stands for
    replies: tuple[dict[str, Any], ...]  # the sites' signed records, in the order of their fingerprints
    yardstick: Yardstick
    commitment: str  # to A's half of the seed
    part: str = ""  # which part of the values is sent, as encodings/part.py names it; "" for all

    @property
    def encoding(self) -> str:
        """How every site's update is packed."""
        return part.in_turn(Shared(self.unit).name, self.part)

    @property
    def sites(self) -> list[str]:
        return [str(reply["site"]) for reply in self.replies]

    def without(self, refused: Mapping[str, str]) -> Opening:
        """The round without the sites that B has refused. PolicyError where too few are left for a sum."""
        replies = tuple(reply for reply in self.replies if reply["site"] not in refused)
        if not FEWEST <= len(replies) <= MOST_SITES:
            why = f"is of {len(replies)} sites" + "".join(f"; {site}: {why}" for site, why in refused.items())
            raise PolicyError("sealed round", why[:400], f"it takes {FEWEST} to {MOST_SITES} that the custodian knows")
        return dataclasses.replace(self, replies=replies)

    def values(self) -> dict[str, Any]:
        """As JSON values."""
        plain = dataclasses.asdict(dataclasses.replace(self, yardstick=None))  # type: ignore[arg-type]
        if not self.part:
            del plain["part"]  # a custodian of an earlier version knows of no parts
        measure = self.yardstick
        return plain | {
            "yardstick": {
                "prior": dataclasses.asdict(measure.prior),
                "base_norm": measure.base_norm,
                "gate": measure.gate.model_dump(mode="json"),
                "strikes": dict(measure.strikes),
            }
        }

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Opening:
        """PolicyError where the values are no opening."""
        try:
            measure = values["yardstick"]
            yardstick = Yardstick(
                Prior(**{**measure["prior"], "earlier": tuple(measure["prior"]["earlier"])}),
                float(measure["base_norm"]),
                GateSettings.model_validate(measure["gate"]),
                {str(site): int(times) for site, times in measure["strikes"].items()},
            )
            opening = cls(**{**values, "replies": tuple(values["replies"]), "yardstick": yardstick})
            sites = opening.sites
            sound = opening.count in VALUES and 0 < opening.unit < math.inf and len(set(sites)) == len(sites)
            sound = sound and (not opening.part or part.turn(opening.part) is not None)
        except (KeyError, TypeError, ValueError, AttributeError, ValidationError):
            sound = False
        if not sound:
            raise PolicyError("opening", "is not one of a sealed round", "update usfmae on the older side")
        return opening


def check_reply(opening: Opening, record: Mapping[str, Any], keys: Mapping[str, Ed25519PublicKey]) -> TrainReply:
    """A reply that may be summed in this round. PolicyError where it may not.

    `keys`: of the sites that the checking party has enrolled itself.
    """
    reply = from_record(TrainReply, record)
    if reply.site not in keys:
        raise PolicyError(f"site {reply.site:.20}", "is not enrolled with the custodian", "enrol it there")
    verify(reply, keys[reply.site])
    made_for = (reply.campaign, reply.round, reply.base, reply.task, reply.encoding)
    wanted = (opening.campaign, opening.round, opening.base, opening.task, opening.encoding)
    if reply.declined or made_for != wanted:
        raise PolicyError(f"reply of {reply.site}", "was made for another request", "refused")
    return reply


# --- the seed --------------------------------------------------------------------------------------------------------


def half_seed(key: Ed25519PrivateKey, base: str) -> str:
    """A party's half of the seed for all rounds from one encoder; nobody without its key can know it before.

    The same for a repeated round: a void round from the same base, with the same updates, shows no new sums of them.
    """
    return hmac.digest(key.private_bytes_raw(), f"usfmae sketch {base}".encode(), "sha256").hex()


def commitment(half: str) -> str:
    return hashlib.sha256(f"usfmae sketch half {half}".encode()).hexdigest()


def check_half(half: object, commitment_: str) -> str:
    """PolicyError where what was revealed is not what was committed to."""
    if commitment(str(half)) != commitment_:
        raise PolicyError("sketch", "the revealed half of its seed is not the one committed to", "refused")
    return str(half)


def joint_seed(ours: str, theirs: str) -> bytes:
    """From A's half and B's."""
    return hashlib.sha256(f"usfmae sketch seed {ours} {theirs}".encode()).digest()


# --- the gate --------------------------------------------------------------------------------------------------------


def directions_of(opening: Opening, products: object) -> NDArray[np.float64]:
    """Inner products of the updates (S, S) from those of their sketches, in codes. PolicyError where they are none."""
    try:
        values = np.array(products, np.int64)
        shaped = values.shape == (len(opening.sites),) * 2 and bool(
            (values == values.T).all() and values.min() > -(2**62)
        )
    except (ValueError, TypeError, OverflowError):
        shaped = False
    if not shaped or (np.diag(values) < 0).any():
        raise PolicyError("sketch", "its products are none of these sites", "update the custodian")
    return np.asarray(values.astype(np.float64) * opening.unit**2)


def judged(opening: Opening, products: object) -> tuple[dict[str, float], Comparison]:
    """Length of each site's update and the gate's comparison, from products in the order of the opening's sites."""
    directions = directions_of(opening, products)
    norms = {site: math.sqrt(float(directions[i, i])) for i, site in enumerate(opening.sites)}
    measure = opening.yardstick
    return norms, compare(norms, measure.prior, measure.base_norm, directions, measure.gate, measure.strikes)


def admitted(opening: Opening, comparison: Comparison) -> list[str]:
    return [site for site in opening.sites if site not in comparison.refused]


# --- the transcript --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verified:
    """What a transcript proves."""

    opening: Opening
    norms: dict[str, float]
    refused: dict[str, str]  # site -> code
    summed: list[str]  # sites in the sum; empty where none was released
    share: str  # SHA-256 of what B released


def check_transcript(
    transcript: Sequence[Envelope],
    coordinator: Ed25519PublicKey,
    custodian: Ed25519PublicKey,
    sites: Mapping[str, Ed25519PublicKey],
) -> Verified:
    """Go through a round's messages as both parties did. PolicyError names the first that does not hold."""
    asked, answered = {}, {}
    for step, ask, answer in zip(STEPS, transcript[::2], transcript[1::2], strict=False):
        asked[step] = envelope.read(ask, step, coordinator)
        answered[step] = envelope.read(answer, step.answer, custodian)
        _check_follows(step, asked, answered, transcript)
    if len(transcript) % 2 or Kind.SKETCH not in asked:
        raise PolicyError("transcript", "ends before the sketches", "restore it from a backup")
    opening = Opening.of(asked[Kind.OPEN]).without(answered[Kind.OPEN].get("refused", {}))
    for record in opening.replies:
        check_reply(opening, record, sites)
    check_half(asked[Kind.REVEAL].get("half"), opening.commitment)
    check_half(answered[Kind.REVEAL].get("half"), str(answered[Kind.OPEN].get("commitment")))
    norms, comparison = judged(opening, answered[Kind.SKETCH].get("products"))
    summed = list(asked.get(Kind.SUM, {}).get("sites", []))
    if summed and (summed != admitted(opening, comparison) or answered[Kind.SUM].get("sites") != summed):
        raise PolicyError("transcript", "other sites were summed than the gate admitted", "do not use this round")
    refused = {site: str(refusal.code) for site, refusal in comparison.refused.items()}
    return Verified(opening, norms, refused, summed, str(answered.get(Kind.SUM, {}).get("share", "")))


def _check_follows(
    step: Kind, asked: Mapping[Kind, Any], answered: Mapping[Kind, Any], transcript: Sequence[Envelope]
) -> None:
    """Every message but the first names the one before it."""
    place = 2 * STEPS.index(step)
    expected = [(asked[step], place - 1), (answered[step], place)]
    for values, before in expected:
        if before >= 0 and values.get("after") != envelope.name(transcript[before]):
            raise PolicyError("transcript", f"{step} does not follow the message before it", "it was put together")
