"""What two ends settle, and what the bytes of one mean to the other. Pure."""

from typing import Annotated, Any

import msgspec

from ipc_protocol import limits
from ipc_protocol.errors import Problem
from ipc_protocol.values import Message

# ---- What is settled by the hello ---------------------------------------------------------------


class Limits(Message, frozen=True):
    body_bytes_max: Annotated[int, msgspec.Meta(ge=limits.BODY_BYTES_MIN)] = (
        limits.FRAME_BODY_BYTES_MAX
    )
    streams_max: Annotated[int, msgspec.Meta(ge=1)] = limits.STREAMS_MAX


class Hello(Message, frozen=True):
    """Who speaks, what it can do beyond version 1, and what it accepts."""

    name: Annotated[str, msgspec.Meta(max_length=200)]
    features: list[str] = []
    limits: Limits = Limits()


class Request(Message, frozen=True):
    method: str
    params: dict[str, Any] = {}


class Settled(Message, frozen=True):
    """The outcome of the hello: features both have, the smaller of each limit."""

    peer: str
    features: list[str]
    limits: Limits


def settle(ours: Hello, theirs: Hello) -> Settled:
    return Settled(
        peer=theirs.name,
        features=sorted(set(ours.features) & set(theirs.features)),
        limits=Limits(
            body_bytes_max=min(ours.limits.body_bytes_max, theirs.limits.body_bytes_max),
            streams_max=min(ours.limits.streams_max, theirs.limits.streams_max),
        ),
    )


# ---- Events -------------------------------------------------------------------------------------


class Opened(Message, frozen=True):
    """The hello is settled; requests may flow."""

    settled: Settled


class RequestReceived(Message, frozen=True):
    stream: int
    request: Request


class ItemReceived(Message, frozen=True):
    stream: int
    value: dict[str, Any]


class ResultReceived(Message, frozen=True):
    stream: int
    value: dict[str, Any]


class ErrorReceived(Message, frozen=True):
    stream: int
    problem: Problem


class CancelReceived(Message, frozen=True):
    stream: int


class GoodbyeReceived(Message, frozen=True):
    pass


class Failed(Message, frozen=True):
    """The connection is over. Send `farewell` (it may be empty), then hang up."""

    problem: Problem
    farewell: bytes = b""


Event = (
    Opened
    | RequestReceived
    | ItemReceived
    | ResultReceived
    | ErrorReceived
    | CancelReceived
    | GoodbyeReceived
    | Failed
)
