"""The number type of a CPU is measured, kept, and the same to a run's end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from usfmae.core.config import ModelSettings, TrainSettings
from usfmae.core.mae import device
from usfmae.core.mae import number_type as types
from usfmae.core.mae.number_type import NumberType, computing_in, number_type

WIDE = ModelSettings(width=768)
NARROW = ModelSettings(width=64, heads=2)


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What a layer takes in each type."""
    taken = {"fp32": 3.0, "bf16": 1.0}
    monkeypatch.setattr(types, "_seconds", lambda x, weight: taken["bf16" if "bfloat16" in str(x.dtype) else "fp32"])
    return taken


@pytest.mark.parametrize(("fp32", "chosen"), [(3.0, "bf16"), (1.2, "bf16"), (1.1, "fp32"), (0.5, "fp32")])
def test_bf16_is_chosen_where_it_is_measured_to_be_clearly_faster(
    seconds: dict[str, float], fp32: float, chosen: str
) -> None:
    seconds["fp32"] = fp32
    result = number_type(WIDE, TrainSettings(), "cpu")
    assert (result.chosen, result.ratio) == (chosen, pytest.approx(fp32))
    assert f"{fp32:.2f} times" in result.why


def test_a_measurement_is_made_once_a_machine(seconds: dict[str, float], tmp_path: Path) -> None:
    file = tmp_path / "number-type.json"
    assert number_type(WIDE, TrainSettings(), "cpu", file).chosen == "bf16"
    seconds["fp32"] = 0.1
    assert number_type(WIDE, TrainSettings(), "cpu", file).chosen == "bf16"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"machine": "another"}))
    assert number_type(WIDE, TrainSettings(), "cpu", file).chosen == "fp32"


def test_a_damaged_measurement_is_made_again(seconds: dict[str, float], tmp_path: Path) -> None:
    file = tmp_path / "number-type.json"
    number_type(WIDE, TrainSettings(), "cpu", file)
    whole = json.loads(file.read_text())
    seconds["fp32"] = 0.1
    for damaged in (
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"null",
        b'{"chosen": 1}',
        json.dumps(whole | {"chosen": "fp8"}).encode(),
    ):
        file.write_bytes(damaged)
        assert number_type(WIDE, TrainSettings(), "cpu", file).chosen == "fp32"
        assert json.loads(file.read_text())["chosen"] == "fp32"


def test_what_is_asked_for_and_narrow_models_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(types, "measured", lambda width: pytest.fail("measured"))
    assert number_type(WIDE, TrainSettings(precision="fp32"), "cpu").chosen == "fp32"
    assert number_type(NARROW, TrainSettings(), "cpu").chosen == device.computed("bf16", "cpu")


@pytest.mark.parametrize("chosen", ["bf16", "fp32"])
def test_meanwhile_the_process_computes_in_it(chosen: str) -> None:
    before = device.computed("bf16", "cpu")
    with computing_in(chosen):
        assert device.computed("bf16", "cpu") == chosen and device.computed("fp32", "cpu") == "fp32"
    assert device.computed("bf16", "cpu") == before


def test_the_machine_is_measured_in_earnest() -> None:
    result = types.measured(256)
    assert isinstance(result, NumberType) and result.fp32_ms and result.bf16_ms and result.chosen in ("bf16", "fp32")
