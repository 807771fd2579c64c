"""The public replay corpus over the real wire: hospitals without a copy get it beside the model and train with it."""

import sqlite3
from contextlib import closing

import pytest

from tests.e2e.federation import blobs
from usfmae.core.corpus.shard import PackedImage, write_shard
from usfmae.core.federated import replay

pytestmark = pytest.mark.e2e


def test_hospitals_without_a_copy_get_the_corpus_and_train_with_it(federate, tmp_path):
    public = tmp_path / "public"
    write_shard(
        public, "all", [PackedImage(p, f"public-{i}", f"public-{i}", "public") for i, p in enumerate(blobs(99, 24))]
    )
    # Half of each batch of four is public by chance: with few steps a site might draw nothing of its own.
    federation = federate(2, **{"continual.replay": public, "continual.replay_share": 0.5, "rounds.steps": 16})
    server = federation.start_server(2)
    federation.start_sites()
    status = federation.wait_rounds(2)
    assert server.process.wait(30) == 0
    assert [v["verdict"] for r in status["rounds"] for v in r["verdicts"]] == ["admitted"] * 4
    for site in federation.sites.values():
        assert replay.digest(site.root / "replay") == replay.digest(public)
        with closing(sqlite3.connect(site.root / "uses.sqlite")) as db:
            drawn = dict(db.execute("SELECT id LIKE 'public-%', SUM(count) FROM uses GROUP BY 1"))
        assert drawn[0] > 0 and drawn[1] > 0
