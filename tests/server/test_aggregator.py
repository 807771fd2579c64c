"""What the aggregator's process keeps of the calls it turns away."""

from __future__ import annotations

from usfmae.core import audit
from usfmae.core.errors import ResourceError
from usfmae.server.aggregator import MOST_KINDS, Refusals


def test_refused_calls_are_counted_not_written_one_by_one(tmp_path):
    refusals = Refusals(tmp_path / "audit.jsonl")
    for _ in range(50):
        refusals.count(401, "this key is not enrolled, or was revoked", "192.0.2.7")
    refusals.write()
    entries = list(audit.entries(tmp_path / "audit.jsonl"))
    assert len(entries) == 2 and sum(e["times"] for e in entries) == 50


def test_on_a_full_disk_no_refusal_is_lost_and_none_breaks_the_answer(tmp_path, monkeypatch):
    refusals, real = Refusals(tmp_path / "audit.jsonl"), audit.append

    def full(*arguments, **fields):
        raise ResourceError("audit log", "is full", "free space")

    monkeypatch.setattr(audit, "append", full)
    for _ in range(3):
        refusals.count(404, "not part of the fleet API", "192.0.2.7")
    refusals.write()
    monkeypatch.setattr(audit, "append", real)
    refusals.write()
    assert [e["times"] for e in audit.entries(tmp_path / "audit.jsonl")] == [3]


def test_a_flood_of_different_calls_is_few_lines_and_all_of_it_is_counted(tmp_path):
    refusals = Refusals(tmp_path / "audit.jsonl")
    refusals.count(404, "first", "192.0.2.7")
    for number in range(3000):
        refusals.count(401, f"clocks differ by {number} s", "192.0.2.7")
    refusals.write()
    entries = list(audit.entries(tmp_path / "audit.jsonl"))
    assert len(entries) <= MOST_KINDS + 2 and sum(e["times"] for e in entries) == 3001
