"""What the hospital allows right now: paused or not, quiet hours, free disk, which device."""

from __future__ import annotations

import os
import resource
import shutil
from datetime import datetime, timedelta
from pathlib import Path

from usfmae.client.site import Site
from usfmae.core.errors import ResourceError, TryLaterError

DRIVER = Path("/proc/driver/nvidia/gpus")  # a folder for each card


def pause(site: Site) -> None:
    """From now on the site declines to train; a running training ends with a checkpoint."""
    site.pause_mark.touch()
    site.note("pause")


def resume(site: Site) -> None:
    site.pause_mark.unlink(missing_ok=True)
    site.note("resume")


def paused(site: Site) -> bool:
    return site.pause_mark.exists()


def quiet_until(windows: tuple[str, ...], now: datetime) -> datetime | None:
    """End of the quiet window that holds at `now` (local time), or None. A window may pass midnight."""
    ends = []
    for window in windows:
        start, end = ((int(t[:2]) * 60 + int(t[3:])) for t in window.split("-"))
        minute = now.hour * 60 + now.minute
        if (start <= minute < end) if start < end else (minute >= start or minute < end):
            midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
            days = 1 if start >= end and minute >= start else 0
            ends.append(midnight + timedelta(days=days, minutes=end))
    return max(ends, default=None)


def check(site: Site, now: datetime | None = None) -> None:
    """TryLaterError while the site is paused or in quiet hours."""
    if paused(site):
        raise TryLaterError(f"site {site.settings.name}", "is paused", f"usfmae-client resume {site.root}")
    until = quiet_until(site.settings.quiet, now or datetime.now())
    if until:
        raise TryLaterError(f"site {site.settings.name}", f"quiet hours until {until:%H:%M}", "nothing to do: it waits")


def check_disk(site: Site, needed: float = 0.0) -> None:
    """ResourceError where `needed` bytes would leave less than the site's floor free."""
    floor = site.floor_bytes
    free = shutil.disk_usage(site.root).free
    if free - needed < floor:
        raise ResourceError(
            f"disk of {site.root}",
            f"{_gigabytes(free)} free, {_gigabytes(needed)} needed above the floor of {_gigabytes(floor)}",
            "free space, or lower disk_floor_gb",
        )


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 or not size else f"{size / 1e9:.4f} GB"


def limit_memory(site: Site) -> None:
    """From now on this process gets no more memory than the site allows; an allocation beyond it fails like a full one.

    RLIMIT_DATA counts what a program fills, not what it maps. CUDA maps far more than it fills, so that a process that
    trains on a GPU has no limit here: the card's own memory is one.
    """
    if chosen_gpus(site.settings.device, len(gpus())):
        return
    most = int(site.settings.privacy.max_memory_gb * 1e9) or _machine_memory() * 9 // 10
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


def _machine_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def gpus() -> list[str]:
    """Names of the NVIDIA GPUs that the driver shows and CUDA_VISIBLE_DEVICES lets through, without loading torch."""
    devices = sorted(DRIVER.glob("*/information"))
    names = []
    for file in devices:
        lines = dict(line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)
        names.append(lines.get("Model", "GPU").strip())
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is None or not names:
        return names
    numbers = [number for number in shown.split(",") if number and not number.startswith("-")]
    return [names[int(n)] if n.isdigit() and int(n) < len(names) else "GPU" for n in numbers]  # or a UUID


def chosen_gpus(device: str, available: int) -> list[int]:
    """Numbers of the GPUs to train on; empty for the CPU. ResourceError where one is asked for that is not there."""
    if device == "cpu" or (device == "auto" and not available):
        return []
    wanted = [int(n) for n in device[5:].split(",")] if device.startswith("cuda:") else list(range(available))
    if not wanted or max(wanted) >= available:
        raise ResourceError(
            f"device {device}", f"this machine shows {available} GPU(s)", "set 'device' to what is there"
        )
    return wanted if device != "cuda" else wanted[:1]


def visible(numbers: list[int]) -> dict[str, str]:
    """Environment of a training process that sees exactly these GPUs of the ones this process sees."""
    outer = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = outer.split(",") if outer else None
    return {"CUDA_VISIBLE_DEVICES": ",".join(names[n] if names else str(n) for n in numbers)}
