"""Serves the methods of the control socket that are about the bus itself."""

from collections.abc import AsyncIterator, Callable
from typing import Final

import msgspec

from ipc_protocol import bus
from ipc_protocol.aio import Call, Handlers
from ipc_protocol.errors import Failure
from ipc_protocol.inference import Nothing
from ipc_protocol.methods import DEAD_LIST, DEAD_PURGE, DEAD_REPLAY, DEAD_SHOW, TAP, TOPICS
from orchestrator.bus.replaying import (
    LETTERS_PER_CALL_MAX,
    Purge,
    Replay,
    purge_letters,
    replay_letters,
)
from orchestrator.bus.routing import OPERATOR
from orchestrator.control.letters import Letters
from orchestrator.control.routing_table import RoutingTable
from orchestrator.control.tapping import Tapping
from orchestrator.store.reader import Reader
from orchestrator.store.store import Store

NUMBERS_MAX: Final = LETTERS_PER_CALL_MAX
"""Dead letters that are named one by one: they are one transaction. Who means more says which."""


class BusControl:
    """Thin: reads, applies reducers, and tells what came of them."""

    def __init__(
        self, store: Store, reader: Reader, table: RoutingTable, clock_us: Callable[[], int]
    ) -> None:
        self._store = store
        self._reader = reader
        self._letters = Letters(reader)
        self._table = table
        self._clock_us = clock_us

    def add_to(self, handlers: Handlers) -> Handlers:
        return (
            handlers.add(DEAD_LIST, self._list)
            .add(DEAD_SHOW, self._show)
            .add(DEAD_REPLAY, self._replay)
            .add(DEAD_PURGE, self._purge)
            .add(TOPICS, self._topics)
            .add(TAP, self._tap)
        )

    # -- dead letters

    async def _list(self, asked: bus.ListDeadLetters, _: Call) -> bus.DeadLetters:
        return await self._letters.page(asked.filter, asked.limit)

    async def _show(self, of: bus.OfDeadLetter, _: Call) -> bus.DeadLetterDetail:
        return await self._letters.detail(of.number)

    async def _replay(self, asked: bus.ReplayDeadLetters, call: Call) -> bus.ReplayedLetters:
        """Each is told as soon as it is on disk: who hangs up knows how far it came."""
        chosen = asked.filter
        if chosen is not None and not asked.again and chosen.replayed is None:
            chosen = msgspec.structs.replace(chosen, replayed=False)
        replayed = refused = 0
        async for numbers in self._batches(asked.numbers, chosen):
            replay = Replay(letters=numbers, again=asked.again)
            for each in await self._store.apply(replay_letters, OPERATOR, replay):
                replayed += each.message is not None
                refused += each.message is None
                await call.send_item(
                    bus.ReplayedLetter(
                        number=each.letter,
                        message=each.message,
                        correlation=each.correlation,
                        problem=each.problem,
                    )
                )
        return bus.ReplayedLetters(replayed=replayed, refused=refused)

    async def _purge(self, asked: bus.PurgeDeadLetters, _: Call) -> bus.PurgedLetters:
        purged = 0
        async for numbers in self._batches(asked.numbers, asked.filter):
            purge = Purge(letters=numbers, missing_ok=asked.filter is not None)
            purged += await self._store.apply(purge_letters, OPERATOR, purge)
        return bus.PurgedLetters(purged=purged)

    async def _batches(
        self, numbers: list[int], chosen: bus.DeadLetterFilter | None
    ) -> AsyncIterator[list[int]]:
        """As many as one reducer takes, the oldest first. What dies meanwhile is not among them: a
        dead letter that is sent again and dies again would have no end.

        Raises `request.invalid`.
        """
        if chosen is None:
            yield _named(numbers)
            return
        if numbers:
            raise _not_one_way()
        newest = (await self._letters.page(chosen, 1)).letters
        if not newest:
            return
        chosen = msgspec.structs.replace(chosen, below=newest[0].number + 1)
        above = 0
        while batch := await self._letters.oldest(chosen, above):
            yield batch
            above = batch[-1]

    # -- topics

    async def _topics(self, _: Nothing, call: Call) -> bus.Topics:
        for row in await self._table.table():
            await call.send_item(row)
        return bus.Topics(now_us=self._clock_us(), since_us=self._table.since_us)

    async def _tap(self, tap: bus.Tap, call: Call) -> Nothing:
        await Tapping(tap).run(self._store, self._reader, call.send_item)
        return Nothing()


def _named(numbers: list[int]) -> list[int]:
    if not numbers:
        raise _not_one_way()
    if len(numbers) > NUMBERS_MAX:
        raise Failure(
            "request.invalid",
            f"{len(numbers)} dead letters are named; {NUMBERS_MAX} at once are allowed.",
            "Say which ones by agent, topic, code or time, or name some of them.",
        )
    return list(dict.fromkeys(numbers))


def _not_one_way() -> Failure:
    return Failure(
        "request.invalid",
        "It is not said which dead letters are meant.",
        "Give either their numbers, or a filter.",
    )
