"""How many threads decode: those cores that nobody else needs.

Decoding threads wait for one another at every operation, so one that has to share its core holds up
all. With two threads on two cores of which a neighbour uses one, a step takes many times as long
as with one thread. So the cores that other programs use are left to them, and taken back when those
rest.

`Occupancy` decides and is pure; `Cores` reads what it needs.
"""

import math
import os
import time
from pathlib import Path
from typing import Final

WINDOW_SECONDS: Final = 0.5
"""Over which the use of the cores is measured: 50 ticks of the kernel's clock."""

BUSY_SHARE: Final = 0.35
"""Of a core used by others, at which one thread fewer decodes. A neighbour that wakes now and then
is not worth a core; one that takes a third of it would stretch every step by half."""

CALM_WINDOWS: Final = 4
"""Windows in which a core must have been free before a thread returns to it: giving way is urgent,
coming back is not."""

STAT: Final = Path("/proc/stat")

STAT_BYTES_MAX: Final = 256 * 1024
"""Lines of up to 100 bytes for each of 2,000 cores."""


class Occupancy:
    """From the cores that others used in each window to the number of threads."""

    def __init__(self, threads_max: int, cores: int) -> None:
        assert threads_max >= 1, "somebody has to decode"
        self._max = threads_max
        self._cores = cores
        self._calm = 0
        self.threads = threads_max

    def measured(self, others: float) -> int:
        """`others` is how many cores other programs used in the last window, 0 to all of them."""
        taken = max(0, math.ceil(others - BUSY_SHARE))
        free = max(1, min(self._max, self._cores - taken))
        if free < self.threads:
            self.threads, self._calm = free, 0
        elif free > self.threads:
            self._calm += 1
            if self._calm >= CALM_WINDOWS:
                self.threads, self._calm = self.threads + 1, 0
        else:
            self._calm = 0
        return self.threads


class Cores:
    """Measures who uses the cores. `poll` is cheap between two windows. Without `/proc` all threads
    decode always."""

    def __init__(self, threads_max: int) -> None:
        self._names = {b"cpu%d" % core for core in os.sched_getaffinity(0)}
        cores = len(self._names)
        self._occupancy = Occupancy(min(threads_max, cores), cores)
        self._ticks = os.sysconf("SC_CLK_TCK")
        try:
            self._stat = os.open(STAT, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._stat = -1
        self._begin()

    @property
    def threads(self) -> int:
        return self._occupancy.threads

    def poll(self) -> int:
        """How many threads should decode now."""
        elapsed = time.monotonic() - self._since
        if elapsed >= WINDOW_SECONDS and self._stat >= 0:
            own, all_busy = self._own, self._busy
            self._begin()
            others = (self._busy - all_busy) - (self._own - own)
            # After a pause the window is as long as the pause, and says nothing of now.
            if elapsed < 2 * WINDOW_SECONDS:
                self._occupancy.measured(max(0.0, others / elapsed))
        return self._occupancy.threads

    def close(self) -> None:
        if self._stat >= 0:
            os.close(self._stat)
            self._stat = -1

    def _begin(self) -> None:
        self._since = time.monotonic()
        self._own = time.process_time()
        self._busy = self._busy_seconds()

    def _busy_seconds(self) -> float:
        """Seconds that the cores which it may use have worked together: user, system, interrupts.
        What gives way by itself (*nice*) is not counted."""
        if self._stat < 0:
            return 0.0
        ticks = 0
        for line in os.pread(self._stat, STAT_BYTES_MAX, 0).splitlines():
            name, *fields = line.split()
            if name in self._names:
                user, _, system, _, _, irq, softirq = (int(field) for field in fields[:7])
                ticks += user + system + irq + softirq
        return ticks / self._ticks
