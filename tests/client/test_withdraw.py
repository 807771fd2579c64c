"""A patient withdraws consent: at the site nothing of them is trained on, shown, or let in again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from click.testing import CliRunner

from tests.client.at_work import connected, replies, turns
from tests.client.conftest import Aggregator
from tests.client.review.test_corpus_view import gray, made, opened, places, shelved
from usfmae.client import backup, outbox, withdraw
from usfmae.client.cli import group
from usfmae.client.intake import inventory
from usfmae.client.review import quarantine
from usfmae.client.rounds import jobs
from usfmae.client.rounds.sample_counts import SampleCounts
from usfmae.client.site import Site, write_json
from usfmae.core.corpus.batch import Corpus
from usfmae.core.errors import CorpusError, TryLaterError
from usfmae.core.files import locked
from usfmae.core.phantom import Tissue, write_still
from usfmae.core.prepare.withdraw import Withdrawn


def still(file: Path, seed: int, patient: str) -> None:
    write_still(file, Tissue(seed, "sector"))
    scan = pydicom.dcmread(file)
    scan.PatientID = patient
    scan.save_as(file)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Two stills of two patients, cleaned."""
    site = made(tmp_path)
    for number in range(2):
        still(tmp_path / "scans" / f"{number}.dcm", 63 + number, f"P{number}")
    inventory.take_in(site)
    assert len(Corpus([site.corpus])) == 2
    return site


def last_entry(site: Site) -> dict[str, object]:
    entry: dict[str, object] = json.loads(site.audit_log.read_text().splitlines()[-1])
    return entry


def run(site: Site, *options: str, typed: str = "") -> str:
    answer = CliRunner().invoke(group, ["withdraw", str(site.root), *options], input=typed, catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    return answer.output


def test_a_patient_goes_by_the_id_or_by_a_scan_and_later_scans_stay_out(site: Site, tmp_path: Path) -> None:
    assert "1 image(s) taken out" in run(site, "--patient", typed="P0\ny\n")
    noted = last_entry(site)
    assert noted["event"] == "corpus.withdrawn" and noted["images"] == 1 and noted["by"]
    assert "P0" not in site.audit_log.read_text() + (site.corpus / "withdrawn.json").read_text()
    still(tmp_path / "scans" / "later.dcm", 70, "P0")
    inventory.take_in(site)
    assert len(Corpus([site.corpus])) == 1
    run(site, "--file", str(tmp_path / "scans" / "1.dcm"), "--yes")
    with pytest.raises(CorpusError, match="holds no images"):
        Corpus([site.corpus])


def test_one_image_goes_from_its_page_and_nobody_releases_it(site: Site) -> None:
    page = opened(site)
    link = places(page, "/kept")[0]
    other = gray(page, places(page, "/kept")[1])
    token = page.get(link).text.split('name="form_token" value="')[1].split('"')[0]
    assert page.post(f"{link}/withdraw", data={"form_token": "x", "what": "image"}).status_code == 403
    assert page.post(f"{link}/withdraw", data={"form_token": token, "what": "image"}).is_success
    assert [gray(page, place) for place in places(page, "/kept")] == [other]
    assert not quarantine.waiting(site, quarantine.Intake().refresh(site.corpus))
    assert last_entry(site)["what"] == "image"


def test_what_a_person_released_goes_too(tmp_path: Path) -> None:
    site = made(tmp_path)
    shelved(site, "released-" + "a" * 16, 5)
    image = withdraw.image_named(site, f"released-{'a' * 16}.gray/0")
    assert withdraw.take_out_image(site, image, "anna") == 1
    assert (quarantine.decision_on(site, "a" * 16) or {})["decision"] == "dropped"


@pytest.mark.parametrize("name", ["0001-000000.gray/9", "0001-000000.gray", "../../keys/0", "x/0"])
def test_an_image_that_is_not_there_is_said(site: Site, name: str) -> None:
    answer = CliRunner().invoke(group, ["withdraw", str(site.root), "--image", name, "--yes"])
    assert "is not in the corpus" in str(answer.exception) and len(Corpus([site.corpus])) == 2


def test_nothing_is_taken_from_under_a_training_and_a_round_begins_anew(site: Site) -> None:
    job = jobs.Job(site, site.root / "jobs" / "r1")
    job.place.mkdir(parents=True)
    write_json(job.place / "request.json", {"shards": []})
    asked = withdraw.patient_of_id(site, "P0")
    with locked(job.place / "lock") as free, pytest.raises(TryLaterError, match="pause"):
        assert free
        withdraw.take_out(site, asked)
    assert len(Corpus([site.corpus])) == 2
    withdraw.take_out(site, asked)
    assert len(Corpus([site.corpus])) == 1 and jobs.unfinished(site) is None


def test_a_round_that_was_begun_and_the_next_one_train_on_what_is_left(
    make_site: Callable[..., Site], aggregator: Aggregator
) -> None:
    site = make_site()
    aggregator.enrol(site)
    agent = connected(site, aggregator)
    aggregator.ask(1)
    turns(agent)
    aggregator.ask(2)
    agent._see_to_requests()  # the second round is prepared, its training begins
    uses = SampleCounts(site.root / "uses.sqlite")
    gone, left = ["i0", "i1"], [f"i{number}" for number in range(2, 16)]
    before, others = uses.of(gone).tolist(), int(uses.of(left).sum())
    patient = withdraw.patient_of_image(site, withdraw.image_named(site, "t.gray/0"))
    assert withdraw.take_out(site, patient) == 2
    turns(agent, 6)
    assert [(reply.round, reply.declined) for reply in replies(aggregator)] == [(1, ""), (2, "")]
    assert uses.of(gone).tolist() == before and uses.of(left).sum() > others
    assert jobs.corpus_size(site) == jobs.CorpusSize(images=14, patients=7)


def test_pictures_that_may_show_the_patient_go(site: Site) -> None:
    (site.root / "gallery").mkdir()
    picture = site.root / "gallery" / "demo-r00001.png"
    probe = site.root / "outbox" / "r1" / outbox.PICTURE
    probe.parent.mkdir(parents=True)
    for file in (picture, probe):
        file.write_bytes(b"a picture")
    withdraw.take_out(site, withdraw.patient_of_id(site, "P0"))
    assert not picture.exists() and not probe.exists()


def test_whoever_withdrew_stays_out_after_a_restored_backup(site: Site, tmp_path: Path) -> None:
    withdraw.take_out(site, withdraw.patient_of_id(site, "P0"))
    backup.write(site, tmp_path / "site.tar")
    backup.restore(tmp_path / "site.tar", tmp_path / "again")
    again = Site.open(tmp_path / "again")
    assert Withdrawn.of(again.corpus) == Withdrawn.of(site.corpus) != Withdrawn()
    inventory.take_in(again)
    assert len(Corpus([again.corpus])) == 1
