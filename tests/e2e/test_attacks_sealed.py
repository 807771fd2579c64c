"""A dishonest coordinator, a dishonest custodian and a dishonest site in sealed rounds: rows of `make test-attacks`.

The coordinator asks a real custodian process, over TLS and with its own signature, for what it must not get; after each
attack an honest round must still have its sum, to the last bit. Custodian and site are real processes that lie in one place.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.core.federated.test_sealed_round import COORDINATOR, KEYS, SITES, Party, codes_of, honest
from tests.e2e import tables
from tests.e2e.federation import Program
from tests.e2e.sealed import SealedFederation
from tests.ports import free_port
from usfmae.core import audit, keys
from usfmae.core.config.coordinator import CustodianLinkSettings
from usfmae.core.errors import PolicyError
from usfmae.core.federated.messages import fingerprint
from usfmae.core.federated.sealed import envelope, masks
from usfmae.core.federated.sealed.envelope import Envelope, Kind
from usfmae.server.custodian.home import CustodianHome, CustodianSettings, create
from usfmae.server.ledger import Ledger
from usfmae.server.rounds.custodian_link import CustodianLink
from usfmae.server.rounds.sealing import verified

pytestmark = [pytest.mark.e2e, pytest.mark.attacks]

FIVE = [codes_of(honest(number)) for number in range(5)]


class Remote:
    """The custodian's process, as Party asks its own."""

    def __init__(self, link: CustodianLink) -> None:
        self.link = link

    def answer(self, ask: Envelope) -> Envelope:
        self.asked = ask
        return self.link.send(ask)

    def share(self, place: str) -> Iterator[bytes]:
        return self.link.share(self.asked)


class Institution:
    """A custodian's process that has enrolled five hospitals, and the coordinator that it answers."""

    def __init__(self, root: Path) -> None:
        coordinator = root / "coordinator.pub.pem"
        coordinator.write_text(keys.public_pem(COORDINATOR))
        self.home, port = CustodianHome(root / "keeper"), free_port()
        create(self.home.root, CustodianSettings(name="institute", host="127.0.0.1", port=port), coordinator)
        self._use_keys()
        for key in SITES[:5]:
            self.enrol(key)
        words = "from usfmae.server.cli import main; main()", "custodian", "run", str(self.home.root)
        self.program = Program("custodian", [sys.executable, "-c", *words], root / "custodian.log", {})
        _wait(self.home.address.exists)
        link = CustodianLinkSettings(url=f"https://127.0.0.1:{port}", card=self.home.card)
        self.remote, self.rounds = Remote(CustodianLink(link)), 0

    def _use_keys(self) -> None:
        """Those of the unit tests, with which Party signs and checks."""
        for name in ("signing.pem", "box.key"):
            (self.home.root / "keys" / name).unlink()
        keys.write_private(self.home.root / "keys" / "signing.pem", KEYS.signing)
        keys.write_secret(self.home.root / "keys" / "box.key", KEYS.box.private_bytes_raw())
        card = json.loads(self.home.card.read_text())
        card |= {"signing_key": keys.public_pem(KEYS.signing), "box_key": masks.public_text(KEYS.box)}
        self.home.card.write_text(json.dumps(card))

    def enrol(self, key: Ed25519PrivateKey) -> None:
        self.home.sites_folder.mkdir(exist_ok=True)
        site = fingerprint(key.public_key())
        entry = {"name": site, "signing_key": keys.public_pem(key)}
        (self.home.sites_folder / f"{site}.json").write_text(json.dumps(entry))

    def forget(self, key: Ed25519PrivateKey) -> None:
        (self.home.sites_folder / f"{fingerprint(key.public_key())}.json").unlink()

    def party(self, codes: list[bytes], **opening: object) -> Party:
        """The aggregator's side of the next round, from an encoder of its own unless `opening` names one."""
        self.rounds += 1
        made = Party(codes, **{"round": self.rounds, "base": f"encoder-{self.rounds}", **opening})
        made.custodian = self.remote
        return made

    def refusals(self) -> list[str]:
        return [entry["why"] for entry in audit.entries(self.home.audit) if entry["event"] == "message"]


