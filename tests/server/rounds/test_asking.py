"""What a round asks of a site again, or sends it along because it lacks it."""

import pytest

from tests.server.conftest import TINY
from usfmae.core.federated.messages import TrainReply, sign, to_record
from usfmae.server.rounds.transport import Answer


def test_a_site_that_lost_its_decoder_gets_it_again(federation):
    made = federation(1)
    made.run(1)
    asked = made.declining("need-decoder", lambda request: not request.with_decoder)
    made.run(2)
    assert asked == [True, False]


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
    holders, asked = {made.hospitals[0].site}, []
    ask, answers = made.wire.ask, made.wire.answers

    def noting(task):
        asked.append((task.request.round, task.site, task.replay))
        assert task.request.with_replay == bool(task.replay)
        if task.replay:
            holders.add(task.site)
        return ask(task)

    def missing(messages):
        for answer in answers(messages):
            site, request = next((s, r) for m, (s, r) in loop.outstanding.items() if m == answer.message)
            if site in holders:
                yield answer
            else:
                reply = TrainReply(request.campaign, request.round, request.base, declined="need-replay", site=site)
                key = next(h.key for h in made.hospitals if h.site == site)
                yield Answer(answer.message, to_record(sign(reply, key)))

    made.wire.ask, made.wire.answers = noting, missing
    loop = made.loop()
    loop.run(2)
    assert made.verdicts(1) == made.verdicts(2) == ["admitted"] * 3
    sent = [(number, site) for number, site, replay in asked if replay]
    assert sorted(sent) == sorted((1, h.site) for h in made.hospitals[1:])


def test_a_simulation_says_that_it_mixes_in_no_replay_corpus(tmp_path):
    from usfmae.core.corpus.shard import write_shard
    from usfmae.core.errors import ConfigError
    from usfmae.server import simulate
    from usfmae.server.bootstrap import create
    from usfmae.server.layout import Layout

    write_shard(tmp_path / "public", "all", list(simulate.tissue(7, 4, 16)))
    chosen = [f"continual.replay={tmp_path / 'public'}", "continual.replay_share=0.25"]
    chosen += [f"model.{key}={value}" for key, value in TINY.items()]
    create(tmp_path / "home", "unit", "", 0, None, chosen)
    with pytest.raises(ConfigError, match="not simulated"):
        simulate.run(Layout(tmp_path / "home"), 2, 1, 4)
