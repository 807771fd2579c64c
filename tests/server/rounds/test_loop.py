"""A round closes when it should, with the same bytes whatever happened on the way."""

import dataclasses

import numpy as np
import pytest

from usfmae.core import audit
from usfmae.core.errors import ResourceError
from usfmae.core.federated import merge
from usfmae.core.tensors import TensorFile
from usfmae.server.rounds import commit, spool
from usfmae.server.rounds import loop as rounds


class Crash(BaseException):
    """kill -9, as far as one process can play it: nothing after it runs."""


def test_the_order_of_arrival_changes_no_bit(federation):
    one, other = federation(4, "one"), federation(4, "other")
    other.wire.order = lambda messages: sorted(messages, reverse=True)
    assert one.run(2) == other.run(2)


def test_checkpoints_are_read_by_the_rest_of_the_house(federation):
    from usfmae.core import checkpoint

    made = federation(2)
    result = made.run(1)
    loaded = checkpoint.load(made.home.checkpoint(1))
    assert loaded.metadata["content"] == result == loaded.trail.id
    assert made.ledger.rounds()[0].base in loaded.trail.parents
    with TensorFile(made.home.checkpoint(1)) as file:
        assert file.id() == result


@pytest.mark.parametrize(
    ("module", "name", "when"),
    [
        (spool, "storing", "before"),
        (rounds.Loop, "_verdict", "before"),
        (rounds.Loop, "_verdict", "after"),
        (commit, "finish", "before"),
        (merge, "merge", "after"),
        (spool, "clear", "before"),
    ],
)
def test_a_crash_anywhere_ends_in_the_same_bytes_and_no_training_twice(federation, monkeypatch, module, name, when):
    wanted = federation(3, "calm").run(2)
    trained: list[tuple[str, int]] = []
    made = federation(3, "crashing")
    for hospital in made.hospitals:
        real = hospital.trainer
        hospital.trainer = lambda place, request, *rest, real=real: (
            trained.append((place.name, request.round)) or real(place, request, *rest)
        )
    original, left = getattr(module, name), [1]

    def crashing(*arguments, **options):
        if left[0] and when == "before":
            left[0] = 0
            raise Crash
        value = original(*arguments, **options)
        if left[0]:
            left[0] = 0
            raise Crash
        return value

    monkeypatch.setattr(module, name, crashing)
    with pytest.raises(Crash):
        made.run(2)
    made.again()
    assert made.run(2) == wanted
    assert sorted(trained) == sorted({(f"site-{s}", r) for s in range(3) for r in (1, 2)})
    assert made.verdicts(1) == made.verdicts(2) == ["admitted"] * 3


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_spooled_update_that_changed_while_the_aggregator_was_away_is_asked_for_again(
    federation, monkeypatch, damage
):
    wanted = federation(2, "calm").run(1)
    made, real = federation(2, "damaged"), commit.finish

    def crashing(*arguments):
        raise Crash

    monkeypatch.setattr(commit, "finish", crashing)
    with pytest.raises(Crash):
        made.run(1)
    monkeypatch.setattr(commit, "finish", real)
    file = sorted(made.home.spool.rglob("*.safetensors"))[0]
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(data if damage == "flip" else data[:-100])
    made.again()
    assert made.run(1) == wanted
    assert any(e["status"] == "damaged" for e in audit.entries(made.home.audit))
    assert made.verdicts(1) == ["admitted"] * 2


def test_a_full_disk_loses_nothing(federation, monkeypatch):
    wanted = federation(2, "calm").run(1)
    made, real, failures = federation(2, "full"), merge.replacing, [3]

    def full(path):
        if failures[0]:
            failures[0] -= 1
            raise ResourceError("disk", "is full", "free space")
        return real(path)

    monkeypatch.setattr(merge, "replacing", full)
    assert made.run(1) == wanted and failures == [0]


def test_a_disk_that_is_nearly_full_opens_no_round(federation):
    made = federation(1, min_free_gib=10**6)
    with pytest.raises(AssertionError, match="for ever"):
        made.run(1)
    assert made.ledger.rounds() == []


