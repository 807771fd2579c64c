"""The end of a round: the last verdicts, the merge, the checkpoint, the commit. Repeating it changes nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from usfmae.core import audit
from usfmae.core.checkpoint_header import describe
from usfmae.core.config import TrainRecipe
from usfmae.core.config.coordinator import CoordinatorSettings
from usfmae.core.errors import PolicyError
from usfmae.core.federated import continuity, merge
from usfmae.core.federated.admission import Prior, compare, expected_length
from usfmae.core.federated.enrolment import SiteState
from usfmae.core.federated.messages import VerdictCode
from usfmae.core.federated.rules import rule_of_round
from usfmae.core.federated.sealed.sealed_round import Yardstick, bounded
from usfmae.core.files import copy_atomic
from usfmae.core.log import note
from usfmae.core.tensors import TensorFile, square_sum
from usfmae.server import campaign
from usfmae.server.layout import Layout
from usfmae.server.ledger import Ledger, Round, Verdict
from usfmae.server.rounds import spool
from usfmae.server.rounds.quorum import announce

if TYPE_CHECKING:
    from usfmae.server.rounds.forgetting_gate import ForgettingGate
    from usfmae.server.rounds.sealing import Judged, Sealing, Sum

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenRound:
    """A round that is being closed, and all that closing it needs."""

    home: Layout
    ledger: Ledger
    settings: CoordinatorSettings
    record: Round
    base: TensorFile
    sealing: Sealing | None = None  # where nobody is to see one site's update

    @property
    def number(self) -> int:
        return self.record.number

    def update(self, site: str) -> Path:
        return spool.path(self.home, self.number, site)


def finish(this: OpenRound, gate: ForgettingGate | None = None) -> str:
    """Compare the round's updates with each other, merge the admitted ones, hold them to the budget, and commit.

    Returns the encoder's hash, or "" where the comparison left fewer than the quorum: the round stays open then, until
    another site answers or its deadline has passed.
    """
    ledger, record = this.ledger, this.record

    # Who is admitted.
    sites = ledger.sites()
    active = {site for site, entry in sites.items() if entry.state == SiteState.ACTIVE}
    verdicts = _without_revoked(ledger.verdicts(this.number), active)
    sealed: Sum | None = None
    try:
        if this.sealing:
            verdicts, judged = _judged(this, this.sealing, verdicts)
            summary, reference = _cosines(judged.opening.sites, judged.directions), judged.comparison.reference
            _check_enough(this, verdicts)
            sealed = this.sealing.summed(this.number, this.base, judged)
        else:
            verdicts, summary, reference = _compared(this, verdicts)
    except PolicyError as error:  # the custodian gives out no sum: neither this round nor an update is lost to anybody
        for verdict in verdicts.values():
            ledger.record(verdict)
        return void(this, f"sealed round: {error.what} {error.why}"[:300])
    chosen = [site for site in sorted(verdicts) if verdicts[site].verdict == VerdictCode.ADMITTED]
    if len(chosen) < this.settings.rounds.quorum:
        for verdict in verdicts.values():
            ledger.record(verdict)
        note(logger, "quorum lost to the gate, the round stays open", level=logging.ERROR, admitted=len(chosen))
        return ""

    # The merge, which the forgetting gate may ask for several times.
    def weighted(out: Collection[str]) -> list[Verdict]:
        return _weighted(this, [verdicts[site] for site in chosen if site not in out])

    cuts: dict[str, Any] = {}

    def merged(out: Collection[str]) -> str:
        content, cut = _merge(this, weighted(out), reference, sealed)
        cuts.clear()
        cuts.update(cut)
        return content

    result, judgement, left_out = gate.judge(record, chosen, merged) if gate else (merged(()), {}, {})

    # The commit.
    for site, detail in left_out.items():
        verdicts[site] = dataclasses.replace(verdicts[site], verdict=VerdictCode.FORGETS, detail=detail)
    admitted = weighted(left_out)
    verdicts.update({verdict.site: verdict for verdict in admitted})
    summary = {**_summary(admitted), **summary, **cuts, **judgement}
    ledger.commit_round(this.number, result, summary, list(verdicts.values()))
    names = [verdict.site for verdict in admitted]
    audit.append(
        this.home.audit, "aggregator", "round", round=this.number, base=record.base, result=result, sites=names, **cuts
    )
    return result


def void(this: OpenRound, why: str) -> str:
    """End a round without a result: its encoder is the base, its steps do not count, and the next can open.

    What the merging rule remembers, and what the steps left out, stays what it was. Returns the encoder's hash.
    """
    home, number, base = this.home, this.number, this.record.base
    for file in home.checkpoints.glob(f"memory-*-{number - 1:05d}.*"):
        copy_atomic(file, file.with_name(file.name.replace(f"{number - 1:05d}", f"{number:05d}")))
    home.step(number).unlink(missing_ok=True)
    copy_atomic(home.checkpoint(number - 1), home.checkpoint(number))
    this.ledger.commit_round(number, base, {"sites": 0, "images": 0, "bytes": 0, "void": why}, [], steps=0)
    audit.append(home.audit, "aggregator", "round", "refused", round=number, base=base, void=why)
    note(logger, "round void", level=logging.ERROR, round=number, reason=why)
    return base


def _weighted(this: OpenRound, verdicts: Sequence[Verdict]) -> list[Verdict]:
    """The verdicts with each site's share of the merge: by images where the rule weighs, else the same for all."""
    count, gate = len(verdicts), this.settings.gate
    if not this.sealing and rule_of_round(this.settings, count).weighted:
        enrolled = this.ledger.sites()
        cap = min(gate.weight_cap, gate.fair_limit / count)
        shares = merge.shares([v.images for v in verdicts], cap, [enrolled[v.site].confirmed for v in verdicts])
    else:
        shares = [1 / count] * count
    return [dataclasses.replace(verdict, weight=share) for verdict, share in zip(verdicts, shares, strict=True)]


