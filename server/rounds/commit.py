"""The end of a round: the last verdicts, the merge, the checkpoint, the commit. Repeating it changes nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from usfmae.core import audit
from usfmae.core.config.coordinator import CoordinatorSettings
from usfmae.core.federated import merge
from usfmae.core.federated.admission import compare
from usfmae.core.federated.enrolment import SiteState
from usfmae.core.federated.messages import VerdictCode
from usfmae.core.federated.rules import rule_for
from usfmae.core.files import write_atomic
from usfmae.core.log import note
from usfmae.core.tensors import TensorFile, square_sum
from usfmae.server.layout import Layout
from usfmae.server.ledger import Ledger, Round, Verdict
from usfmae.server.rounds import spool
from usfmae.server.rounds.quorum import announce
from usfmae.server.weights import describe

if TYPE_CHECKING:
    from usfmae.server.rounds.forgetting_gate import ForgettingGate

logger = logging.getLogger(__name__)


def finish(
    home: Layout,
    ledger: Ledger,
    settings: CoordinatorSettings,
    current: Round,
    base: TensorFile,
    gate: ForgettingGate | None = None,
) -> str:
    """Judge the round's updates beside each other, merge the admitted ones, hold them to the budget, and commit.

    Returns the encoder's hash, or "" where the comparison left fewer than the quorum: the round goes on then, until
    another site answers or its deadline has passed.
    """
    active = {site for site, known in ledger.sites().items() if known.state == SiteState.ACTIVE}
    verdicts = _without_revoked(ledger.verdicts(current.number), active)
    verdicts, cosines = _compared(home, ledger, settings, current, base, verdicts)
    chosen = [site for site in sorted(verdicts) if verdicts[site].verdict == VerdictCode.ADMITTED]
    if len(chosen) < settings.rounds.quorum:
        for verdict in verdicts.values():
            ledger.record(verdict)
        note(logger, "quorum lost to the gate, the round stays open", level=logging.ERROR, admitted=len(chosen))
        return ""

    def merged(out: Collection[str]) -> str:
        kept = _weighted([verdicts[site] for site in chosen if site not in out], settings.gate.weight_cap)
        return _merge(home, ledger, settings, current, base, kept)

    result, judgement, left_out = gate.judge(current, chosen, merged) if gate else (merged(()), {}, {})
    for site, detail in left_out.items():
        verdicts[site] = dataclasses.replace(verdicts[site], verdict=VerdictCode.FORGETS, detail=detail)
    admitted = _weighted([verdicts[site] for site in chosen if site not in left_out], settings.gate.weight_cap)
    verdicts.update({verdict.site: verdict for verdict in admitted})
    ledger.commit_round(current.number, result, {**_summary(admitted), **cosines, **judgement}, list(verdicts.values()))
    names = [verdict.site for verdict in admitted]
    audit.append(home.audit, "aggregator", "round", round=current.number, base=current.base, result=result, sites=names)
    return result


def void(home: Layout, ledger: Ledger, current: Round, why: str) -> str:
    """End a round that came to nothing: its encoder is the base, its steps do not count, and the next can open.

    What the merging rule remembers, and what the steps left out, stays what it was. Returns the encoder's hash.
    """
    number = current.number
    for file in home.checkpoints.glob(f"memory-*-{number - 1:05d}.*"):
        write_atomic(file.with_name(file.name.replace(f"{number - 1:05d}", f"{number:05d}")), file.read_bytes())
    home.step(number).unlink(missing_ok=True)
    write_atomic(home.checkpoint(number), home.checkpoint(number - 1).read_bytes())
    summary = {"sites": 0, "images": 0, "bytes": 0, "void": why}
    ledger.commit_round(number, current.base, summary, [], steps=0)
    audit.append(home.audit, "aggregator", "round", "refused", round=number, base=current.base, void=why)
    note(logger, "round void", level=logging.ERROR, round=number, reason=why)
    return current.base


def _weighted(verdicts: Sequence[Verdict], cap: float) -> list[Verdict]:
    """The verdicts with each site's share of the merge."""
    shares = merge.shares([verdict.images for verdict in verdicts], cap)
    return [dataclasses.replace(verdict, weight=share) for verdict, share in zip(verdicts, shares, strict=True)]


