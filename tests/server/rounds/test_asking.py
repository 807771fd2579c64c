"""What a round asks of a site again, or sends it along because it lacks it."""

import dataclasses

import pytest

from tests.server.conftest import TINY
from usfmae.core import audit
from usfmae.core.federated.messages import TrainReply, from_record, sign, to_record
from usfmae.server.rounds import loop, spool
from usfmae.server.rounds.transport import Answer


def test_a_site_that_lost_its_decoder_gets_it_again(federation):
    made = federation(1)
    made.run(1)
    requests = made.declining("need-decoder", lambda request: not request.with_decoder)
    made.run(2)
    assert requests == [True, False]


def test_a_lost_upload_is_asked_for_again(federation):
    made = federation(2)
    real, lost = made.wire.answers, [1]

    def losing(messages):
        for answer in real(messages):
            if lost[0]:
                lost[0] = 0
                yield Answer(answer.message, error="the upload stalled")
            else:
                yield answer

    made.wire.answers = losing
    now = [0.0]
    made.loop(clock=lambda: now[0], wait=lambda s: now.__setitem__(0, now[0] + 1)).run(1)
    assert made.verdicts(1) == ["admitted", "admitted"]


def test_the_replay_corpus_goes_to_sites_that_have_none_and_to_nobody_twice(federation, tmp_path):
    from usfmae.core.corpus.shard import write_shard
    from usfmae.server.simulate import tissue

    write_shard(tmp_path / "public", "all", list(tissue(7, 4, 16)))
    chosen = {"continual.replay": str(tmp_path / "public"), "continual.replay_share": 0.25}
    made = federation(3, **chosen)
    holders, tasks = {made.hospitals[0].site}, []
    ask, answers = made.wire.ask, made.wire.answers

    def noting(task):
        tasks.append((task.request.round, task.site, task.replay))
        assert task.request.with_replay == bool(task.replay)
        if task.replay:
            holders.add(task.site)
        return ask(task)

    def missing(messages):
        for answer in answers(messages):
            site, request = next((s, r) for m, (s, r) in running.outstanding.items() if m == answer.message)
            if site in holders:
                yield answer
            else:
                reply = TrainReply(request.campaign, request.round, request.base, declined="need-replay", site=site)
                reply = dataclasses.replace(reply, recipient=made.home.fingerprint(), expires=request.expires)
                key = next(h.key for h in made.hospitals if h.site == site)
                yield Answer(answer.message, to_record(sign(reply, key)))

    made.wire.ask, made.wire.answers = noting, missing
    running = made.loop()
    running.run(2)
    assert made.verdicts(1) == made.verdicts(2) == ["admitted"] * 3
    sent = [(number, site) for number, site, replay in tasks if replay]
    assert sorted(sent) == sorted((1, h.site) for h in made.hospitals[1:])


def test_a_simulation_says_that_it_mixes_in_no_replay_corpus(tmp_path):
    from usfmae.core.corpus.shard import write_shard
    from usfmae.core.errors import ConfigError
    from usfmae.server import simulate
    from usfmae.server.bootstrap import NewFederation, create
    from usfmae.server.layout import Layout

    write_shard(tmp_path / "public", "all", list(simulate.tissue(7, 4, 16)))
    chosen = [f"continual.replay={tmp_path / 'public'}", "continual.replay_share=0.25"]
    chosen += [f"model.{key}={value}" for key, value in TINY.items()]
    create(tmp_path / "home", NewFederation("unit", port=0), chosen)
    with pytest.raises(ConfigError, match="not simulated"):
        simulate.run(Layout(tmp_path / "home"), 2, 1, 4)


@pytest.mark.parametrize("figure", [{"loss_after": 1e308}, {"loss_before": 10001.0}, {"seconds": 1e300}], ids=str)
def test_a_figure_that_cannot_be_is_a_bad_record(federation, figure):
    made = federation(3, **{"rounds.quorum": 2})
    lying(made, **figure)
    made.run(1)
    assert made.verdicts(1) == ["bad-record", "admitted", "admitted"]
    assert made.ledger.last_round().summary["loss_after"] == 0.5


@pytest.mark.parametrize("change", [{"recipient": "f" * 16}, {"expires": 1.0}], ids=str)
def test_a_reply_for_another_coordinator_or_of_long_ago_is_not_taken(federation, change):
    made = federation(2, **{"rounds.quorum": 1})
    lying(made, **change)
    made.run(1)
    assert made.verdicts(1) == ["wrong-recipient", "admitted"]


def lying(made, **change):
    """The first hospital changes its reply and signs what it changed."""
    first = made.hospitals[0]
    real = first.answer

    def answer(request, encoder, decoder):
        record, arrays = real(request, encoder, decoder)
        reply = dataclasses.replace(from_record(TrainReply, record), **change)
        return to_record(sign(reply, first.key)), arrays

    first.answer = answer


class Trap(dict):
    """What comes over a wire and cannot even be looked at."""

    def keys(self):
        raise RecursionError("trap")

    __iter__ = __getitem__ = items = keys


BOUNDARIES = {
    "identify": (loop, "identify", lambda record, site, *rest: site.site),
    "examine": (loop, "examine", lambda reply, *rest: reply.site),
    "spool path": (spool, "path", lambda home, number, site: site),
    "spool": (spool, "storing", lambda home, number, site, sizes: site),
}


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_an_unforeseen_exception_over_one_reply_costs_that_site_the_round(federation, monkeypatch, boundary):
    made = federation(3, **{"rounds.quorum": 2})
    module, name, site_of = BOUNDARIES[boundary]
    hostile, real = made.hospitals[0].site, getattr(module, name)

    def broken(*arguments, **options):
        if site_of(*arguments) == hostile:
            raise RecursionError("deep")
        return real(*arguments, **options)

    monkeypatch.setattr(module, name, broken)
    made.run(1)
    costs_the_first_alone(made)


@pytest.mark.parametrize("part", ["record", "arrays"])
def test_a_reply_that_cannot_be_looked_at_costs_that_site_the_round(federation, part):
    made = federation(3, **{"rounds.quorum": 2})
    real = made.hospitals[0].answer

    def answer(request, encoder, decoder):
        record, arrays = real(request, encoder, decoder)
        return (Trap(record), arrays) if part == "record" else (record, Trap(arrays))

    made.hospitals[0].answer = answer
    made.run(1)
    costs_the_first_alone(made)


def costs_the_first_alone(made):
    assert made.verdicts(1) == ["bad-message", "admitted", "admitted"]
    noted = [e for e in audit.entries(made.home.audit) if e.get("verdict") == "bad-message"]
    assert [(e["site"], e["status"]) for e in noted] == [(made.hospitals[0].site, "refused")]


def test_a_transport_that_fails_once_ends_no_round(federation):
    made = federation(2)
    real, failures = made.wire.answers, [2]

    def failing(messages):
        if failures[0]:
            failures[0] -= 1
            raise OSError("the disk of the transport")
        yield from real(messages)

    made.wire.answers = failing
    made.run(1)
    assert made.verdicts(1) == ["admitted", "admitted"]


def test_every_request_names_its_site_and_is_signed_as_a_whole(federation):
    from usfmae.core.federated.messages import verify

    made = federation(2)
    tasks, real = [], made.wire.ask
    made.wire.ask = lambda task: tasks.append(task) or real(task)
    made.run(1)
    for task in tasks:
        assert task.request.recipient == task.site and task.request.expires > task.request.deadline - 1
        verify(task.request, made.loop().key.public_key())
