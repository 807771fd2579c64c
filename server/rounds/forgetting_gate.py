"""Between merge and commit: averaging, the panel, and the forgetting budget.

The merged encoder lies at its place on disk when this runs, and the round is still open. Everything here depends on
files and settings alone, so after a crash the round is merged and judged again with the same end: either the round is
committed with the encoder the gate left, or nothing has happened.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from usfmae.core import audit
from usfmae.core.checkpoint import load, save
from usfmae.core.config.coordinator import ContinualSettings, CoordinatorSettings
from usfmae.core.corpus.batch import Corpus
from usfmae.core.federated import forgetting
from usfmae.core.federated.forgetting import ACCEPTED, Budget, Decision, Tensors
from usfmae.core.federated.forgetting_panel import Reading
from usfmae.core.federated.merge import mix_memory
from usfmae.core.federated.rules import rule_for
from usfmae.core.files import copy_atomic
from usfmae.core.log import note
from usfmae.server import campaign
from usfmae.server.layout import Layout
from usfmae.server.ledger import Ledger, Round
from usfmae.server.rounds.panel import PanelReader, check_apart, opened

logger = logging.getLogger(__name__)

EMA = "ema"  # name of the running average among the files of the merging rule's memory

Merge = Callable[[Collection[str]], str]  # merges all admitted sites but these to the round's place; gives the hash


def budget_of(settings: ContinualSettings) -> Budget:
    """What an organ may lose since the seed, as the coordinator has set it."""
    return Budget(settings.budget, settings.probe_budget)


class Judgement(NamedTuple):
    """What the gate left of a round."""

    result: str  # hash of the encoder that is committed
    summary: dict[str, Any]  # panel and decision, for the ledger
    left_out: dict[str, str]  # sites whose update broke the budget, and how


class ForgettingGate:
    """The gate of one federation; with nothing configured it lets every round pass untouched."""

    def __init__(self, home: Layout, ledger: Ledger, settings: CoordinatorSettings) -> None:
        self.home, self.ledger, self.settings = home, ledger, settings.continual
        self.rule = rule_for(settings.merge)
        self.reader: PanelReader | None = None
        if self.settings.panel:
            replayed = Corpus([self.settings.replay]) if self.settings.replay else None
            panel = opened(self.settings.panel, self.settings.panel_images)
            check_apart(panel, self.settings.declared, replayed)
            self.reader = PanelReader(home, panel, self.settings)

    def judge(self, current: Round, sites: Collection[str], merge: Merge) -> Judgement:
        """Merge the sites' updates and leave at the round's place what is to be committed."""
        judged = self._judged(current, sites, merge)
        if self.settings.ema:
            self._average(current)
        return judged

    def _judged(self, current: Round, sites: Collection[str], merge: Merge) -> Judgement:
        result = self._merged(current, merge, ())
        if self.reader is None or current.number % self.settings.panel_every:
            return Judgement(result, {}, {})
        readings = self.reader.read(self._tensors(current.number))
        decision = self._decide(current, readings)
        left_out: dict[str, str] = {}
        if decision.outcome != ACCEPTED and self.settings.blame and len(sites) > 2:
            readings, decision, left_out = self._without_worst(current, sites, merge, decision)
        if decision.outcome != ACCEPTED:
            readings, decision = self._moved_back(current, readings)
        self._say(current, decision, left_out)
        summary = {"panel": self.reader.summary(readings), "gate": {**decision.as_dict(), "left_out": sorted(left_out)}}
        return Judgement(load(self.home.checkpoint(current.number)).trail.id, summary, left_out)

    # merging and averaging

    def _merged(self, current: Round, merge: Merge, out: Collection[str]) -> str:
        """The merge, then what the campaign averages it with."""
        result = merge(out)
        number, chosen = current.number, self.settings
        running = campaign.current(self.ledger)
        if running is None or not (chosen.pull or chosen.anchor_every):
            return result
        seed, now = self._tensors(running.seed), self._tensors(number)
        place = number - running.first + 1
        now = forgetting.anchored(seed, now, place, chosen.anchor_every, chosen.anchor_share)
        return self._store(number, forgetting.pulled(seed, now, chosen.pull))

    def _average(self, current: Round) -> None:
        """Move the running average of the rounds' encoders on; it starts at the campaign's seed."""
        before = self.home.memory(EMA, current.number - 1)
        old = load(before).tensors if before.exists() else self._tensors(current.number - 1)
        merged = load(self.home.checkpoint(current.number))
        average = forgetting.ema(old, merged.tensors, self.settings.ema)
        save(self.home.memory(EMA, current.number), average, merged.metadata)

    def _tensors(self, number: int) -> Tensors:
        return load(self.home.checkpoint(number)).tensors

    def _store(self, number: int, tensors: Tensors, **more: str) -> str:
        """Replace the round's encoder, keeping what its metadata says of it; atomic."""
        path = self.home.checkpoint(number)
        self.home.forget_step(number)
        return save(path, tensors, {**load(path).metadata, **more}).trail.id

    # judging

    def _decide(self, current: Round, readings: Mapping[str, Reading], shares: tuple[float, ...] = ()) -> Decision:
        assert self.reader is not None
        reader = self.reader
        base, now = self._tensors(current.number - 1), self._tensors(current.number)
        before = self._before(current, base)
        smaller = ((share, reader.read(forgetting.interpolate(base, now, share))) for share in shares)
        return forgetting.decide(reader.seed, before, readings, budget_of(self.settings), smaller)

    def _before(self, current: Round, base: Tensors) -> dict[str, Reading]:
        """Readings before the round: as the ledger has them, else measured."""
        assert self.reader is not None
        last = self.ledger.last_round()
        panel = (last.summary or {}).get("panel", {}) if last and last.number == current.number - 1 else {}
        if panel.get("fingerprint") == self.reader.fingerprint:
            return {organ: Reading(**values) for organ, values in panel["organs"].items()}
        return self.reader.read(base)

    def _without_worst(
        self, current: Round, sites: Collection[str], merge: Merge, decision: Decision
    ) -> tuple[dict[str, Reading], Decision, dict[str, str]]:
        """Leave out the site whose update alone costs most, then the next, as long as a majority stays and it helps."""
        assert self.reader is not None
        costs = self._costs(current, sites, merge, decision.worst)
        left_out: dict[str, str] = {}
        for site in sorted(costs, key=lambda s: (-costs[s], s))[: (len(sites) - 1) // 2]:
            left_out[site] = f"alone it puts {decision.worst} {costs[site]:+.0%} above the seed's loss"
            self._merged(current, merge, left_out)
            readings = self.reader.read(self._tensors(current.number))
            if self._decide(current, readings).outcome == ACCEPTED:
                accepted = replace(
                    decision, outcome=ACCEPTED, share=1.0, reason=f"{decision.reason}; {len(left_out)} site(s) left out"
                )
                return readings, accepted, left_out
        self._merged(current, merge, ())
        return self.reader.read(self._tensors(current.number)), decision, {}

    def _costs(self, current: Round, sites: Collection[str], merge: Merge, organ: str) -> dict[str, float]:
        """What each site's update alone does to one organ: loss over the seed's, minus 1."""
        assert self.reader is not None
        costs = {}
        for site in sorted(sites):
            merge([other for other in sites if other != site])
            readings = self.reader.read(self._tensors(current.number))
            costs[site] = forgetting.excess(self.reader.seed, readings)[organ]
        return costs

    def _moved_back(self, current: Round, readings: dict[str, Reading]) -> tuple[dict[str, Reading], Decision]:
        """Keep the largest share of the round's change that the budget allows, or none of it."""
        assert self.reader is not None
        base, now = self._tensors(current.number - 1), self._tensors(current.number)
        decision = self._decide(current, readings, self.settings.steps_back)
        moved = forgetting.interpolate(base, now, decision.share)
        self._store(current.number, moved, gate=decision.outcome, kept=str(decision.share))
        self._keep_momentum(current.number, decision.share)
        return self.reader.read(moved), decision

    def _keep_momentum(self, number: int, share: float) -> None:
        """Of what the merging rule remembers of the round, keep the share that is kept of its step; 0 is none of it."""
        for name in self.rule.memory:
            before, after = self.home.memory(name, number - 1), self.home.memory(name, number)
            if share:
                mix_memory(before if before.exists() else None, after, share, self.rule.start(name))
            elif before.exists():
                copy_atomic(before, after)
            else:
                after.unlink(missing_ok=True)

    def _say(self, current: Round, decision: Decision, left_out: Mapping[str, str]) -> None:
        status = "ok" if decision.outcome == ACCEPTED and not left_out else "refused"
        fields = {**decision.as_dict(), "left_out": sorted(left_out)}
        audit.append(self.home.audit, "gate", "forgetting", status, round=current.number, **fields)
        note(logger, "forgetting", round=current.number, **fields)
