"""The admission gate: one verdict per site and round; a bad reply costs that site its place, never the round.

First each reply alone, on the bytes as they came (`examine`), then all replies of the round beside each other
(`compare`). What is refused is named by a short code, which the ledger, the audit log and `status` show.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from usfmae.core.config import TrainRecipe
from usfmae.core.config.coordinator import GateSettings
from usfmae.core.errors import PolicyError
from usfmae.core.federated import codec
from usfmae.core.federated.enrolment import EnrolledSite
from usfmae.core.federated.merge import side_by_side
from usfmae.core.federated.messages import (
    HIGHEST_LOSS,
    LONGEST_SECONDS,
    RAW,
    TrainReply,
    TrainRequest,
    VerdictCode,
    check_addressed,
    from_record,
    task_id,
    verify,
)
from usfmae.core.federated.sealed.masks import WORD
from usfmae.core.keys import public_signing_key
from usfmae.core.mae.lr_schedule import learning_rate
from usfmae.core.tensors import TensorFile

OVER_BOUND = 1.1  # times the bound that an update may measure: lengths from a sketch are good to 2.2 %
FIGURES = {"loss_before": HIGHEST_LOSS, "loss_after": HIGHEST_LOSS, "seconds": LONGEST_SECONDS}  # and their bounds


@dataclass(frozen=True)
class Arrived:
    """A tensor of a reply, as it came over the wire; its bytes are read when they are judged."""

    dtype: str
    shape: tuple[int, ...]
    stype: str
    read: Callable[[int], bytes]  # at most this many bytes -> the bytes; of too many, enough to show it

    @classmethod
    def whole(cls, dtype: str, shape: tuple[int, ...], stype: str, data: bytes) -> Arrived:
        """A tensor that is in memory already."""
        return cls(dtype, shape, stype, lambda most: data)


class Refusal(Exception):  # noqa: N818 - a verdict, not an error
    """Why a reply is not admitted: a code for machines, a detail for people."""

    def __init__(self, code: VerdictCode, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code, self.detail = code, detail


class UnsignedRefusal(Refusal):
    """A reply that its site has not signed: it says nothing about the site, which may still answer."""


def identify(
    record: Mapping[str, Any], site: EnrolledSite, request: TrainRequest, coordinator: str, now: float
) -> TrainReply:
    """The reply in a record, if this site signed it for this coordinator (a fingerprint) and it answers this request.

    `now`: Unix time.
    """
    try:
        reply = from_record(TrainReply, record)
    except PolicyError as error:
        raise UnsignedRefusal(VerdictCode.BAD_RECORD, str(error)) from None
    try:
        verify(reply, public_signing_key(site.signing_key, site.name))
    except PolicyError:
        raise UnsignedRefusal(VerdictCode.BAD_SIGNATURE, "the signature is not this site's over this reply") from None
    if reply.site != site.site:
        raise Refusal(VerdictCode.WRONG_SITE, "the reply names another site")
    try:
        check_addressed(reply, coordinator, now)
    except PolicyError as error:
        raise Refusal(VerdictCode.WRONG_RECIPIENT, error.why) from None
    if reply.version != request.version and not reply.declined:
        raise Refusal(VerdictCode.BAD_RECORD, f"protocol {reply.version} answers a request of {request.version}")
    for figure, most in FIGURES.items():
        if not 0 <= getattr(reply, figure) <= most:  # false for NaN as well
            raise Refusal(VerdictCode.BAD_RECORD, f"{figure} is {getattr(reply, figure):.3g}, not within 0..{most:.0g}")
    wrong = {"campaign": VerdictCode.WRONG_CAMPAIGN, "round": VerdictCode.WRONG_ROUND, "base": VerdictCode.WRONG_BASE}
    for name, code in wrong.items():
        if getattr(reply, name) != getattr(request, name):
            raise Refusal(code, f"{name} {str(getattr(reply, name))[:64]!r} was not asked for")
    return reply


def check_figures(reply: TrainReply, site: EnrolledSite, request: TrainRequest, gate: GateSettings) -> None:
    """Refused where a reply claims more images or steps than it may, or comes in another encoding."""
    largest = int(site.capacity * gate.capacity_factor)
    if not 1 <= reply.images <= largest:
        raise Refusal(VerdictCode.EXAMPLE_COUNT, f"{reply.images} images; enrolled for 1 to {largest}")
    if not 1 <= reply.steps <= request.steps:
        raise Refusal(VerdictCode.STEP_COUNT, f"{reply.steps} steps; {request.steps} were asked for")
    if reply.encoding != request.encoding:
        raise Refusal(VerdictCode.WRONG_ENCODING, f"{reply.encoding[:20]!r} instead of {request.encoding!r}")
    if bool(request.custodian) != bool(reply.mask) or (request.custodian and reply.task != task_id(request)):
        raise Refusal(VerdictCode.MASK, "the update is not sealed as the request asks")


def examine(
    reply: TrainReply, arrays: Mapping[str, Arrived], base: TensorFile, keep: Callable[[str, bytes], object]
) -> float:
    """Check the bytes and values of a reply whose figures were checked; returns the update's L2 norm, 0 where it is masked.

    Tensors are read one at a time and handed to `keep` by name; what it holds is admitted only if nothing is raised.
    """
    encoding = reply.encoding
    _check_tensors(arrays, base.shapes, encoding)
    content = codec.PayloadHash()

    def pieces() -> Iterator[tuple[str, bytes]]:
        for name, shape in base.shapes.items():
            size = arriving_size(math.prod(shape), reply)
            data = arrays[name].read(size)
            if len(data) != size:
                raise Refusal(VerdictCode.WRONG_SIZE, f"{name!r} does not have {size} bytes")
            content.add(name, data)
            keep(name, data)
            yield name, data

    def square(tensor: tuple[str, bytes]) -> float | Refusal:
        name, data = tensor
        if reply.mask:
            return 0.0  # masked: any bytes are as good as any others
        try:
            return codec.square_norm(data, base.tensor(name), encoding)
        except ValueError:
            return Refusal(
                VerdictCode.NOT_FINITE, f"{name!r} holds NaN, infinity, more than float32 holds or a place twice"
            )

    squares = list(side_by_side(square, pieces()))
    if content.id() != reply.content:
        raise Refusal(VerdictCode.TAMPERED, "the bytes are not those that were signed")
    total = 0.0
    for part in squares:
        if isinstance(part, Refusal):
            raise part
        total += part
    return math.sqrt(total)


def arriving_size(count: int, reply: TrainReply) -> int:
    """Bytes of a tensor of `count` values as it comes over the wire: packed, or masked codes of a sealed round."""
    packed = codec.packed_size(count, reply.encoding)
    return WORD * packed if reply.mask else packed  # a code is one byte


def _check_tensors(arrays: Mapping[str, Arrived], shapes: Mapping[str, tuple[int, ...]], encoding: str) -> None:
    missing, extra = sorted(set(shapes) - set(arrays)), sorted(set(arrays) - set(shapes))
    if missing:
        raise Refusal(VerdictCode.MISSING_TENSOR, f"{len(missing)} missing, first {missing[0]!r}")
    if extra:
        raise Refusal(VerdictCode.EXTRA_TENSOR, f"{len(extra)} unknown, first {extra[0][:80]!r}")
    for name, shape in shapes.items():
        arrived = arrays[name]
        if arrived.shape != shape:
            raise Refusal(VerdictCode.WRONG_SHAPE, f"{name!r} has {arrived.shape}, not {shape}"[:200])
        if arrived.dtype != encoding or arrived.stype != RAW:
            raise Refusal(VerdictCode.WRONG_DTYPE, f"{name!r} is {arrived.dtype[:20]!r}, not {encoding!r}")


@dataclass(frozen=True)
class Prior:
    """What is known of a round's lengths before its updates come: nobody among the sites can move it by lying."""

    expected: float = 0.0  # length of so many AdamW steps at this rate; 0 where it is not known
    earlier: Sequence[float] = ()  # lengths merged in the rounds before, as they would be at this round's rate
    bound: float = 0.0  # length to which the request had every site cut its update; 0 for none

    @property
    def usual(self) -> float:
        """The length that an update will probably have; 0 where nothing is known."""
        before = [length for length in self.earlier if length > 0]
        return statistics.median(before) if before else self.expected


