"""Whatever one request, one file or one call does, it costs that and never the agent."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.client.at_work import connected, events, replies, turns
from tests.client.conftest import MODEL, TRAIN, Aggregator
from usfmae.client import outbox
from usfmae.client.agent import Agent
from usfmae.client.flower.request_queue import PendingRequest
from usfmae.client.rounds import jobs, trainer
from usfmae.client.site import Site
from usfmae.core.checkpoint_header import recipe_text

ONE_REQUEST = [
    "usfmae.client.agent.flower_objects.records",
    "usfmae.client.rounds.participation.checked",
    "usfmae.client.rounds.participation.privacy.check",
    "usfmae.client.rounds.participation.campaigns.check_turn",
    "usfmae.client.rounds.participation.campaigns.state_of",
    "usfmae.client.rounds.participation.jobs.corpus_size",
    "usfmae.client.rounds.participation.replay_corpus.lacking",
    "usfmae.client.agent.outbox.state",
    "usfmae.client.agent.jobs.job",
    "usfmae.client.flower.download.receive",
    "usfmae.client.rounds.participation.model_inspection.inspect",
    "usfmae.client.rounds.participation.jobs.prepare",
    "usfmae.client.rounds.participation.campaigns.take_up",
    "usfmae.client.rounds.participation.outbox.stage",
    "usfmae.client.flower.upload.outbox.check",
    "usfmae.client.flower.upload.outbox.parts",
]
THE_LOOP = [
    "usfmae.client.flower.fleet_client.FleetClient.pull",
    "usfmae.client.agent.site_policy.check_disk",
    "usfmae.client.agent.site_policy.paused",
    "usfmae.client.agent.PendingRequest.all",
    "usfmae.client.agent.PendingRequest.older_than",
    "usfmae.client.flower.connection.Connection.connect",
    "tests.client.at_work.Here.tend",
    "usfmae.client.agent.Agent._is_late",
]


def unforeseen(*_: object, **__: object) -> None:
    raise ZeroDivisionError("nobody thought of this")


@pytest.mark.parametrize("boundary", ONE_REQUEST)
def test_an_unforeseen_exception_of_one_request_refuses_it_and_the_next_is_served(
    agent: Agent, aggregator: Aggregator, site: Site, monkeypatch: pytest.MonkeyPatch, boundary: str
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(boundary, unforeseen)
        aggregator.ask(1)
        turns(agent, 6)
    noted = [entry for entry in events(site) if entry in ("request.failed", "agent.failed")]
    assert noted, "it stands in the audit log"
    aggregator.ask(2, seed=3)
    turns(agent, 8)
    answered = {reply.round: reply.declined for reply in replies(aggregator)}
    assert answered[2] == "" and "nobody thought" not in answered.get(1, "")


@pytest.mark.parametrize("boundary", THE_LOOP)
def test_an_unforeseen_exception_of_the_loop_costs_a_turn(
    agent: Agent, aggregator: Aggregator, site: Site, monkeypatch: pytest.MonkeyPatch, boundary: str
) -> None:
    aggregator.ask()
    with monkeypatch.context() as patched:
        patched.setattr(boundary, unforeseen)
        turns(agent, 3)
    assert {"agent.failed", "worker.failed", "request.failed"} & set(events(site))
    turns(agent, 8)
    assert replies(aggregator), "it goes on"


def test_a_request_that_ended_the_process_three_times_is_set_aside(
    make_site: Callable[..., Site], aggregator: Aggregator, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_site()
    aggregator.enrol(site)
    aggregator.ask()

    def killed(*_: object) -> None:
        raise SystemExit(137)

    with monkeypatch.context() as patched:
        patched.setattr("usfmae.client.flower.request_queue.PendingRequest.end", lambda pending: None)
        patched.setattr("usfmae.client.rounds.participation.unwilling", killed)
        for _ in range(3):
            with pytest.raises(SystemExit):
                turns(connected(site, aggregator), 1)
    agent = connected(site, aggregator)
    turns(agent)
    assert "request.set-aside" in events(site) and not PendingRequest.all(site)
    assert [reply.declined for reply in replies(aggregator)] == ["refused: it ended this site's agent 3 times"]
    aggregator.ask(2, seed=1)
    turns(agent)
    assert replies(aggregator)[1].declined == ""


def test_a_recipe_nested_deep_is_refused_and_the_next_request_is_served(
    agent: Agent, aggregator: Aggregator, site: Site
) -> None:
    aggregator.ask(1, recipe='{"model":' + "[" * 100_000)
    turns(agent)
    aggregator.ask(2)
    turns(agent)
    assert [reply.declined.startswith("refused: recipe") for reply in replies(aggregator)] == [True, False]
    assert "request.refused" in events(site)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'{"metadata": "!!", "id": 3}', b"\xff\xfe", b'{"metadata": "////", "id": "x"}']
)
def test_a_damaged_pending_file_is_set_aside(agent: Agent, aggregator: Aggregator, site: Site, content: bytes) -> None:
    (site.root / "pending").mkdir(exist_ok=True)
    (site.root / "pending" / "1-abc.json").write_bytes(content)
    aggregator.ask()
    turns(agent)
    assert [reply.declined for reply in replies(aggregator)] == [""]
    assert "request.damaged" in events(site)
    assert [path.name for path in (site.root / "pending").iterdir()] == ["1-abc.damaged"]


def _empty_base(first: jobs.Job) -> None:
    first.base.write_bytes(b"")


def _bent(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    file.write_bytes(content)


def _no_database(first: jobs.Job) -> None:
    (first.site.root / "uses.sqlite").write_bytes(b"not a database, but as long as one" * 400)


DAMAGES: dict[str, Callable[[jobs.Job], None]] = {
    "base": _empty_base,
    "residual": lambda first: _bent(first.place / "residual.safetensors"),
    "residual cut": lambda first: (first.place / "residual.safetensors").write_bytes(b"\1\2\3"),
    "uses": _no_database,
    "agreement": lambda first: (first.site.root / "campaigns" / "demo" / "agreement.json").write_bytes(b""),
    "taken": lambda first: (first.site.root / "campaigns" / "demo" / "taken.json").write_bytes(b"{}"),
    "encoder": lambda first: (first.site.root / "campaigns" / "demo" / "encoder.json").write_bytes(b'{"a": 1}'),
    "result": lambda first: (first.place / "result.json").write_bytes(b"\0\0"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_state_of_the_round_before_does_not_cost_the_next(
    agent: Agent, aggregator: Aggregator, site: Site, damage: str
) -> None:
    aggregator.ask(1)
    turns(agent)
    DAMAGES[damage](jobs.finished(site, "demo")[0][1])
    aggregator.ask(2, seed=0, step=3)
    turns(agent, 6)
    assert [reply.declined for reply in replies(aggregator)] == ["", ""]


def test_a_damaged_decoder_is_asked_for_again(agent: Agent, aggregator: Aggregator, site: Site) -> None:
    aggregator.ask(1)
    turns(agent)
    first = jobs.finished(site, "demo")[0][1]
    _bent(first.trained_decoder)
    first.decoder.unlink(missing_ok=True)
    aggregator.ask(2, seed=0, step=3, with_decoder=False)
    turns(agent, 6)
    assert [reply.declined for reply in replies(aggregator)] == ["", "need-decoder"]
    aggregator.restart()
    aggregator.ask(2, seed=0, step=3)
    turns(agent, 6)
    assert replies(aggregator)[-1].declined == ""


def test_a_training_past_its_end_is_given_up_and_goes_on_when_it_is_asked_for_again(
    agent: Agent, aggregator: Aggregator, site: Site
) -> None:
    aggregator.ask(1, expires=time.time() + 3600)
    agent._see_to_requests()
    assert agent.current is not None
    prepared = json.loads((agent.current.place / "request.json").read_text())
    prepared["request"]["expires"] = time.time() - 1
    (agent.current.place / "request.json").write_text(json.dumps(prepared))
    agent._tend()
    assert agent.current is None and "training.given-up" in events(site)
    turns(agent)
    assert [reply.declined for reply in replies(aggregator)] == [""]


def test_an_update_below_the_floor_is_refused_where_it_is_drawn(
    make_site: Callable[..., Site], aggregator: Aggregator
) -> None:
    """The corpus has enough patients; the three steps of four images do not draw on them all."""
    from tests.floors import LOWERED

    site = make_site(images=40, privacy={**LOWERED, "min_patients": 13})
    aggregator.enrol(site)
    agent = connected(site, aggregator)
    aggregator.ask()
    turns(agent)
    assert [r.declined for r in replies(aggregator)] == ["refused: this site's floor or inspection"]
    (work,) = (jobs.Job(site, place) for place in (site.root / "jobs").iterdir())
    assert work.error is not None and "patients drawn is" in work.error["why"] and work.result is None
    assert "training.refused" in events(site) and not outbox.entries(site)


def test_a_loss_is_never_that_of_a_few_images(make_site: Callable[..., Site], aggregator: Aggregator) -> None:
    """A coordinator that has one image held out would read a figure about one patient in each reply."""
    from tests.floors import LOWERED

    site = make_site(images=40, privacy={**LOWERED, "min_images": 16})
    aggregator.enrol(site)
    agent = connected(site, aggregator)
    one = TRAIN.model_copy(update={"held_out": 0.03, "batch_size": 16})
    aggregator.ask(recipe=recipe_text(MODEL, one))
    turns(agent)
    assert [r.declined for r in replies(aggregator)] == [""]
    (work,) = (jobs.Job(site, place) for place in (site.root / "jobs").iterdir())
    this = trainer.TrainingJob(site, work)
    assert 0 < len(this.held_out) < 16 and len(this.data.measured) == len(this.positions)


def test_the_sheet_says_on_whom_an_update_draws(agent: Agent, aggregator: Aggregator, site: Site) -> None:
    aggregator.ask()
    turns(agent)
    (entry,) = outbox.entries(site)
    drawn = entry["drawn"]
    assert 1 <= drawn["patients"] <= drawn["images"] <= 12 and 0 < drawn["largest_share"] <= 1
    said = f"drawn on     {drawn['images']} images of {drawn['patients']} patients, largest share of one patient"
    assert said in outbox.sheet(entry) and "floor kept" in outbox.sheet(entry)


def test_crafted_weights_are_refused_by_what_they_do(agent: Agent, aggregator: Aggregator, site: Site) -> None:
    import torch

    from usfmae.core.checkpoint import encoder_of
    from usfmae.core.mae.model import fresh

    encoder = {k: v.clone() for k, v in encoder_of(fresh(MODEL, seed=0).state_dict()).items()}
    encoder["blocks.0.mlp.fc1.bias"][:] = -100 * torch.arange(1, 65)
    aggregator.ask(encoder=encoder)
    turns(agent)
    assert [r.declined for r in replies(aggregator)] == ["refused: this site's floor or inspection"]
    (work,) = (jobs.Job(site, place) for place in (site.root / "jobs").iterdir())
    assert work.error is not None and "blocks.0.mlp.fc1" in work.error["what"]


def test_a_site_in_a_directory_that_was_open_is_closed(make_site: Callable[..., Site], tmp_path: Path) -> None:
    (tmp_path / "hospital-a").mkdir(mode=0o755)
    site = make_site()
    assert stat.S_IMODE(site.root.stat().st_mode) == 0o700
    site.root.chmod(0o755)
    site.close_to_others()
    assert stat.S_IMODE(site.root.stat().st_mode) == 0o700 and "mode.closed" in events(site)


def test_what_a_command_writes_is_its_owners_alone(site: Site) -> None:
    command = [sys.executable, "-m", "usfmae.client", "report", str(site.root), "--month", "2026-01"]
    before = os.umask(0o022)
    try:
        subprocess.run(command, check=True, capture_output=True)
    finally:
        os.umask(before)
    (page,) = site.root.glob("report-*.html")
    assert stat.S_IMODE(page.stat().st_mode) == 0o600


def test_a_worker_gets_no_more_memory_than_the_site_allows() -> None:
    code = (
        "import resource, types; from usfmae.client import site_policy; "
        "privacy = types.SimpleNamespace(max_memory_gb=1.0); "
        "settings = types.SimpleNamespace(device='cpu', privacy=privacy); "
        "site_policy.limit_memory(types.SimpleNamespace(settings=settings)); "
        "import numpy; numpy.ones(3 * 10**8)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "MemoryError" in done.stderr


def test_a_recipe_that_only_costs_is_refused_before_any_download(agent: Agent, aggregator: Aggregator) -> None:
    deep = recipe_text(MODEL.model_copy(update={"decoder_depth": 10**8}), TRAIN)
    aggregator.ask(recipe=deep)
    turns(agent)
    assert "bytes of the model" in replies(aggregator)[0].declined
    assert trainer.SECONDS_BETWEEN_NOTES and not agent.workers.trained  # type: ignore[attr-defined]
