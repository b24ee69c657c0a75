"""Names of conversations. A client gives one so that it can ask again, else the bus does.

A name begins with the time, so that the newest are neighbours in their index: with names at random
each conversation would touch a page of its own, and the more the larger the store is.
"""

import re
import secrets
import time
from typing import Final

DIGITS: Final = "0123456789abcdefghjkmnpqrstvwxyz"
"""Douglas Crockford's base 32, in lower case: nothing in it is taken for something else."""

TICK_US: Final = 10_000
TICK_DIGITS: Final = 8
"""Hundredths of a second since the epoch, until the year 2318."""

COUNT_DIGITS: Final = 4
"""A million names of the bus's own in each hundredth of a second."""

NAMES_PER_TICK: Final = len(DIGITS) ** COUNT_DIGITS

_OWN: Final = re.compile(f"[{DIGITS}]{{{TICK_DIGITS}}}[.][{DIGITS}]{{{COUNT_DIGITS}}}")
OWN_PATTERN: Final = f"{f'[{DIGITS}]' * TICK_DIGITS}.{f'[{DIGITS}]' * COUNT_DIGITS}"
"""What the bus's own names look like, for SQL's GLOB. Nobody else may open a conversation with such
a name, so that the latest of them is one that the bus has made."""

RANDOM_DIGITS: Final = 5
"""Of a client's own name: 33 millions to choose from in each hundredth of a second."""


def fresh() -> str:
    """A name that no other conversation has, for a client."""
    chosen = secrets.randbelow(len(DIGITS) ** RANDOM_DIGITS)
    tick = time.time_ns() // 1000 // TICK_US
    return _digits(tick, TICK_DIGITS) + _digits(chosen, RANDOM_DIGITS)


def is_own(name: str) -> bool:
    """Does it look as if the bus had made it?"""
    return _OWN.fullmatch(name) is not None


class Names:
    """Names that no other conversation has, for the bus: made by one alone, who counts them."""

    def __init__(self, latest: str = "") -> None:
        """`latest` is the greatest name that the bus has made before."""
        self._tick = _number(latest[:TICK_DIGITS])
        self._count = NAMES_PER_TICK

    def next(self, now_us: int, count: int) -> list[str]:
        """So many, in their order."""
        # A clock that is set back does not repeat a name.
        if now_us // TICK_US > self._tick or self._count + count > NAMES_PER_TICK:
            self._tick = max(now_us // TICK_US, self._tick + 1)
            self._count = 0
        first, prefix = self._count, _digits(self._tick, TICK_DIGITS) + "."
        self._count += count
        return [
            prefix + _PAIRS[each >> 10] + _PAIRS[each & 1023] for each in range(first, self._count)
        ]


def _number(text: str) -> int:
    number = 0
    for digit in text:
        number = number * len(DIGITS) + DIGITS.index(digit)
    return number


def _digits(number: int, width: int) -> str:
    assert number < len(DIGITS) ** width, "it would begin again at 0"
    text = ""
    for _ in range(width):
        number, digit = divmod(number, len(DIGITS))
        text = DIGITS[digit] + text
    return text


_PAIRS: Final = [_digits(number, 2) for number in range(len(DIGITS) ** 2)]
"""Ten bits each, of which a count has two."""

assert COUNT_DIGITS == 4
