"""Text of agents, programs and files, made safe to show to a person. Pure.

It comes from a model or from the world, and must not be able to move the cursor, rename the window,
reorder a line, begin a new one, or hide what was said before it.
"""

import unicodedata
from typing import Final

LINE_BREAKS: Final = "\n\t"
"""To `keep` where a text may have several lines."""

_HARMLESS: Final = "\N{ZERO WIDTH JOINER}"
"""A format character that only joins the emoji around it."""

_OBEYED: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Control and format characters, halves of characters, and separators of lines."""


def printable(text: str, *, keep: str = "") -> str:
    """`text` with `�` for each character that a terminal obeys, but for those of `keep`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character
        if character in keep
        or character in _HARMLESS
        or unicodedata.category(character) not in _OBEYED
        else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )
