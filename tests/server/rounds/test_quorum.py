"""When a round closes, and whom it waits for."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from usfmae.core.config.coordinator import RoundSettings
from usfmae.core.errors import PolicyError
from usfmae.core.federated.messages import VerdictCode
from usfmae.server.ledger import Verdict
from usfmae.server.rounds.quorum import Attendance, closing


def answered(**seconds):
    return {site: Verdict(1, site, VerdictCode.ADMITTED, received=1000.0 + after) for site, after in seconds.items()}


def closes(verdicts, here="abc", silent=(), active="abc", **rules):
    return closing(verdicts, Attendance(set(active), set(here), silent), 1000.0, RoundSettings(**rules))


def test_a_round_closes_at_once_when_everyone_has_answered():
    end = closes(answered(a=5, b=6, c=7))
    assert end.closes == 1000.0 and end.waits_for == ()


def test_after_the_quorum_the_others_have_three_times_the_usual_time_and_ten_minutes_at_least():
    assert closes(answered(a=5, b=6)).closes == 1600.0
    assert closes(answered(a=1000, b=2000)).closes == 1000.0 + 4500.0
    assert closes(answered(a=1000, b=2000), deadline=3000.0).closes == 4000.0
    assert closes(answered(a=1000), quorum=2).closes is None


def test_a_site_that_is_not_connected_has_the_patience():
    assert closes(answered(a=1000, b=2000), here="ab", patience=60.0).closes == 1060.0


def test_a_silent_site_is_not_waited_for():
    end = closes(answered(a=5, b=6), silent={"c"})
    assert (end.closes, end.waits_for, end.not_waited_for) == (1000.0, (), ("c",))


def test_a_site_that_never_answers_costs_two_rounds_their_time_and_no_more(federation):
    made = federation(3, **{"rounds.quorum": 2})
    silent, now = made.hospitals[2].site, [made.ledger.sites() and 0.0]
    made.wire.order = lambda messages: [m for m in messages if made.wire.waiting[m].site != silent]
    import time

    start, waits = time.time(), []
    loop = made.loop(clock=lambda: start + now[0], wait=lambda s: now.__setitem__(0, now[0] + 30))
    for number in (1, 2, 3, 4):
        before = now[0]
        loop.run(number)
        waits.append(now[0] - before)
        start -= 1  # the ledger's clock is the real one
    assert waits[0] >= 570 and waits[2:] == [0.0, 0.0]
    assert made.verdicts(4) == ["admitted", "admitted", "-"]
    made.wire.order = list
    loop.run(5)
    assert made.verdicts(5)[:2] == ["admitted", "admitted"], "asked all the same"


def test_the_coordinator_closes_a_round_and_sees_whom_it_waits_for(federation):
    from usfmae.server.cli.records import status as command
    from usfmae.server.cli.rounds import round_
    from usfmae.server.status import status

    made = federation(3, **{"rounds.quorum": 2})
    silent, turns = made.hospitals[2].site, []
    made.wire.order = lambda messages: [m for m in messages if made.wire.waiting[m].site != silent]

    def wait(seconds):
        turns.append(status(made.home))
        if len(turns) == 2:
            said = CliRunner().invoke(command, [str(made.home.root)]).output
            assert "The quorum of 2 is reached" in said and "site-2" in said
            done = CliRunner().invoke(round_, ["close", str(made.home.root), "--json"])
            assert json.loads(done.output) == {"round": 1, "admitted": 2}
        assert len(turns) < 5

    assert isinstance(CliRunner().invoke(round_, ["close", str(made.home.root)]).exception, PolicyError)
    made.loop(wait=wait).run(1)
    assert len(turns) == 2 and turns[1]["waiting_for"] == ["site-2"]
    assert turns[1]["closes_at"] == pytest.approx(made.ledger.rounds()[0].opened + 600)
    assert made.verdicts(1) == ["admitted", "admitted", "-"]


@pytest.mark.parametrize("schedule", ["cosine", "infinite"])
def test_a_federation_that_goes_on_after_its_planned_rounds_learns_on_and_says_so(federation, schedule):
    from usfmae.core import audit

    seen = []
    from tests.server.conftest import nudge
    from usfmae.core.checkpoint_header import recipe_of
    from usfmae.core.mae.lr_schedule import learning_rate

    def watching(place, request, encoder, decoder):
        settings = recipe_of(request.recipe)[1]
        steps = range(request.global_step, request.global_step + request.steps)
        seen.append(max(learning_rate(step, settings.steps, settings) for step in steps))
        return nudge(place, request, encoder, decoder)

    made = federation(1, trainer=watching, **{"train.schedule": schedule})
    made.run(2)
    made.run(5)
    assert len(seen) == 5 and min(seen) > 0
    assert [e["before"] for e in audit.entries(made.home.audit) if e["event"] == "campaign-extend"] == [400]


def test_where_total_steps_are_stated_a_round_that_would_learn_nothing_is_refused(federation):
    made = federation(1, **{"rounds.total_steps": 400})
    made.run(2)
    with pytest.raises(PolicyError, match="total_steps"):
        made.run(3)


def test_an_open_ended_federation_never_falls_asleep(federation, monkeypatch):
    from usfmae.server import campaign

    monkeypatch.setattr(campaign, "OPEN_ENDED", 4)
    made = federation(1, **{"train.schedule": "infinite", "rounds.steps": 10, "train.warmup": 0})
    loop = made.loop()
    ends = []
    loop.committed = lambda number: (
        ends.append(campaign.current(made.ledger).end_step)
        or (campaign.end(made.home, made.ledger) if number == 9 else None)
    )
    loop.run(0)
    assert len(ends) == 9 and all(end > 10 * number for number, end in enumerate(ends, 1))