@dataclass(frozen=True)
class Comparison:
    """What the gate makes of a round's updates beside each other."""

    refused: dict[str, Refusal]
    scales: dict[str, float]  # by site, 1 or what its update is cut to
    against: dict[str, float]  # sites that point against agreeing others, and their cosine; not all are refused
    reference: float  # the length that the others are measured by; 0 where it is not known


def expected_length(weights: int, recipe: TrainRecipe, first: int, steps: int, end: int) -> float:
    """L2 length of a random walk of `steps` AdamW steps from global step `first`, in a schedule that ends at `end`.

    AdamW moves each weight by about the rate in each step; honest updates are between a third of this length and twice
    of it (measured, docs/federation.md). 0 for another optimizer.
    """
    if recipe.optimizer != "adamw":
        return 0.0
    return math.sqrt(weights * sum(learning_rate(step, end, recipe) ** 2 for step in range(first, first + steps)))


def compare(
    norms: Mapping[str, float],
    prior: Prior,
    base_norm: float,
    directions: NDArray[np.float64] | None,
    gate: GateSettings,
    strikes: Mapping[str, int] | None = None,
) -> Comparison:
    """Judge the round's updates (norms by site, in site order) beside each other.

    `directions`: inner products of the updates (S, S), in site order, or None. `strikes`: in how many of the rounds
    before a site pointed against the others.

    A long update is cut to the reference length rather than refused: else whoever sends a short one, which makes the
    reference small, throws the honest out. It is refused where more than half of the sites agree on a length. Where the
    request named a bound, the sites have cut their updates to it themselves: nothing is cut here, and what is longer
    than the bound is refused.
    """
    # Longer than the encoder itself: no round makes that.
    refused = {
        site: Refusal(VerdictCode.NORM, f"length {norm:.3g}; the encoder itself has {base_norm:.3g}")
        for site, norm in norms.items()
        if norm > gate.base_limit * base_norm
    }
    if prior.bound:
        over = {site: norm for site, norm in norms.items() if norm > OVER_BOUND * prior.bound}
        refused |= {
            site: Refusal(VerdictCode.NORM, f"length {norm:.3g}; the request allowed {prior.bound:.3g}")
            for site, norm in over.items()
        }
    left = {site: norm for site, norm in norms.items() if site not in refused}

    # Too short to say anything, too long beside a majority: out. Long: cut.
    reference = _reference(list(left.values()), prior, gate)
    most = gate.norm_limit * reference
    agree = sum(reference / gate.norm_limit <= norm <= most for norm in left.values())
    scales = {}
    for site, norm in left.items():
        if norm < gate.small_limit * reference:
            refused[site] = Refusal(VerdictCode.TOO_SMALL, f"length {norm:.3g}; the reference is {reference:.3g}")
        elif norm > most and 2 * agree > len(left):
            refused[site] = Refusal(VerdictCode.NORM, f"length {norm:.3g}; the reference is {reference:.3g}")
        else:
            longest = gate.clip_limit * reference
            scales[site] = longest / norm if norm > longest and not prior.bound else 1.0

    # Against the others.
    against: dict[str, float] = {}
    if directions is not None:
        against = _against(list(norms), directions, set(refused), gate)
        for site, cosine in against.items():
            times = (strikes or {}).get(site, 0) + 1
            if cosine < gate.direction_at_once or times >= gate.direction_strikes:
                detail = f"cosine {cosine:.2f} to the sum of the other sites"
                detail += f", round {times} of the last {gate.direction_rounds}" if times > 1 else ""
                refused[site] = Refusal(VerdictCode.DIRECTION, detail)
    scales = {site: scale for site, scale in scales.items() if site not in refused}
    return Comparison(refused, scales, against, reference)