@pytest.fixture(scope="module")
def institution(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Institution]:
    made = Institution(tmp_path_factory.mktemp("institution"))
    yield made
    made.program.stop()


# --- what a coordinator may ask for


def two_sites(b: Institution) -> None:
    b.party(FIVE[:2]).sketches()


def a_sum_of_two(b: Institution) -> None:
    b.party([FIVE[0], FIVE[1], codes_of(-honest(2))]).summed()


def a_second_sum(b: Institution) -> None:
    party = b.party(FIVE)
    party.summed()
    after = envelope.name(party.transcript[5])
    values = {"place": party.place, "sites": party.opening.sites[:3], "after": after}
    b.remote.answer(envelope.signed(Kind.SUM, values, COORDINATOR))


def a_second_list(b: Institution) -> None:
    first = b.party(FIVE)
    first.summed()
    again = b.party(FIVE[:4], round=first.opening.round, base=first.opening.base)
    again.sketches()


def two_hospitals_and_strangers(b: Institution) -> None:
    for key in SITES[2:5]:
        b.forget(key)
    try:
        b.party(FIVE).sketches()
    finally:
        for key in SITES[2:5]:
            b.enrol(key)


def sets_that_differ_by_one(b: Institution) -> None:
    first = b.party(FIVE)
    first.summed()
    b.party(FIVE[:4], base=first.opening.base).summed()


def others_than_the_gate_admits(b: Institution) -> None:
    party = b.party(FIVE)
    party.sketches()
    party.ask(Kind.SUM, place=party.place, sites=party.opening.sites[:4])


def another_half(b: Institution) -> None:
    party = b.party(FIVE)
    party.half = "00" * 32
    party.sketches()


def another_commitment(b: Institution) -> None:
    """New random sums of the same updates, round after round."""
    first = b.party(FIVE)
    first.sketches()
    again = b.party(FIVE, base=first.opening.base)
    again.opening = dataclasses.replace(again.opening, commitment="11" * 32)
    again.sketches()


def products_of_a_few_values(b: Institution) -> None:
    b.party(FIVE, count=1).sketches()


def a_sum_before_the_sketches(b: Institution) -> None:
    party = b.party(FIVE)
    place = party.ask(Kind.OPEN, **party.opening.values())["place"]
    party.ask(Kind.SUM, place=place, sites=party.opening.sites)


def a_share_without_a_sum(b: Institution) -> None:
    party = b.party(FIVE)
    party.sketches()
    values = {"place": party.place, "sites": party.opening.sites[:3], "after": envelope.name(party.transcript[-1])}
    b.remote.asked = envelope.signed(Kind.SUM, values, COORDINATOR)
    list(b.remote.share(party.place))


COORDINATORS: list[tuple[Callable[[Institution], None], str]] = [
    (two_sites, "is of 2 sites"),
    (a_sum_of_two, "would be of 2 sites"),
    (a_second_sum, "was asked for another sum"),
    (a_second_list, "was asked for another open"),
    (two_hospitals_and_strangers, "is of 2 sites"),
    (sets_that_differ_by_one, "from the same encoder had other sites"),
    (others_than_the_gate_admits, "other sites than the gate"),
    (another_half, "not the one committed to"),
    (another_commitment, "is another than before for this encoder"),
    (products_of_a_few_values, "is not one of a sealed round"),
    (a_sum_before_the_sketches, "was not asked for reveal yet"),
    (a_share_without_a_sum, "other sites than the gate"),
]


