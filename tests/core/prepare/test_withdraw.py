"""An image or a patient that was taken out of a corpus is nowhere in it, and no later run brings it back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.core.prepare.conftest import clip, still
from usfmae.core.corpus.batch import Corpus
from usfmae.core.corpus.shard import FOLDER, read_index
from usfmae.core.errors import TryLaterError
from usfmae.core.prepare import PrepareSummary
from usfmae.core.prepare.ledger import CorpusLedger
from usfmae.core.prepare.withdraw import Withdrawn, found, withdraw

Run = Callable[..., PrepareSummary]


@pytest.fixture
def corpus(tmp_path: Path, run: Run) -> Path:
    """A patient is a folder: a has stills, b a clip."""
    for number in range(3):
        still(tmp_path / "scans" / "a" / f"{number}.png", number)
    clip(tmp_path / "scans" / "b" / "clip.avi", 20)
    run(tmp_path / "scans", tmp_path / "corpus")
    return tmp_path / "corpus"


def groups(corpus: Path) -> dict[str, int]:
    opened = Corpus([corpus])
    return {group: opened.groups.count(group) for group in sorted(set(opened.groups), key=opened.groups.index)}


def patient(corpus: Path, images: int) -> str:
    return next(group for group, count in groups(corpus).items() if count == images)


def test_a_patient_is_gone_and_stays_out(tmp_path: Path, corpus: Path, run: Run) -> None:
    before = Corpus([corpus])
    gone = patient(corpus, 3)
    pixels = [before.fetch([row]).pixels.tobytes() for row, group in enumerate(before.groups) if group == gone]
    asked = Withdrawn(groups=frozenset([gone]))
    assert found(corpus, asked) == withdraw(corpus, asked) == 3
    assert gone not in groups(corpus) and len(Corpus([corpus])) == len(before) - 3
    assert not any(data in path.read_bytes() for data in pixels for path in corpus.rglob("*") if path.is_file())

    still(tmp_path / "scans" / "a" / "later.png", 77)
    shutil.copy(tmp_path / "scans" / "a" / "0.png", tmp_path / "scans" / "a" / "copy.png")
    run(tmp_path / "scans", corpus)
    assert gone not in groups(corpus), "a later scan of the patient came in"
    for path in (corpus / FOLDER).iterdir():  # all shards lost: the plan is worked off again
        path.unlink()
    run(tmp_path / "scans", corpus)
    assert gone not in groups(corpus) and len(Corpus([corpus])) == len(before) - 3
    assert withdraw(corpus, asked) == 0, "nothing is left to take out"


def test_one_image_of_a_clip_is_gone_and_the_others_keep_their_frames(tmp_path: Path, corpus: Path, run: Run) -> None:
    before = Corpus([corpus])
    clip_ = next(group for group, count in groups(corpus).items() if count != 3)
    one = next(id_ for id_, group in zip(before.ids, before.groups, strict=True) if group == clip_)
    ledger = CorpusLedger(corpus)
    origin = {id_: _origin(corpus, ledger, id_) for id_ in before.ids}
    assert withdraw(corpus, Withdrawn(images=frozenset([one]))) == 1
    after = Corpus([corpus])
    assert set(after.ids) == set(before.ids) - {one}
    assert {id_: _origin(corpus, ledger, id_) for id_ in after.ids} == {k: v for k, v in origin.items() if k != one}
    for row, id_ in enumerate(after.ids):
        assert np.array_equal(after.images([row])[0], before.images([before.ids.index(id_)])[0])
    counts = ledger.counts()
    assert counts["kept"] == len(after) and counts["because withdrawn"] == 1

    for path in (corpus / FOLDER).iterdir():
        path.unlink()
    run(tmp_path / "scans", corpus)
    assert set(Corpus([corpus]).ids) == set(after.ids), "cleaned again, it came back"
    assert ledger.counts() == counts


def _origin(corpus: Path, ledger: CorpusLedger, id_: str) -> tuple[str, int] | None:
    for path in (corpus / FOLDER).glob("*.json"):
        index = read_index(path)
        if id_ in index.ids:
            return ledger.origin(index.shard.path.name, index.ids.index(id_))
    raise AssertionError(id_)


def test_a_withdrawal_that_was_cut_short_is_finished_by_another(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Withdrawn(groups=frozenset([patient(corpus, 3)]))
    left = len(Corpus([corpus])) - 3

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for place in ("replace_shard", "save", "refuse_group"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(CorpusLedger, place, killed)
            withdraw(corpus, asked)
    withdraw(corpus, asked)
    assert len(Corpus([corpus])) == left == CorpusLedger(corpus).images()
    assert CorpusLedger(corpus).counts()["because withdrawn"] == 3


def test_it_waits_for_a_prepare_that_is_at_work(corpus: Path) -> None:
    with CorpusLedger(corpus).working(), pytest.raises(TryLaterError):
        withdraw(corpus, Withdrawn(groups=frozenset(["x"])))
    assert Withdrawn.of(corpus) == Withdrawn()
