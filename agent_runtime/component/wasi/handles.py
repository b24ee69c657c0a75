"""The resources that a component holds, by the number that it knows them by.

There is one table for all of them. What a number stands for is checked where it is used: a
component whose imports have types of its own making reaches its own resources and no others.
"""

from typing import Any, TypeVar

from agent_runtime.component import limits
from agent_runtime.component.wasi.trap import HostTrap

R = TypeVar("R")


class Handles:
    def __init__(self) -> None:
        self._held: dict[int, Any] = {}
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._held)

    def add(self, resource: Any) -> int:
        """The number of `resource` from now on. Raises `HostTrap` where there are too many."""
        if len(self._held) >= limits.HANDLES_MAX:
            raise HostTrap(f"it holds {limits.HANDLES_MAX} resources and drops none")
        # Numbers are used again: they have 32 bits, and a component may run for months.
        number = self._free.pop() if self._free else len(self._held) + 1
        self._held[number] = resource
        return number

    def get(self, number: int, kind: type[R]) -> R:
        """Raises `HostTrap` if the number does not stand for a resource of that kind."""
        resource = self._held.get(number)
        if not isinstance(resource, kind):
            raise HostTrap(f"its handle {number} is no {kind.__name__}")
        return resource

    def count(self, kind: type) -> int:
        return sum(isinstance(resource, kind) for resource in self._held.values())

    def drop(self, number: int) -> None:
        if self._held.pop(number, None) is not None:
            self._free.append(number)

    def clear(self) -> None:
        self._held.clear()
        self._free.clear()
