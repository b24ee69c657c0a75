"""A subsystem's own read-only connection, in a thread of its own."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, Final, ParamSpec, TypeVar

from ipc_protocol.errors import Failure
from orchestrator.store.checkpointing import READS_HELD_SECONDS_MAX
from orchestrator.store.database import Bindings, Database, Query, Row

P = ParamSpec("P")
T = TypeVar("T")

READS_WAITING_MAX: Final = 64
"""Reads of one subsystem that wait for its thread; further callers wait on the event loop."""


class Reader:
    """Reads what is committed. One statement is one snapshot; `view` is one for many.

    A read may be ended from another thread (`end_read_nowait`). It is begun again once; if that
    takes too long as well, its caller gets `store.slow-reader`.
    """

    def __init__(self, path: Path, name: str, vfs: str | None = None) -> None:
        self.name = name
        self._path = path
        self._vfs = vfs
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"read-{name}")
        self._room = asyncio.Semaphore(READS_WAITING_MAX)
        self._database: Database | None = None
        self._closed = False
        self._reading = threading.Lock()
        """Held while a read begins or ends, so that it is that read that is ended and no other."""
        self._since: float | None = None
        self._ended = False
        self._admitted = threading.Event()
        self._admitted.set()

    async def fetch(self, sql: str, bindings: Bindings = ()) -> list[Row]:
        return await self._run(lambda database: database.rows(sql, bindings))

    async def view(
        self, function: Callable[Concatenate[Query, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run `function(query, …)` in the reader's thread, all its statements on one snapshot."""

        def in_one_snapshot(database: Database) -> T:
            database.execute("BEGIN")
            try:
                return function(_Snapshot(self, database), *args, **kwargs)
            finally:
                if database.in_transaction:
                    database.execute("ROLLBACK")

        return await self._run(in_one_snapshot)

    async def _run(self, function: Callable[[Database], T]) -> T:
        assert not self._closed, "the reader is closed"
        async with self._room:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self._read, function)

    def _read(self, function: Callable[[Database], T]) -> T:
        try:
            return self._read_once(function)
        except Failure as failure:
            if failure.code != "store.slow-reader":
                raise
            # New reads are held until the log is small: who was only unlucky has time enough now.
            return self._read_once(function)

    def _read_once(self, function: Callable[[Database], T]) -> T:
        if self._database is None:
            self._database = Database(self._path, writable=False, vfs=self._vfs)
        self._admitted.wait(READS_HELD_SECONDS_MAX)
        with self._reading:
            self._since = time.monotonic()
            self._ended = False
        try:
            return function(self._database)
        finally:
            with self._reading:
                self._since = None

    # -- for other threads

    def reading_seconds(self) -> float:
        """How long the read that runs has lasted; 0 if there is none."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    def end_read_nowait(self, overstays: Callable[[float], bool]) -> bool:
        """End the read that runs if `overstays(seconds)`. True if there was one to end."""
        with self._reading:
            if self._since is None or self._ended or not overstays(self.reading_seconds()):
                return False
            assert self._database is not None
            self._ended = True
            self._database.interrupt()
            return True

    def hold_nowait(self) -> None:
        """Let no read begin until `go_on_nowait`, or for `READS_HELD_SECONDS_MAX`."""
        self._admitted.clear()

    def go_on_nowait(self) -> None:
        self._admitted.set()

    def raise_if_ended(self) -> None:
        """An interruption meets only the statement that runs; this is for the next one."""
        if self._ended:
            assert self._database is not None
            raise self._database.ended_read()

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True

        def close() -> None:
            if self._database is not None:
                self._database.close()

        await asyncio.get_running_loop().run_in_executor(self._thread, close)
        self._thread.shutdown(wait=False)


class _Snapshot:
    """What a view may ask: the connection, until its read is ended."""

    def __init__(self, reader: Reader, database: Database) -> None:
        self._reader = reader
        self._database = database

    def rows(self, sql: str, bindings: Bindings = ()) -> list[Row]:
        self._reader.raise_if_ended()
        return self._database.rows(sql, bindings)

    def row(self, sql: str, bindings: Bindings = ()) -> Row | None:
        self._reader.raise_if_ended()
        return self._database.row(sql, bindings)
