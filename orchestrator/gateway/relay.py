"""Between who produces and who is slow: what one task puts in and another takes out, bounded.

Whoever puts never waits, so that a line with many streams is always read; what is too slow for its
bound is given up instead, and delays nobody else.
"""

import asyncio
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class RelayFull(Exception):
    """Who takes is too far behind."""


class Relay(Generic[T]):
    """Holds items of at most `size_max` together, in whatever unit their sizes are given."""

    def __init__(self, size_max: int) -> None:
        self._size_max = size_max
        self._size = 0
        self._items: deque[T] = deque()  # bound: `put` refuses what goes over `size_max`
        self._changed = asyncio.Event()
        self._ended = False
        self._failure: Exception | None = None

    def put(self, item: T, size: int) -> None:
        """Raises `RelayFull`. An empty relay takes one item of any size."""
        if self._items and self._size + size > self._size_max:
            raise RelayFull
        self._items.append(item)
        self._size += size
        self._changed.set()

    def end(self, failure: Exception | None = None) -> None:
        """Nothing more comes; `failure` is why, if not because all is there."""
        self._ended, self._failure = True, failure
        self._changed.set()

    async def take(self) -> list[T]:
        """All that there is, at least one; none at the end. Raises the failure that ended it."""
        while not self._items and not self._ended:
            self._changed.clear()
            await self._changed.wait()
        if self._items:
            taken = list(self._items)
            self._items.clear()
            self._size = 0
            return taken
        if self._failure is not None:
            raise self._failure
        return []
