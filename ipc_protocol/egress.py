"""What is asked of egress, the one process that dials out: a request, its answer in items.

Who asks is known by the line. What may be asked is a grant, which the orchestrator has checked
before it passes the request on; secrets are put in by egress, and nobody else ever has them.
"""

from typing import Annotated, Literal

from msgspec import Meta

from ipc_protocol.values import Message

FailedBecause = Literal["unreachable", "tls", "timeout", "broken", "too-long", "busy"]
"""`reason` in the details of `egress.failed`. *unreachable*: there was no connection. *tls*: the
server did not prove who it is. *broken*: it broke off, or what it said was no HTTP. *busy*: too
much is under way here."""


class Dial(Message, frozen=True):
    """One remote server that may be asked: all below `url`, with `secret` as its bearer token."""

    url: str
    secret: str = ""

    def __repr__(self) -> str:
        return f"Dial(url={self.url!r})"  # whoever logs it must not log the secret


class EgressStart(Message, frozen=True):
    """What egress may do, by the name of each grant."""

    grants: dict[str, Dial]


class Fetch(Message, frozen=True):
    """`path` is appended to the grant's URL; a body is sent as it is."""

    grant: str
    path: str
    method: Literal["GET", "POST"] = "POST"
    headers: dict[str, str] = {}
    body: bytes = b""
    timeout_us: Annotated[int, Meta(ge=1)] = 600_000_000


class FetchedPiece(Message, frozen=True):
    """The first item has the status and the headers and no data, each other one a piece of the
    body as it came. Any status is an answer."""

    data: bytes = b""
    status: int = 0
    headers: dict[str, str] = {}


class Fetched(Message, frozen=True):
    """The whole body has come."""

    bytes_received: int
