"""Frames: bytes in, frames out. Pure; the rules stand in docs/protocol.md.

A frame is a header of 16 bytes, big-endian, and one msgpack body:

    offset  size  field
    0       4     version   41 47 44 01: the letters AGD and the number of the protocol
    4       4     length    bytes of the body, at most the limit that the hello settled
    8       2     type      `FrameType`
    10      2     reserved  zero
    12      4     stream    0 for the session itself, else the request it belongs to

The decoder holds at most one frame and never calls msgpack before the frame is complete. What the
peer did wrong is a `FrameError`, after which the decoder takes nothing more.
"""

import enum
import struct
from collections.abc import Iterator
from typing import Any, Final

import msgpack
import msgspec

from ipc_protocol import limits

VERSION: Final = b"AGD\x01"
HEADER: Final = struct.Struct(">4sIHHI")
assert HEADER.size == limits.HEADER_BYTES

STREAM_MAX: Final = 2**32 - 1


class FrameType(enum.IntEnum):
    HELLO = 1
    REQUEST = 2
    ITEM = 3
    RESULT = 4
    ERROR = 5
    CANCEL = 6
    GOODBYE = 7


_TYPES: Final = frozenset(FrameType)


class Frame(msgspec.Struct, frozen=True):
    """One decoded frame. `body` is a map with string keys."""

    type: FrameType
    stream: int
    body: dict[str, Any]


class FrameError(Exception):
    """The peer broke the format. `code` is one of the protocol's error codes."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def encode(type_: FrameType, stream: int, body: msgspec.Struct | dict[str, Any]) -> bytes:
    """One frame as bytes. Raises `FrameError` when the body is over the limit."""
    plain = msgspec.to_builtins(body, builtin_types=(bytes,))
    packed: bytes = msgpack.packb(plain, use_bin_type=True)
    if len(packed) > limits.FRAME_BODY_BYTES_MAX:
        raise FrameError(
            "protocol.frame-too-long",
            f"A body of {len(packed)} bytes is over the limit of {limits.FRAME_BODY_BYTES_MAX}.",
        )
    return HEADER.pack(VERSION, len(packed), type_, 0, stream) + packed


class FrameDecoder:
    """Collects bytes and yields whole frames.

    `body_bytes_max` is settled by the hello; until then it is the protocol's own limit.
    """

    def __init__(self, body_bytes_max: int = limits.FRAME_BODY_BYTES_MAX) -> None:
        self.body_bytes_max = body_bytes_max
        self._buffer = bytearray()

    @property
    def pending_bytes(self) -> int:
        """Bytes of the frame that is not complete yet."""
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Every frame that `data` completes. Raises `FrameError` at the first that is wrong."""
        self._buffer += data
        start = 0
        try:
            while len(self._buffer) - start >= HEADER.size:
                header = HEADER.unpack_from(self._buffer, start)
                type_, length, stream = self._check_header(*header)
                end = start + HEADER.size + length
                if len(self._buffer) < end:
                    break
                body = decode_body(bytes(self._buffer[start + HEADER.size : end]))
                start = end
                yield Frame(type_, stream, body)
        finally:
            del self._buffer[:start]

    def _check_header(
        self, version: bytes, length: int, type_: int, reserved: int, stream: int
    ) -> tuple[FrameType, int, int]:
        if version != VERSION:
            raise FrameError(
                "protocol.version",
                f"The frame begins with {version.hex(' ')}, not with {VERSION.hex(' ')}: the peer "
                "speaks another version of the protocol, or another protocol.",
            )
        if length > self.body_bytes_max:
            raise FrameError(
                "protocol.frame-too-long",
                f"A frame announces {length} bytes; the limit is {self.body_bytes_max}.",
            )
        if type_ not in _TYPES:
            raise FrameError("protocol.unknown-type", f"There is no frame type {type_}.")
        if reserved != 0:
            raise FrameError("protocol.malformed", "Bytes 10 and 11 of a header must be zero.")
        return FrameType(type_), length, stream


def decode_body(data: bytes) -> dict[str, Any]:
    """The map in `data`. Raises `FrameError` for anything that the format does not allow."""
    try:
        body = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            ext_hook=_refuse_extension,
            object_pairs_hook=_map_without_repeats,
        )
    except FrameError:
        raise
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        reason = str(error) or type(error).__name__
        raise FrameError("protocol.malformed", f"The body is not msgpack: {reason}.") from error
    if not isinstance(body, dict):
        raise FrameError("protocol.malformed", f"The body is a {type(body).__name__}, not a map.")
    _check_size(body)
    return body


def _refuse_extension(code: int, data: bytes) -> Any:
    raise FrameError("protocol.malformed", f"The body has an extension type ({code}).")


def _map_without_repeats(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    map_ = dict(pairs)
    if len(map_) != len(pairs):
        raise FrameError("protocol.malformed", "A map has the same key twice.")
    if not all(isinstance(key, str) for key in map_):
        raise FrameError("protocol.malformed", "A map has a key that is not a string.")
    return map_


def _check_size(body: dict[str, Any]) -> None:
    """Bound depth and number of values, and refuse NaN: it equals nothing, not even itself."""
    level: list[Any] = [body]
    elements = 0
    for _ in range(limits.BODY_DEPTH_MAX):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below.extend(value.values())
            elif isinstance(value, list):
                below.extend(value)
            elif isinstance(value, float) and value != value:
                raise FrameError("protocol.malformed", "The body has a float that is no number.")
        elements += len(below)
        if elements > limits.BODY_ELEMENTS_MAX:
            raise FrameError(
                "protocol.malformed", f"The body has over {limits.BODY_ELEMENTS_MAX} values."
            )
        if not below:
            return
        level = below
    raise FrameError("protocol.malformed", f"The body nests over {limits.BODY_DEPTH_MAX} levels.")
