"""Which headers pass through egress, in both directions. Pure.

Few: what is not needed to ask a model is a way to speak for somebody else (`Authorization`,
`Cookie`, `Host`), to say more than was granted, or to end one request and begin another.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from ipc_protocol.errors import Failure

ASKED: Final = frozenset({"accept", "content-type"})
"""What a caller may set."""

ANSWERED: Final = frozenset({"content-type", "retry-after"})
"""What a caller is told."""

VALUE_CHARACTERS_MAX: Final = 256
"""A media type with its parameters has fewer than 100."""


def outgoing(headers: Mapping[str, str]) -> dict[str, str]:
    """The caller's headers as they are sent. Raises `egress.not-permitted`."""
    found: dict[str, str] = {}
    for name, value in headers.items():
        lowered = name.lower()
        if lowered not in ASKED or lowered in found:
            raise _refused(f"The header {name[:64]!r} may not be set.")
        if not _harmless(value):
            raise _refused(f"The value of the header {lowered} is no short line of plain ASCII.")
        found[lowered] = value
    return found


def incoming(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """What the caller is told of an answer's headers: of two of the same name, the first."""
    found: dict[str, str] = {}
    for name, value in headers:
        lowered = name.lower()
        if lowered in ANSWERED and _harmless(value):
            found.setdefault(lowered, value)
    return found


def _harmless(value: str) -> bool:
    return len(value) <= VALUE_CHARACTERS_MAX and value.isascii() and value.isprintable()


def _refused(sentence: str) -> Failure:
    return Failure(
        "egress.not-permitted", sentence, f"These may be set: {', '.join(sorted(ASKED))}."
    )
