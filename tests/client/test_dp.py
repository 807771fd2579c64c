"""A site that trains with differential privacy alone: what it refuses, what leaves, and what its sheet says."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.client.at_work import connected, events, replies, turns
from tests.client.conftest import MODEL, TRAIN, Aggregator
from tests.floors import LOWERED
from usfmae.client import dp_budget, outbox
from usfmae.client.site import Site
from usfmae.core.checkpoint_header import recipe_text
from usfmae.core.config import DpSettings

pytest.importorskip("dp_accounting", reason="the extra 'dp' is not installed")

PRIVATE = TRAIN.model_copy(update={"dp": DpSettings(noise=4.0, clip=0.1), "held_out": 0.2})


@pytest.fixture
def site(make_site: Callable[..., Site], aggregator: Aggregator) -> Site:
    made = make_site(images=40, privacy={**LOWERED, "epsilon": 4.0, "delta": 1e-3})
    aggregator.enrol(made)
    return made


def test_a_campaign_without_it_is_refused(site: Site, aggregator: Aggregator) -> None:
    aggregator.ask(recipe=recipe_text(MODEL, TRAIN))
    turns(connected(site, aggregator))
    (reply,) = replies(aggregator)
    assert "differential privacy alone" in reply.declined and "request.refused" in events(site)


def test_an_update_leaves_without_figures_of_the_images_and_the_sheet_says_what_was_spent(
    site: Site, aggregator: Aggregator
) -> None:
    aggregator.ask(recipe=recipe_text(MODEL, PRIVATE))
    turns(connected(site, aggregator))
    (reply,) = replies(aggregator)
    assert not reply.declined
    assert (reply.loss_before, reply.loss_after, reply.images) == (0.0, 0.0, site.settings.capacity)
    sheet = outbox.sheet(outbox.entries(site)[0])
    spent = dp_budget.of(site).spent()
    assert f"epsilon {spent:.2f} at delta 0.001" in sheet and "limit: 4" in sheet and "not told" in sheet
    assert 0 < spent < 4


def test_a_round_that_the_budget_does_not_hold_is_not_trained(site: Site, aggregator: Aggregator) -> None:
    loud = PRIVATE.model_copy(update={"dp": DpSettings(noise=0.3)})
    aggregator.ask(recipe=recipe_text(MODEL, loud))
    turns(connected(site, aggregator))
    (reply,) = replies(aggregator)
    assert reply.declined and "epsilon" not in reply.declined  # what is left of the budget is nobody else's business
    assert dp_budget.of(site).spent() == 0 and not outbox.entries(site)
    assert "training.refused" in events(site)
