"""The coordinator's public corpus at a site: asked for, fetched, checked byte for byte, mixed in; or refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.client.at_work import connected, events, replies, turns
from tests.client.conftest import MODEL, TRAIN, Aggregator
from usfmae.client.agent import Agent
from usfmae.client.rounds import jobs
from usfmae.client.site import Site
from usfmae.core.checkpoint_header import recipe_text
from usfmae.core.config import TrainRecipe
from usfmae.core.corpus.batch import Corpus
from usfmae.core.corpus.shard import PackedImage, write_shard
from usfmae.core.errors import CorpusError, PolicyError
from usfmae.core.federated import replay


@pytest.fixture
def public(tmp_path: Path) -> Path:
    """The coordinator's corpus: 40 images in two shards."""
    for name, seed in (("one", 1), ("two", 2)):
        pixels = np.random.default_rng(seed).integers(0, 255, (20, 32, 32), dtype=np.uint8)
        items = [PackedImage(p, f"{name}-{k}", f"{name}-{k}", "public") for k, p in enumerate(pixels)]
        write_shard(tmp_path / "public", name, items)
    return tmp_path / "public"


def recipe(public: Path, share: float = 0.5) -> str:
    wanted = {"replay": share, "replay_corpus": replay.digest(public)}
    return recipe_text(MODEL, TrainRecipe.model_validate({**TRAIN.model_dump(), **wanted}))


def shipped(public: Path) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in replay.files(public).items()}


@pytest.fixture
def agent(site: Site, aggregator: Aggregator) -> Agent:
    aggregator.enrol(site)
    return connected(site, aggregator)


def test_a_site_without_a_copy_asks_for_it_gets_it_and_trains_with_it(
    agent: Agent, aggregator: Aggregator, site: Site, public: Path
) -> None:
    aggregator.ask(recipe=recipe(public))
    turns(agent)
    assert [r.declined for r in replies(aggregator)] == ["need-replay"]
    aggregator.ask(recipe=recipe(public), replay=shipped(public))
    turns(agent)
    assert [r.declined for r in replies(aggregator)] == ["need-replay", ""]
    assert replay.digest(site.root / "replay") == replay.digest(public)
    (work,) = [job for _, job in jobs.finished(site, "demo")]
    trained = np.load(work.place / "positions.npy")
    datasets = np.array(Corpus([site.corpus, site.root / "replay"]).datasets)
    assert (datasets[trained] == "public").mean() == 0.5
    assert replies(aggregator)[1].images <= len(datasets) - 40  # the site claims its own images alone


def test_a_site_that_holds_it_fetches_it_no_second_time(
    agent: Agent, aggregator: Aggregator, site: Site, public: Path
) -> None:
    shutil.copytree(public, site.root / "replay")
    aggregator.ask(recipe=recipe(public))
    turns(agent)
    assert [r.declined for r in replies(aggregator)] == [""]


@pytest.mark.parametrize("name", ["one.gray.npy", "one.gray.json"])
def test_one_changed_byte_is_refused_and_nothing_of_it_stays(
    agent: Agent, aggregator: Aggregator, site: Site, public: Path, name: str
) -> None:
    files = shipped(public)
    old = files[name]
    place = -1 if name.endswith("npy") else old.index(b"one-3") + 4  # a pixel, or an image's id
    changed = bytearray(old)
    changed[place] ^= 1
    if name.endswith("json"):
        json.loads(changed)  # it is still a sound index
    aggregator.ask(recipe=recipe(public), replay={**files, name: bytes(changed)})
    turns(agent)
    (reply,) = replies(aggregator)
    assert reply.declined.startswith("refused: replay corpus is not the one the coordinator signed")
    assert not (site.root / "replay").exists() and not (site.root / "replay.part").exists()
    assert "request.refused" in events(site) and not agent.workers.trained  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "name", ["../../one.gray.npy", "evil.npy", "one.gray.npy/x", ".one.gray.npy", "a" * 200 + ".gray.npy"]
)
def test_names_of_files_never_lead_out_of_the_folder(
    agent: Agent, aggregator: Aggregator, site: Site, public: Path, name: str
) -> None:
    before = {path for path in site.root.parent.rglob("*") if path.suffix == ".npy"}
    aggregator.ask(recipe=recipe(public), replay={**shipped(public), name: b"x"})
    turns(agent)
    assert replies(aggregator)[0].declined.startswith("refused: replay file")
    assert {path for path in site.root.parent.rglob("*") if path.suffix == ".npy"} == before


@pytest.mark.parametrize(("gigabytes", "answer"), [(0.0, "no-replay"), (1e-6, "refused: replay corpus of")])
def test_a_site_that_wants_none_fetches_none(
    make_site: Callable[..., Site], aggregator: Aggregator, public: Path, gigabytes: float, answer: str
) -> None:
    site = make_site(replay_gb=gigabytes)
    aggregator.enrol(site)
    agent = connected(site, aggregator)
    files = shipped(public)
    aggregator.ask(recipe=recipe(public), replay=files)
    turns(agent)
    assert [r.declined for r in replies(aggregator)] == [
        r.declined for r in replies(aggregator) if r.declined.startswith(answer)
    ]
    assert not (site.root / "replay").exists() and not list(site.root.glob("replay.part/*/*"))


def test_a_download_cut_off_goes_on_after_the_last_whole_file(
    agent: Agent, aggregator: Aggregator, site: Site, public: Path
) -> None:
    aggregator.ask(recipe=recipe(public), replay=shipped(public))
    line = {"sound": False, "objects": 0}

    def files() -> list[str]:
        return sorted(path.name for path in site.root.glob("replay.part/shards/*") if path.suffix != ".part")

    def cut(name: str) -> None:
        line["objects"] += name == "pull-object"
        if name == "pull-object" and not line["sound"] and len(files()) == 3:
            raise httpx.ReadError("connection lost")

    aggregator.before = cut
    turns(agent, 1)
    assert agent.state == "offline" and len(files()) == 3
    line |= {"sound": True, "objects": 0}
    turns(agent)
    assert [r.declined for r in replies(aggregator)] == [""]
    assert line["objects"] == 1 + 4 + 1  # the list of files, what each is, and the one that was missing


def test_a_corpus_of_another_campaign_is_replaced(
    agent: Agent, aggregator: Aggregator, site: Site, public: Path, tmp_path: Path
) -> None:
    write_shard(site.root / "replay", "older", [PackedImage(np.zeros((32, 32), np.uint8), "older", "older")])
    aggregator.ask(recipe=recipe(public), replay=shipped(public))
    turns(agent)
    assert [r.declined for r in replies(aggregator)] == [""]
    assert sorted(replay.files(site.root / "replay")) == sorted(replay.files(public))


def test_a_corpus_with_a_file_that_cannot_travel_is_named(public: Path) -> None:
    (public / "shards" / "notes of mine.json").write_text("{}")
    with pytest.raises(CorpusError, match="notes of mine"):
        replay.digest(public)


def test_a_worker_without_the_corpus_stops_rather_than_train_without_it(site: Site, public: Path) -> None:
    from usfmae.client.rounds.replay_corpus import roots

    wanted = TrainRecipe(replay=0.5, replay_corpus=replay.digest(public))
    with pytest.raises(PolicyError, match="is not here"):
        roots(site, wanted)
    shutil.copytree(public, site.root / "replay")
    assert roots(site, wanted)[0] == [site.corpus, site.root / "replay"]
    assert roots(site, TrainRecipe()) == ([site.corpus], [])