def _without_revoked(verdicts: dict[str, Verdict], active: set[str]) -> dict[str, Verdict]:
    """A site revoked after it answered has no place in the merge."""
    return {
        site: verdict
        if site in active or verdict.verdict != VerdictCode.ADMITTED
        else dataclasses.replace(verdict, verdict=VerdictCode.REVOKED, detail="revoked before the round closed")
        for site, verdict in verdicts.items()
    }


def _compared(this: OpenRound, verdicts: dict[str, Verdict]) -> tuple[dict[str, Verdict], dict[str, Any], float]:
    """Verdicts after the comparison, what the ledger notes of it, and the length that updates are measured by."""
    norms = {site: v.norm or 0.0 for site, v in sorted(verdicts.items()) if v.verdict == VerdictCode.ADMITTED}
    directions = None
    if len(norms) >= 2:
        with _opened([this.update(site) for site in norms]) as files:
            directions = merge.gram(this.base, files, this.settings.rounds.encoding)
    gate, names = this.settings.gate, this.ledger.sites()
    strikes = this.ledger.strikes(this.number, gate.direction_rounds - 1)
    comparison = compare(norms, prior_of(this), _length_of(this.base), directions, gate, strikes)
    for site in norms:
        verdicts[site] = dataclasses.replace(
            verdicts[site], scale=comparison.scales.get(site), against=site in comparison.against
        )
    for site, refusal in comparison.refused.items():
        verdicts[site] = dataclasses.replace(verdicts[site], verdict=refusal.code, detail=refusal.detail)
        announce(this.home, verdicts[site], names[site].name)
    return verdicts, _cosines(list(norms), directions), comparison.reference


