"""The model card of a release: what a reader must know before using the weights; counts, never names of sites."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from usfmae.core.config.train import DpSettings
from usfmae.core.federated.messages import VerdictCode
from usfmae.server.campaign import Campaign
from usfmae.server.layout import Federation
from usfmae.server.ledger import RoundState


@dataclass(frozen=True)
class ReleaseChoice:
    """What is released, and why."""

    round: int
    alpha: float  # share of the change since the seed: 1 is the round's encoder as it is
    why: str
    panel: dict[str, Any] | None  # the reading of exactly this encoder, None without a panel
    path: Path  # the checkpoint that is mixed with the seed: the round's, or the running average's


TEXT = """\
---
library_name: usfmae
tags: [ultrasound, masked-autoencoder, self-supervised, federated-learning, continual-learning]
---

# {{ name }}: ultrasound encoder, round {{ choice.round }}

Weights `{{ content }}`. Chosen by rule: {{ choice.why }}.

## Data
{{ images }} images at {{ sites }} site(s) took part in the last round that fed these weights; \
{{ ever }} site(s) took part in any. No image left a site.

| anatomy | images |
|---|---|
{% for anatomy, count in anatomies %}| {{ anatomy }} | {{ count }} |
{% else %}| not declared by the sites | {{ images }} |
{% endfor %}

## Recipe
Campaign `{{ campaign.id }}`, recipe `{{ campaign.recipe }}` (settings.json): rounds {{ campaign.first }} to \
{{ choice.round }}, {{ steps }} local steps each, {{ rule }}, schedule {{ schedule }} at {{ lr }}, share of the change \
since the seed {{ choice.alpha }}.
Rounds by verdict of the forgetting gate: {{ outcomes }}.
{{ privacy }}

## Forgetting panel
{% if choice.panel %}Fixed public images, never trained on by a site; losses with a decoder that was refitted alike on other images of \
the panel for the seed and for these weights. \
Budget {{ budget }} per organ. Backward transfer {{ transfer }}.

| organ | loss | seed's loss | change | with the seed's decoder | kNN | linear probe | CKA to the seed |
|---|---|---|---|---|---|---|---|
{% for row in panel %}| {{ row|join(" | ") }} |
{% endfor %}
{% else %}None was set: what these weights have forgotten is not known.
{% endif %}

## Benchmarks
{% if benchmarks %}Of exactly these weights, in per cent with 95 % intervals over patients.

| {{ benchmarks[0]|join(" | ") }} |
|{{ "---|" * benchmarks[0]|length }}
{% for line in benchmarks[1:] %}| {{ line|join(" | ") }} |
{% endfor %}{% else %}None was run on these weights.
{% endif %}

## Leakage
{% if leaks %}Attacks on membership of exactly these weights, drawn images and patients against held-out ones; 0.5 is chance.

| {{ leaks[0]|join(" | ") }} |
|{{ "---|" * leaks[0]|length }}
{% for line in leaks[1:] %}| {{ line|join(" | ") }} |
{% endfor %}{% else %}Not measured: no site gave a report of 'usfmae-client leak'.
{% endif %}

## Limits
- A feature extractor for research. It makes no diagnosis and is no medical device.
- It has seen what its sites held: other organs, probes and vendors may be represented badly. Validate on your own \
patients, split by patient.
- A panel sees the organs it holds. Forgetting of anything else is not measured.
- The decoder is the seed's; reconstructions are no evidence of anatomy.

Lineage back to the seed: lineage.json. Check all of it offline: `usfmae verify FOLDER --key coordinator.pub.pem`, \
with the key from the coordinator and not from this folder.
"""


@dataclass(frozen=True)
class Tables:
    """Lines of what was measured elsewhere, the head first; empty where nothing was."""

    benchmarks: Sequence[Sequence[str]] = ()
    leaks: Sequence[Sequence[str]] = ()


def card(
    federation: Federation,
    choice: ReleaseChoice,
    campaign: Campaign,
    content: str,
    tables: Tables,
) -> str:
    """README.md of a release."""
    settings, ledger = federation.settings, federation.ledger
    rounds = [r for r in ledger.rounds() if r.number <= choice.round and r.state == RoundState.COMMITTED]
    fed = next((r for r in reversed(rounds) if (r.summary or {}).get("sites")), rounds[-1])
    took_part = {s for r in rounds for s, v in ledger.verdicts(r.number).items() if v.verdict == VerdictCode.ADMITTED}
    gates = Counter((r.summary or {}).get("gate", {}).get("outcome", "not gated") for r in rounds)
    template = Environment(undefined=StrictUndefined, autoescape=False, trim_blocks=True).from_string(TEXT)  # noqa: S701
    return template.render(
        name=settings.name,
        choice=choice,
        content=content,
        images=(fed.summary or {}).get("images", 0),
        sites=(fed.summary or {}).get("sites", 0),
        ever=len(took_part),
        anatomies=[(name, f"{count:,}") for name, count in sorted(settings.continual.anatomies.items())],
        campaign=campaign,
        steps=settings.rounds.steps,
        rule=settings.merge.rule,
        schedule=settings.train.schedule,
        lr=settings.train.lr,
        privacy=_privacy(settings.train.dp),
        outcomes=", ".join(f"{count} {name}" for name, count in sorted(gates.items())),
        budget=f"{settings.continual.budget:+.0%}",
        transfer=f"{choice.panel['backward_transfer']:+.1%}" if choice.panel else "",
        panel=list(_rows(choice.panel)) if choice.panel else [],
        benchmarks=tables.benchmarks,
        leaks=tables.leaks,
    )


def _privacy(dp: DpSettings) -> str:
    """What protects a patient, and what does not."""
    if not dp.noise:
        return "No differential privacy."
    return (
        f"Differential privacy for each patient inside its site: noise {dp.noise:g} times the clip of {dp.clip:g} in every "
        f"step, last {dp.blocks} block(s) alone. What it comes to (epsilon) hangs on a site's patients; each site's sheet has it."
    )


def _rows(panel: Mapping[str, Any]) -> list[list[str]]:
    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    return [
        [
            organ,
            f"{values['loss']:.4f}",
            f"{panel['seed'][organ]:.4f}",
            f"{values['loss'] / panel['seed'][organ] - 1:+.1%}",
            *(shown(values[name]) for name in ("seed_decoder_loss", "knn", "probe", "cka")),
        ]
        for organ, values in panel["organs"].items()
    ]
