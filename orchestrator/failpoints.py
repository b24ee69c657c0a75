"""Fail points: named places where the program can be made to die, to test what is left behind.

`AGENTD_FAILPOINT=effect.performed` kills the process with SIGKILL the first time it reaches that
place, `AGENTD_FAILPOINT=effect.performed:3` the third time. Without the variable nothing happens,
and a place costs one comparison. The variable is read once, when this module is imported; the count
belongs to the process, so a daemon that is started again without it goes on.

SIGKILL and not an exception: nothing is flushed, closed or tidied up, as when a machine loses its
power, except that what the kernel was given is still written.
"""

import os
import signal
from typing import Final, Literal, NamedTuple, get_args

VARIABLE: Final = "AGENTD_FAILPOINT"

FailPoint = Literal[
    "publish.decided",
    "writer.before-commit",
    "writer.after-commit",
    "publish.committed",
    "lease.handed",
    "effect.performed",
    "effect.journaled",
    "completion.received",
    "completion.committed",
    "completion.parked",
]
"""The places, along the way of a message. `publish.committed` is before the receipt is sent,
`lease.handed` before the work is sent to the worker, `effect.performed` between what an effect did
and its journal entry, `effect.journaled` after that."""

NAMES: Final[tuple[FailPoint, ...]] = get_args(FailPoint)


class Armed(NamedTuple):
    """The place to die at, and which time of reaching it."""

    name: FailPoint
    nth: int


def armed_by(value: str) -> Armed | None:
    """What a value of the variable asks for: `NAME` or `NAME:NTH`; nothing if it is empty.

    Raises `ValueError` for a name that is not a place: a test whose process never dies proves
    nothing.
    """
    if not value:
        return None
    name, colon, nth = value.partition(":")
    if name not in NAMES:
        raise ValueError(f"{VARIABLE}: no fail point {name!r}; there are: {', '.join(NAMES)}")
    if colon and not (nth.isascii() and nth.isdecimal() and int(nth) > 0):
        raise ValueError(f"{VARIABLE}: {nth!r} is not a count; write {name}:1 for the first time")
    return Armed(name, int(nth) if colon else 1)


_armed: Final = armed_by(os.environ.get(VARIABLE, ""))
_reached = 0


def reach(name: FailPoint) -> None:
    """Die here, if the environment says so."""
    if _armed is None or _armed.name != name:
        return
    global _reached
    _reached += 1
    if _reached == _armed.nth:
        os.kill(os.getpid(), signal.SIGKILL)
