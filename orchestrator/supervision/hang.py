"""What counts as hung: no progress while a process holds all it needs. Pure.

Whoever waits for a slot, a tool, a person or more work is not hung, however long that takes. A
worker is watched by its driver, between an answer to it and its next sign of life. An engine is
asked how it is: an answer is a sign of life unless it has work and has made no step since.
"""

from typing import Final

from ipc_protocol.values import Message

WORKER_PATIENCE_US: Final = 30_000_000
"""Between two effects a worker builds a prompt or parses an answer, which takes milliseconds; a
machine that swaps can make it seconds."""
ENGINE_PATIENCE_US: Final = 120_000_000
"""A single step was seen to take 4.6 s on a busy machine, and a long prefill is many of them."""
assert ENGINE_PATIENCE_US > WORKER_PATIENCE_US


class Activity(Message, frozen=True):
    """The last sign of life of an engine: when it was, and how many steps it had made by then."""

    since_us: int = 0
    steps: int = 0


def heard(activity: Activity, steps: int, working: bool, now_us: int) -> Activity:
    """It has answered. Without work that is enough; with work only a new step counts."""
    if working and steps == activity.steps:
        return activity
    return Activity(since_us=now_us, steps=steps)


def is_hung(activity: Activity, now_us: int, patience_us: int) -> bool:
    """Whether it has shown no sign of life for longer than `patience_us`."""
    return now_us - activity.since_us > patience_us