def _reference(lengths: Sequence[float], prior: Prior, gate: GateSettings) -> float:
    """The length that updates are measured by; an update of length zero is no yardstick.

    The lower median, since an update that is too large does harm and one that is too small does not; but never less
    than what earlier rounds and the learning rate let expect, so that a short update makes nobody else too long. A
    site that stands alone is its own measure, unless it is far longer than all that was expected.
    """
    now, before = [n for n in lengths if n > 0], [n for n in prior.earlier if n > 0]
    earlier = statistics.median(before) if before else 0.0
    if len(now) == 1:
        usual = max(earlier, prior.expected)
        return now[0] if not usual or now[0] <= gate.norm_limit * usual else usual
    lower = statistics.median_low(now) if now else 0.0
    return max(lower, earlier / 2, prior.expected / 3)


def _against(sites: Sequence[str], gram: NDArray[np.float64], out: set[str], gate: GateSettings) -> dict[str, float]:
    """Updates that point against others which agree, and their cosines: the worst first, while three or more are left."""
    against: dict[str, float] = {}
    left = [i for i, site in enumerate(sites) if site not in out]
    while len(left) >= 3:
        cosines = {i: _cosine(gram, i, [j for j in left if j != i]) for i in left}
        worst = min(left, key=lambda i: (cosines[i], sites[i]))
        others = [j for j in left if j != worst]
        if cosines[worst] >= gate.direction_limit or _agreement(gram, others) < gate.agreement:
            break
        against[sites[worst]] = cosines[worst]
        left.remove(worst)
    return against


def _cosine(gram: NDArray[np.float64], one: int, others: Sequence[int]) -> float:
    """Cosine of an update to the sum of the others, each at unit length so that none dominates."""
    unit = _unit(gram)
    size = math.sqrt(max(float(unit[np.ix_(others, others)].sum()), 1e-300))
    return float(unit[one, others].sum() / size)


def _agreement(gram: NDArray[np.float64], sites: Sequence[int]) -> float:
    """Mean cosine between two of these updates."""
    count = len(sites)
    return float((_unit(gram)[np.ix_(sites, sites)].sum() - count) / (count * (count - 1)))


def _unit(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.sqrt(np.maximum(np.diag(gram), 1e-300))
    return np.asarray(gram / np.outer(lengths, lengths))
