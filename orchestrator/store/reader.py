"""A subsystem's own read-only connection, in a thread of its own."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, Final, ParamSpec, TypeVar

from orchestrator.store.database import Bindings, Database, Query, Row

P = ParamSpec("P")
T = TypeVar("T")

READS_WAITING_MAX: Final = 64
"""Reads of one subsystem that wait for its thread; further callers wait on the event loop."""


class Reader:
    """Reads what is committed. One statement is one snapshot; `view` is one for many."""

    def __init__(self, path: Path, name: str, vfs: str | None = None) -> None:
        self._path = path
        self._vfs = vfs
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"read-{name}")
        self._room = asyncio.Semaphore(READS_WAITING_MAX)
        self._database: Database | None = None
        self._closed = False

    async def fetch(self, sql: str, bindings: Bindings = ()) -> list[Row]:
        return await self._run(lambda database: database.rows(sql, bindings))

    async def view(
        self, function: Callable[Concatenate[Query, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run `function(query, …)` in the reader's thread, all its statements on one snapshot."""

        def in_one_snapshot(database: Database) -> T:
            database.execute("BEGIN")
            try:
                return function(database, *args, **kwargs)
            finally:
                if database.in_transaction:
                    database.execute("ROLLBACK")

        return await self._run(in_one_snapshot)

    async def _run(self, function: Callable[[Database], T]) -> T:
        assert not self._closed, "the reader is closed"
        async with self._room:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, lambda: function(self._opened()))

    def _opened(self) -> Database:
        if self._database is None:
            self._database = Database(self._path, writable=False, vfs=self._vfs)
        return self._database

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True

        def close() -> None:
            if self._database is not None:
                self._database.close()

        await asyncio.get_running_loop().run_in_executor(self._thread, close)
        self._thread.shutdown(wait=False)