def _without_revoked(verdicts: dict[str, Verdict], active: set[str]) -> dict[str, Verdict]:
    """A site revoked after it answered has no place in the merge."""
    return {
        site: verdict
        if site in active or verdict.verdict != VerdictCode.ADMITTED
        else dataclasses.replace(verdict, verdict=VerdictCode.REVOKED, detail="revoked before the round closed")
        for site, verdict in verdicts.items()
    }


def _compared(
    home: Layout,
    ledger: Ledger,
    settings: CoordinatorSettings,
    current: Round,
    base: TensorFile,
    verdicts: dict[str, Verdict],
) -> tuple[dict[str, Verdict], dict[str, Any]]:
    """Verdicts after the comparison, and for the ledger the cosine of each pair of updates."""
    norms = {site: v.norm or 0.0 for site, v in sorted(verdicts.items()) if v.verdict == VerdictCode.ADMITTED}
    directions = None
    if len(norms) >= 2:
        with _opened([spool.path(home, current.number, site) for site in norms]) as files:
            directions = merge.gram(base, files, settings.rounds.encoding)
    size = math.sqrt(sum(merge.side_by_side(lambda name: square_sum(base.tensor(name)), base.shapes)))
    names = ledger.sites()
    refused = compare(norms, ledger.norms(current.number), size, directions, settings.gate)
    for site, refusal in refused.items():
        verdicts[site] = dataclasses.replace(verdicts[site], verdict=refusal.code, detail=refusal.detail)
        announce(home, verdicts[site], names[site].name)
    return verdicts, _cosines(list(norms), directions)


def _cosines(sites: Sequence[str], gram: NDArray[np.float64] | None) -> dict[str, Any]:
    """Pairs of sites whose updates agree (towards 1) or undo each other (towards -1)."""
    if gram is None:
        return {}
    norms = np.sqrt(np.diag(gram))
    cosine = gram / np.maximum(np.outer(norms, norms), 1e-30)
    pairs = [[a, b, round(float(cosine[i, j]), 4)] for i, a in enumerate(sites) for j, b in enumerate(sites) if i < j]
    return {"cosines": pairs}


def _merge(
    home: Layout,
    ledger: Ledger,
    settings: CoordinatorSettings,
    current: Round,
    base: TensorFile,
    admitted: Sequence[Verdict],
) -> str:
    rule = rule_for(settings.merge)
    metadata = describe(
        settings.model,
        settings.train,
        tuple(sorted([current.base, *(verdict.content for verdict in admitted)])),
        campaign=ledger.fact("campaign"),
        round=current.number,
        step=current.global_step + current.steps,
        base=current.base,
        rule=settings.merge.rule,
        sites=len(admitted),
        images=sum(verdict.images for verdict in admitted),
    )
    memory = {}
    for name in rule.memory:
        before = home.memory(name, current.number - 1)
        memory[name] = (before if before.exists() else None, home.memory(name, current.number))
    with _opened([spool.path(home, current.number, verdict.site) for verdict in admitted]) as files:
        weights = [verdict.weight or 0.0 for verdict in admitted]
        target = home.checkpoint(current.number)
        step_files = home.step_files(settings, current.number)
        return merge.merge(base, files, weights, settings.rounds.encoding, rule, target, metadata, memory, step_files)


@contextlib.contextmanager
def _opened(paths: Sequence[Path]):  # type: ignore[no-untyped-def]
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


def prune(home: Layout, keep: int, number: int) -> None:
    """Remove old rounds' checkpoints (never the seed's), steps, and what was remembered of older rounds.

    The last round's step and what it left out stay: the next one's are written over them.
    """
    for file in [*home.checkpoints.glob("memory-*"), *home.checkpoints.glob("step-*")]:
        if int(file.stem.rsplit("-", 1)[1]) < (number - 1 if file.suffix == ".bin" else number):
            file.unlink()
    if keep:
        for old in range(1, number - keep + 1):
            home.checkpoint(old).unlink(missing_ok=True)