def test_a_quorum_closes_at_the_deadline_without_the_silent_site(federation):
    made = federation(3, **{"rounds.quorum": 2, "rounds.deadline": 100})
    silent = made.hospitals[2].site
    made.wire.order = lambda messages: [m for m in messages if made.wire.waiting[m].site != silent]
    now = [0.0]
    loop = made.loop(clock=lambda: now[0], wait=lambda seconds: now.__setitem__(0, now[0] + 30))
    loop.ledger.open_round = lambda *a, real=loop.ledger.open_round: dataclasses.replace(real(*a), opened=0.0)
    loop.run(1)
    assert made.verdicts(1) == ["admitted", "admitted", "-"] and now[0] > 100


def test_without_a_quorum_a_round_stays_open_beyond_its_deadline(federation):
    made = federation(2, **{"rounds.deadline": 1})
    made.wire.order = lambda messages: messages[:0]
    with pytest.raises(AssertionError, match="for ever"):
        made.run(1)
    assert made.ledger.last_round() is None


def test_a_round_whose_quorum_the_gate_refused_is_void_after_its_deadline_and_the_next_opens(federation, monkeypatch):
    from usfmae.server.status import status

    made = federation(2, **{"merge.rule": "fedavgm", "rounds.deadline": 100.0})
    made.run(1)
    liar, real, now = made.hospitals[1], made.hospitals[1].trainer, [0.0]
    start = made.ledger.last_round().committed

    def lying(place, request, encoder, decoder):
        trained = real(place, request, encoder, decoder)
        return dataclasses.replace(trained, images=10**9) if request.round == 2 else trained

    liar.trainer = lying
    velocity = made.home.memory("velocity", 1).read_bytes()
    loop = made.loop(clock=lambda: start + now[0], wait=lambda s: now.__setitem__(0, now[0] + 1))
    loop.run(2)
    assert now[0] >= 99, "until its deadline another site may still come and answer"
    assert made.verdicts(2)[1] == "example-count"
    first, second = made.ledger.rounds()
    assert (second.result, second.steps) == (first.result, 0)
    assert made.home.memory("velocity", 2).read_bytes() == velocity
    assert [r["state"] for r in status(made.home)["rounds"]] == ["committed", "void: quorum refused"]
    assert any(e.get("void") == "quorum refused" for e in audit.entries(made.home.audit))
    loop.run(3)
    third = made.ledger.last_round()
    assert (third.number, third.base) == (3, first.result) and third.result != first.result
    assert third.global_step == second.global_step, "what came to nothing places no learning rate"


def test_a_site_that_is_not_connected_is_waited_for_as_long_as_patience_says(federation):
    made = federation(2, **{"rounds.quorum": 1, "rounds.patience": 0})
    away = made.hospitals[1].site
    made.wire.connected = lambda: set(made.wire.hospitals) - {away}
    made.run(1)
    assert made.verdicts(1) == ["admitted", "-"]


def test_a_site_revoked_after_it_answered_is_not_merged(federation, monkeypatch):
    wanted = federation(2, "two").run(1)
    made = federation(3, "three", **{"rounds.quorum": 2})
    real = commit.finish

    def revoke_first(*arguments):
        made.ledger.revoke_site("site-2")
        return real(*arguments)

    monkeypatch.setattr(rounds.commit, "finish", revoke_first)
    assert made.run(1) == wanted
    assert made.verdicts(1) == ["admitted", "admitted", "revoked"]


def test_a_site_enrolled_in_the_middle_of_a_round_takes_part(federation):
    made = federation(2, **{"rounds.quorum": 3})
    late = federation(3, "spare").hospitals[2]
    late.coordinator = made.home.fingerprint()
    steps = []

    def wait(seconds):
        steps.append(seconds)
        if len(steps) == 3:
            made.ledger.add_site(late.enrolment())
            made.wire.hospitals[late.site] = late
        assert len(steps) < 50

    made.loop(wait=wait).run(1)
    assert made.ledger.verdicts(1)[late.site].verdict == "admitted"


def test_a_late_reply_is_noted_and_not_merged(federation):
    made = federation(3, **{"rounds.quorum": 2, "rounds.deadline": 0.001})
    slow = made.hospitals[2].site
    made.wire.order = lambda messages: [m for m in messages if made.wire.waiting[m].site != slow or made.late]
    made.late = False
    loop = made.loop()
    loop.run(1)
    assert made.verdicts(1)[2] == "-"
    made.late = True
    loop.run(2)
    assert [r["verdict"] for r in made.ledger.refusals()] == ["late"]


