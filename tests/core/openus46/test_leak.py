"""A benchmark image hidden in the corpus is found, however it was copied; other images are not accused."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from usfmae.core.corpus.batch import Corpus
from usfmae.core.corpus.shard import PackedImage, write_shard
from usfmae.core.errors import SourceError
from usfmae.core.openus46.archive import entries
from usfmae.core.openus46.leak import enforce, same_files, same_pictures

SIZE = 64


def speckle(seed: int) -> np.ndarray:
    """A blurred random picture, (SIZE, SIZE) uint8."""
    noise = np.random.default_rng(seed).random((SIZE, SIZE)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 4)
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def corpus_of(images: list[np.ndarray], root: Path) -> Corpus:
    write_shard(root, "a", [PackedImage(image, str(i), str(i), "hc18") for i, image in enumerate(images)])
    return Corpus([root])


COPIES = {
    "same": lambda x: x,
    "brighter": lambda x: np.clip(x * 1.1 + 5, 0, 255).astype(np.uint8),
    "mirrored": lambda x: np.ascontiguousarray(x[:, ::-1]),
    "turned": lambda x: np.ascontiguousarray(np.rot90(x)),
    "compressed": lambda x: cv2.imdecode(cv2.imencode(".jpg", x, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], 0),
}


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_in_the_corpus_is_found_and_refused(copy: str, tmp_path: Path) -> None:
    benchmark = np.stack([speckle(n) for n in range(5)])[..., None]
    corpus = corpus_of([speckle(100), COPIES[copy](speckle(3)), speckle(101)], tmp_path)
    everything = np.arange(3)
    leaks = same_pictures("bus-bra", list("abcde"), benchmark, corpus, everything, bits=32)
    assert [(leak.image, leak.position) for leak in leaks] == [("d", 1)]
    with pytest.raises(SourceError, match="d of bus-bra") as caught:
        enforce(leaks, everything, "refuse")
    assert caught.value.exit_code == 4
    assert enforce(leaks, everything, "drop").tolist() == [0, 2]


def test_different_pictures_are_not_accused(tmp_path: Path) -> None:
    benchmark = np.stack([speckle(n) for n in range(40)])[..., None]
    corpus = corpus_of([speckle(n) for n in range(100, 160)], tmp_path)
    assert not same_pictures("bus-bra", [str(n) for n in range(40)], benchmark, corpus, np.arange(60), bits=32)


def test_the_very_same_file_under_another_name_is_refused_always(tmp_path: Path) -> None:
    for name, seed in (("bench/a.png", 1), ("bench/b.png", 2), ("other/renamed.png", 2), ("other/c.png", 3)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), speckle(seed))
    benchmark = [(e.name, e) for e in entries(tmp_path / "bench")]
    leaks = same_files("folder", benchmark, [("hc18", e) for e in entries(tmp_path / "other")])
    assert [(leak.image, leak.where) for leak in leaks] == [("bench/b.png", "other/renamed.png")]
    with pytest.raises(SourceError, match="renamed"):
        enforce(leaks, np.arange(2), "drop")


def test_benchmarks_at_hand_do_not_leak_into_the_other_data_sets(shared_data: Path) -> None:
    from usfmae.core.bench.tasks import load
    from usfmae.core.openus46.layout import check_all
    from usfmae.core.openus46.registry import corpus

    scans = [
        (f.dataset.id, entry)
        for f in check_all(corpus("strict42"), shared_data)
        for place in f.places
        for entry in place.chosen
    ]
    task = load("bus-bra", shared_data / "bus_bra")
    assert scans and not same_files("bus-bra", [(e.id, e.entry) for e in task.examples], scans)
