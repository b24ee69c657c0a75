"""What a function answers that is linked to nothing. Pure.

The answer is derived from the type of the result alone: an error where it can be one, else nothing
(an empty list, no value), else a resource that can do nothing either. Where there is no such answer
the call has to trap: an answer that looks like a fact would be a lie.
"""

from collections.abc import Callable
from typing import Any, Final

from agent_runtime.component.types import (
    U8,
    Case,
    Enum,
    Flags,
    Handle,
    ListOf,
    OptionOf,
    Primitive,
    Record,
    ResultOf,
    TupleOf,
    Type,
    Variant,
    err,
)

REFUSALS: Final = (
    "access-denied",
    "access",
    "not-permitted",
    "not-supported",
    "unsupported",
    "HTTP-request-denied",
    "closed",
    "internal-error",
    "unknown",
    "none",
    "other",
)
"""Names of cases that say that something is not to be had, the plainest first."""

_ZEROES: Final[dict[str, Any]] = {"bool": False, "f32": 0.0, "f64": 0.0, "string": "", "char": "\0"}


class NoAnswer(Exception):
    """There is no harmless value of the type."""


def answer(result: Type | None, new_handle: Callable[[], int]) -> Any:
    """A harmless value of `result`; `new_handle` makes a resource. Raises `NoAnswer`."""
    match result:
        case None | OptionOf():
            return None
        case ListOf(element):
            return b"" if element == U8 else []
        case ResultOf(err=error):
            return err(answer(error, new_handle))
        case TupleOf(elements):
            return tuple(answer(element, new_handle) for element in elements)
        case Record(fields):
            return {name: answer(field, new_handle) for name, field in fields}
        case Enum(cases):
            return _refusal(cases)
        case Variant(cases):
            name = _refusal(tuple(name for name, _ in cases))
            return Case(name, answer(dict(cases)[name], new_handle))
        case Flags():
            return frozenset[str]()
        case Handle():
            return new_handle()
        case Primitive(name):
            return _ZEROES.get(name, 0)
        case _:
            raise NoAnswer


def _refusal(cases: tuple[str, ...]) -> str:
    for name in REFUSALS:
        if name in cases:
            return name
    raise NoAnswer
