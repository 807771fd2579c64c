"""Pictures between a page and the requests for its images: in memory, the last few, never stored.

Each picture takes a decoding process some tenths of a second, so those that a person will ask for next are made ahead,
as long as nobody waits for another.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

MOST = 96  # pictures in memory, some 500 kB each
AT_ONCE = max(1, min(4, len(os.sched_getaffinity(0))))  # made at the same time: a decoding process each


class PreviewCache:
    """What was made last, by name. A picture that two ask for is made once; an exception is theirs, and not kept."""

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self.made: OrderedDict[str, Any] = OrderedDict()
        self.making: dict[str, asyncio.Task[Any]] = {}
        self.places = asyncio.Semaphore(at_once)
        self.waited_for = 0  # requests that wait now
        self.ahead: asyncio.Task[None] | None = None

    async def get(self, name: str, make: Callable[[], T]) -> T:
        """What `make` gives, now or earlier."""
        self.waited_for += 1
        try:
            return await self._one(name, make)
        finally:
            self.waited_for -= 1

    async def _one(self, name: str, make: Callable[[], T]) -> T:
        if name in self.made:
            self.made.move_to_end(name)
            result: T = self.made[name]
            return result
        task = self.making.get(name)
        if task is None:
            task = self.making[name] = asyncio.create_task(self._make(name, make))
        made: T = await asyncio.shield(task)  # who goes away does not end it for the others
        return made

    async def _make(self, name: str, make: Callable[[], Any]) -> Any:
        try:
            async with self.places:
                result = await asyncio.to_thread(make)
            self.made[name] = result
            while len(self.made) > MOST:
                self.made.popitem(last=False)
            return result
        finally:
            del self.making[name]

    def prepare(self, wanted: Sequence[tuple[str, Callable[[], Any]]]) -> None:
        """Make these ahead, in this order, in place of whatever was being made ahead before."""
        if self.ahead is not None:
            self.ahead.cancel()
        self.ahead = asyncio.create_task(self._prepare(wanted))

    async def _prepare(self, wanted: Sequence[tuple[str, Callable[[], Any]]]) -> None:
        for name, make in wanted:
            while self.waited_for:
                await asyncio.sleep(0.02)
            try:
                await self._one(name, make)
            except Exception:  # noqa: S112 - whoever asks for it hears of it
                continue
