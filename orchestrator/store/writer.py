"""The one thread that writes: takes what waits, runs it, commits once, lets the callers go on.

A commit that fails for want of room is taken back whole and the store goes on. Any other failed
commit leaves it unknown what is on disk (a failed fsync may have dropped pages that a second one
would not report), so the writer declares itself failed and writes nothing more: only opening the
file again tells what is true.
"""

import logging
import queue
from collections.abc import Callable
from typing import Any, Final, TypeVar

from ipc_protocol.errors import Failure
from orchestrator.failpoints import reach
from orchestrator.store.database import Database
from orchestrator.store.transaction import Outcome, Transaction, is_fatal

log = logging.getLogger(__name__)

A = TypeVar("A")
R = TypeVar("R")
Reducer = Callable[[Transaction, A], R]

REDUCERS_PER_COMMIT_MAX: Final = 256
"""Beyond it a commit gains nothing (its fsync is 1 % of the work) and the first caller waits."""

REDUCERS_WAITING_MAX: Final = 4096
"""Sixteen commits' worth: the writer never runs dry, and who waits longest waits about 0.2 s."""

assert REDUCERS_WAITING_MAX >= 2 * REDUCERS_PER_COMMIT_MAX


class Request:
    """A reducer on its way to disk: what to run, and what came of it."""

    __slots__ = ("actor", "arguments", "error", "outcome", "reducer", "result", "token")

    def __init__(
        self, reducer: Reducer[Any, Any], actor: str, arguments: Any, token: Any = None
    ) -> None:
        self.reducer = reducer
        self.actor = actor
        self.arguments = arguments
        self.token = token
        self.result: Any = None
        self.error: BaseException | None = None
        self.outcome = Outcome()


class Writer:
    """Runs in its own thread, and calls there: `settled` with the requests of each batch,
    `on_commit` with the reducers and seconds of each that is on disk. `follows` tells whether
    anybody wants to hear of a kind of change."""

    def __init__(
        self,
        database: Database,
        clock_us: Callable[[], int],
        settled: Callable[[list[Request]], None],
        on_commit: Callable[[int, float], None] = lambda reducers, seconds: None,
        follows: Callable[[str], bool] = lambda kind: True,
    ) -> None:
        self._database = database
        self._clock_us = clock_us
        self._settled = settled
        self._on_commit = on_commit
        self._follows = follows
        self._waiting: queue.Queue[Request | None] = queue.Queue(maxsize=REDUCERS_WAITING_MAX + 1)
        self._memory: dict[str, Any] = {}
        self._stopping = False
        self.failed: Failure | None = None

    def submit_nowait(self, request: Request) -> None:
        """Hand over a request. The caller bounds how many there are (`REDUCERS_WAITING_MAX`)."""
        self._waiting.put_nowait(request)

    def stop_nowait(self) -> None:
        """End the thread once everything handed over before is on disk."""
        self._waiting.put_nowait(None)

    def run(self) -> None:
        while not self._stopping:
            if batch := self._next_batch():
                self.commit(batch)
                self._settled(batch)
        self._close()

    def _close(self) -> None:
        try:
            if self.failed is None:
                self._database.close()
            else:
                self._database.abandon()
        except Exception:
            # What is committed is in the log, where the next start finds it.
            log.exception("The store %s could not be closed properly.", self._database.path)

    def _next_batch(self) -> list[Request]:
        batch: list[Request] = []
        request = self._waiting.get()
        while request is not None:
            batch.append(request)
            if len(batch) == REDUCERS_PER_COMMIT_MAX:
                return batch
            try:
                request = self._waiting.get_nowait()
            except queue.Empty:
                return batch
        self._stopping = True
        return batch

    def commit(self, batch: list[Request]) -> None:
        """Run `batch` in one transaction; afterwards each request has its result or its error."""
        try:
            if self.failed is not None:
                raise self.failed
            began_us = self._clock_us()
            self._database.execute("BEGIN IMMEDIATE")
            for request in batch:
                self._run_in_savepoint(request)
            reach("writer.before-commit")
            self._database.commit()
            reach("writer.after-commit")
            self._on_commit(len(batch), (self._clock_us() - began_us) / 1e6)
        except Exception as error:  # noqa: BLE001 - the waiting callers must hear of any of them
            self._take_back(batch, error)

    def _run_in_savepoint(self, request: Request) -> None:
        database = self._database
        database.execute("SAVEPOINT reducer")
        transaction = Transaction(
            database, request.actor, self._clock_us(), self._memory, self._follows
        )
        request.outcome = transaction.outcome
        try:
            request.result = request.reducer(transaction, request.arguments)
        except Exception as error:
            if not database.in_transaction or is_fatal(error):
                raise
            request.error = error
            request.outcome.take_back()
            database.rollback_to("reducer")
        database.execute("RELEASE reducer")

    def _take_back(self, batch: list[Request], error: Exception) -> None:
        for request in reversed(batch):
            request.outcome.take_back()
        if not (isinstance(error, Failure) and error.code == "store.full"):
            self.failed = self.failed or _failed(error, self._database)
        try:
            self._database.rollback()
        except Exception as again:  # noqa: BLE001 - a rollback that fails is a failed store
            self.failed = self.failed or _failed(again, self._database)
        for request in batch:
            request.result = None
            request.error = self.failed or error


def _failed(error: Exception, database: Database) -> Failure:
    return Failure(
        "store.unavailable",
        f"The store {database.path} has failed and takes no more writes: {error}",
        "Check the disk, then restart the daemon: it reads what is true.",
        path=str(database.path),
    )
