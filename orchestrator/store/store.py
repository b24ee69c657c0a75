"""The store as the rest of the program sees it: apply reducers, follow changes, open readers."""

import asyncio
import fcntl
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from ipc_protocol.errors import Failure
from orchestrator.store.changes import Change, Changes
from orchestrator.store.database import unavailable
from orchestrator.store.migration import open_current
from orchestrator.store.reader import Reader
from orchestrator.store.writer import REDUCERS_WAITING_MAX, Reducer, Request, Writer

log = logging.getLogger(__name__)

A = TypeVar("A")
R = TypeVar("R")

FULL_RETRY_SECONDS: Final = 1.0
"""Between two attempts at a full disk: a person frees it, so a second is soon enough."""


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
        self._room = asyncio.Semaphore(REDUCERS_WAITING_MAX)
        self._readers: list[Reader] = []
        self._closed = False
        self._failed = asyncio.Event()
        self._lock = -1

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
        store = cls(path, clock_us, on_commit, vfs)
        await asyncio.to_thread(store._open)
        store._thread.start()
        return store

    def _open(self) -> None:
        self._lock = _locked(self.path)
        try:
            database = open_current(self.path, vfs=self._vfs)
        except BaseException:
            os.close(self._lock)
            raise
        self._writer = Writer(database, self._clock_us, self._hand_over, self._on_commit)
        # A daemon thread: if the event loop dies without `close`, the process must still end.
        self._thread = threading.Thread(target=self._writer.run, name="store-writer", daemon=True)

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

    def _hand_over(self, batch: list[Request]) -> None:
        self._loop.call_soon_threadsafe(self._settle, batch)

    def _settle(self, batch: list[Request]) -> None:
        changes: list[Change] = []
        for request in batch:
            self._room.release()
            changes += request.changes
            if request.token.done():
                continue  # The caller went away; its write stands all the same.
            if request.error is None:
                request.token.set_result(request.result)
            else:
                request.token.set_exception(request.error)
        if self._writer.failed is not None:
            self._failed.set()
        self.changes.publish_nowait(changes)

    def reader(self, name: str) -> Reader:
        """A read-only connection for one subsystem; closed with the store."""
        reader = Reader(self.path, name, self._vfs)
        self._readers.append(reader)
        return reader

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
        self._writer.stop_nowait()
        await asyncio.to_thread(self._thread.join)
        # The writer's last batch was handed to the loop before the thread ended.
        await asyncio.sleep(0)
        for reader in self._readers:
            await reader.close()
        self.changes.close()
        os.close(self._lock)


def _locked(path: Path) -> int:
    """Hold the lock file beside the database: one daemon alone may give its leases back."""
    try:
        descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise unavailable(
            path, f"its folder cannot be written ({error.strerror})", "Check path and permissions."
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise unavailable(
            path, "another agentd uses it", "Stop that one, or give this one another state folder."
        ) from error
    return descriptor
