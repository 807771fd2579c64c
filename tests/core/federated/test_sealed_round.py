"""Sealed rounds: sums are exact, verdicts are those of the clear gate, and the custodian keeps to its rules."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from usfmae.core.config.coordinator import GateSettings
from usfmae.core.errors import PolicyError
from usfmae.core.federated import codec
from usfmae.core.federated.admission import Prior, compare
from usfmae.core.federated.encodings.shared import Shared
from usfmae.core.federated.messages import TrainReply, fingerprint, sign, to_record
from usfmae.core.federated.sealed import count_sketch, custody, envelope, masks, sealed_round
from usfmae.core.federated.sealed.custody import Custodian, CustodianKeys, box_subject
from usfmae.core.federated.sealed.envelope import Kind
from usfmae.core.federated.sealed.sealed_round import Opening, Yardstick, check_transcript, commitment, half_seed

COUNT = 50_000
COORDINATOR = Ed25519PrivateKey.from_private_bytes(b"A" * 32)
KEYS = CustodianKeys(Ed25519PrivateKey.from_private_bytes(b"B" * 32), X25519PrivateKey.from_private_bytes(b"X" * 32))
SITES = [Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in range(1, 9)]
PUBLIC = {fingerprint(key.public_key()): key.public_key() for key in SITES}
LENGTH = 1.0  # expected of an update
UNIT = count_sketch.unit_for(LENGTH, COUNT)
PRIOR = Prior(LENGTH, bound=1.5 * LENGTH)


def honest(seed: int, count: int = COUNT, length: float = LENGTH) -> np.ndarray:
    """A common direction and the site's own noise."""
    common, own = np.random.default_rng(7), np.random.default_rng(100 + seed)
    update = common.normal(size=count) + own.normal(size=count)
    return (update * length / np.linalg.norm(update)).astype(np.float32)


def codes_of(update: np.ndarray) -> bytes:
    return Shared(UNIT).pack(update.copy())[0]


class Party:
    """The aggregator's side of one round, and a custodian that remembers in a dictionary."""

    def __init__(self, codes: list[bytes], records: dict | None = None, **opening) -> None:
        self.codes = codes
        self.seeds = [masks.new_seed(bytes([i]) * 32, ["c", str(opening.get("round", 1))]) for i in range(len(codes))]
        self.records = {} if records is None else records
        self.custodian = Custodian(KEYS, COORDINATOR.public_key(), lambda: PUBLIC, self.records)
        self.sent = [masks.masked(data, seed, 0) for data, seed in zip(codes, self.seeds, strict=True)]
        half = half_seed(COORDINATOR, opening.get("base", "base"))
        first = {"campaign": "c", "round": 1, "base": "base", "task": "t", "count": COUNT, "unit": UNIT}
        first |= {"yardstick": Yardstick(PRIOR, 10.0, GateSettings()), "commitment": commitment(half)} | opening
        self.half = half
        self.opening = Opening(**first, replies=())
        self.opening = dataclasses.replace(self.opening, replies=self.replies())
        self.transcript: list[dict[str, str]] = []

    def replies(self) -> tuple[dict, ...]:
        rows = {}
        for key, seed, sent in zip(SITES, self.seeds, self.sent, strict=False):
            content = codec.payload_id({"w": sent})
            asked = self.opening
            reply = TrainReply(asked.campaign, asked.round, asked.base, content, 100, 5, Shared(asked.unit).name)
            reply = dataclasses.replace(reply, site=fingerprint(key.public_key()), task=asked.task)
            box = masks.boxed(seed, KEYS.box.public_key(), box_subject(reply))
            rows[reply.site] = to_record(sign(dataclasses.replace(reply, mask=box), key))
        self.order = [list(rows).index(site) for site in sorted(rows)]
        return tuple(rows[site] for site in sorted(rows))

    def ask(self, kind: Kind, **values: object) -> dict:
        after = {"after": envelope.name(self.transcript[-1])} if self.transcript else {}
        ask = envelope.signed(kind, {**values, **after}, COORDINATOR)
        answer = self.custodian.answer(ask)
        self.transcript += [ask, answer]
        return envelope.read(answer, kind.answer, KEYS.signing.public_key())

    def sketches(self) -> dict:
        """What B tells of the sketches."""
        self.place = self.ask(Kind.OPEN, **self.opening.values())["place"]
        theirs = self.ask(Kind.REVEAL, place=self.place, half=self.half)["half"]
        sketcher = count_sketch.Sketcher(sealed_round.joint_seed(self.half, theirs), len(self.sent))
        sketcher.add(0, [np.frombuffer(self.sent[i], "<u2") for i in self.order])
        ours = {"sketches": dict(zip(self.opening.sites, map(count_sketch.to_text, sketcher.sketches()), strict=True))}
        return self.ask(Kind.SKETCH, place=self.place, **ours)

    def judged(self):
        return sealed_round.judged(self.opening, self.sketches()["products"])

    def summed(self) -> np.ndarray:
        wanted = sealed_round.admitted(self.opening, self.judged()[1])
        self.ask(Kind.SUM, place=self.place, sites=wanted)
        share = np.frombuffer(b"".join(self.custodian.share(self.place)), "<u2")
        chosen = [self.sent[self.order[self.opening.sites.index(site)]] for site in wanted]
        return masks.unmasked(chosen, share)


