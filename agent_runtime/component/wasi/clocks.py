"""wasi:clocks: the time of the delivery, as `moment` has it."""

from typing import Final

from agent_runtime.component.wasi.moment import MONOTONIC_NS_MAX, READING_NS
from agent_runtime.component.wasi.polling import Pollable
from agent_runtime.component.wasi.surroundings import Functions, Surroundings

NS_PER_SECOND: Final = 1_000_000_000


def datetime(time_ns: int) -> dict[str, int]:
    """The record of wasi:clocks/wall-clock, for a time since the epoch."""
    return {"seconds": time_ns // NS_PER_SECOND, "nanoseconds": time_ns % NS_PER_SECOND}


def wall_clock_functions(around: Surroundings) -> Functions:
    return {
        "now": lambda: datetime(around.moment.wall_ns),
        "resolution": lambda: datetime(READING_NS),
    }


def monotonic_clock_functions(around: Surroundings) -> Functions:
    def subscribe_instant(when_ns: int) -> int:
        return around.handles.add(Pollable(min(when_ns, MONOTONIC_NS_MAX)))

    return {
        "now": lambda: around.moment.monotonic_ns(),
        "resolution": lambda: READING_NS,
        "subscribe-instant": subscribe_instant,
        "subscribe-duration": lambda ns: subscribe_instant(around.moment.monotonic_ns() + ns),
    }
