"""Names of conversations, which a client gives so that it can ask again, or the daemon for it."""

import secrets
from typing import Final

RANDOM_BYTES: Final = 6
"""48 bits: a million conversations have no double with a probability of 99.8 %, in 12 characters
that can be typed."""


def fresh() -> str:
    """A name that no other conversation has."""
    return secrets.token_hex(RANDOM_BYTES)