def test_a_sealed_sum_is_the_sum_of_the_codes_to_the_bit():
    codes = [codes_of(honest(i)) for i in range(5)]
    party = Party(codes)
    expected = sum(np.frombuffer(data, np.int8).astype(np.int16) for data in codes)
    assert np.array_equal(party.summed(), expected)
    assert abs(expected.astype(int)).max() > 3 * 32  # several codes each


def test_what_either_party_holds_of_a_site_is_uniform_noise():
    code = codes_of(honest(1))
    sent = np.frombuffer(Party([code] * 3).sent[0], "<u2")
    counts = np.bincount(sent >> 8, minlength=256)
    assert ((counts - COUNT / 256) ** 2 / (COUNT / 256)).sum() < 350  # chi square, 255 degrees: 0.01 % above
    words = np.frombuffer(code, np.int8)
    assert abs(np.corrcoef(sent.astype(float), words)[0, 1]) < 0.02


@pytest.mark.parametrize("start", [0, 1, 31, 32, 33, 1000])
def test_a_stream_can_be_read_from_anywhere(start):
    whole = masks.keystream(b"s" * 32, 0, 2000)
    assert np.array_equal(masks.keystream(b"s" * 32, start, 500), whole[start : start + 500])


def test_the_seed_of_a_mask_follows_from_codes_and_round():
    assert masks.new_seed(b"k" * 32, ["c", "1", "x"]) == masks.new_seed(b"k" * 32, ["c", "1", "x"])
    assert masks.new_seed(b"k" * 32, ["c", "1", "x"]) != masks.new_seed(b"k" * 32, ["c", "1", "y"])


# what each site of a round sends, in lengths and directions of an honest one
ATTACKS = {
    "honest": [1, 1, 1, 1, 1],
    "five times as long": [1, 1, 1, 1, 5],
    "3.9 times as long": [1, 1, 1, 1, 3.9],
    "sign flip": [1, 1, 1, 1, -1],
    "sign flip, cut": [1, 1, 1, 1, -0.7],
    "too small": [1, 1, 1, 1, 0.02],
    "zero": [1, 1, 1, 1, 0],
    "two liars, small": [1, 1, 1, 0.03, 0.03],
    "two liars, long": [1, 1, 1, 6, 6],
    "one of three": [1, 1, 5],
    "a hundred times as long": [1, 1, 1, 100],
    "longer than the encoder": [1, 1, 1, 40],
}


def exact(updates: list[np.ndarray], prior: Prior, strikes=None):
    """The clear gate, on the codes themselves."""
    rows = np.stack([np.frombuffer(codes_of(update), np.int8).astype(np.float64) * UNIT for update in updates])
    directions = rows @ rows.T
    norms = {f"{i}": math.sqrt(directions[i, i]) for i in range(len(rows))}
    return compare(norms, prior, 10.0, directions, GateSettings(), strikes)


def sketched(updates: list[np.ndarray], prior: Prior, seed: bytes, strikes=None):
    """The same gate on sketches."""
    sketcher = count_sketch.Sketcher(seed, len(updates))
    sketcher.add(0, [np.frombuffer(codes_of(u), np.int8).astype(np.int16).view(np.uint16) for u in updates])
    directions = count_sketch.products(sketcher.sketches()) * UNIT**2
    norms = {f"{i}": math.sqrt(directions[i, i]) for i in range(len(updates))}
    return compare(norms, prior, 10.0, directions, GateSettings(), strikes)


def verdicts(comparison) -> dict[str, str]:
    return {site: str(refusal.code) for site, refusal in comparison.refused.items()}


@pytest.mark.parametrize("attack", ATTACKS)
def test_verdicts_on_the_attack_table_are_those_of_the_clear_gate(attack):
    updates = [factor * honest(i) for i, factor in enumerate(ATTACKS[attack])]
    clear = verdicts(exact(updates, PRIOR))
    assert verdicts(sketched(updates, PRIOR, b"j" * 32)) == clear
    assert bool(clear) == (attack != "honest")


