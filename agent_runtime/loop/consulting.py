"""What the loop asks of a component, and what comes back. Pure.

A consultation is no effect: it is answered inside the worker, and is not journaled. What the
component learns from outside meanwhile is, effect by effect, so that a replay consults it with the
same answers.
"""

from typing import Final, Literal

import msgspec

from agent_runtime.loop.decisions import Action, Success
from ipc_protocol.work import MemoryEntry, Outgoing, StateChange, TaskChange

Consultable = Literal["triage", "act", "reflect"]

ACTS: Final[frozenset[Consultable]] = frozenset({"act"})
"""Of a component that exports `lifecycle`: it is handed what is taken, and nothing is reflected."""
TAKES_OVER: Final[frozenset[Consultable]] = frozenset({"triage", "act", "reflect"})
"""Of a component that exports `phases`: it is asked in each, and may leave each to the model."""


class Consult(msgspec.Struct, frozen=True):
    """Ask the component about the delivery in hand. `sent` is for *reflect*."""

    phase: Consultable
    sent: tuple[Outgoing, ...] = ()


class Advice(msgspec.Struct, frozen=True):
    """A decision of triage. `to` belongs to *delegate*, `defer_us` (from now on) to *defer*."""

    action: Action
    reason: str
    to: str | None = None
    defer_us: int | None = None


class Judgement(msgspec.Struct, frozen=True):
    """What a component makes of a delivery. `importance` is from 0 to 1."""

    lesson: str
    outcome: Success
    importance: float


class Consulted(msgspec.Struct, frozen=True):
    """What the component answered, and what it staged through its imports while it did.

    `taken` is False where it leaves the phase to the model. `outputs` are what it published, then
    what it returned; beyond them nothing was kept.
    """

    taken: bool
    advice: Advice | None = None
    judgement: Judgement | None = None
    outputs: tuple[Outgoing, ...] = ()
    memories: tuple[MemoryEntry, ...] = ()
    tasks: tuple[TaskChange, ...] = ()
    state: tuple[StateChange, ...] = ()
    left_out: int = 0
    """Outputs beyond all bounds, of which nothing but the number is known any more."""
