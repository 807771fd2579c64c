"""A release: the best encoder under the forgetting budget in a folder that explains and proves itself offline.

weights.safetensors   encoder and the seed's decoder, loads in every `usfmae` command
settings.json         the campaign's recipe, every key
README.md             model card: data, recipe, rounds, panel, benchmarks, limits
lineage.json          the chain of encoders back to the seed, with counts, never with names of sites
coordinator.pub.pem   the key that signed manifest.json
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from usfmae.core import audit, lineage, manifest
from usfmae.core.checkpoint import encoder_of, load, save, tensors_id
from usfmae.core.checkpoint_header import describe
from usfmae.core.config.coordinator import CoordinatorSettings
from usfmae.core.errors import PolicyError, UsageError
from usfmae.core.federated import forgetting
from usfmae.core.federated.forgetting_panel import Reading
from usfmae.core.files import put, write_atomic
from usfmae.server import campaign
from usfmae.server.layout import Federation, Layout
from usfmae.server.ledger import Ledger, Round, RoundState
from usfmae.server.releases import benchmark_results, leak_results
from usfmae.server.releases.model_card import ReleaseChoice, Tables, card
from usfmae.server.rounds.forgetting_gate import EMA, ForgettingGate, budget_of
from usfmae.server.rounds.panel import PanelReader

LEARNED = 0.8  # share of the sites' whole fall in held-out loss that a released round must hold; not tuned
_UNMEASURED = "{}; no panel is set, so forgetting was not measured"
_RANDOM_SEED = "{}; the seed is random, so the panel has nothing to compare with"


@dataclass(frozen=True)
class Reports:
    """What was measured of these weights elsewhere, as files."""

    benchmarks: Sequence[Path] = ()
    leaks: Sequence[Path] = ()


def release(
    home: Layout,
    settings: CoordinatorSettings,
    out: Path,
    reports: Reports = Reports(),
    number: int | None = None,
) -> dict[str, Any]:
    """Write a release into the new folder `out`, of the best round or of round `number`.

    UsageError where the folder exists, PolicyError where nothing may go out.
    """
    if out.exists():
        raise UsageError(f"folder {out}", "exists already", "give a new one: a release is never changed")
    federation = Federation(home, Ledger(home.ledger), settings)
    reader = ForgettingGate(home, federation.ledger, settings).reader
    choice = choose(federation, reader, number)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        facts = _write(federation, choice, reports, partial)
        manifest.write(partial, federation.signing_key(), {"release": facts})
        put(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    audit.append(home.audit, "coordinator", "release", content=facts["content"], round=choice.round, alpha=choice.alpha)
    return {"folder": str(out), **facts, "why": choice.why}


def choose(federation: Federation, reader: PanelReader | None, number: int | None = None) -> ReleaseChoice:
    """The round to release, by two witnesses: what the sites learned, and what the panel says was forgotten.

    Only rounds that hold most of what the sites' held-out images show as learned may go out (see `unlearned`), and that
    lower the loss of at least one of the panel's organs that are not `continual.old`, if it has any. Of these the one
    with the lowest mean panel loss over its seed loss (each with a decoder refitted alike), within the budget; then the
    best alpha. Without a panel, or where the seed is random and everything is an improvement on it, the last of them.
    `number` asks for one round: PolicyError says why it may not go out.
    """
    home, settings = federation.home, federation.settings
    committed = [r for r in federation.ledger.rounds() if r.state == RoundState.COMMITTED]
    rounds = [r for r in committed if home.checkpoint(r.number).exists()]
    if not rounds:
        raise PolicyError("release", "no round is committed", "run rounds first")
    refused = unlearned(rounds)
    judged = reader if reader is not None and trained_seed(home) else None
    read = {r.number: _readings(r, judged) for r in rounds} if judged else {}
    for n, readings in read.items():
        assert judged is not None
        if not readings or not forgetting.within(judged.seed, readings, budget_of(settings.continual)):
            refused.setdefault(n, "is over the forgetting budget, or was not measured on this panel")
        elif not _learned(judged, readings):
            refused.setdefault(n, "shows no learning on the panel: no new organ's loss is below the seed's")
    fit = [r.number for r in rounds if r.number not in refused and number in (None, r.number)]
    if not fit:
        reason = refused.get(number or rounds[-1].number, "is not committed")
        raise PolicyError(
            f"release of round {number}" if number else "release", reason, "see 'usfmae-server status', continual.*"
        )
    if judged is None:
        why = (_UNMEASURED if reader is None else _RANDOM_SEED).format(witness(rounds))
        return ReleaseChoice(fit[-1], 1.0, why, None, home.checkpoint(fit[-1]))
    best = min(fit, key=lambda n: (_cost(judged, read[n]), n))
    candidates = [home.checkpoint(best)] + ([] if number else [home.memory(EMA, rounds[-1].number)])
    choices = [_interpolated(home, settings, judged, best, path) for path in candidates if path.exists()]
    choice = min(choices, key=lambda pair: pair[0])[1]
    return replace(choice, why=f"{choice.why}; {len(refused)} round(s) were over it, unlearned or not measured")


def unlearned(rounds: Sequence[Round]) -> dict[int, str]:
    """Rounds that lack most of what the sites have learned since, with the reason.

    The witness is the mean held-out loss at the sites, each with the decoder it trains: it falls as the encoder learns,
    where one read with the seed's decoder may rise. A round whose fall is under LEARNED of the largest fall is not
    released; rounds without losses are not judged.
    """
    start, finite = _held_out(rounds)
    if not finite or start <= min(finite.values()):
        return {}
    most = start - min(finite.values())
    return {
        n: f"holds {(start - loss) / most:.0%} of what the sites learned (held-out loss {start:.3f} -> {loss:.3f})"
        for n, loss in finite.items()
        if start - loss < LEARNED * most
    }


def _held_out(rounds: Sequence[Round]) -> tuple[float, dict[int, float]]:
    """Mean held-out loss at the sites: before the first round (0: unknown), and after each."""
    losses = {r.number: (r.summary or {}).get("loss_after") for r in rounds}
    finite = {n: float(loss) for n, loss in losses.items() if loss and math.isfinite(loss)}
    return next((float(v) for r in rounds if (v := (r.summary or {}).get("loss_before"))), 0.0), finite


def witness(rounds: Sequence[Round]) -> str:
    """What the sites' losses say of the round that goes out where no panel can."""
    start, finite = _held_out(rounds)
    if finite and 0 < start <= min(finite.values()):
        lowest = min(finite.values())
        return f"the last round, BUT the sites' held-out loss did not fall ({start:.3f} -> {lowest:.3f} at best)"
    return "the last round that holds what the sites learned"