@pytest.mark.parametrize(("attack", "words"), COORDINATORS, ids=[attack.__name__ for attack, _ in COORDINATORS])
def test_a_coordinator_does_not_get_it(institution, attack, words):
    before = len(institution.refusals())
    with pytest.raises(PolicyError) as caught:
        attack(institution)
    told = institution.refusals()[before:]
    codes = sum(np.frombuffer(data, np.int8).astype(np.int16) for data in FIVE)
    equal = np.array_equal(institution.party(FIVE).summed(), codes)
    name = f"sealed, coordinator: {attack.__name__.replace('_', ' ')}"
    tables.add("attacks", name[:60], "refused", len(told), "equal" if equal else "DIFFERS")
    assert words in str(caught.value) and len(told) == 1 and words in told[0] and equal
    audit.verify(institution.home.audit)


def test_somebody_else_than_the_coordinator_is_not_answered_and_fills_no_log(institution):
    before = len(institution.refusals())
    with pytest.raises(PolicyError) as caught:
        institution.remote.answer(envelope.signed(Kind.OPEN, {"campaign": "c"}, SITES[0]))
    assert "is not signed by the key" in str(caught.value) and len(institution.refusals()) == before
    tables.add("attacks", "sealed: a stranger asks the custodian", "refused", "no", "-")


# --- processes that lie in one place

LIES = {
    "a site gives the custodian another seed": (
        "hospital-4",
        "import usfmae.core.federated.sealed.masks as m; real = m.boxed\n"
        "m.boxed = lambda seed, key, about: real(bytes(32), key, about)\n",
    ),
    "a custodian reveals another half than it committed to": (
        "custodian",
        "import usfmae.core.federated.sealed.custody as c\nc.Custodian._reveal = lambda *a: {'half': '00' * 32}\n",
    ),
    "a custodian gives out the masks of other sites": (
        "custodian",
        "import usfmae.core.federated.sealed.custody as c; real = c.Custodian._pieces\n"
        "c.Custodian._pieces = lambda self, opening, seeds: real(self, opening, seeds[:-1])\n",
    ),
}


@pytest.fixture
def lying(tmp_path: Path) -> Iterator[Callable[[str], SealedFederation]]:
    """A federation of four hospitals in which one program lies."""
    made: list[SealedFederation] = []

    def start(lie: str) -> SealedFederation:
        federation = SealedFederation(tmp_path / "federation", 4, **{"rounds.quorum": 3})
        made.append(federation)
        liar, code = LIES[lie]
        folder = tmp_path / "lie"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(code)
        federation.environment = {"PYTHONPATH": str(folder)}
        federation.start_custodian() if liar == "custodian" else federation.start_site(liar)
        federation.environment = {}
        federation.start_server(1)
        for name in federation.names:
            if name != liar:
                federation.start_site(name)
        return federation

    yield start
    for federation in made:
        federation.stop()


def test_a_site_whose_seed_is_another_costs_itself_alone(lying):
    lie = "a site gives the custodian another seed"
    federation = lying(lie)
    status = federation.wait_rounds(1)
    verdicts = {v["name"]: v["verdict"] for v in status["rounds"][-1]["verdicts"]}
    tables.add("attacks", f"sealed: {lie}", verdicts["hospital-4"], "yes", "three merged")
    assert verdicts == {**dict.fromkeys(federation.names[:3], "admitted"), "hospital-4": "norm"}
    summary = Ledger(federation.home.ledger).last_round().summary
    honest_three = sorted(federation.sites[name].fingerprint for name in federation.names[:3])
    assert verified(federation.home, 1, summary["transcript"]).summed == honest_three
    federation.verify_logs()


@pytest.mark.parametrize("lie", [name for name, (liar, _) in LIES.items() if liar == "custodian"])
def test_a_custodian_that_lies_ends_the_round_without_a_result(lying, lie):
    federation = lying(lie)
    federation.wait_rounds(1)
    summary = Ledger(federation.home.ledger).last_round().summary
    tables.add("attacks", f"sealed: {lie}"[:60], "round void", "yes", "base kept")
    assert "custodian" in summary["void"] or "committed to" in summary["void"]
    assert federation.result(1) == next(e["base"] for e in federation.audit() if e.get("void"))
    federation.verify_logs()


def _wait(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "the custodian did not start"
        time.sleep(0.1)
