"""Names of conversations. A client gives one so that it can ask again, else the bus does."""

import secrets
from typing import Final

RANDOM_BYTES: Final = 6
"""48 bits: a million conversations have no double with a probability of 99.8 %, in 12 characters
that can be typed."""


def fresh(count: int) -> list[str]:
    """So many names that no other conversation has."""
    digits, width = secrets.token_hex(RANDOM_BYTES * count), 2 * RANDOM_BYTES
    return [digits[begin : begin + width] for begin in range(0, len(digits), width)]
