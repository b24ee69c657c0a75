"""Values that several messages share: classes of urgency, envelopes, sandbox reports.

Times are integer microseconds since the epoch. Ids are integers of the store.
"""

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

Priority = Literal["urgent", "high", "normal", "low", "background"]
PRIORITIES: Final[tuple[Priority, ...]] = ("urgent", "high", "normal", "low", "background")
"""From the most to the least urgent; the index is the rank, 0 first."""


def rank(priority: Priority) -> int:
    """The place of a class in the strict order, 0 for urgent."""
    return PRIORITIES.index(priority)


Id = Annotated[int, Meta(ge=1, le=2**63 - 1)]
"""Of a row of the store."""

TimeUs = Annotated[int, Meta(ge=0, le=2**63 - 1)]
"""Microseconds since the epoch, as the store can hold them."""

Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of everything that travels: immutable, named fields, unknown fields ignored."""


class Envelope(Message, frozen=True):
    """A message as its receiver sees it. `sender` is set by the bus, never by the sender."""

    id: int
    topic: str
    sender: str
    payload: bytes
    correlation: str
    priority: Priority
    sent_us: int
    expires_us: int
    cause: int | None = None
    hops: int = 0


class Receipt(Message, frozen=True):
    """The message is on disk and will be handled by each of `subscribers`."""

    message: int
    correlation: str
    subscribers: list[str] = []


class LayerReport(Message, frozen=True):
    """One layer of the sandbox as it stands around one process."""

    layer: str
    state: Literal["enforced", "missing", "not-applicable"]
    detail: str = ""
    cure: str = ""
