"""What this site's own attacks say of an update, before it leaves and after."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from click.testing import CliRunner

from tests.client.at_work import connected, events, replies, turns
from tests.client.conftest import MODEL, TRAIN, Aggregator
from tests.floors import LOWERED
from usfmae.client import leak, outbox
from usfmae.client.cli import group
from usfmae.client.notices import notifier
from usfmae.client.site import Site
from usfmae.core.checkpoint_header import recipe_text
from usfmae.core.config import AugmentSettings
from usfmae.core.config.sources import NoticeKind
from usfmae.core.errors import SourceError

QUIET = AugmentSettings(rotation=0, flips=False, zoom_min=1, zoom_max=1)
ONE_STEP = TRAIN.model_copy(
    update={
        "batch_size": 1,
        "micro_batch": 1,
        "warmup": 0.0,
        "lr": 1e4,
        "clip": 1e-9,
        "held_out": 0.3,
        "augment": QUIET,
    }
    | {"mask_ratio": 0.9, "weight_decay": 0.0}
)


@pytest.fixture
def site(make_site: Callable[..., Site], aggregator: Aggregator) -> Site:
    open_floor = {**LOWERED, "probe": True, "augmentation": False, "max_lr": 1e9, "min_clip": 0.0, "inspection": False}
    made = make_site(images=40, privacy=open_floor)
    aggregator.enrol(made)
    return made


def test_an_update_that_is_one_picture_waits_for_a_person_with_the_picture(site: Site, aggregator: Aggregator) -> None:
    agent = connected(site, aggregator)
    aggregator.ask(recipe=recipe_text(MODEL, ONE_STEP), steps=1)
    turns(agent)
    assert [reply.declined for reply in replies(aggregator)] == ["refused: kept by the site"], "nothing left"
    (entry,) = outbox.entries(site)
    assert entry["state"] == outbox.EntryState.WAITING and "HELD BACK" in outbox.sheet(entry)
    assert (site.root / "outbox" / entry["id"] / outbox.PICTURE).read_bytes()[:4] == b"\x89PNG"
    assert "outbox.held" in events(site)
    shown = CliRunner().invoke(group, ["outbox", str(site.root), "probe", entry["id"]])
    assert shown.exit_code == 0 and "HELD BACK" in shown.output


def test_held_updates_of_a_site_that_releases_by_itself_stop_no_round_and_nobody_for_good(
    site: Site, aggregator: Aggregator, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, notices = connected(site, aggregator), notifier(site)
    notices.look()
    found = {"rank_one": 0.95, "effective_rank": 1.1, "advantage_db": 12.0, "held": "a picture"}
    monkeypatch.setattr("usfmae.client.rounds.update_probe.probe", lambda *_: dict(found))
    for number in (1, 2):
        aggregator.ask(number, step=3 * number)
        turns(agent)
    assert [notice.kind for notice in notices.look()] == [NoticeKind.APPROVAL], "a person hears of it"
    assert {r.round: r.declined for r in replies(aggregator)} == dict.fromkeys((1, 2), "refused: kept by the site")

    # A person looks while the second round is open; it is asked again, as the aggregator does after a decline.
    outbox.decide(site, outbox.entries(site)[-1]["id"], approved=True)
    aggregator.ask(2, step=6)
    turns(agent)
    found["held"] = ""
    aggregator.ask(3, step=9)
    turns(agent)
    answered = {reply.round: reply.declined for reply in replies(aggregator) if not reply.declined}
    assert set(answered) == {2, 3}


def test_membership_is_reported_with_intervals_and_names_nobody(site: Site, aggregator: Aggregator) -> None:
    agent = connected(site, aggregator)
    with pytest.raises(SourceError):
        leak.audit(site)
    aggregator.ask(recipe=recipe_text(MODEL, TRAIN.model_copy(update={"held_out": 0.3})))
    turns(agent)
    result = leak.audit(site)
    assert set(result["membership"]) == {"loss", "loss drop", "moved features"}
    for sides in result["membership"].values():
        for one in sides.values():
            assert 0 <= one["low"] <= one["auc"] <= one["high"] <= 1 and one["members"] > 0 < one["others"]
    text = json.dumps(result)
    assert "group" not in text and not any(id_ in text for id_ in np.atleast_1d(site.settings.name))
    printed = CliRunner().invoke(group, ["leak", str(site.root)])
    assert printed.exit_code == 0 and "patients" in printed.output


def test_an_update_is_tried_for_membership_and_for_a_planted_name(make_site, aggregator: Aggregator) -> None:
    site = make_site(images=120, privacy={**LOWERED, "probe": True, "canary": True})
    aggregator.enrol(site)
    aggregator.ask(recipe=recipe_text(MODEL, TRAIN.model_copy(update={"held_out": 0.4})), steps=4)
    turns(connected(site, aggregator))
    (entry,) = outbox.entries(site)  # so few steps on random pictures may be held back: that is for other tests
    area, low, high = entry["probe"]["membership"]
    assert 0 <= low <= area <= high <= 1 and np.isfinite(entry["probe"]["lettering"])
    assert entry["drawn"]["images"] <= 120  # the planted frame is none of its images
