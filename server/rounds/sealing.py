"""The aggregator's side of a sealed round (core/federated/sealed/sealed_round.py says what the steps are).

Every message is written into the round's transcript before it goes out, and every answer as it comes: after a crash
the same messages are sent again, and the custodian gives the answers it gave before. Who is in the round is fixed by the
first message; a site that answers after that is late.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from usfmae.core.config.coordinator import CoordinatorSettings
from usfmae.core.errors import ConfigError, PolicyError
from usfmae.core.federated import codec
from usfmae.core.federated.admission import Comparison, Prior
from usfmae.core.federated.encodings import part
from usfmae.core.federated.encodings.shared import MOST, Shared, Summed
from usfmae.core.federated.messages import TrainRequest
from usfmae.core.federated.rules import rule_for
from usfmae.core.federated.sealed import count_sketch, envelope, masks, sealed_round
from usfmae.core.federated.sealed.envelope import STEPS, Envelope, Kind
from usfmae.core.federated.sealed.sealed_round import FEWEST, Opening, Yardstick
from usfmae.core.files import replacing, write_atomic
from usfmae.core.keys import public_signing_key
from usfmae.core.tensors import TensorFile, Writer
from usfmae.server.layout import Layout
from usfmae.server.rounds import spool
from usfmae.server.rounds.custodian_link import CustodianLink

logger = logging.getLogger(__name__)

PIECE = 2**19  # values of each site in memory at a time
OFF = 0.4  # share by which the square of a sum may differ from its sketch's: nine standard errors


@dataclass(frozen=True)
class Judged:
    """What sketches say of a round's updates."""

    opening: Opening  # without the sites whose mask B cannot take off
    norms: dict[str, float]
    comparison: Comparison
    directions: NDArray[np.float64]  # (S, S), in the order of the opening's sites
    unmaskable: dict[str, str]  # site -> why B has refused it


@dataclass(frozen=True)
class Sum:
    """The sum of a round's codes on disk, in the form that a merge reads."""

    file: Path
    encoding: str
    transcript: str  # SHA-256 of the round's messages


def checked(settings: CoordinatorSettings) -> CoordinatorSettings:
    """The settings as sealed rounds need them. ConfigError where they ask for what a sum cannot do."""
    if not rule_for(settings.merge).from_mean:
        why = "needs each site's values, which a sealed round never shows"
        do = "choose auto, fedavg, fedprox, fedavgm or fedadam"
        raise ConfigError(f"merge.rule: {settings.merge.rule}", why, do)
    if settings.train.optimizer != "adamw":
        why = "gives no length to expect, by which codes are scaled"
        raise ConfigError(f"train.optimizer: {settings.train.optimizer}", why, "choose adamw for sealed rounds")
    rounds = settings.rounds.model_copy(update={"quorum": max(settings.rounds.quorum, FEWEST)})
    continual = settings.continual.model_copy(update={"blame": False})  # B gives out one sum, not one without a site
    return settings.model_copy(update={"rounds": rounds, "continual": continual})


