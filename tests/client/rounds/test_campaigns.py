"""Campaigns at a site: who agrees, what was agreed, and in which turn rounds are taken up."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from click.testing import CliRunner

from tests.client.at_work import connected, events, replies, turns
from tests.client.conftest import MODEL, TRAIN, Aggregator
from tests.floors import LOWERED
from usfmae.client.agent import Agent, AgentState
from usfmae.client.cli import group
from usfmae.client.rounds import campaigns, jobs, trainer
from usfmae.client.rounds.campaigns import CampaignState
from usfmae.client.site import Site
from usfmae.core.checkpoint import encoder_of
from usfmae.core.checkpoint_header import recipe_text
from usfmae.core.mae.model import fresh


@pytest.fixture
def asking(make_site: Callable[..., Site], aggregator: Aggregator) -> tuple[Site, Agent]:
    """A site whose campaigns wait for a person."""
    site = make_site(privacy={**LOWERED, "new_campaigns": "approve"})
    aggregator.enrol(site)
    return site, connected(site, aggregator)


def declined(aggregator: Aggregator) -> list[str]:
    return [reply.declined for reply in replies(aggregator)]


def test_the_first_request_waits_for_a_person_and_nothing_is_downloaded_before(
    asking: tuple[Site, Agent], aggregator: Aggregator
) -> None:
    site, agent = asking
    aggregator.ask()
    turns(agent)
    assert agent.state == AgentState.WAITING_CAMPAIGN and not replies(aggregator)
    assert not (site.root / "jobs").exists() and "campaign.waiting" in events(site)
    shown = CliRunner().invoke(group, ["campaign", str(site.root), "show"]).output
    assert "4 pictures" in shown and "learning rate 0.001" in shown and "waiting" in shown
    assert CliRunner().invoke(group, ["campaign", str(site.root), "approve"]).exit_code == 0
    turns(agent)
    assert declined(aggregator) == [""]
    assert "campaign.agreed" in events(site)


def test_a_refused_campaign_is_declined_and_stays_so(asking: tuple[Site, Agent], aggregator: Aggregator) -> None:
    site, agent = asking
    aggregator.ask()
    turns(agent)
    campaigns.decide(site, "demo", False, "not before the board of May")
    turns(agent)
    aggregator.ask(2)
    turns(agent)
    assert len(declined(aggregator)) == 2
    assert all("was refused by this site" in text for text in declined(aggregator))
    assert not (site.root / "jobs").exists()


@pytest.mark.parametrize(
    ("changes", "figure"),
    [
        ({"encoding": "fp32"}, "encoding is 'fp32', agreed is 'int8'"),
        ({"steps": 4}, "steps is 4, agreed is 3"),
        ({"recipe": recipe_text(MODEL, TRAIN.model_copy(update={"lr": 2e-3}))}, "lr is 0.002, agreed is 0.001"),
        ({"recipe": recipe_text(MODEL.model_copy(update={"decoder_heads": 1}), TRAIN)}, "decoder_heads is 1"),
    ],
)
def test_a_later_request_must_ask_for_what_was_agreed(
    agent: Agent, aggregator: Aggregator, changes: dict[str, object], figure: str
) -> None:
    aggregator.ask(1)
    turns(agent)
    pulled = aggregator.calls.count("pull-object")
    aggregator.ask(2, global_step=3, **changes)
    turns(agent)
    assert figure in declined(aggregator)[1]
    assert aggregator.calls.count("pull-object") - pulled <= 3, "message, names, record: not the model"


def test_where_the_learning_rate_stands_may_change(agent: Agent, aggregator: Aggregator) -> None:
    aggregator.ask(1)
    turns(agent)
    aggregator.ask(2, global_step=3, recipe=recipe_text(MODEL, TRAIN.model_copy(update={"steps": 99})))
    turns(agent)
    assert declined(aggregator) == ["", ""]


@pytest.mark.parametrize(("number", "step"), [(4, 12), (5, 12), (6, 9)])
def test_an_earlier_round_step_or_another_encoder_is_out_of_turn(
    agent: Agent, aggregator: Aggregator, site: Site, number: int, step: int
) -> None:
    aggregator.ask(5, global_step=12)
    turns(agent)
    aggregator.ask(number, seed=1, global_step=step)
    turns(agent)
    assert "has taken up round 5 at step 12" in declined(aggregator)[1]
    campaigns.restart(site, "demo", "a backup was restored")
    aggregator.ask(number, seed=1, global_step=step)
    turns(agent)
    assert declined(aggregator)[2] == ""
    agreed = campaigns.agreement(site, "demo")
    assert agreed is not None and not agreed.restarted, "a restart holds for one request"


@pytest.mark.parametrize(
    ("seed", "step", "why"),
    [
        (0, 1, "overlaps"),
        (0, 2, "overlaps"),
        (1, 0, "overlaps"),
        (1, 2, "overlaps"),
        (0, 0, ""),
        (1, 3, ""),
        (1, 90, ""),
    ],
)
def test_no_two_rounds_share_a_part_of_what_they_draw(
    agent: Agent, aggregator: Aggregator, seed: int, step: int, why: str
) -> None:
    """The difference of two updates that share 19 of their 20 steps is made of two steps; a void round comes again whole."""
    aggregator.ask(1, global_step=0)
    turns(agent)
    aggregator.ask(2, seed=seed, global_step=step)
    turns(agent)
    first, second = declined(aggregator)
    assert first == "" and (why in second if why else second == "")


def test_a_new_campaigns_name_resets_nothing(agent: Agent, aggregator: Aggregator, site: Site) -> None:
    aggregator.ask(1)
    turns(agent)
    encoder = {k: v.clone() for k, v in encoder_of(fresh(MODEL, seed=0).state_dict()).items()}
    encoder["blocks.0.attn.qkv.weight"] *= 5
    aggregator.ask(1, encoder=encoder, campaign="another")
    turns(agent)
    assert "norm went from" in declined(aggregator)[1]


def test_another_model_waits_for_a_person_where_campaigns_are_agreed_by_settings(
    agent: Agent, aggregator: Aggregator, site: Site
) -> None:
    aggregator.ask(1)
    turns(agent)
    other = MODEL.model_copy(update={"decoder_depth": 2})
    aggregator.ask(1, campaign="another", recipe=recipe_text(other, TRAIN))
    turns(agent)
    agreed = campaigns.agreement(site, "another")
    assert agreed is not None and agreed.state is CampaignState.WAITING and len(replies(aggregator)) == 1


@pytest.mark.parametrize(
    ("bound", "campaign", "why"),
    [("campaigns_a_day", "another", "2 campaigns within a day"), ("requests_a_day", "demo", "2 rounds within a day")],
)
def test_campaigns_and_rounds_of_a_day_are_bounded(
    make_site: Callable[..., Site], aggregator: Aggregator, bound: str, campaign: str, why: str
) -> None:
    site = make_site(privacy={**LOWERED, bound: 1})
    aggregator.enrol(site)
    agent = connected(site, aggregator)
    aggregator.ask(1)
    turns(agent)
    aggregator.ask(2, campaign=campaign, global_step=3)
    turns(agent)
    assert why in declined(aggregator)[1]


def test_the_sites_secret_decides_what_is_drawn_and_not_the_seed_alone(
    make_site: Callable[..., Site], aggregator: Aggregator
) -> None:
    """Two hospitals with the same images and the same request train on other batches; each on the same ones again."""
    sites = [make_site(name) for name in ("hospital-a", "hospital-b")]
    for site in sites:
        aggregator.enrol(site)
    agents = [connected(site, aggregator) for site in sites]
    aggregator.ask()
    for agent in agents:
        turns(agent)
    first, second = (jobs.finished(site, "demo")[0][1] for site in sites)
    assert first.result and second.result and first.result["content"] != second.result["content"]
    content = first.result["content"]
    for left in ("result.json", "update.safetensors"):
        (first.place / left).unlink()
    trainer.run(first, lambda: False)
    assert first.result is not None and first.result["content"] == content


def test_a_damaged_agreement_waits_for_a_person_again(asking: tuple[Site, Agent], aggregator: Aggregator) -> None:
    site, agent = asking
    aggregator.ask()
    turns(agent)
    campaigns.decide(site, "demo", True)
    (site.root / "campaigns" / "demo" / "agreement.json").write_text("{}")
    turns(agent)
    assert agent.state == AgentState.WAITING_CAMPAIGN and not replies(aggregator)