def trained_seed(home: Layout) -> bool:
    """Whether the seed was trained: a random one has no parent."""
    return bool(load(home.checkpoint(0)).trail.parents)


def _interpolated(
    home: Layout, settings: CoordinatorSettings, reader: PanelReader, number: int, path: Path
) -> tuple[float, ReleaseChoice]:
    """The share between the seed and an encoder with the lowest mean cost within the budget, and that cost."""
    seed, now = load(home.checkpoint(0)).tensors, load(path).tensors
    budget, candidates = budget_of(settings.continual), []
    for alpha in sorted({1.0, *settings.continual.alphas}, reverse=True):
        readings = reader.read(forgetting.interpolate(seed, now, alpha))
        within = forgetting.within(reader.seed, readings, budget)
        candidates.append((not within, _cost(reader, readings), -alpha, readings))
    over, cost, minus, readings = min(candidates, key=lambda item: item[:3])
    what = f"round {number}" if path == home.checkpoint(number) else "the running average of all rounds"
    why = f"{what}, alpha {-minus:g}: mean panel loss {cost:+.1%} against the seed, every organ within "
    why += f"{settings.continual.budget:+.0%}"
    return (math.inf if over else cost), ReleaseChoice(number, -minus, why, reader.summary(readings), path)


def _readings(round_: Round, reader: PanelReader) -> dict[str, Reading]:
    """What the ledger has of a round on this panel; empty where it was not read, or read in another way."""
    panel = (round_.summary or {}).get("panel", {})
    if panel.get("fingerprint") != reader.fingerprint:
        return {}
    return {organ: Reading(**values) for organ, values in panel["organs"].items()}


def _learned(reader: PanelReader, readings: Mapping[str, Reading]) -> bool:
    """Whether the panel shows learning: some new organ's loss is below the seed's. A panel of old organs cannot."""
    costs = forgetting.excess(reader.seed, readings)
    new = set(costs) - set(reader.old)
    return not new or min(costs[organ] for organ in new) < 0


def _cost(reader: PanelReader, readings: Mapping[str, Reading]) -> float:
    """Mean refitted loss over the seed's, minus 1: the probes of one panel are too coarse to rank rounds, they veto."""
    costs = forgetting.excess(reader.seed, readings)
    return sum(costs.values()) / len(costs)


def _write(federation: Federation, choice: ReleaseChoice, reports: Reports, out: Path) -> dict[str, Any]:
    """Every file but the manifest; returns what the manifest says of them."""
    home, ledger = federation.home, federation.ledger
    seed, chosen = load(home.checkpoint(0)), load(choice.path)
    encoder = forgetting.interpolate(seed.tensors, chosen.tensors, choice.alpha)
    more = {key: chosen.metadata[key] for key in ("campaign", "images", "sites", "step") if key in chosen.metadata}
    metadata = describe(chosen.model, chosen.train, parents=tuple(sorted({seed.trail.id, chosen.trail.id})), **more)
    weights = save(out / "weights.safetensors", {**encoder, **load(home.decoder).tensors}, metadata)
    own = choice.path == home.checkpoint(choice.round)
    chain = lineage.chain(
        _links(ledger, choice.round), seed.trail.id, choice.alpha, "round" if own else "average", tensors_id(encoder)
    )
    running = next(c for c in reversed(campaign.campaigns(ledger)) if c.first <= choice.round)
    write_atomic(out / "lineage.json", _json(chain))
    write_atomic(out / "settings.json", _json(running.settings))
    write_atomic(out / "coordinator.pub.pem", home.public_key.read_bytes())
    table = benchmark_results.results(reports.benchmarks, encoder_of(encoder), chosen.train)
    leaks = leak_results.lines(reports.leaks, encoder_of(encoder), federation.settings.leak_limit)
    text = card(federation, choice, running, weights.trail.id, Tables(table, leaks))
    write_atomic(out / "README.md", text.encode())
    return {"content": weights.trail.id, "round": choice.round, "alpha": choice.alpha, "campaign": running.id}


def _links(ledger: Ledger, last: int) -> list[dict[str, Any]]:
    """One entry a round: what it began with, what came out, how many took part."""
    return [
        {
            "round": r.number,
            "base": r.base,
            "result": r.result,
            "steps": r.steps,
            "sites": (r.summary or {}).get("sites"),
            "images": (r.summary or {}).get("images"),
            "gate": (r.summary or {}).get("gate", {}).get("outcome"),
            **({"back_to": (r.summary or {})["back_to"]} if "back_to" in (r.summary or {}) else {}),
        }
        for r in ledger.rounds()
        if r.number <= last and r.state == RoundState.COMMITTED
    ]


def _json(values: Any) -> bytes:
    return json.dumps(values, indent=2, sort_keys=True).encode()
