"""One delivery in a component's hands: what it may ask for, and what it has staged.

Nothing that a component does takes effect while it runs. What it stages is kept here, is taken by
the loop when the call has returned, and goes with the completion; when the call traps, this object
is thrown away and nothing has happened.

A delivery has one of these through all phases that consult the component. So what was put in triage
is read in act, and the bounds are those of the completion.
"""

from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple

from agent_runtime.component import limits
from agent_runtime.component.wasi.moment import Moment
from agent_runtime.loop.consulting import Consultable
from ipc_protocol.work import (
    Effect,
    EffectResult,
    Handle,
    MemoryEntry,
    Outgoing,
    StateChange,
    Task,
    TaskChange,
)

Ask = Callable[[Effect], EffectResult]

_MESSAGES: Final = "messages"


class Staged(NamedTuple):
    outputs: tuple[Outgoing, ...]
    memories: tuple[MemoryEntry, ...]
    tasks: tuple[TaskChange, ...]
    state: tuple[StateChange, ...]


class NoRoom(Exception):
    """What is to be staged is over a bound; `str()` says which."""


class Invocation:
    def __init__(self, handle: Handle) -> None:
        beginning = handle.beginning
        self.handle = handle
        self.ask: Ask = _not_yet
        self.moment = Moment(beginning.now_us, beginning.seed.to_bytes(16, "big", signed=True))
        self.phase: Consultable = "act"
        self.kept: dict[str, bytes | None] = {}
        """What `state` was set to in this delivery, by key; None for what was deleted."""
        self.unfinished: list[Task] | None = None
        """The agent's tasks, once they were asked for."""
        self._room_bytes = limits.STAGED_BYTES_MAX
        self._outputs: list[Outgoing] = []
        self._memories: list[MemoryEntry] = []
        self._tasks: list[TaskChange] = []
        self._state: dict[str, StateChange] = {}
        self._counts: Counter[str] = Counter()

    def is_own(self, correlation: str) -> bool:
        """Whether it stands for the conversation in hand. No other can be joined."""
        return correlation in ("", self.handle.envelope.correlation)

    def send(self, output: Outgoing) -> None:
        """Raises `NoRoom`, as all that stage do."""
        self._take_place(_MESSAGES, limits.OUTPUTS_SENT_MAX)
        self._take_room(len(output.topic.encode()) + len(output.payload))
        self._outputs.append(output)

    def remember(self, entry: MemoryEntry) -> None:
        self._take_place("memories", limits.MEMORIES_NOTED_MAX)
        self._take_room(len(entry.text.encode()) + len(entry.lesson.encode()))
        self._memories.append(entry)

    def change_task(self, change: TaskChange) -> None:
        self._take_place("changes of tasks", limits.TASK_CHANGES_MAX)
        self._take_room(len((change.title or "").encode()) + len(change.note.encode()))
        self._tasks.append(change)

    def keep(self, change: StateChange) -> None:
        key = change.key
        if key not in self.kept and len(self.kept) >= limits.STATE_CHANGES_MAX:
            raise NoRoom(f"A delivery changes at most {limits.STATE_CHANGES_MAX} keys.")
        before = self._state.get(key)
        if before is not None:
            # It never comes to what was put before.
            self._room_bytes += _size(before) + limits.STAGED_OVERHEAD_BYTES
        try:
            self._take_room(_size(change))
        except NoRoom:
            if before is not None:
                self._room_bytes -= _size(before) + limits.STAGED_OVERHEAD_BYTES
            raise
        self._state[key] = change
        self.kept[key] = change.value

    def send_returned(self, outputs: list[Outgoing]) -> int:
        """Stage what the call returned. Returns how many were left out.

        Those that the bus would send have room, or it is `NoRoom`. Those beyond become dead
        letters, as far as there is room for them.
        """
        for number, output in enumerate(outputs):
            try:
                self._take_place(_MESSAGES, limits.OUTPUTS_KEPT_MAX)
                self._take_room(len(output.topic.encode()) + len(output.payload))
            except NoRoom:
                if self.sent <= limits.OUTPUTS_SENT_MAX:
                    raise
                return len(outputs) - number
            self._outputs.append(output)
        return 0

    @property
    def sent(self) -> int:
        """Messages staged so far, in all phases."""
        return self._counts[_MESSAGES]

    def take(self) -> "Staged":
        """What was staged since this was last called."""
        staged = Staged(
            tuple(self._outputs),
            tuple(self._memories),
            tuple(self._tasks),
            tuple(self._state.values()),
        )
        self._outputs.clear()
        self._memories.clear()
        self._tasks.clear()
        self._state.clear()
        return staged

    def _take_place(self, what: str, bound: int) -> None:
        if self._counts[what] >= bound:
            raise NoRoom(f"A delivery has at most {bound} {what}.")
        self._counts[what] += 1

    def _take_room(self, size: int) -> None:
        if size + limits.STAGED_OVERHEAD_BYTES > self._room_bytes:
            raise NoRoom(
                f"What a delivery stages has at most {limits.STAGED_BYTES_MAX} bytes; "
                f"{max(0, self._room_bytes)} are left, and this has {size}."
            )
        self._room_bytes -= size + limits.STAGED_OVERHEAD_BYTES


def _size(change: StateChange) -> int:
    return len(change.key.encode()) + len(change.value or b"")


def _not_yet(effect: Effect) -> EffectResult:
    raise AssertionError(f"{type(effect).__name__} before a phase has begun")
