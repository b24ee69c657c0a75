"""What keeps an open store in order: the write-ahead log bounded, and room for what was begun.

One thread with a connection of its own. It decides nothing: `checkpointing` and `space` do. A
restart of the log belongs between two commits, so the writer's thread does it when it is asked
(`between_commits`); where no commits come, nobody is held up by doing it here.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from ipc_protocol.errors import Failure
from orchestrator.store.checkpointing import (
    LOG_BYTES_HARD,
    LOG_BYTES_SOFT,
    Log,
    after_pass,
    after_refused_pass,
    after_refused_restart,
    after_restart,
    asks,
    holds_reads,
    next_action,
    observed,
    overstays,
    patience_ms,
    pause,
)
from orchestrator.store.database import Database, Logged, unavailable
from orchestrator.store.reader import Reader
from orchestrator.store.reserve import Reserve
from orchestrator.store.space import SpaceState

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0
"""Between two looks at the free space and at who reads, where nothing asks for one earlier."""

ASKED_SECONDS: Final = 0.05
"""How long the writer is given for the restart: a busy one commits every few milliseconds."""

MIB: Final = 1024 * 1024


class Alarm(msgspec.Struct, frozen=True, kw_only=True):
    """Something that an operator should know, when it begins and when it is over."""

    kind: Literal["store.log", "store.full"]
    over: bool
    detail: str
    data: dict[str, Any]


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """The store as others see it, in bytes."""

    log: int
    free: int
    reserve: int
    intake: bool
    log_alarm: bool


class Upkeep:
    """`tell` hears of alarms, and `fail` of a disk that does not do what it should, both in this
    thread or the writer's; `readers` are asked to end what lasts too long."""

    def __init__(
        self,
        writing: Database,
        readers: Callable[[], Iterable[Reader]],
        tell: Callable[[Alarm], None],
        fail: Callable[[Failure], None],
        vfs: str | None = None,
    ) -> None:
        self._writing = writing
        self._path: Path = writing.path
        self._vfs = vfs
        self._readers = readers
        self._tell = tell
        self._fail = fail
        self._own: Database | None = None
        self._log = Log()
        self._used = 0
        self._fresh = 0
        """How often the log has begun anew, as the writer sees it."""
        self._holding = False
        self._read_ended = 0.0
        self._reserve = Reserve(self._path)
        self._full = False
        self._restart = threading.Lock()
        self._wanted = False
        self._outcome: Logged | None = None
        self._done = threading.Event()
        self._wake = threading.Event()
        self._stopping = False
        self._ended = threading.Event()
        # A daemon thread: if the event loop dies without `stop`, the process must still end.
        self._thread = threading.Thread(target=self._run, name="store-upkeep", daemon=True)

    def start(self) -> None:
        """Take over the log and the reserve. Raises `store.unavailable`."""
        try:
            self._reserve.open()
        except OSError as error:
            what = f"its reserve cannot be made ({error.strerror})"
            raise unavailable(self._path, what, "Check the disk and the permissions.") from error
        if self._reserve.state != "open":
            self._tell_of_space("open")
        self._own = Database(self._path, writable=True, vfs=self._vfs)
        try:
            self._own.make_durable()
            self._writing.follow_log(self._committed)
            self._thread.start()
        except BaseException:
            self._own.abandon()
            raise

    def stop(self) -> None:
        """End the thread, which gives up what it copies. Before the writer closes."""
        self._stopping = True
        self._ended.set()
        self._wake.set()
        assert self._own is not None
        self._own.interrupt()
        self._thread.join()
        try:
            # The log is the writer's to put away, if the disk still does what it should.
            self._own.abandon()
        except Exception:
            log.exception("The upkeep of %s could not close its connection.", self._path)

    # -- for other threads

    def admit(self) -> None:
        """Raises `store.full` while no new work is taken in."""
        self._reserve.admit()

    def found_full_nowait(self) -> None:
        """A commit found no room."""
        self._full = True
        self._wake.set()

    def between_commits(self) -> None:
        """The writer's thread, between two commits: restart the log, if that is wanted."""
        if not self._wanted:
            return
        with self._restart:
            if self._wanted:
                self._wanted = False
                self._outcome = self._restart_log(self._writing)
                self._done.set()

    @property
    def condition(self) -> Condition:
        return Condition(
            log=self._used,
            free=self._reserve.free,
            reserve=self._reserve.held,
            intake=self._reserve.state == "open",
            log_alarm=self._log.alarmed,
        )

    def _committed(self, used: int) -> None:
        """The writer's thread, at the end of each commit."""
        if used < self._used:
            self._fresh += 1
        self._used = used
        if asks(self._log, used):
            self._wake.set()

    # -- the thread

    def _run(self) -> None:
        assert self._own is not None
        while not self._stopping:
            self._wake.clear()
            try:
                seconds = self._turn(self._own)
            except Exception:
                # The log grows and the reserve stays as it is; commits are not in danger.
                log.exception("The store's upkeep met an error, and goes on.")
                seconds = LOOK_SECONDS
            if seconds and not self._stopping:
                self._wake.wait(seconds)
        for reader in self._readers():
            reader.go_on_nowait()

    def _turn(self, own: Database) -> float:
        """One look and at most one step. How long to wait before the next one, in seconds."""
        self._look_at_space()
        now = time.monotonic()
        self._learn(observed(self._log, self._used, now))
        self._end_slow_reads()
        action = next_action(self._log, now)
        if action == "wait":
            return self._pause(now)
        # A log that begins anew under the pass makes its figures those of the one before.
        fresh = self._fresh
        if action == "pass":
            logged = self._checkpoint(own.copy_log)
            now = time.monotonic()
            if logged is None:
                self._learn(after_refused_pass(self._log, now))
            elif fresh == self._fresh:
                self._learn(after_pass(self._log, logged.held, logged.copied, now))
        elif self._restarted(own):
            self._learn(after_restart(self._log, time.monotonic()))
        else:
            self._learn(after_refused_restart(self._log, time.monotonic()))
        return 0.0

    def _pause(self, now: float) -> float:
        """How long to wait for a commit that asks for attention, in seconds."""
        put_off = pause(self._log, now)
        if not put_off:
            return LOOK_SECONDS
        # Every commit asks meanwhile, and nothing can be done for it yet.
        self._ended.wait(put_off)
        return 0.0

    def _restarted(self, own: Database) -> bool:
        """Have the writer restart the log, or do it here if it has nothing to write."""
        self._done.clear()
        self._wanted = True
        if not self._done.wait(ASKED_SECONDS):
            with self._restart:
                if self._wanted:
                    self._wanted = False
                    self._outcome = self._restart_log(own)
        if self._outcome is None:
            return False
        self._used = 0
        return True

    def _restart_log(self, database: Database) -> Logged | None:
        return self._checkpoint(lambda: database.restart_log(patience_ms(self._log)))

    def _checkpoint(self, copy: Callable[[], Logged | None]) -> Logged | None:
        """None if somebody was in the way, or if there was no room for it."""
        try:
            return copy()
        except Failure as failure:
            if failure.code == "store.full":
                self._full = True
            elif not self._stopping:
                # What a failed fsync should have written is unknown: only a new start can tell.
                self._fail(failure)
                self._stopping = True
            return None

    def _end_slow_reads(self) -> None:
        now = time.monotonic()
        if self._holding and not holds_reads(self._log, self._read_ended, now):
            self._holding = False
            for reader in self._readers():
                reader.go_on_nowait()
        for reader in self._readers():
            if reader.end_read_nowait(lambda seconds: overstays(self._log, seconds)):
                self._holding = True
                self._read_ended = now
                log.warning(
                    "A read of %r was ended: it kept the write-ahead log at %d MiB.",
                    reader.name,
                    self._log.used // MIB,
                )
        if self._holding:
            for reader in self._readers():
                reader.hold_nowait()

    # -- alarms

    def _learn(self, learned: Log) -> None:
        before, self._log = self._log, learned
        if learned.alarmed and not before.alarmed:
            self._raise(
                Alarm(
                    kind="store.log",
                    over=False,
                    detail=f"The write-ahead log of {self._path} has {learned.used // MIB} MiB,"
                    f" more than the {LOG_BYTES_HARD // MIB} that it may have: a program outside"
                    " this daemon keeps reading an old state, or the disk is too slow. `fuser`"
                    " or `lsof` on the file names the program.",
                    data={"log_bytes": learned.used, "limit_bytes": LOG_BYTES_HARD},
                )
            )
        elif before.alarmed and not learned.alarmed:
            self._raise(
                Alarm(
                    kind="store.log",
                    over=True,
                    detail=f"The write-ahead log of {self._path} is small again.",
                    data={"log_bytes": learned.used, "limit_bytes": LOG_BYTES_SOFT},
                )
            )

    def _look_at_space(self) -> None:
        before = self._reserve.state
        if self._full:
            self._full = False
            self._reserve.found_full()
        else:
            self._reserve.look()
        self._tell_of_space(before)

    def _tell_of_space(self, before: SpaceState) -> None:
        state = self._reserve.state
        if state == before:
            return
        data = {"free_bytes": self._reserve.free, "wanted_bytes": self._reserve.wanted}
        if state == "open":
            detail = f"There is room again for {self._path}: new work is taken in."
            self._raise(Alarm(kind="store.full", over=True, detail=detail, data=data))
        elif before == "open":
            detail = (
                f"There is too little room for {self._path}: new work is refused until"
                f" {self._reserve.wanted // MIB} MiB are free. What was accepted goes on."
            )
            self._raise(Alarm(kind="store.full", over=False, detail=detail, data=data))
        else:
            log.warning("A write found no room, and the reserve of %s is given up.", self._path)

    def _raise(self, alarm: Alarm) -> None:
        log.log(logging.INFO if alarm.over else logging.ERROR, "%s", alarm.detail)
        self._tell(alarm)
