"""Follows what is published on a topic, message by message, for somebody who looks on.

Whoever looks on is never waited for: what comes while they read is kept up to a limit, and beyond
that it is counted.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final

import msgspec

from ipc_protocol.bus import Tap, Tapped
from ipc_protocol.limits import PAYLOAD_BYTES_MAX
from ipc_protocol.values import PRIORITIES
from orchestrator.bus import topics
from orchestrator.control.letters import require_pattern
from orchestrator.control.payloads import readable
from orchestrator.store.changes import LAGGED, Subscription
from orchestrator.store.database import Query
from orchestrator.store.reader import Reader
from orchestrator.store.store import Store

CHANGES_MAX: Final = 65_536
"""Messages of all topics that come in one turn of the event loop: some of the largest commits."""

WAITING_MAX: Final = 4096
"""Messages kept for one slow reader."""

BATCH_MAX: Final = 64
"""Messages read at once. Whole payloads of the largest size are 16 MiB of them."""

SHOWN_BYTES_MAX: Final = 1024
"""Of a payload, where it is not asked for in full: a dozen lines of a terminal."""

LAST_MAX: Final = 1000
"""Earlier messages that are shown first."""

SEARCHED_MAX: Final = 100_000
"""The newest messages among which earlier ones of the topic are looked for: a tenth of a second."""

PAGE_ROWS: Final = 1000
assert SEARCHED_MAX % PAGE_ROWS == 0

Send = Callable[[Tapped], Awaitable[None]]


class Tapping:
    """What one reader follows."""

    def __init__(self, tap: Tap) -> None:
        """Raises `bus.invalid-topic`."""
        require_pattern(tap.topic)
        self._tap = tap
        self._waiting: deque[int] = deque()  # bound: `_collect` keeps WAITING_MAX at most
        self._lost = 0
        self._ended = False
        self._come = asyncio.Event()

    async def run(self, store: Store, reader: Reader, send: Send) -> None:
        """Until the store is closed or `send` fails."""
        with store.changes.subscribe({"message.published"}, CHANGES_MAX) as published:
            # What was under way before is in the store, what begins from now on is followed.
            await store.settle()
            earlier = await reader.view(_latest, self._tap.topic, min(self._tap.last, LAST_MAX))
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._collect(published))
                    await self._send(earlier, reader, send)
                    await self._send_what_comes(set(earlier), reader, send)
            except ExceptionGroup as group:  # the reader hung up, or the store failed
                raise group.exceptions[0] from None

    async def _collect(self, published: Subscription) -> None:
        async for change in published:
            if change.kind == LAGGED:
                self._lost += change.data["lost"]
            elif topics.matches(self._tap.topic, change.data["topic"]):
                # Once one is lost, the rest is counted until the reader has caught up.
                if self._lost or len(self._waiting) >= WAITING_MAX:
                    self._lost += 1
                else:
                    self._waiting.append(change.data["message"])
            self._come.set()
        self._ended = True
        self._come.set()

    async def _send_what_comes(self, sent: set[int], reader: Reader, send: Send) -> None:
        while True:
            if not self._waiting and self._lost:
                lost, self._lost = self._lost, 0
                await send(Tapped(lost=lost))
            elif self._waiting:
                count = min(BATCH_MAX, len(self._waiting))
                batch = [self._waiting.popleft() for _ in range(count)]
                await self._send([each for each in batch if each not in sent], reader, send)
            elif self._ended:
                return
            else:
                self._come.clear()
                await self._come.wait()

    async def _send(self, messages: Sequence[int], reader: Reader, send: Send) -> None:
        bytes_max = PAYLOAD_BYTES_MAX if self._tap.full else SHOWN_BYTES_MAX
        for start in range(0, len(messages), BATCH_MAX):
            batch = messages[start : start + BATCH_MAX]
            for tapped in await reader.view(_tapped, batch, bytes_max):
                await send(tapped)


def _latest(query: Query, pattern: str, count: int) -> list[int]:
    """The last `count` messages on topics that match, the oldest first."""
    found: list[int] = []
    for number, topic in _newest_first(query):
        if len(found) >= count:
            break
        if topics.matches(pattern, topic):
            found.append(number)
    return found[::-1]


def _newest_first(query: Query) -> Iterator[tuple[int, str]]:
    rows: list[Any] = query.rows("SELECT coalesce(max(id), 0) + 1 FROM message")
    below: int = rows[0][0]
    for _ in range(SEARCHED_MAX // PAGE_ROWS):
        rows = query.rows(
            "SELECT id, topic FROM message WHERE id < ? ORDER BY id DESC LIMIT ?",
            (below, PAGE_ROWS),
        )
        yield from rows
        if len(rows) < PAGE_ROWS:
            return
        below = rows[-1][0]


def _tapped(query: Query, messages: Sequence[int], bytes_max: int) -> list[Tapped]:
    rows = query.rows(
        "SELECT m.id, m.sent_us, m.topic, m.sender, c.correlation, m.class, m.cause,"
        " substr(m.payload, 1, ?), length(m.payload),"
        " (SELECT json_group_array(DISTINCT d.agent) FROM delivery d WHERE d.message = m.id)"
        " FROM message m JOIN conversation c ON c.id = m.conversation"
        " WHERE m.id IN (SELECT value FROM json_each(?)) ORDER BY m.id",
        (bytes_max, msgspec.json.encode(messages).decode()),
    )
    return [
        Tapped(
            message=number,
            sent_us=sent_us,
            topic=topic,
            sender=sender,
            correlation=correlation,
            priority=PRIORITIES[rank],
            receivers=sorted(msgspec.json.decode(receivers)),
            payload=readable(beginning, size_bytes),
            cause=cause,
        )
        for (
            number,
            sent_us,
            topic,
            sender,
            correlation,
            rank,
            cause,
            beginning,
            size_bytes,
            receivers,
        ) in rows
    ]
