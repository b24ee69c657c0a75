"""How a worker died with a delivery in its hands, in words, and whether that was its own doing."""

import asyncio
from typing import Any, Final

import msgspec

from ipc_protocol.errors import Failure
from orchestrator.printable import LINE_BREAKS, printable
from orchestrator.workers import EXIT_NOTICE_SECONDS_MAX, Worker

TRAPS: Final = frozenset(
    {
        "component.trapped",
        "component.fuel",
        "component.deadline",
        "component.memory",
        "component.init",
    }
)
"""What a worker answers whose component is lost: its own death, in its own words. A new instance
that follows one which was left in the middle of a call begins with `init`."""

MEMORY_CURE: Final = "Hand over less at once, or raise `memory` in the `limits` of the agent."

BACKTRACE_CHARACTERS_MAX: Final = 8192
"""A hundred frames of Wasm; of an unbounded recursion the rest says the same again."""


class Trap(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker says of a component that is lost, as it may be shown."""

    code: str
    message: str
    backtrace: str
    fuel: int | None

    @classmethod
    def of(cls, failure: Failure) -> "Trap":
        details: dict[str, Any] = failure.problem.details
        backtrace = printable(str(details.get("backtrace", "")), keep=LINE_BREAKS)
        return cls(
            code=failure.code,
            message=printable(str(failure)),
            backtrace=backtrace[:BACKTRACE_CHARACTERS_MAX],
            fuel=fuel if isinstance(fuel := details.get("fuel"), int) else None,
        )


async def cause_of_death(worker: Worker, *, hung: bool, component: bool) -> tuple[bool, str]:
    """Whether it was the worker's own death, and how it came about."""
    if hung:
        return True, "The worker hung."
    await asyncio.wait((worker.exited,), timeout=EXIT_NOTICE_SECONDS_MAX)
    if not worker.exited.done():
        return True, f"The worker hung up: {worker.connection.problem}."
    exit_ = worker.exited.result()
    words = f"The worker {exit_.description}."
    if exit_.by_signal and component:
        # The library ends the process where it gets no memory for what a component hands over.
        words = f"The worker was {exit_.description}: it may have got no more memory. {MEMORY_CURE}"
    return exit_.own, words
