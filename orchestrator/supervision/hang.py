"""What counts as hung: no progress while a process holds all it needs. Pure.

Whoever waits for a slot, a tool, a person or more work is not hung, however long that takes. To ask
for something and to be given it are progress; so the clock runs only between being given something
and the next sign of life.
"""

from typing import Final, Literal, TypeAlias

from ipc_protocol.values import Message

WORKER_PATIENCE_US: Final = 30_000_000
"""Between two effects a worker builds a prompt or parses an answer, which takes milliseconds; a
machine that swaps can make it seconds."""
ENGINE_PATIENCE_US: Final = 120_000_000
"""A single step was seen to take 4.6 s on a busy machine, and a long prefill is many of them."""
assert ENGINE_PATIENCE_US > WORKER_PATIENCE_US

Need: TypeAlias = Literal["work", "slot", "tool", "memory", "person"]
"""What one can wait for, all of it outside the process."""


class Activity(Message, frozen=True):
    """What a process has been doing since when. `waits_for` None: it holds all it needs."""

    since_us: int
    waits_for: Need | None = "work"


def waits(activity: Activity, need: Need, now_us: int) -> Activity:
    """It has asked for something that takes as long as it takes."""
    return Activity(since_us=max(activity.since_us, now_us), waits_for=need)


def progressed(activity: Activity, now_us: int) -> Activity:
    """It was given what it waited for, or showed a sign of life."""
    return Activity(since_us=max(activity.since_us, now_us), waits_for=None)


def is_hung(activity: Activity, now_us: int, patience_us: int) -> bool:
    """Whether it has had all it needs for longer than `patience_us` and did nothing with it."""
    return activity.waits_for is None and now_us - activity.since_us > patience_us
