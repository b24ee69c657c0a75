"""The deadline of a call into Wasm: a second thread that moves the epoch on when time is up.

Theory of operation. Compiled code compares the epoch of its engine with the deadline of its store,
and traps once it is reached. Somebody has to increment the epoch while the one thread that Python
runs on is inside of Wasm, where no signal handler of Python's runs. So there is one more thread,
which sleeps until a deadline that is armed, and for good where none is.

It is woken only for a deadline earlier than the moment for which it has gone to sleep. A call that
ends in time does not wake it at all: it wakes for the deadline of that call, finds another or none,
and goes back to sleep. So while calls are made it wakes once for each span of a deadline, an idle
worker does not wake up, and to arm a call costs a microsecond.

Whether time is up is decided and done under the lock: once `disarm` or `pause` has returned, no
increment that was due before can hit what comes next.
"""

import threading
import time
from collections.abc import Callable
from typing import Final

NEVER: Final = float("inf")

AGAIN_SECONDS: Final = 0.1
"""From one increment to the next while the call stays armed: one that has not trapped by then was
given the deadline of its store too late, and shall trap all the same."""

STACK_BYTES: Final = 256 * 1024
"""Of the thread, which counts against the limit on the address space (8 MiB without this). Python
needs 32 KiB; the rest is for what the libraries keep for each thread, which lies there too."""


class Countdown:
    """A deadline that can be paused. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self.due_at = NEVER
        self._left = NEVER

    def arm(self, now: float, seconds: float) -> None:
        self.due_at = now + seconds

    def pause(self, now: float) -> None:
        """What is left stays left, until `resume`."""
        self._left = max(self.due_at - now, 0.0)
        self.due_at = NEVER

    def resume(self, now: float) -> None:
        self.due_at = now + self._left
        self._left = NEVER

    def disarm(self) -> None:
        self.due_at = self._left = NEVER


class Ticker:
    """Calls `increment` when the time of an armed call is up. Only one call is armed at a time."""

    def __init__(self, increment: Callable[[], None]) -> None:
        """`increment` is called on the other thread. It may not raise, and has to be brief."""
        self._increment = increment
        self._countdown = Countdown()
        self._wakes_at = 0.0  # before the thread has started it need not be woken
        self._lock = threading.Lock()
        self._wake = threading.Event()

    def start(self) -> None:
        """Start the thread. It ends with the process."""
        usual = threading.stack_size(STACK_BYTES)
        try:
            threading.Thread(target=self._run, name="ticker", daemon=True).start()
        finally:
            threading.stack_size(usual)

    def arm(self, seconds: float) -> None:
        """A call begins now. Give its store the next epoch as its deadline before this."""
        with self._lock:
            self._countdown.arm(time.monotonic(), seconds)
            self._wake_if_late()

    def pause(self) -> None:
        """The call waits for its host: that does not count."""
        with self._lock:
            self._countdown.pause(time.monotonic())

    def resume(self) -> None:
        """Its own code goes on."""
        with self._lock:
            self._countdown.resume(time.monotonic())
            self._wake_if_late()

    def disarm(self) -> None:
        """The call is over."""
        with self._lock:
            self._countdown.disarm()

    def _wake_if_late(self) -> None:
        if self._countdown.due_at < self._wakes_at:
            self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.clear()
            self._wake.wait(self._seconds_to_sleep())

    def _seconds_to_sleep(self) -> float | None:
        """Increment if time is up. Returns None where nothing is armed."""
        with self._lock:
            now = time.monotonic()
            if self._countdown.due_at <= now:
                self._increment()
                self._countdown.arm(now, AGAIN_SECONDS)
            self._wakes_at = self._countdown.due_at
            return None if self._wakes_at == NEVER else self._wakes_at - now
