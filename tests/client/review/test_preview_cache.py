"""Pictures made ahead: once each, nobody's wait is longer for them, and a failure is not kept."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from usfmae.client.review import preview_cache
from usfmae.client.review.preview_cache import PreviewCache
from usfmae.core.errors import SourceError


def counted(calls: list[str], name: str, seconds: float = 0.0) -> Callable[[], str]:
    def make() -> str:
        calls.append(name)
        time.sleep(seconds)
        return name

    return make


def test_two_who_ask_at_once_wait_for_one_picture() -> None:
    async def both() -> list[str]:
        cache = PreviewCache()
        return await asyncio.gather(*(cache.get("a", counted(calls, "a", 0.05)) for _ in range(3)))

    calls: list[str] = []
    assert asyncio.run(both()) == ["a", "a", "a"] and calls == ["a"]


def test_what_was_made_ahead_is_there_at_once() -> None:
    async def look() -> float:
        cache = PreviewCache()
        cache.prepare([(name, counted(calls, name, 0.1)) for name in "abc"])
        await asyncio.sleep(0.6)
        began = time.monotonic()
        assert await cache.get("c", counted(calls, "c")) == "c"
        return time.monotonic() - began

    calls: list[str] = []
    assert asyncio.run(look()) < 0.1 and calls == ["a", "b", "c"]


def test_a_new_page_ends_what_was_made_ahead_for_the_old_one() -> None:
    async def leave() -> None:
        cache = PreviewCache(1)
        cache.prepare([(name, counted(calls, name, 0.05)) for name in "abcdefgh"])
        await asyncio.sleep(0.02)
        cache.prepare([("z", counted(calls, "z"))])
        await asyncio.sleep(0.3)

    calls: list[str] = []
    asyncio.run(leave())
    assert calls[-1] == "z" and len(calls) <= 3


def test_a_failure_is_told_and_tried_again() -> None:
    def fail() -> str:
        raise SourceError("this scan", "is gone", "drop it")

    async def twice() -> str:
        cache = PreviewCache()
        with pytest.raises(SourceError):
            await cache.get("a", fail)
        return await cache.get("a", lambda: "there")

    assert asyncio.run(twice()) == "there"


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def many() -> int:
        cache = PreviewCache()
        for number in range(9):
            await cache.get(str(number), lambda: b"")
        return len(cache.made)

    monkeypatch.setattr(preview_cache, "MOST", 4)
    assert asyncio.run(many()) == 4 and threading.active_count() < 50
