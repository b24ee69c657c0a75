"""The load of the kill loop: publishers that repeat what nobody has acknowledged.

They speak the real protocol over connections of their own, several messages to a request, in all
priorities. Each remembers exactly what it has a receipt for: what the database must hold follows
from that alone. It repeats under the same ids what may or may not have been accepted, and now and
then what certainly was.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from effects_checker import Sent
from kill_agents import ASKED, KEPT, POURED, RELAYED

from ipc_protocol.aio import Connection, connect
from ipc_protocol.control import Publish, Published
from ipc_protocol.errors import Failure
from ipc_protocol.events import Hello
from ipc_protocol.methods import PUBLISH
from ipc_protocol.values import PRIORITIES

ROUTES: Final = {
    "north": (RELAYED, KEPT),
    "south": (RELAYED, RELAYED, KEPT),
    "east": (RELAYED,),
    "well": (POURED,),
    "asker": (ASKED,),
}
"""The publishers, and the topics that each of them chooses from."""

PUBLISHERS: Final = ("north", "south", "east", "well")
PUBLISHERS_OF_MODELS: Final = ("north", "asker")
"""Where there is a model, which needs more of the machine than all the others."""

BATCH_MAX: Final = 16
BATCH_OF: Final = {RELAYED: BATCH_MAX, KEPT: 3, POURED: 24, ASKED: 2}
"""Messages of one request. An effect of a component is a commit of its own, so those are few."""

PAUSE_SECONDS_MAX: Final = 0.15
"""Between two requests: the daemon is at work most of the time, and keeps up."""

SLOW_SECONDS: Final = {"well": 1.5, "asker": 1.0}
"""What is parked because an inbox is full is tried again after a second; and a model generates some
hundred tokens in one."""

FILLER_BYTES_MAX: Final = 700
SHORT_FILLER_BYTES_MAX: Final = 40
"""What a component says of its health stands in the log, which should stay readable; and a model
reads what it is asked."""
REPEATED_SHARE: Final = 0.1
"""Of what was acknowledged, published again."""

AGAIN_SECONDS: Final = 0.03
ACCEPTED_SECONDS_MAX: Final = 90.0
"""Until a message is accepted at last, over all deaths and backoffs that come between."""


@dataclass
class Tally:
    """What the publishers of a run have met, for its table."""

    requests: int = 0
    repeated: int = 0
    """Requests that were sent again, because nobody had answered or on purpose."""
    accepted_before: int = 0
    """Messages among those that were there already."""
    outages_seconds: list[float] = field(default_factory=list)
    """From a request that nobody answered to its receipt."""


class Publisher:
    """One of the publishers, over all its connections. `sent` is what it has receipts for."""

    def __init__(self, name: str, socket: Path, seed: str, tally: Tally) -> None:
        self.name = name
        self.sent: list[Sent] = []
        self._socket = socket
        self._random = random.Random(f"{seed}/{name}")
        self._tally = tally
        self._lost_at: float | None = None

    async def run(self, enough: asyncio.Event) -> None:
        """Publish until it is `enough`. What was begun is finished."""
        async with contextlib.AsyncExitStack() as stack:
            self._stack = stack
            self._connection: Connection | None = None
            while not enough.is_set():
                await self._publish(self._next())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._pause()):
                        await enough.wait()

    def _pause(self) -> float:
        slow = SLOW_SECONDS.get(self.name)
        return self._random.uniform(0, PAUSE_SECONDS_MAX) if slow is None else slow

    def _next(self) -> Publish:
        """A request that this publisher has never made."""
        topic = self._random.choice(ROUTES[self.name])
        # One at a time as often as many: each has its own path through the bus.
        size = self._random.choice((1, self._random.randint(1, BATCH_OF[topic])))
        numbers = range(len(self.sent), len(self.sent) + size)
        return Publish(
            topic=topic,
            payloads=[self._payload(topic, number) for number in numbers],
            message_ids=[f"{self.name}/{number}" for number in numbers],
            priority=self._random.choice(PRIORITIES),
        )

    def _payload(self, topic: str, number: int) -> bytes:
        size_max = SHORT_FILLER_BYTES_MAX if topic in (KEPT, ASKED) else FILLER_BYTES_MAX
        filler = "x" * self._random.randint(0, size_max)
        return f"{self.name}/{number} {filler}".encode()

    async def _publish(self, request: Publish) -> None:
        published = await self._accepted(request)
        assert len(published.messages) == len(published.correlations) == len(request.payloads)
        for number, (payload, message, correlation) in enumerate(
            zip(request.payloads, published.messages, published.correlations, strict=True),
            len(self.sent),
        ):
            rank = PRIORITIES.index(request.priority)
            self.sent.append(
                Sent(self.name, number, request.topic, rank, payload, message, correlation)
            )
        if self._random.random() < REPEATED_SHARE:
            self._tally.repeated += 1
            again = await self._accepted(request)
            first = (published.messages, published.correlations)
            assert (again.messages, again.correlations) == first, "it got another receipt"
            assert again.repeated == len(request.payloads), again

    async def _accepted(self, request: Publish) -> Published:
        """Ask until there is a receipt."""
        self._tally.requests += 1
        async with asyncio.timeout(ACCEPTED_SECONDS_MAX):
            while True:
                try:
                    published = await (await self._connected()).call(PUBLISH, request)
                except (OSError, Failure) as error:
                    await self._disappointed(error)
                    continue
                if self._lost_at is not None:
                    self._tally.outages_seconds.append(time.monotonic() - self._lost_at)
                    self._tally.accepted_before += published.repeated
                    self._lost_at = None
                return published

    async def _disappointed(self, error: OSError | Failure) -> None:
        """Wait a little if it may be asked again; raise what no death explains."""
        if isinstance(error, Failure):
            if error.code != "bus.backpressure" and not error.code.startswith("protocol."):
                raise error
            if error.code == "bus.backpressure":
                await asyncio.sleep(AGAIN_SECONDS)
                return
        if self._lost_at is None:
            self._lost_at = time.monotonic()
            self._tally.repeated += 1
        await self._stack.aclose()
        self._connection = None
        await asyncio.sleep(AGAIN_SECONDS)

    async def _connected(self) -> Connection:
        if self._connection is None:
            line = connect(self._socket, Hello(name=self.name))
            self._connection = await self._stack.enter_async_context(line)
        return self._connection


@contextlib.asynccontextmanager
async def publishing(publishers: Sequence[Publisher]) -> AsyncIterator[None]:
    """All of them at once; at the end of the block each comes to the end of what it has begun."""
    enough = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for publisher in publishers:
            group.create_task(publisher.run(enough), name=publisher.name)
        try:
            yield
        finally:
            enough.set()
