"""Counting how often images were used, and mixing a round's images by it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from usfmae.client.rounds import jobs
from usfmae.client.rounds.sample_counts import SampleCounts, parted
from usfmae.core.config import TrainRecipe
from usfmae.core.corpus.batch import Corpus
from usfmae.core.corpus.shard import PackedImage, write_shard
from usfmae.core.federated.replay import with_replay


def filled(root: Path, name: str, count: int, shade: int) -> Path:
    pixels = np.full((count, 8, 8), shade, np.uint8)
    pixels[:, 0, 0] = np.arange(count)
    write_shard(root, name, [PackedImage(image, f"{name}-{k}", f"{name}-{k}") for k, image in enumerate(pixels)])
    return root


def test_a_round_is_counted_once_however_often_the_worker_comes_back(tmp_path: Path) -> None:
    uses = SampleCounts(tmp_path / "uses.sqlite")
    assert list(uses.of(["a", "b"])) == [0, 0] and not uses.path.exists()
    assert uses.add("round-1", ["a", "a", "b"])
    assert not SampleCounts(uses.path).add("round-1", ["a", "a", "b"])
    assert uses.add("round-2", ["a"])
    assert list(uses.of(["b", "a", "c"])) == [1, 3, 0]


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[Corpus, list[str]]:
    own, public = filled(tmp_path / "own", "site", 40, 10), filled(tmp_path / "public", "aaa", 20, 200)
    sums = [index.sha256 for index in Corpus([public]).shards]
    return Corpus([own, public]), sums


def test_replayed_images_never_count_as_the_sites_own(corpus: tuple[Corpus, list[str]]) -> None:
    both, sums = corpus
    own, public = parted(both, sums)
    assert {both.ids[p].split("-")[0] for p in own} == {"site"} and len(own) == 40
    assert {both.ids[p].split("-")[0] for p in public} == {"aaa"} and len(public) == 20
    assert len(parted(both, [])[1]) == 0


def test_scans_that_came_since_the_last_round_get_their_share(corpus: tuple[Corpus, list[str]], tmp_path: Path) -> None:
    both, sums = corpus
    own, public = parted(both, sums)
    uses = SampleCounts(tmp_path / "uses.sqlite")
    assert list(uses.mixed(both, own, new_share=0.5, repeats=10)) == list(own)
    uses.add("round-1", [both.ids[p] for p in own[:30]])
    new_and_old = uses.mixed(both, own, new_share=0.5, repeats=10)
    mixed = with_replay(new_and_old, public, 0.25, turn=1, seed=42)
    from_site = np.isin(mixed, own)
    assert (~from_site).mean() == pytest.approx(0.25, abs=0.01)
    assert np.isin(mixed[from_site], own[30:]).mean() == pytest.approx(0.5)
    assert set(own) <= set(mixed)


def site_with(root: Path) -> Any:
    """As much of a site as jobs.py looks at."""
    return SimpleNamespace(root=root, corpus=root / "corpus", settings=SimpleNamespace(replay=None))


def test_a_site_counts_only_images_it_could_train_on_as_new(tmp_path: Path) -> None:
    site, recipe = site_with(tmp_path), TrainRecipe(held_out=0.5)
    filled(site.corpus, "all", 40, 10)
    corpus = Corpus([site.corpus])
    train = corpus.split(recipe.held_out, recipe.seed)[0]
    assert 0 < jobs.new_images(site, recipe) == len(train) < 40
    SampleCounts(site.root / "uses.sqlite").add("round-1", [corpus.ids[p] for p in train])
    assert jobs.new_images(site, recipe) == 0
