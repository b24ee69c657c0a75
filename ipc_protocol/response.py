"""A response as it comes in: its items, bounded, and its result or failure.

The connection feeds it and hears when it is full: then nothing more is read until there is room.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, Generic, TypeVar

import msgspec

from ipc_protocol import limits
from ipc_protocol.errors import Failure
from ipc_protocol.frames import typed
from ipc_protocol.methods import Method

R = TypeVar("R")
Item = TypeVar("Item")

Notice = Callable[["Response[Any, Any]"], None]

ITEMS_RESUME: Final = limits.STREAM_ITEMS_MAX // 2
"""Reading goes on when half of a full buffer has been taken, so that it does not flutter."""


class Response(Generic[R, Item]):
    """A streamed response: iterate over its items, then read `result`."""

    def __init__(self, method: Method[Any, R, Item], on_full: Notice, on_room: Notice) -> None:
        self._method = method
        self._on_full = on_full
        self._on_room = on_room
        self._items: deque[dict[str, Any]] = deque()
        self._arrived = asyncio.Event()
        self._outcome: dict[str, Any] | Failure | None = None
        self._dropping = False

    @property
    def closed(self) -> bool:
        return self._outcome is not None

    def push(self, item: dict[str, Any]) -> None:
        if self._dropping:
            return
        self._items.append(item)
        if len(self._items) >= limits.STREAM_ITEMS_MAX:
            self._on_full(self)
        self._arrived.set()

    def drop_items(self) -> None:
        self._dropping = True
        self._items.clear()
        self._on_room(self)

    def finish(self, value: dict[str, Any]) -> None:
        if self._outcome is None:
            self._outcome = value
        self._arrived.set()

    def fail(self, failure: Failure) -> None:
        if self._outcome is None:
            self._outcome = failure
        self._arrived.set()

    async def __aiter__(self) -> AsyncIterator[Item]:
        while True:
            while self._items:
                item = self._items.popleft()
                if len(self._items) <= ITEMS_RESUME:
                    self._on_room(self)
                yield _answer_as(self._method.item, item, self._method)
            if isinstance(self._outcome, Failure):
                raise self._outcome
            if self.closed:
                return
            self._arrived.clear()
            await self._arrived.wait()

    async def result(self) -> R:
        """The final result; items that nobody has taken by now are dropped.

        Raises `Failure` when the request ended in an error.
        """
        self.drop_items()
        while self._outcome is None:
            self._arrived.clear()
            await self._arrived.wait()
        if isinstance(self._outcome, Failure):
            raise self._outcome
        value: R = _answer_as(self._method.result, self._outcome, self._method)
        return value


def _answer_as(type_: Any, plain: dict[str, Any], method: Method[Any, Any, Any]) -> Any:
    try:
        return typed(plain, type_)
    except msgspec.ValidationError as error:
        raise Failure(
            "protocol.malformed",
            f"The answer to {method.name} is not of its type: {error}.",
            "The two ends are of different releases.",
        ) from error