def _judged(this: OpenRound, sealing: Sealing, verdicts: dict[str, Verdict]) -> tuple[dict[str, Verdict], Judged]:
    """Verdicts of a sealed round, from sketches of what was really sent."""
    admitted = [site for site, verdict in sorted(verdicts.items()) if verdict.verdict == VerdictCode.ADMITTED]
    strikes = this.ledger.strikes(this.number, this.settings.gate.direction_rounds - 1)
    prior = bounded(prior_of(this), moved_weights(this.base, this.settings), this.settings.gate)
    judged = sealing.judge(this.number, admitted, Yardstick(prior, _length_of(this.base), this.settings.gate, strikes))

    # The round was put to the custodian before: whoever came after that is late, and who was in it is still.
    opened = sealing.sites(this.number) or []
    before = this.ledger.verdicts(this.number)
    verdicts = {**verdicts, **{site: before[site] for site in opened}}
    for site in set(admitted) - set(opened):
        verdicts[site] = dataclasses.replace(verdicts[site], verdict=VerdictCode.LATE, detail="the round was sealed")
    refused = {site: (refusal.code, refusal.detail) for site, refusal in judged.comparison.refused.items()}
    refused |= {site: (VerdictCode.MASK, why) for site, why in judged.unmaskable.items()}
    names = this.ledger.sites()
    for site in opened:
        code, detail = refused.get(site, (VerdictCode.ADMITTED, ""))
        scale, against = judged.comparison.scales.get(site), site in judged.comparison.against
        norm = judged.norms.get(site)
        verdicts[site] = dataclasses.replace(
            verdicts[site], verdict=code, detail=detail, norm=norm, scale=scale, against=against
        )
        if site in refused:
            announce(this.home, verdicts[site], names[site].name)
    return verdicts, judged


def _check_enough(this: OpenRound, verdicts: dict[str, Verdict]) -> None:
    """PolicyError where the gate left fewer than the quorum: who is in a sealed round is fixed, so nobody else can come."""
    left = sum(verdict.verdict == VerdictCode.ADMITTED for verdict in verdicts.values())
    if left < this.settings.rounds.quorum:
        raise PolicyError("the gate", f"left {left} of the quorum of {this.settings.rounds.quorum}", "see the verdicts")


def _length_of(base: TensorFile) -> float:
    return math.sqrt(sum(merge.side_by_side(lambda name: square_sum(base.tensor(name)), base.shapes)))


def moved_weights(base: TensorFile, settings: CoordinatorSettings) -> int:
    """How many of an encoder's weights a round moves."""
    dp, depth = settings.train.dp, settings.model.depth
    return sum(math.prod(shape) for name, shape in base.shapes.items() if dp.trains(name, depth))


def prior_of(this: OpenRound) -> Prior:
    """What the learning rate and the rounds before let expect of this round's lengths."""
    running = campaign.current(this.ledger)
    if running is None:
        return Prior()
    weights = moved_weights(this.base, this.settings)
    settings = TrainRecipe.of(this.settings.train, origin=running.origin)

    def expected(one: Round) -> float:
        if one.global_step < running.origin:
            return 0.0  # of another campaign
        return expected_length(weights, settings, one.global_step, one.steps, running.end_step)

    now, rounds = expected(this.record), {one.number: one for one in this.ledger.rounds()}
    earlier = []
    for number, length in this.ledger.lengths(this.number):
        then = expected(rounds[number])
        earlier.append(length * now / then if then else length)
    return Prior(now, earlier)


def _cosines(sites: Sequence[str], gram: NDArray[np.float64] | None) -> dict[str, Any]:
    """Pairs of sites whose updates agree (towards 1) or undo each other (towards -1)."""
    if gram is None:
        return {}
    norms = np.sqrt(np.diag(gram))
    cosine = gram / np.maximum(np.outer(norms, norms), 1e-30)
    pairs = [[a, b, round(float(cosine[i, j]), 4)] for i, a in enumerate(sites) for j, b in enumerate(sites) if i < j]
    return {"cosines": pairs}


