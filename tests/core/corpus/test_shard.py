"""Shards: what was written comes back; damage, loss and disagreement are named."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from usfmae.core.corpus.batch import Corpus
from usfmae.core.corpus.shard import FOLDER, PackedImage, square, write_shard
from usfmae.core.errors import CorpusError
from usfmae.core.types import CleanImage, Trail


def items(
    count: int, start: int = 0, channels: int = 1, size: int = 16, images_per_group: int = 2
) -> list[PackedImage]:
    random = np.random.default_rng(start)
    shape = (size, size) if channels == 1 else (size, size, 3)
    return [
        PackedImage(random.integers(0, 256, shape, np.uint8), f"id{start + i}", f"g{(start + i) // images_per_group}")
        for i in range(count)
    ]


def test_images_come_back_as_they_were_written(tmp_path: Path) -> None:
    written = items(5) + items(3, start=5, channels=3)
    shards = write_shard(tmp_path, "a", written)
    assert [(s.count, s.channels) for s in shards] == [(5, 1), (3, 3)]
    corpus = Corpus([tmp_path])
    for position, id_ in enumerate(corpus.ids):
        expected = next(item.pixels for item in written if item.id == id_)
        fetched = corpus.fetch([position]).pixels[0]
        assert np.array_equal(fetched if expected.ndim == 3 else fetched[..., 0], expected)


def test_a_batch_with_colour_expands_gray_images(tmp_path: Path) -> None:
    write_shard(tmp_path, "a", items(2) + items(2, start=2, channels=3))
    corpus = Corpus([tmp_path])
    pixels = corpus.fetch([0, 3]).pixels
    assert pixels.shape == (2, 16, 16, 3)
    assert (pixels[0] == pixels[0, ..., :1]).all()


def test_writing_twice_gives_the_same_bytes_and_other_content_is_refused(tmp_path: Path) -> None:
    (first,) = write_shard(tmp_path / "x", "a", items(4))
    (second,) = write_shard(tmp_path / "y", "a", items(4))
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.path.with_suffix(".json").read_bytes() == second.path.with_suffix(".json").read_bytes()
    stamp = first.path.stat().st_mtime_ns
    write_shard(tmp_path / "x", "a", items(4))
    assert first.path.stat().st_mtime_ns == stamp
    with pytest.raises(CorpusError, match="other content"):
        write_shard(tmp_path / "x", "a", items(5))


def test_square_keeps_one_channel_only_where_the_image_is_gray() -> None:
    gray = np.repeat(np.random.default_rng(0).integers(0, 256, (30, 40, 1), np.uint8), 3, axis=2)
    nothing = np.zeros((30, 40), bool)
    assert square(CleanImage(gray, nothing, Trail("a")), 8, "g").pixels.shape == (8, 8)
    colour = gray.copy()
    colour[3, 4, 1] ^= 255
    assert square(CleanImage(colour, nothing, Trail("a")), 8, "g").pixels.shape == (8, 8, 3)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_a_damaged_shard_is_named(tmp_path: Path, damage: str) -> None:
    (shard,) = write_shard(tmp_path, "a", items(4))
    data = bytearray(shard.path.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
        shard.path.write_bytes(data)
    elif damage == "gone":
        shard.path.unlink()
    else:
        shard.path.write_bytes(data[: -100 if damage == "cut" else 0])
    with pytest.raises(CorpusError, match=r"a\.gray\.npy"):
        Corpus([tmp_path])


def test_a_sound_shard_is_read_once_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shard,) = write_shard(tmp_path, "a", items(4))
    read: list[str] = []
    real = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: (read.append(file.name), real(file, name))[1])
    for _ in range(3):
        Corpus([tmp_path])
    assert len(read) == 1
    os.utime(shard.path.with_suffix(".checked"), (0, 0))  # checked long ago
    Corpus([tmp_path])
    assert len(read) == 2
    content = bytearray(shard.path.read_bytes())
    content[-1] ^= 1
    shard.path.write_bytes(content)
    with pytest.raises(CorpusError, match="damaged"):
        Corpus([tmp_path])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"ids": []}'])
def test_an_unreadable_index_is_named(tmp_path: Path, text: str) -> None:
    (shard,) = write_shard(tmp_path, "a", items(4))
    shard.path.with_suffix(".json").write_text(text)
    with pytest.raises(CorpusError, match=r"a\.gray\.json"):
        Corpus([tmp_path])


def test_a_pickle_in_place_of_a_shard_is_refused(tmp_path: Path) -> None:
    (shard,) = write_shard(tmp_path, "a", items(4))
    np.save(shard.path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    beside = shard.path.with_suffix(".json")
    index = json.loads(beside.read_text())
    beside.write_text(json.dumps({**index, "bytes": shard.path.stat().st_size}))
    with pytest.raises(CorpusError):
        Corpus([tmp_path], verify=False)


def test_a_folder_without_images_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="usfmae prepare"):
        Corpus([tmp_path])


def test_an_open_corpus_is_not_disturbed_by_shards_added_later(tmp_path: Path) -> None:
    write_shard(tmp_path, "b", items(4))
    before = Corpus([tmp_path])
    pixels, fingerprint = before.fetch([0, 1, 2, 3]).pixels, before.fingerprint
    write_shard(tmp_path, "a", items(4, start=4))
    assert np.array_equal(before.fetch([0, 1, 2, 3]).pixels, pixels)
    grown = Corpus([tmp_path])
    assert len(grown) == 8
    assert grown.fingerprint != fingerprint
    restricted = Corpus([tmp_path], only=[index.sha256 for index in before.shards])
    assert restricted.fingerprint == fingerprint
    (tmp_path / FOLDER / "b.gray.json").unlink()
    with pytest.raises(CorpusError, match="gone or changed"):
        Corpus([tmp_path], only=[index.sha256 for index in before.shards])


def test_the_same_shard_under_two_roots_counts_once(tmp_path: Path) -> None:
    write_shard(tmp_path / "x", "a", items(4))
    write_shard(tmp_path / "y", "a", items(4))
    assert len(Corpus([tmp_path / "x", tmp_path / "y"])) == 4


def test_a_split_never_parts_a_group_and_groups_stay_when_the_corpus_grows(tmp_path: Path) -> None:
    write_shard(tmp_path, "a", items(60, images_per_group=3))
    small = Corpus([tmp_path])
    _, held = small.split(0.3, seed=1)
    held_groups = {small.groups[p] for p in held}
    assert held_groups and all((small.groups[p] in held_groups) == (p in held) for p in range(len(small)))
    write_shard(tmp_path, "b", items(60, start=60, images_per_group=3))
    grown = Corpus([tmp_path])
    _, more = grown.split(0.3, seed=1)
    assert {grown.groups[p] for p in more} & set(small.groups) == held_groups


def test_folds_hold_each_image_out_once_and_never_part_a_group(tmp_path: Path) -> None:
    write_shard(tmp_path, "a", items(50, images_per_group=4))
    corpus = Corpus([tmp_path])
    folds = corpus.folds(5, seed=3)
    assert sorted(p for _, held in folds for p in held) == list(range(50))
    for train, held in folds:
        assert not {corpus.groups[p] for p in train} & {corpus.groups[p] for p in held}
    with pytest.raises(CorpusError, match="cannot make"):
        corpus.folds(14, seed=3)
