"""wasi:io/poll: nothing here makes anybody wait.

A stream is always ready. A timer is ready when its time has come; whoever waits for one is put
forward to the time that it ends at.
"""

from typing import Final

from agent_runtime.component.wasi.surroundings import Functions, Surroundings
from agent_runtime.component.wasi.trap import HostTrap

NOW: Final = 0
"""The end of what is ready at once."""


class Pollable:
    def __init__(self, ready_ns: int = NOW) -> None:
        self.ready_ns = ready_ns


def poll_functions(around: Surroundings) -> Functions:
    def ready(number: int) -> bool:
        pollable = around.handles.get(number, Pollable)
        return pollable.ready_ns <= around.moment.monotonic_ns()

    def block(number: int) -> None:
        around.moment.sleep_until(around.handles.get(number, Pollable).ready_ns)

    def poll(numbers: list[int]) -> list[int]:
        if not numbers:
            raise HostTrap("it polls an empty list")
        ends = [around.handles.get(number, Pollable).ready_ns for number in numbers]
        around.moment.sleep_until(min(ends))
        now_ns = around.moment.monotonic_ns()
        return [index for index, end_ns in enumerate(ends) if end_ns <= now_ns]

    return {"[method]pollable.ready": ready, "[method]pollable.block": block, "poll": poll}