def test_the_audit_log_and_status_tell_what_happened(federation):
    from usfmae.server.status import status

    made = federation(2)
    result = made.run(2)
    assert audit.verify(made.home.audit) > 4
    shown = status(made.home)
    assert (shown["round"], shown["hash"]) == (2, result)
    assert {v["verdict"] for r in shown["rounds"] for v in r["verdicts"]} == {"admitted"}
    assert np.isclose(sum(v["weight"] for v in shown["rounds"][0]["verdicts"]), 1)


def test_old_checkpoints_go_where_keep_says_so(federation):
    made = federation(1, keep=1)
    made.run(3)
    assert sorted(file.name for file in made.home.checkpoints.iterdir()) == [
        "decoder.safetensors",
        "memory-left-00002.bin",
        "memory-left-00003.bin",
        "round-00000.safetensors",
        "round-00003.safetensors",
        "step-00002.bin",
        "step-00003.bin",
    ]


def scaled(factor, since=1):
    """A trainer whose update is `factor` times an honest one's from round `since` on."""
    from tests.server.conftest import nudge

    def trainer(place, request, encoder, decoder):
        good = nudge(place, request, encoder, decoder)
        if request.round < since:
            return good
        moved = {n: (v + factor * (good.encoder[n] - v)).astype(np.float32) for n, v in encoder.items()}
        return dataclasses.replace(good, encoder=moved)

    return trainer


@pytest.mark.parametrize(("sites", "liars"), [(2, 1), (3, 1), (4, 2)])
def test_very_small_updates_throw_nobody_out_and_stop_no_round(federation, sites, liars):
    made = federation(sites, **{"rounds.quorum": sites - liars})
    for hospital in made.hospitals[:liars]:
        hospital.trainer = scaled(1 / 28)
    made.run(3)
    for number in (1, 2, 3):
        honest = made.verdicts(number)[liars:]
        assert honest == ["admitted"] * (sites - liars), number
        weights = [made.ledger.verdicts(number)[h.site].weight for h in made.hospitals[liars:]]
        assert sum(weights) >= 0.4, "the honest have their part of the merge"


def test_from_four_sites_on_the_default_rule_cuts_off_the_outermost_and_the_ledger_says_so(federation):
    few, many = federation(3, "few"), federation(5, "many")
    assert few.run(1) and many.run(1)
    assert few.ledger.last_round().summary["rule"] == "fedavg"
    assert many.ledger.last_round().summary["rule"] == "trimmed"
    assert {v.weight for v in many.ledger.verdicts(1).values()} == {0.2}
    with TensorFile(many.home.checkpoint(1)) as file:
        assert file.metadata["rule"] == "trimmed"


@pytest.mark.parametrize("rule", ["fedavg", "fedadam", "fedavgm"])
def test_no_rule_makes_a_step_much_longer_than_the_updates(federation, rule):
    """FedAdam with a rate of 1 moved the encoder twice its own length in the first round."""
    made = federation(3, **{"merge.rule": rule, "merge.rate": 1.0, "merge.momentum": 0.5})
    made.run(3)
    for number in (1, 2, 3):
        before, after = made.encoder(number - 1), made.encoder(number)
        moved = np.sqrt(sum(np.square(after[n].astype(np.float64) - before[n]).sum() for n in after))
        norms = sorted(v.norm for v in made.ledger.verdicts(number).values())
        assert moved <= 2.1 * norms[1], number
    cut = made.ledger.rounds()[0].summary.get("cut", "")
    assert ("cut to" in cut) == (rule == "fedadam")


def test_a_claim_of_images_counts_when_the_coordinator_has_confirmed_it(federation):
    from usfmae.server import sites

    def large(place, request, encoder, decoder):
        from tests.server.conftest import nudge

        return dataclasses.replace(nudge(place, request, encoder, decoder), images=900)

    made = federation(3)
    made.hospitals[0].trainer = large
    made.run(1)
    first = made.hospitals[0].site
    assert made.ledger.verdicts(1)[first].weight == pytest.approx(1 / 3)
    sites.confirm(made.home, "site-0", 1000)
    made.run(2)
    assert made.ledger.verdicts(2)[first].weight == pytest.approx(0.4)
    assert any(e["event"] == "site-capacity" for e in audit.entries(made.home.audit))
