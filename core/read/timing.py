"""Which frames are kept: of a clip so many per second of time, never every k-th; of a volume evenly in space."""

from __future__ import annotations

import math
from collections.abc import Sequence

# A frame a hair before its tick (rounding of 33.333 ms) still counts as on it.
TOLERANCE = 1e-3


class FrameSampler:
    """Says for each frame in order of time whether it is the first at or after the next tick of `fps`."""

    def __init__(self, fps: float) -> None:
        self.fps = fps
        self.next_tick = 0

    def wants(self, time: float) -> bool:
        tick = math.floor((time + TOLERANCE) * self.fps)
        if tick < self.next_tick:
            return False
        # After a gap in the clip the ticks inside it are lost, not made up for.
        self.next_tick = tick + 1
        return True


def kept_indices(times: Sequence[float], fps: float) -> list[int]:
    """Indices of the frames to keep, given each frame's time in seconds, ascending."""
    sampler = FrameSampler(fps)
    return [index for index, time in enumerate(times) if sampler.wants(time)]


def kept_slices(count: int, most: int) -> Sequence[int]:
    """Which of `count` slices are read: all where `most` is 0, else the middles of `most` equal parts."""
    if not most or count <= most:
        return range(count)
    return [(2 * part + 1) * count // (2 * most) for part in range(most)]


def steady_times(frames: int, rate: float) -> list[float]:
    """Times in seconds of `frames` frames at a constant `rate` per second."""
    return [index / rate for index in range(frames)]
