"""Pictures between a page and the requests for its images: in memory, the last few, never stored."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

HELD = 48


class PreviewCache:
    """What was made last, by name. One thing is made at a time: each takes a decoding process."""

    def __init__(self) -> None:
        self.made: OrderedDict[str, Any] = OrderedDict()
        self.busy = asyncio.Lock()

    async def get(self, name: str, make: Callable[[], T]) -> T:
        async with self.busy:
            if name not in self.made:
                self.made[name] = await asyncio.to_thread(make)
            self.made.move_to_end(name)
            while len(self.made) > HELD:
                self.made.popitem(last=False)
            result: T = self.made[name]
            return result
