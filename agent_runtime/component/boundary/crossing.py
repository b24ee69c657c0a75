"""What the closures of a plan share for the time of one call: the store, the budget, the loans."""

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from agent_runtime.component.boundary.memory import MEMORY, put_list
from ipc_protocol.errors import Failure

LIFTED_BYTES_MAX: Final = 8 << 20
"""Of one call's values: text and lists of bytes by their size, and 32 for each value within another
one, at any depth, and for making a tuple or a record. Lifting is outside of fuel and deadline: this
much takes from 30 ms for numbers to 160 ms for variants and flags."""

Lift: TypeAlias = Callable[[int, int, int], Any]
"""From the three words of a value."""
Lower: TypeAlias = Callable[[Any, int], None]
"""Of a value, to an address where a value of kind *bool* is."""


class Crossing:
    def __init__(self, bytes_max: int) -> None:
        self.context: Any = None
        self.left = bytes_max
        self.loans: list[tuple[int, bytearray]] | None = None
        """Lists of bytes in the arguments of a component's function: where the value is, and its
        memory. None for the results of a host function, which cannot be on loan."""

    def end_loans(self) -> None:
        for at, _ in self.loans or ():
            put_list(MEMORY, at + 8, 0, 0)
        self.loans = []

    def spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise Failure(
                "component.output",
                "The component passed more data in one call than the host takes.",
                "Let it return less, or in several messages.",
            )