def _merge(
    this: OpenRound, admitted: Sequence[Verdict], reference: float, sealed: Sum | None
) -> tuple[str, dict[str, Any]]:
    """The merged encoder's hash, and what the ledger notes: the rule, and where the step was cut for its length."""
    home, settings, record = this.home, this.settings, this.record
    rule = rule_of_round(settings, len(admitted))
    metadata = describe(
        settings.model,
        settings.train,
        parents=tuple(sorted([record.base, *(verdict.content for verdict in admitted)])),
        campaign=this.ledger.fact("campaign"),
        round=record.number,
        step=record.global_step + record.steps,
        base=record.base,
        rule=rule.name,
        sites=len(admitted),
        images=sum(verdict.images for verdict in admitted),
    )
    memory = {}
    for name in rule.memory:
        before = home.memory(name, this.number - 1)
        memory[name] = (before if before.exists() else None, home.memory(name, this.number))
    step_files = home.step_files(settings, this.number)
    files = merge.MergeFiles(home.checkpoint(this.number), metadata, memory, step_files)
    weights = [verdict.weight or 0.0 for verdict in admitted]
    scales = [1.0 if verdict.scale is None else verdict.scale for verdict in admitted]
    paths = [this.update(verdict.site) for verdict in admitted]
    encoding: str = settings.rounds.encoding
    proof: dict[str, Any] = {}
    if sealed:  # the mean of the admitted is all there is
        weights, scales, paths, encoding = [1.0], [1.0], [sealed.file], sealed.encoding
        proof = {"transcript": sealed.transcript}

    def merged(step: float, cuts: Mapping[str, float]) -> merge.Merged:
        with _opened(paths) as updates:
            blend = dataclasses.replace(merge.blended(weights, scales), step=step, cuts=cuts)
            return merge.merge(this.base, merge.Admitted(updates, encoding, blend), rule, files)

    # A rule may make a longer step than any site sent, and one tensor a leap that every site would refuse: then it is
    # merged again with shorter ones.
    done, longest, limit = merged(1.0, {}), _longest(this, reference), settings.gate.tensor_limit
    cuts = continuity.cuts(done.tensors, limit)
    if done.length <= longest and not cuts:
        return done.content, {"rule": rule.name, **proof}
    step, said = 1.0, dict(proof)
    if done.length > longest:
        step = longest / done.length
        said["cut"] = f"the merged step had length {done.length:.3g}; cut to {longest:.3g}"
    done = merged(step, cuts)
    if late := continuity.cuts(done.tensors, limit):  # a part of a step may leap where the whole turns a tensor around
        cuts = {**cuts, **late}
        done = merged(step, cuts)
    if cuts:
        said["leaps"] = sorted(cuts)
    note(logger, "merged step cut", level=logging.WARNING, round=this.number, **said)
    return done.content, {"rule": rule.name, **said}


def _longest(this: OpenRound, reference: float) -> float:
    """Length that a merged step may have."""
    gate = this.settings.gate
    most = gate.base_limit * _length_of(this.base)
    return min(most, gate.merged_limit * reference) if reference else most


@contextlib.contextmanager
def _opened(paths: Sequence[Path]) -> Iterator[list[TensorFile]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(TensorFile(path)) for path in paths]


def _summary(admitted: Sequence[Verdict]) -> dict[str, float | int]:
    """Losses weighted by images, and what came in."""
    images = sum(verdict.images for verdict in admitted)

    def mean(name: str) -> float:
        return sum(verdict.images * float(getattr(verdict, name) or 0) for verdict in admitted) / images

    return {
        "sites": len(admitted),
        "images": images,
        "bytes": sum(verdict.bytes for verdict in admitted),
        "loss_before": mean("loss_before"),
        "loss_after": mean("loss_after"),
    }


def prune(home: Layout, keep: int, number: int, seed: int = 0) -> None:
    """Remove old rounds' checkpoints (never that of a `seed`, the federation's or the campaign's), steps, and what was remembered of older rounds.

    The last round's step and what it left out stay: the next one's are written over them.
    """
    for file in [*home.checkpoints.glob("memory-*"), *home.checkpoints.glob("step-*")]:
        if int(file.stem.rsplit("-", 1)[1]) < (number - 1 if file.suffix == ".bin" else number):
            file.unlink()
    if keep:
        for old in set(range(1, number - keep + 1)) - {seed}:
            home.checkpoint(old).unlink(missing_ok=True)
