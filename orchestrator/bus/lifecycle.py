"""A lifecycle is a mapping from (state, event) to state; a pair that is not in it is the error."""

from collections.abc import Mapping
from typing import Generic, TypeVar

S = TypeVar("S", bound=str)
E = TypeVar("E", bound=str)


class IllegalTransitionError(Exception):
    """The program tried something that the table of states does not allow: a defect."""


class Lifecycle(Generic[S, E]):
    def __init__(self, name: str, table: Mapping[tuple[S, E], S]) -> None:
        self.name = name
        self.table = table

    def after(self, state: S, event: E) -> S:
        try:
            return self.table[state, event]
        except KeyError:
            raise IllegalTransitionError(f"a {self.name} that is {state} cannot {event}") from None