def rounds(number: int, sites: int, liars: int) -> list[np.ndarray]:
    """A round as it may come: honest lengths as measured, cut to the bound; liars with any of the attacks."""
    random = np.random.default_rng(number)
    updates = []
    for site in range(sites):
        length = min(math.exp(random.uniform(math.log(0.4), math.log(1.9))), PRIOR.bound)
        updates.append(honest(1000 * number + site, 20_000, length))
    for site in range(liars):
        updates[site] *= np.float32(random.choice([-1, -1.4, 0.01, 0.05, 4.5, 6, 20]))
    return updates


@pytest.mark.parametrize("simulated", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_verdicts_of_simulated_rounds_are_those_of_the_clear_gate(simulated):
    same = 0
    for number in range(simulated):
        updates = rounds(number, 3 + number % 6, number % 3)
        same += verdicts(exact(updates, PRIOR)) == verdicts(sketched(updates, PRIOR, number.to_bytes(32, "big")))
    print(f"{same} of {simulated} rounds")
    assert same >= 0.99 * simulated


def test_lengths_and_cosines_of_a_sketch():
    updates = [honest(1), honest(2), 1.4 * honest(3)]
    rows = np.stack([np.frombuffer(codes_of(u), np.int8).astype(np.float64) for u in updates])
    sketcher = count_sketch.Sketcher(b"k" * 32, 3)
    sketcher.add(0, [row.astype(np.int16).view(np.uint16) for row in rows])
    measured, true = count_sketch.products(sketcher.sketches()).astype(float), rows @ rows.T
    assert np.allclose(np.sqrt(np.diag(measured)), np.sqrt(np.diag(true)), rtol=0.1)
    cosine = lambda g: g / np.sqrt(np.outer(np.diag(g), np.diag(g)))  # noqa: E731
    assert np.abs(cosine(measured) - cosine(true)).max() < 0.1


def test_the_unit_leaves_room_in_a_sketch_of_the_largest_model():
    unit = count_sketch.unit_for(3.0, 86_000_000)
    typical = 3.0 / math.sqrt(86_000_000) / unit
    assert 5 < typical < 9
    assert 5 * typical * math.sqrt(86_000_000 / count_sketch.WIDTH) < 2**16 / 5


# --- the custodian's rules


def refused(work, words: str) -> None:
    with pytest.raises(PolicyError) as caught:
        work()
    assert words in str(caught.value)


def five() -> list[bytes]:
    return [codes_of(honest(i)) for i in range(5)]


def test_two_sites_are_refused():
    refused(Party(five()[:2]).sketches, "is of 2 sites")


def test_a_sum_of_two_is_refused_where_the_gate_leaves_two():
    party = Party([codes_of(honest(0)), codes_of(honest(1)), codes_of(-honest(2))])
    refused(party.summed, "would be of 2 sites")


def test_a_custodian_may_want_more_sites_than_three():
    party = Party(five()[:4])
    party.custodian.fewest = 5
    refused(party.sketches, "would be of 4 sites")


@pytest.mark.parametrize("count", [1, 1024, 2**40])
def test_the_products_of_a_few_values_are_not_told(count):
    """Those of one value are the value itself; of too many, the custodian would never come to an end."""
    refused(Party(five(), count=count).sketches, "is not one of a sealed round")


def test_codes_of_another_unit_than_the_site_has_signed_are_left_out():
    party = Party(five())
    party.opening = dataclasses.replace(party.opening, unit=2 * UNIT)
    refused(party.sketches, "was made for another request")


def test_a_stranger_on_the_list_is_refused():
    party = Party(five())
    left_out = party.opening.sites[0]
    party.custodian.sites = lambda: {site: key for site, key in PUBLIC.items() if site != left_out}
    opened = party.ask(Kind.OPEN, **party.opening.values())
    assert list(opened["refused"]) == [left_out] and "is not enrolled" in opened["refused"][left_out]


def test_a_list_of_strangers_and_two_sites_is_refused():
    party = Party(five())
    party.custodian.sites = lambda: {site: PUBLIC[site] for site in party.opening.sites[:2]}
    refused(party.sketches, "is of 2 sites")


def test_the_same_question_has_the_same_answer_and_another_none():
    party = Party(five())
    first = party.summed()
    again = Party(five(), party.records)
    again.opening = party.opening  # boxes differ from one making to the next
    again.sent, again.seeds = party.sent, party.seeds
    assert np.array_equal(again.summed(), first)
    after = {"after": envelope.name(party.transcript[5])}
    ask = envelope.signed(Kind.SUM, {"place": party.place, "sites": party.opening.sites[:3], **after}, COORDINATOR)
    refused(lambda: party.custodian.answer(ask), "was asked for another sum")


def test_a_sum_of_others_than_the_admitted_is_refused():
    party = Party(five())
    party.sketches()
    refused(lambda: party.ask(Kind.SUM, place=party.place, sites=party.opening.sites[:4]), "other sites than the gate")


def test_a_second_list_for_a_round_is_refused():
    party = Party(five())
    party.summed()
    refused(Party(five()[:4], party.records).sketches, "was asked for another open")


def test_sets_that_differ_by_one_from_one_encoder_are_refused():
    party = Party(five())
    party.summed()
    other = Party(five()[:4], party.records, round=2)
    refused(other.summed, "from the same encoder had other sites")
    Party(five()[:4], party.records, round=3, base="another").summed()


def test_one_seed_in_two_rounds_is_refused():
    party = Party(five())
    party.summed()
    other = Party(five(), party.records, round=2, base="another")
    other.seeds = party.seeds
    other.opening = dataclasses.replace(other.opening, replies=other.replies())
    refused(other.sketches, "its seed was used before")


def test_a_box_of_another_round_does_not_open():
    party, other = Party(five()), Party(five(), round=2)
    boxes = [record["mask"] for record in other.opening.replies]
    records = []
    for record, box, index in zip(party.opening.replies, boxes, party.order, strict=True):
        reply = dataclasses.replace(TrainReply(**record), mask=box)
        records.append(to_record(sign(reply, SITES[index])))
    party.opening = dataclasses.replace(party.opening, replies=tuple(records))
    refused(party.sketches, "does not open")


def test_replies_to_different_requests_are_not_summed():
    """An aggregator that has all but one site train on nothing reads that one's update from the sum."""
    party = Party(five())
    key = SITES[party.order[0]]
    odd = to_record(sign(dataclasses.replace(TrainReply(**party.opening.replies[0]), task="other"), key))
    party.opening = dataclasses.replace(party.opening, replies=(odd, *party.opening.replies[1:]))
    opened = party.ask(Kind.OPEN, **party.opening.values())
    assert "was made for another request" in opened["refused"][odd["site"]]


def test_the_aggregator_never_gets_a_sketch_of_an_update():
    """With the sum and the sketches of three sites it could tell apart what a few numbers describe."""
    party = Party(five())
    assert set(party.sketches()) == {"products", "after"}


def test_codes_that_do_not_fit_their_mask_are_refused_by_their_length():
    party = Party(five())
    party.sent[0] = masks.masked(party.codes[0], b"another" + bytes(25), 0)
    party.opening = dataclasses.replace(party.opening, replies=party.replies())
    norms, comparison = party.judged()
    liar = fingerprint(SITES[0].public_key())
    assert verdicts(comparison) == {liar: "norm"} and norms[liar] > 50 * LENGTH


def test_a_half_that_was_not_committed_to_is_refused():
    party = Party(five())
    party.half = "00" * 32
    refused(party.sketches, "not the one committed to")


def test_steps_out_of_order_are_refused():
    party = Party(five())
    place = party.ask(Kind.OPEN, **party.opening.values())["place"]
    refused(lambda: party.ask(Kind.SUM, place=place, sites=[]), "was not asked for reveal yet")
    refused(lambda: list(party.custodian.share(place)), "has no sum")


def test_nobody_else_is_answered():
    ask = envelope.signed(Kind.OPEN, {"campaign": "c"}, SITES[0])
    refused(lambda: Party(five()).custodian.answer(ask), "is not signed by the key")


def test_boxes_of_earlier_rounds_are_forgotten():
    party = Party(five())
    party.summed()
    Party(five(), party.records, round=2, base="next").summed()
    assert party.records["c/1"] == {"closed": True}
    refused(Party(five(), party.records).sketches, "is over")


# --- the transcript


def verified(transcript):
    return check_transcript(transcript, COORDINATOR.public_key(), KEYS.signing.public_key(), PUBLIC)


def test_a_transcript_proves_the_verdicts_and_the_sum():
    party = Party([*five()[:4], codes_of(-honest(4))])
    party.summed()
    proof = verified(party.transcript)
    assert list(proof.refused.values()) == ["direction"] and len(proof.summed) == 4
    assert proof.share == custody.hashlib.sha256(b"".join(party.custodian.share(party.place))).hexdigest()


def test_a_changed_transcript_is_found():
    party = Party(five())
    party.summed()
    for place in range(8):
        changed = [dict(message) for message in party.transcript]
        changed[place]["text"] = changed[place]["text"].replace("e", "f", 1)
        refused(lambda changed=changed: verified(changed), "is not signed by the key")
    other = Party(five(), round=2)
    other.summed()
    mixed = [*party.transcript[:4], *other.transcript[4:]]
    refused(lambda: verified(mixed), "does not follow")
    refused(lambda: verified(party.transcript[:3]), "ends before")
