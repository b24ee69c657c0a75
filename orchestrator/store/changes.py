"""Committed changes and who follows them. A slow follower loses changes, never the writer time.

Everything here runs on the event loop; the writer's thread hands its changes over after a commit.
"""

import asyncio
from collections.abc import Collection, Iterable
from types import TracebackType
from typing import Any, Final, Self

import msgspec

LAGGED: Final = "lagged"
"""The kind of the marker in the place of lost changes; `lost` in its data is their number."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is on disk now. `data` holds ids, names and short summaries."""

    kind: str
    data: dict[str, Any]
    at_us: int


class Subscription:
    """An async iterator over changes, and a context manager that ends it."""

    def __init__(self, changes: "Changes", kinds: Collection[str] | None, capacity: int) -> None:
        assert capacity > 0
        self._changes = changes
        self.kinds = None if kinds is None else frozenset(kinds)
        self._capacity = capacity
        # One place is kept for the end marker, so that closing never has to wait.
        self._queue: asyncio.Queue[Change | None] = asyncio.Queue(maxsize=capacity + 1)
        self._lost = 0
        self._closed = False

    def offer_nowait(self, change: Change) -> None:
        if self._closed or (self.kinds is not None and change.kind not in self.kinds):
            return
        if self._lost or self._queue.qsize() >= self._capacity:
            # Once one is lost, the rest waits behind the marker: the order stays true.
            self._lost += 1
            return
        self._queue.put_nowait(change)

    def close(self) -> None:
        """Take no more. What is queued can still be read; then the iteration ends."""
        if not self._closed:
            self._closed = True
            self._changes.forget(self)
            self._queue.put_nowait(None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        if self._lost and (self._queue.empty() or (self._closed and self._queue.qsize() == 1)):
            lost, self._lost = self._lost, 0
            return Change(kind=LAGGED, data={"lost": lost}, at_us=self._changes.latest_us)
        change = await self._queue.get()
        if change is None:
            self._queue.put_nowait(None)
            raise StopAsyncIteration
        return change

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Changes:
    """Hands every committed change to those who follow its kind."""

    def __init__(self) -> None:
        self._subscriptions: list[Subscription] = []
        self._closed = False
        self._followed: frozenset[str] | None = frozenset()
        """None: all."""
        self.latest_us = 0

    def follows(self, kind: str) -> bool:
        """Does anybody follow changes of this kind? Asked by the writer's thread."""
        followed = self._followed
        return followed is None or kind in followed

    def subscribe(self, kinds: Collection[str] | None, capacity: int) -> Subscription:
        """Follow changes of `kinds` (None: all) from now on, at most `capacity` of them unread.

        Changes of what is under way may be missed; see `Store.settle`.
        """
        subscription = Subscription(self, kinds, capacity)
        self._subscriptions.append(subscription)
        self._count()
        if self._closed:
            subscription.close()
        return subscription

    def publish_nowait(self, changes: Iterable[Change]) -> None:
        for change in changes:
            self.latest_us = change.at_us
            for subscription in self._subscriptions:
                subscription.offer_nowait(change)

    def forget(self, subscription: Subscription) -> None:
        self._subscriptions.remove(subscription)
        self._count()

    def _count(self) -> None:
        kinds = [subscription.kinds for subscription in self._subscriptions]
        named = [each for each in kinds if each is not None]
        self._followed = frozenset().union(*named) if len(named) == len(kinds) else None

    def close(self) -> None:
        self._closed = True
        for subscription in tuple(self._subscriptions):
            subscription.close()
