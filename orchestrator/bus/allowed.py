"""What a completion may hold: a worker is not trusted with the size of what it sends either."""

from ipc_protocol.errors import Failure
from ipc_protocol.work import Completion
from orchestrator.bus.limits import (
    DEFERRAL_US_MAX,
    MEMORIES_MAX,
    MEMORY_CHARS_MAX,
    RUNS_MAX,
    STATE_CHANGES_MAX,
    STATE_KEY_BYTES_MAX,
    STATE_VALUE_BYTES_MAX,
    TASK_CHANGES_MAX,
    TASK_CHARS_MAX,
)
from orchestrator.bus.rows import DeliveryRow


def require_limits(completion: Completion) -> None:
    """Raises `work.refused` for more or longer parts than the bus takes."""
    memories, tasks = completion.memories, completion.tasks
    if (
        len(memories) > MEMORIES_MAX
        or any(len(entry.text) + len(entry.lesson) > MEMORY_CHARS_MAX for entry in memories)
        or len(tasks) > TASK_CHANGES_MAX
        or any(len(task.title or "") + len(task.note) > TASK_CHARS_MAX for task in tasks)
    ):
        raise Failure(
            "work.refused",
            "The completion has more or longer memories or tasks than the bus takes.",
            f"At most {MEMORIES_MAX} memories of {MEMORY_CHARS_MAX} characters and "
            f"{TASK_CHANGES_MAX} tasks of {TASK_CHARS_MAX}.",
        )
    state = completion.state
    if len(state) > STATE_CHANGES_MAX or any(
        not 0 < len(change.key.encode()) <= STATE_KEY_BYTES_MAX
        or len(change.value or b"") > STATE_VALUE_BYTES_MAX
        for change in state
    ):
        raise Failure(
            "work.refused",
            "The completion changes more of its agent's state, or larger parts, than it may.",
            f"At most {STATE_CHANGES_MAX} changes, of keys of 1 to {STATE_KEY_BYTES_MAX} bytes and "
            f"values of {STATE_VALUE_BYTES_MAX}.",
        )


def require_deferrable(row: DeliveryRow, completion: Completion, now_us: int) -> None:
    """A deferral puts off, and does nothing else: each run may publish and spend but once."""
    until_us = completion.until_us
    if (
        until_us is None
        or until_us - now_us > DEFERRAL_US_MAX
        or row.run + 1 >= RUNS_MAX
        or completion.outputs
        or completion.tasks
    ):
        raise Failure(
            "work.refused",
            "The deferral is of no use: it needs a time within a year, publishes nothing, changes "
            f"no task, and comes at most {RUNS_MAX - 1} times.",
        )
