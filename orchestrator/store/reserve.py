"""The reserve as a file beside the database: made, given up, and the intake with it."""

import contextlib
import errno
import os
from pathlib import Path
from typing import Final

from ipc_protocol.errors import Failure
from orchestrator.store.space import (
    Marks,
    SpaceEvent,
    SpaceState,
    after,
    at_start,
    marks_for,
    seen,
)

MIB: Final = 1024 * 1024


class Reserve:
    """Belongs to one thread, but for `admit`, which reads one attribute."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._file = database.with_name(f"{database.name}.reserve")
        self._marks = Marks(reserve=0, low=0, high=0)
        self.free = 0
        self.state: SpaceState = "spent"

    def open(self) -> None:
        """Take stock: find the reserve of an earlier run, or make it if there is room."""
        self._measure()
        held = self._size() == self._marks.reserve
        if not held:
            self._give_up()
            self._measure()
        self.state = at_start(held, self.free, self._marks)
        if self.state == "open" and not held and not self._make():
            self.state = "spent"

    def look(self) -> SpaceState:
        """See how much is free, and act on it."""
        self._measure()
        return self._on(seen(self.state, self.free, self._marks))

    def found_full(self) -> SpaceState:
        """A write found no room."""
        self._measure()
        return self._on("full")

    def admit(self) -> None:
        """Raises `store.full` while the intake is closed."""
        if self.state == "open":
            return
        raise Failure(
            "store.full",
            f"{self._database} has too little room for new work:"
            f" {self.free / MIB:.1f} MiB are free on its file system.",
            f"Free space there, or raise the quota, until {self.wanted / MIB:.0f} MiB are free;"
            " then repeat the request. What was accepted before goes on.",
            path=str(self._database),
            free_bytes=self.free,
            wanted_bytes=self.wanted,
        )

    @property
    def wanted(self) -> int:
        """How much has to be free before the intake opens again."""
        return self._marks.high + (self._marks.reserve if self.state == "spent" else 0)

    @property
    def held(self) -> int:
        """The bytes of the reserve that are there."""
        return 0 if self.state == "spent" else self._marks.reserve

    def _on(self, event: SpaceEvent | None) -> SpaceState:
        before, self.state = self.state, after(self.state, event)
        if self.state == "spent" and before != "spent":
            self._give_up()
        elif before == "spent" and self.state == "open" and not self._make():
            self.state = "spent"
        return self.state

    def _measure(self) -> None:
        system = os.statvfs(self._database.parent)
        self.free = system.f_bavail * system.f_frsize
        self._marks = marks_for(system.f_blocks * system.f_frsize)

    def _size(self) -> int:
        try:
            return self._file.stat().st_size
        except FileNotFoundError:
            return -1

    def _make(self) -> bool:
        """True if it is there. Allocated, not only long: a hole would keep nothing free."""
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if self._marks.reserve:
                os.posix_fallocate(descriptor, 0, self._marks.reserve)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            self._give_up()
            return False
        finally:
            os.close(descriptor)
        return True

    def _give_up(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._file.unlink()
