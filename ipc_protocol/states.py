"""The states of a session and of its streams as tables: what is not in them is a breach. Pure."""

import enum
from typing import Final

from ipc_protocol.frames import FrameType


class SessionState(enum.Enum):
    __hash__ = object.__hash__  # Enum's own is slow, and is asked for with every frame

    GREETING = "greeting"
    OPEN = "open"
    LEAVING = "leaving"
    FAILED = "failed"


SESSION: Final[dict[tuple[SessionState, FrameType], SessionState]] = {
    (SessionState.GREETING, FrameType.HELLO): SessionState.OPEN,
    (SessionState.OPEN, FrameType.REQUEST): SessionState.OPEN,
    (SessionState.OPEN, FrameType.ITEM): SessionState.OPEN,
    (SessionState.OPEN, FrameType.RESULT): SessionState.OPEN,
    (SessionState.OPEN, FrameType.ERROR): SessionState.OPEN,
    (SessionState.OPEN, FrameType.CANCEL): SessionState.OPEN,
    (SessionState.OPEN, FrameType.GOODBYE): SessionState.LEAVING,
    (SessionState.LEAVING, FrameType.ITEM): SessionState.LEAVING,
    (SessionState.LEAVING, FrameType.RESULT): SessionState.LEAVING,
    (SessionState.LEAVING, FrameType.ERROR): SessionState.LEAVING,
    (SessionState.LEAVING, FrameType.CANCEL): SessionState.LEAVING,
}
"""What the peer may send. After its GOODBYE it opens no stream; the rest runs out."""


class StreamState(enum.Enum):
    __hash__ = object.__hash__

    OPEN = "open"
    CANCELLING = "cancelling"
    CLOSED = "closed"


STREAM: Final[dict[tuple[StreamState, FrameType], StreamState]] = {
    (StreamState.OPEN, FrameType.ITEM): StreamState.OPEN,
    (StreamState.OPEN, FrameType.RESULT): StreamState.CLOSED,
    (StreamState.OPEN, FrameType.ERROR): StreamState.CLOSED,
    (StreamState.OPEN, FrameType.CANCEL): StreamState.CANCELLING,
    (StreamState.CANCELLING, FrameType.ITEM): StreamState.CANCELLING,
    (StreamState.CANCELLING, FrameType.RESULT): StreamState.CLOSED,
    (StreamState.CANCELLING, FrameType.ERROR): StreamState.CLOSED,
}
