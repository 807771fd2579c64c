"""What a hospital may switch: hours, devices, disk."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from usfmae.client import site_policy
from usfmae.client.site import Site
from usfmae.core.errors import ResourceError, TryLaterError


def at(clock: str) -> datetime:
    return datetime(2026, 3, 1, int(clock[:2]), int(clock[3:]))


@pytest.mark.parametrize(
    ("windows", "now", "until"),
    [
        (("07:00-19:00",), "06:59", None),
        (("07:00-19:00",), "07:00", "2026-03-01 19:00"),
        (("07:00-19:00",), "19:00", None),
        (("22:00-06:00",), "23:30", "2026-03-02 06:00"),
        (("22:00-06:00",), "05:59", "2026-03-01 06:00"),
        (("22:00-06:00",), "12:00", None),
        (("07:00-12:00", "11:00-13:00"), "11:30", "2026-03-01 13:00"),
        ((), "11:30", None),
    ],
)
def test_quiet_windows_may_pass_midnight_and_overlap(windows: tuple[str, ...], now: str, until: str | None) -> None:
    end = site_policy.quiet_until(windows, at(now))
    assert (f"{end:%Y-%m-%d %H:%M}" if end else None) == until


def test_pause_and_quiet_hours_say_try_later(site: Site) -> None:
    site_policy.check(site)
    site_policy.pause(site)
    with pytest.raises(TryLaterError, match="is paused") as caught:
        site_policy.check(site)
    assert caught.value.exit_code == 75
    site_policy.resume(site)
    site_policy.check(site)


@pytest.mark.parametrize(
    ("device", "available", "chosen"),
    [
        ("auto", 0, []),
        ("auto", 3, [0, 1, 2]),
        ("cpu", 3, []),
        ("cuda", 3, [0]),
        ("cuda:2", 3, [2]),
        ("cuda:0,2", 3, [0, 2]),
    ],
)
def test_gpus_are_chosen_by_number(device: str, available: int, chosen: list[int]) -> None:
    assert site_policy.chosen_gpus(device, available) == chosen


@pytest.mark.parametrize(("device", "available"), [("cuda", 0), ("cuda:1", 1)])
def test_a_gpu_that_is_not_there_is_an_error(device: str, available: int) -> None:
    with pytest.raises(ResourceError, match=f"shows {available} GPU"):
        site_policy.chosen_gpus(device, available)


def test_a_worker_sees_the_chosen_ones_of_those_the_agent_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    assert site_policy.visible([0, 2]) == {"CUDA_VISIBLE_DEVICES": "4,6"}
    assert site_policy.visible([]) == {"CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize(
    ("shown", "names"),
    [
        (None, ["RTX A6000", "Tesla T4"]),
        ("1", ["Tesla T4"]),
        ("GPU-5ebe9f43", ["GPU"]),
        ("", []),
        ("-1", []),
    ],
)
def test_only_gpus_that_the_agent_is_shown_are_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shown: str | None, names: list[str]
) -> None:
    """A batch system gives a job one card of several; /proc lists them all."""
    for number, model in enumerate(("RTX A6000", "Tesla T4")):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "information").write_text(f"Model: \t {model}\nIRQ: 1\n")
    monkeypatch.setattr(site_policy, "DRIVER", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    assert site_policy.gpus() == names


def test_the_disk_floor_counts_what_is_about_to_be_written(site: Site) -> None:
    site_policy.check_disk(site)
    with pytest.raises(ResourceError, match="GB free") as caught:
        site_policy.check_disk(site, needed=1e18)
    assert caught.value.exit_code == 7
