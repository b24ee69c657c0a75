"""Completions that wait a moment for others, to be sent in one frame with them.

A frame for each would cost more than the handling of a message that asks for nothing. None waits
long, nor for more than a frame can take. Pure: the time is an argument.
"""

from typing import Final

from agent_runtime.component.limits import STAGED_BYTES_MAX
from ipc_protocol.limits import FRAME_BODY_BYTES_MAX
from ipc_protocol.work import Completion, Done, Finished

GATHERED_MAX: Final = 256
"""As many as are handed over at once; a frame for each 64 adds little to what they cost."""

GATHERED_SECONDS_MAX: Final = 0.020
"""After the first was begun: so one that takes as long itself goes at once. Whoever waits for it
hardly notices so much, and a frame each 20 ms costs nothing."""

GATHERED_BYTES_MAX: Final = 256 * 1024
"""Beyond this a frame costs what its bytes cost, and nothing is saved by waiting."""
OVERHEAD_BYTES: Final = 128
"""Counted for a completion and for each of its parts: names of fields, and numbers."""
assert GATHERED_BYTES_MAX + STAGED_BYTES_MAX <= FRAME_BODY_BYTES_MAX - 512 * 1024
# The last one that is added may be as large as any; half a MiB is for what surrounds its parts.


class Gathering:
    """Whoever adds to it asks `is_due` after that, and takes them when it says so."""

    def __init__(self) -> None:
        self._finished: list[Finished] = []
        self._bytes = 0
        self._first_began = 0.0

    def add(self, delivery: int, completion: Completion, began: float) -> None:
        """`began` is when it was taken in hand, in seconds of a monotonic clock."""
        if not self._finished:
            self._first_began = began
        self._finished.append(Finished(delivery, completion))
        self._bytes += _size_of(completion)

    def is_due(self, now: float) -> bool:
        """They have to be sent now."""
        return bool(self._finished) and (
            len(self._finished) >= GATHERED_MAX
            or self._bytes >= GATHERED_BYTES_MAX
            or now - self._first_began >= GATHERED_SECONDS_MAX
        )

    def take(self, now: float) -> Done | None:
        """All of them, in their order, and how long it took; None where there is none."""
        if not self._finished:
            return None
        worked_us = max(0, round((now - self._first_began) * 1e6))
        done = Done(finished=self._finished, worked_us=worked_us)
        self._finished, self._bytes = [], 0
        return done


def _size_of(completion: Completion) -> int:
    """About what it takes of a frame. Texts count four bytes a character, the most it can be."""
    size = OVERHEAD_BYTES
    for output in completion.outputs:
        size += OVERHEAD_BYTES + len(output.payload)
    for change in completion.state:
        size += OVERHEAD_BYTES + len(change.value or b"")
    for memory in completion.memories:
        size += OVERHEAD_BYTES + 4 * (len(memory.text) + len(memory.lesson))
    for task in completion.tasks:
        size += OVERHEAD_BYTES + 4 * (len(task.title or "") + len(task.note))
    return size
