"""The store as the rest of the program sees it: apply reducers, follow changes, open readers."""

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

from ipc_protocol.errors import Failure
from orchestrator.store.changes import Changes
from orchestrator.store.database import Database, unavailable
from orchestrator.store.lock import locked
from orchestrator.store.migration import open_current
from orchestrator.store.reader import Reader
from orchestrator.store.transaction import Transaction
from orchestrator.store.typed import build_types
from orchestrator.store.upkeep import Alarm, Condition, Upkeep
from orchestrator.store.writer import REDUCERS_WAITING_MAX, Reducer, Request, Writer

log = logging.getLogger(__name__)

A = TypeVar("A")
R = TypeVar("R")

FULL_RETRY_SECONDS: Final = 1.0
"""Between two attempts at a full disk: a person frees it, so a second is soon enough."""

ALARMS_UNREAD_MAX: Final = 16
"""Each of the two kinds begins and ends once in seconds, at most."""


class Store:
    """One open database file. Made by `Store.open` on the loop that will use it."""

    def __init__(
        self,
        path: Path,
        clock_us: Callable[[], int],
        on_commit: Callable[[int, float], None],
        vfs: str | None,
    ) -> None:
        self.path = path
        self.changes = Changes()
        self._vfs = vfs
        self._clock_us = clock_us
        self._on_commit = on_commit
        self._loop = asyncio.get_running_loop()
        self._receivers: dict[str, Callable[[Any], None]] = {}
        self._room = asyncio.Semaphore(REDUCERS_WAITING_MAX)
        self._readers: list[Reader] = []
        self._closed = False
        self._failed = asyncio.Event()
        self._lock = -1
        self.alarms: asyncio.Queue[Alarm] = asyncio.Queue(maxsize=ALARMS_UNREAD_MAX)

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        clock_us: Callable[[], int],
        on_commit: Callable[[int, float], None] = lambda reducers, seconds: None,
        vfs: str | None = None,
    ) -> "Store":
        """Open, create or migrate the store at `path`.

        `clock_us` gives reducers their time; `on_commit(reducers, seconds)` hears of each commit,
        in the writer's thread. Raises `store.unavailable` if the file is damaged, foreign, newer
        than this program, or in use by another agentd.
        """
        build_types()
        store = cls(path, clock_us, on_commit, vfs)
        await asyncio.to_thread(store._open)
        store._thread.start()
        return store

    def _open(self) -> None:
        self._lock = locked(self.path)
        try:
            self._start_upkeep(open_current(self.path, vfs=self._vfs))
        except BaseException:
            os.close(self._lock)
            raise
        # A daemon thread: if the event loop dies without `close`, the process must still end.
        self._thread = threading.Thread(target=self._writer.run, name="store-writer", daemon=True)

    def _start_upkeep(self, database: Database) -> None:
        self._writer = Writer(
            database, self._clock_us, self._settle_soon, self._on_commit, self.changes.follows
        )
        self._upkeep = Upkeep(
            database,
            lambda: tuple(self._readers),
            self._alarm_soon,
            self._fail_soon,
            self._vfs,
        )
        try:
            self._upkeep.start()
        except BaseException:
            # The disk may have failed, so nothing more is written to it.
            database.abandon()
            raise

    async def apply(self, reducer: Reducer[A, R], actor: str, arguments: A) -> R:
        """Run `reducer(transaction, arguments)` as `actor`; its result, once it is on disk.

        Waits while too many wait. Raises what the reducer raises, `store.full` if the commit
        found no room, `store.unavailable` if the store has failed or is closed. A caller that is
        cancelled while it waits does not take the write back.
        """
        await self._room.acquire()
        if self._closed:
            self._room.release()
            raise unavailable(self.path, "it is closed", "Start the daemon again.")
        settled: asyncio.Future[R] = self._loop.create_future()
        self._writer.submit_nowait(Request(reducer, actor, arguments, settled))
        return await settled

    async def take_in(self, reducer: Reducer[A, R], actor: str, arguments: A) -> R:
        """As `apply`, for work that is new: refused with `store.full` while there is so little
        room that it must be kept for what was accepted before."""
        self._upkeep.admit()
        return await self.apply(reducer, actor, arguments)

    async def apply_when_room(self, reducer: Reducer[A, R], actor: str, arguments: A) -> R:
        """As `apply`, but while the disk is full it is tried again, for as long as that takes.

        For what the daemon itself must write: nobody else could repeat it.
        """
        told = False
        while True:
            try:
                return await self.apply(reducer, actor, arguments)
            except Failure as failure:
                if failure.code != "store.full":
                    raise
                if not told:
                    log.warning("%s It is tried again every %g s.", failure, FULL_RETRY_SECONDS)
                    told = True
            await asyncio.sleep(FULL_RETRY_SECONDS)

    def _settle_soon(self, batch: list[Request]) -> None:
        self._loop.call_soon_threadsafe(self._settle, batch)
        if isinstance(error := batch[0].error, Failure) and error.code == "store.full":
            self._upkeep.found_full_nowait()
        self._upkeep.between_commits()

    def _settle(self, batch: list[Request]) -> None:
        for request in batch:
            self._room.release()
            if request.token.done():
                pass  # The caller went away; its write stands all the same.
            elif request.error is None:
                request.token.set_result(request.result)
            else:
                request.token.set_exception(request.error)
        if self._writer.failed is not None:
            self._failed.set()
        for request in batch:
            self.changes.publish_nowait(request.outcome.changes)
            for receiver, thing in request.outcome.handed:
                if receiver in self._receivers:
                    self._receivers[receiver](thing)

    @contextlib.contextmanager
    def receiving(self, receiver: str, take: Callable[[Any], None]) -> Iterator[None]:
        """Within the block, call `take` with what reducers hand over to `receiver`."""
        assert receiver not in self._receivers
        self._receivers[receiver] = take
        try:
            yield
        finally:
            del self._receivers[receiver]

    async def settle(self) -> None:
        """Return when what had begun before is on disk. Who follows changes and then reads sees
        each change in one of the two."""
        await self.apply_when_room(_nothing, "bus", None)

    def reader(self, name: str) -> Reader:
        """A read-only connection for one subsystem; closed with the store."""
        reader = Reader(self.path, name, self._vfs)
        self._readers.append(reader)
        return reader

    @property
    def condition(self) -> Condition:
        """The log, the free space, and whether new work is taken in."""
        return self._upkeep.condition

    def _fail_soon(self, failure: Failure) -> None:
        self._writer.failed = self._writer.failed or failure
        self._loop.call_soon_threadsafe(self._failed.set)

    def _alarm_soon(self, alarm: Alarm) -> None:
        self._loop.call_soon_threadsafe(self._alarm, alarm)

    def _alarm(self, alarm: Alarm) -> None:
        if self.alarms.full():
            self.alarms.get_nowait()  # what is true now matters more
        self.alarms.put_nowait(alarm)

    async def wait_failed(self) -> Failure:
        """Return when the store has failed for good: the daemon has to stop."""
        await self._failed.wait()
        assert self._writer.failed is not None
        return self._writer.failed

    async def close(self) -> None:
        """Write what was handed over, then close. Idempotent."""
        if self._closed:
            return
        self._closed = True
        # The writer's connection is the last one: it leaves a database without a log beside it.
        for reader in self._readers:
            await reader.close()
        await asyncio.to_thread(self._upkeep.stop)
        self._writer.stop_nowait()
        await asyncio.to_thread(self._thread.join)
        # The writer's last batch was handed to the loop before the thread ended.
        await asyncio.sleep(0)
        self.changes.close()
        os.close(self._lock)


def _nothing(_: Transaction, __: None) -> None:
    """Change nothing."""
