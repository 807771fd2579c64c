"""A release's measured leakage: in its card, of exactly its weights, and with a limit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from usfmae.core.checkpoint import tensors_id
from usfmae.core.errors import PolicyError, SourceError
from usfmae.server.releases import leak_results

ENCODER = {"a": torch.ones(3)}


def report(path: Path, low: float, **changes: Any) -> Path:
    one = {"auc": low + 0.05, "low": low, "high": low + 0.1, "chance": 0.2, "members": 40, "others": 9}
    whole = {"model_id": tensors_id(ENCODER), "membership": {"loss": {"images": one, "patients": one}}}
    path.write_text(json.dumps({**whole, "worst": {"auc": low + 0.05, "low": low}, **changes}))
    return path


def test_figures_stand_in_the_card_with_their_intervals(tmp_path: Path) -> None:
    head, *lines = leak_results.lines([report(tmp_path / "a.json", 0.47)], ENCODER, 0.6)
    assert head == leak_results.HEAD
    assert lines[1] == ["loss", "patients", "40", "9", "0.520 (0.470-0.570)", "0.200"]
    assert leak_results.lines([], ENCODER, 0.6) == []


def test_a_release_that_surely_tells_patients_apart_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="leak_limit"):
        leak_results.lines([report(tmp_path / "a.json", 0.61)], ENCODER, 0.6)


def test_a_report_of_other_weights_or_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="other weights"):
        leak_results.lines([report(tmp_path / "a.json", 0.5, model_id="x")], ENCODER, 0.6)
    for text in ("", "{}", '{"model_id": 1, "worst": {}}'):
        (tmp_path / "b.json").write_text(text)
        with pytest.raises(SourceError):
            leak_results.lines([tmp_path / "b.json"], ENCODER, 0.6)