class Sealing:
    """Runs the aggregator's half of every round of a federation."""

    def __init__(self, home: Layout, settings: CoordinatorSettings, key: Ed25519PrivateKey) -> None:
        self.home, self.settings, self.key = home, settings, key
        self.link = CustodianLink(settings.custodian)
        self.custodian = public_signing_key(self.link.card.signing_key, "of the custodian")

    def asked(self, request: TrainRequest, prior: Prior, count: int) -> TrainRequest:
        """The round's request, sealed: the custodian, the bound, and the unit of the codes of the `count` values that move.

        ConfigError where a part of them would be too few to hide among.
        """
        in_parts = self.settings.rounds.encoding == "sparse"
        if in_parts and count // part.PARTS < 2 * sealed_round.VALUES.start:  # a part may be smaller than its share
            why = f"sends a {part.PARTS}th of {count} values in a sealed round, too few to hide among"
            raise ConfigError("rounds.encoding: sparse", why, "choose int8 for this model")
        bound = sealed_round.bounded(prior, count, self.settings.gate).bound
        sent = count // part.PARTS if in_parts else count
        encoding = Shared(count_sketch.unit_for(bound / self.settings.gate.clip_limit, sent)).name
        return dataclasses.replace(
            request,
            custodian=masks.key_name(self.link.card.box_key),
            encoding=part.name(encoding, request.round) if in_parts else encoding,
            bound=bound,
        )

    def sites(self, number: int) -> list[str] | None:
        """Who is in the round; None before it was put to the custodian."""
        transcript = self._transcript(number)
        if not transcript:
            return None
        return Opening.of(envelope.read(transcript[0], Kind.OPEN, self.key.public_key())).sites

    def judge(self, number: int, sites: Sequence[str], yardstick: Yardstick) -> Judged:
        """Verdicts on the spooled updates of these sites, or of those the round was opened with before a crash.

        NetworkError where the custodian is away; PolicyError where it refuses the round.
        """
        opened = self._ask(number, Kind.OPEN, self._opening(number, sites, yardstick))
        first = envelope.read(self._transcript(number)[0], Kind.OPEN, self.key.public_key())
        unmaskable = {str(site): str(why) for site, why in opened["refused"].items()}
        opening, place = Opening.of(first).without(unmaskable), str(opened["place"])
        half = sealed_round.half_seed(self.key, opening.base)
        revealed = self._ask(number, Kind.REVEAL, {"place": place, "half": half})
        theirs = sealed_round.check_half(revealed.get("half"), str(opened["commitment"]))
        ours: dict[str, Any] = {"place": place}
        if not self._was_asked(number, Kind.SKETCH):
            ours["sketches"] = self._sketches(number, opening, sealed_round.joint_seed(half, theirs))
        sketched = self._ask(number, Kind.SKETCH, ours)
        norms, comparison = sealed_round.judged(opening, sketched.get("products"))
        directions = sealed_round.directions_of(opening, sketched.get("products"))
        return Judged(opening, norms, comparison, directions, unmaskable)

    def summed(self, number: int, base: TensorFile, judged: Judged) -> Sum:
        """The sum of the admitted sites' codes. PolicyError where the custodian's masks do not fit its sketches."""
        opening = judged.opening
        wanted = sealed_round.admitted(opening, judged.comparison)
        place = str(self._answer(number, Kind.OPEN)["place"])
        summed = self._ask(number, Kind.SUM, {"place": place, "sites": wanted})
        share = self.home.spool / f"round-{number:05d}" / "share.bin"
        self._fetch(self._transcript(number)[6], share, str(summed["share"]))
        file = share.with_name("sum.safetensors")
        sizes = {
            name: (masks.WORD * codec.packed_size(math.prod(shape), opening.encoding),)
            for name, shape in base.shapes.items()
        }
        square = self._unmask(number, sizes, wanted, (share, file)) * opening.unit**2
        check_length(judged, wanted, square)
        share.unlink()
        digest = hashlib.sha256(self.home.transcript(number).read_bytes()).hexdigest()
        encoding = part.in_turn(Summed(opening.unit, sites=len(wanted)).name, opening.part)
        return Sum(file, encoding, digest)

    # --- the messages

    def _transcript(self, number: int) -> list[Envelope]:
        path = self.home.transcript(number)
        return list(json.loads(path.read_bytes())) if path.exists() else []

    def _was_asked(self, number: int, kind: Kind) -> bool:
        return len(self._transcript(number)) > 2 * STEPS.index(kind)

    def _ask(self, number: int, kind: Kind, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values of the answer to a step, from the transcript where it stands there already."""
        transcript, place = self._transcript(number), 2 * STEPS.index(kind)
        if len(transcript) == place:
            after = {"after": envelope.name(transcript[-1])} if transcript else {}
            transcript.append(envelope.signed(kind, {**values, **after}, self.key))
            self._keep(number, transcript)
        if len(transcript) == place + 1:
            answer = self.link.send(transcript[place])
            envelope.read(answer, kind.answer, self.custodian)
            transcript.append(answer)
            self._keep(number, transcript)
        answered = envelope.read(transcript[place + 1], kind.answer, self.custodian)
        if answered.get("after") != envelope.name(transcript[place]):
            raise PolicyError("custodian", f"answers another {kind} than it was asked", "do not go on with it")
        return answered

    def _answer(self, number: int, kind: Kind) -> dict[str, Any]:
        return envelope.read(self._transcript(number)[2 * STEPS.index(kind) + 1], kind.answer, self.custodian)

    def _keep(self, number: int, transcript: Sequence[Envelope]) -> None:
        write_atomic(self.home.transcript(number), json.dumps(transcript).encode())

    def _opening(self, number: int, sites: Sequence[str], yardstick: Yardstick) -> dict[str, Any]:
        if self._was_asked(number, Kind.OPEN):
            return {}
        records = [spool.record(self.home, number, site) for site in sorted(sites)]
        if not records:
            raise PolicyError("sealed round", "has no updates", "wait for the sites")
        first = records[0]
        encoding = str(first["encoding"])
        with TensorFile(self.home.checkpoint(number - 1)) as base:
            count = sum(codec.packed_size(math.prod(shape), encoding) for shape in base.shapes.values())  # a byte each
        half = sealed_round.half_seed(self.key, first["base"])
        unit, _, turn = encoding.partition(":")[2].partition(part.SIGN)
        opening = Opening(
            campaign=first["campaign"],
            round=number,
            base=first["base"],
            task=first["task"],
            count=count,
            unit=float(unit),
            replies=tuple(records),
            yardstick=yardstick,
            commitment=sealed_round.commitment(half),
            part=turn,
        )
        return opening.values()

    # --- the updates

    def _sketches(self, number: int, opening: Opening, seed: bytes) -> dict[str, str]:
        """Of the masked updates, by site."""
        sketcher = count_sketch.Sketcher(seed, len(opening.sites))
        with ExitStack() as stack:
            files = [stack.enter_context(TensorFile(spool.path(self.home, number, site))) for site in opening.sites]
            for _, _, start, parts in _pieces(files):
                sketcher.add(start, parts)
        return dict(zip(opening.sites, map(count_sketch.to_text, sketcher.sketches()), strict=True))

    def _fetch(self, ask: Envelope, target: Path, digest: str) -> None:
        """The sum of masks, as B has signed it."""
        received = hashlib.sha256()
        with replacing(target) as partial, partial.open("wb") as out:
            for piece in self.link.share(ask):
                received.update(piece)
                out.write(piece)
        if received.hexdigest() != digest:
            raise PolicyError("custodian", "sends other masks than it has signed", "do not go on with it")

    def _unmask(
        self, number: int, sizes: Mapping[str, tuple[int]], sites: Sequence[str], paths: tuple[Path, Path]
    ) -> float:
        """Write the sum of the sites' codes, of their masked updates less the sum of their masks; its sum of squares.

        `sizes`: bytes of each tensor's sum.
        """
        share, target = paths
        square = 0.0
        most = MOST * len(sites)
        with ExitStack() as stack:
            files = [stack.enter_context(TensorFile(spool.path(self.home, number, site))) for site in sites]
            taken = stack.enter_context(share.open("rb"))
            out = stack.enter_context(stack.enter_context(replacing(target)).open("wb"))
            writer = Writer(out, sizes, {}, "U8", hashed=False)
            for name, first, _, parts in _pieces(files):
                if first:
                    writer.begin(name)
                mask = np.frombuffer(taken.read(masks.WORD * len(parts[0])), "<u2")
                total = masks.unmasked([part.tobytes() for part in parts], mask)
                square += float(np.square(total, dtype=np.float64).sum())
                # What lies beyond the largest codes was sent by a site that keeps to no rule: cut.
                writer.write(np.clip(total, -most, most).astype("<i2").view(np.uint8))
            writer.finish()
        return square


def check_length(judged: Judged, sites: Sequence[str], square: float) -> None:
    """PolicyError where the sum is not as long as the products say: then B judged one thing and gave out another."""
    places = [judged.opening.sites.index(site) for site in sites]
    expected = float(judged.directions[np.ix_(places, places)].sum())
    if abs(square - expected) > OFF * max(expected, 1e-300):
        why = f"gives out a sum of length {math.sqrt(square):.3g}; what it judged has {math.sqrt(max(expected, 0)):.3g}"
        raise PolicyError("custodian", why, "do not go on with it")


def _pieces(files: Sequence[TensorFile]) -> Iterator[tuple[str, bool, int, list[masks.Words]]]:
    """Masked updates piece by piece: tensor, whether it begins here, position in the whole update, each site's words."""
    position = 0
    for name, (size,) in files[0].shapes.items():
        count = size // masks.WORD
        for start in range(0, count, PIECE):
            stop = min(start + PIECE, count)
            where = masks.WORD * start, masks.WORD * stop
            yield name, start == 0, position + start, [np.frombuffer(f.raw(name, *where), "<u2") for f in files]
        if not count:
            yield name, True, position, [np.zeros(0, np.uint16) for _ in files]
        position += count


def verified(home: Layout, number: int, digest: str) -> sealed_round.Verified:
    """What the transcript of a committed round proves. PolicyError where it is not the one that was committed."""
    from usfmae.server.custodian.home import Card
    from usfmae.server.ledger import Ledger

    path = home.transcript(number)
    if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        raise PolicyError(f"transcript {path}", "is missing or not the one that was committed", "restore it")
    settings = home.settings()
    if settings.custodian.card is None:
        raise PolicyError("custodian.card", "is not set: nothing says whose signatures these are", "set it")
    card = Card.read(settings.custodian.card)
    coordinator = public_signing_key(home.public_key.read_text(), str(home.public_key))
    sites = {site: public_signing_key(s.signing_key, s.name) for site, s in Ledger(home.ledger).sites().items()}
    return sealed_round.check_transcript(
        json.loads(path.read_bytes()), coordinator, public_signing_key(card.signing_key, "of the custodian"), sites
    )
