"""Sealed rounds with a real aggregator, custodian and agents."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from tests.e2e.sealed import SealedFederation, change
from usfmae.core import audit
from usfmae.core.errors import PolicyError
from usfmae.core.federated.messages import TrainReply
from usfmae.core.federated.sealed import masks
from usfmae.core.federated.sealed.custody import box_subject
from usfmae.core.tensors import TensorFile
from usfmae.server.rounds import spool
from usfmae.server.rounds.sealing import verified

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Two rounds of three hospitals."""
    federation = SealedFederation(tmp_path_factory.mktemp("sealed"), 3)
    try:
        federation.start_server(2)
        federation.start_sites()
        federation.wait_rounds(2)
        yield federation
    finally:
        federation.stop()


def codes(federation, name: str, number: int) -> bytes:
    """What a site made in a round, as it lies in its outbox."""
    from usfmae.client import outbox

    entries = [e for e in outbox.entries(federation.sites[name]) if e["round"] == number]
    with TensorFile(outbox.folder(federation.sites[name], entries[0]["id"]) / outbox.UPDATE) as file:
        return b"".join(file.raw(tensor) for tensor in file.shapes)


def spooled(federation, name: str, number: int) -> bytes:
    """What the aggregator holds of it."""
    with TensorFile(spool.path(federation.home, number, federation.sites[name].fingerprint)) as file:
        return b"".join(file.raw(tensor) for tensor in file.shapes)


def test_the_merge_is_the_mean_of_what_the_sites_made(done):
    with TensorFile(done.home.checkpoint(1)) as base, TensorFile(done.home.checkpoint(2)) as after:
        moved = np.concatenate([(after.tensor(n) - base.tensor(n)).reshape(-1) for n in base.shapes])
    unit = float(spool.record(done.home, 2, done.sites["hospital-1"].fingerprint)["encoding"].partition(":")[2])
    mean = sum(np.frombuffer(codes(done, name, 2), np.int8).astype(float) for name in done.names) * unit / 3
    # The step down is packed as int8, with what the step before left out: near, and never far.
    assert np.corrcoef(moved, mean)[0, 1] > 0.999
    assert done.admitted(2) == done.names


def test_the_aggregator_holds_noise_and_only_the_custodian_can_take_it_off(done):
    site = done.sites["hospital-1"]
    held, made = np.frombuffer(spooled(done, "hospital-1", 2), "<u2"), codes(done, "hospital-1", 2)
    values = np.frombuffer(made, np.int8)
    assert abs(np.corrcoef(held.astype(float), values)[0, 1]) < 0.02
    reply = TrainReply(**spool.record(done.home, 2, site.fingerprint))
    seed = masks.opened(reply.mask, done.custodian.keys().box, box_subject(reply))
    stream = masks.keystream(seed, 0, len(held))
    assert np.array_equal((held - stream).view(np.int16), values)
    stranger = masks.X25519PrivateKey.generate()
    with pytest.raises(PolicyError):
        masks.opened(reply.mask, stranger, box_subject(reply))


def test_a_transcript_proves_each_round_and_a_changed_one_is_found(done):
    from click.testing import CliRunner

    from usfmae.server.cli.records import verify

    assert "2 sealed rounds" in CliRunner().invoke(verify, [str(done.home.root)]).output
    rounds = {record["round"]: record for record in done.status()["rounds"]}
    assert len(rounds) == 2
    path = done.home.transcript(1)
    messages = json.loads(path.read_text())
    messages[0]["text"] = messages[0]["text"].replace("}", " }", 1)
    whole = path.read_bytes()
    path.write_text(json.dumps(messages))
    try:
        assert isinstance(CliRunner().invoke(verify, [str(done.home.root)]).exception, PolicyError)
    finally:
        path.write_bytes(whole)
    ledger_says = json.loads(path.read_text())
    assert len(ledger_says) == 8


def test_the_custodian_has_given_out_one_sum_a_round(done):
    sums = done.custodian.records()["sums"]
    everyone = sorted(site.fingerprint for site in done.sites.values())
    assert [one["sites"] for one in sums.values()] == [everyone, everyone]
    assert not list((done.custodian.root / "state").glob("*.safetensors"))


def test_sparse_sealed_rounds_send_a_sixteenth_in_turn_and_come_down_as_small(tmp_path):
    larger = {"model.width": 128, "model.heads": 4}  # a sixteenth must be enough values to hide among
    federation = SealedFederation(tmp_path, 3, **{"rounds.encoding": "sparse"}, **larger)
    try:
        federation.start_server(3)
        federation.start_sites()
        status = federation.wait_rounds(3)
        assert [v["verdict"] for r in status["rounds"] for v in r["verdicts"]] == ["admitted"] * 9
        with TensorFile(federation.home.checkpoint(1)) as base, TensorFile(federation.home.checkpoint(2)) as after:
            name = max(base.shapes, key=lambda name: math.prod(base.shapes[name]))
            moved = (after.tensor(name) - base.tensor(name)).reshape(-1)
            whole = sum(math.prod(shape) for shape in base.shapes.values())
        # Round 2: of every sixteen blocks of 256 the one with number 2 alone.
        blocks = moved[: moved.size // 4096 * 4096].reshape(-1, 16, 256).any(axis=(0, 2))
        assert np.flatnonzero(blocks).tolist() == [2]
        assert len(spooled(federation, "hospital-1", 3)) == pytest.approx(whole / 8, rel=0.05)  # two bytes a code
        assert federation.home.step(3).stat().st_size < whole / 12
        assert verified(federation.home, 2, rounds_of(federation)[1].summary["transcript"]).summed
        for hospital in federation.names:  # the whole encoder in the first round, steps in the others
            log = (federation.root / f"{hospital}.log").read_text()
            assert log.count("record=encoder") == 1 and "need-base" not in log
    finally:
        federation.stop()


def test_a_site_with_a_custodian_takes_part_in_no_other_round(tmp_path):
    federation = SealedFederation(tmp_path, 3)
    change(federation.home.settings_file, "rounds", sealed=False)
    try:
        federation.start_server(1)
        federation.start_site("hospital-1")
        entry = federation.wait("a refusal", lambda: refusals(federation, "hospital-1"), 60)
        assert "names the custodian none" in entry[0]["why"]
    finally:
        federation.stop()


def refusals(federation, name: str):
    return [e for e in audit.entries(federation.sites[name].audit_log) if e["event"] == "request.refused"]


def test_a_stranger_to_the_custodian_costs_its_own_place_alone(tmp_path):
    federation = SealedFederation(tmp_path, 4)
    change(federation.home.settings_file, "rounds", sealed=True, quorum=3)
    federation.custodian.remove_site("hospital-4")
    try:
        federation.start_server(1)
        federation.start_sites()
        status = federation.wait_rounds(1)
        verdicts = {v["name"]: v["verdict"] for v in status["rounds"][-1]["verdicts"]}
        assert verdicts == {**dict.fromkeys(federation.names[:3], "admitted"), "hospital-4": "mask"}
        assert verified(federation.home, 1, summary(federation)["transcript"]).summed == sorted(
            federation.sites[name].fingerprint for name in federation.names[:3]
        )
    finally:
        federation.stop()


def rounds_of(federation):
    from usfmae.server.ledger import Ledger

    return Ledger(federation.home.ledger).rounds()


def summary(federation):
    return rounds_of(federation)[-1].summary
