"""GBNF expressions for the decimal numerals between two bounds.

A bound is an integer, or None for the largest that a double holds exactly. Every numeral that an
expression matches lies between the bounds; for integers the reverse is true as well. Pure.
"""

import math
from typing import Final

DIGITS: Final = 15
"""Digits of an unbounded integer: what fits into a double without loss."""

LARGEST: Final = 10**DIGITS - 1

FRACTION: Final = '("." [0-9]{1,3})?'


def lowest(minimum: float | None, exclusive: float | None) -> int | None:
    """The lowest integer that both lower bounds allow."""
    bounds = [] if minimum is None else [math.ceil(minimum)]
    if exclusive is not None:
        bounds.append(math.floor(exclusive) + 1)
    return max(bounds, default=None)


def highest(maximum: float | None, exclusive: float | None) -> int | None:
    """The highest integer that both upper bounds allow."""
    bounds = [] if maximum is None else [math.floor(maximum)]
    if exclusive is not None:
        bounds.append(math.ceil(exclusive) - 1)
    return min(bounds, default=None)


def integer(low: int | None, high: int | None) -> str:
    """Exactly the integers from `low` to `high`, without leading zeros or a negative zero."""
    least, most = _closed(low, high)
    options = []
    if least < 0:
        options += [f'"-" {part}' for part in _natural(max(-most, 1), -least)]
    if most >= 0:
        options += _natural(max(least, 0), most)
    return " | ".join(options)


def number(low: int | None, high: int | None) -> str:
    """Numbers from `low` to `high` with at most three digits after the point."""
    if low is None and high is None:
        return f'"-"? ("0" | [1-9] [0-9]{{0,{DIGITS - 1}}}) {FRACTION} ([eE] [-+]? [0-9]{{1,2}})?'
    least, most = _closed(low, high)
    options = [f"({integer(least, most)})"]
    if least < 0:
        nearest = max(-most, 0)
        if nearest < -least:
            options.append(f'"-" ({_either(nearest, -least - 1)}) "." [0-9]{{1,3}}')
    if most > max(least, 0):
        options.append(f'({_either(max(least, 0), most - 1)}) "." [0-9]{{1,3}}')
    return " | ".join(options)


def _closed(low: int | None, high: int | None) -> tuple[int, int]:
    least = -LARGEST if low is None else low
    most = LARGEST if high is None else high
    assert least <= most, "bounds are in order"
    return least, most


def _either(low: int, high: int) -> str:
    return " | ".join(_natural(low, high))


def _natural(low: int, high: int) -> list[str]:
    """Expressions that together match the numerals from `low` to `high`, both at least 0."""
    parts: list[str] = []
    while low <= high:
        top = min(high, 10 ** len(str(low)) - 1)
        parts += _same_length(str(low), str(top))
        low = top + 1
    return parts


def _same_length(low: str, high: str) -> list[str]:
    """The numerals between two of equal length: a shared start, or an edge, a middle, an edge."""
    if not low:
        return ['""']
    if low[0] == high[0]:
        return [f'"{low[0]}" {rest}' for rest in _same_length(low[1:], high[1:])]
    rest = len(low) - 1
    first, last = int(low[0]), int(high[0])
    lower: list[str] = []
    upper: list[str] = []
    if set(low[1:]) - {"0"}:
        lower = [f'"{first}" {one}' for one in _same_length(low[1:], "9" * rest)]
        first += 1
    if set(high[1:]) - {"9"}:
        upper = [f'"{last}" {one}' for one in _same_length("0" * rest, high[1:])]
        last -= 1
    middle = f"[{first}-{last}]" + (f" [0-9]{{{rest}}}" if rest else "")
    return [*lower, *([middle] if first <= last else []), *upper]
