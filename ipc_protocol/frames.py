"""Frames: bytes in, frames out. Pure; the rules stand in docs/protocol.md.

A frame is a header of 16 bytes, big-endian, and one msgpack body:

    offset  size  field
    0       4     version   41 47 44 01: the letters AGD and the number of the protocol
    4       4     length    bytes of the body, at most the limit that the hello settled
    8       2     type      `FrameType`
    10      2     reserved  zero
    12      4     stream    0 for the session itself, else the request it belongs to

The decoder holds one incomplete frame at most and never calls msgpack before it is complete. What
the peer did wrong is a `FrameError`, and feeding the decoder again repeats it.
"""

import datetime
import enum
import math
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


_TYPES: Final = {int(type_): type_ for type_ in FrameType}


class Frame(msgspec.Struct, frozen=True):
    """One decoded frame. `body` is a map with string keys."""

    type: FrameType
    stream: int
    body: dict[str, Any]


class FrameError(Exception):
    """A frame breaks the format. `code` is one of the protocol's error codes."""

    def __init__(self, code: str, message: str, cure: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.cure = cure


def encode(type_: FrameType, stream: int, body: msgspec.Struct | dict[str, Any]) -> bytes:
    """One frame as bytes.

    Raises `FrameError` for what the peer would refuse: what is sent obeys the rules of what is
    received, so that a defect here costs one request and not the connection.
    """
    try:
        plain = msgspec.to_builtins(body, builtin_types=(bytes,))
        _check_values(plain)
        packed = msgspec.msgpack.encode(plain)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        reason = f"The body cannot be written as msgpack: {_reason(error)}."
        raise FrameError("protocol.malformed", reason) from error
    if len(packed) > limits.FRAME_BODY_BYTES_MAX:
        raise FrameError(
            "protocol.frame-too-long",
            f"A body of {len(packed)} bytes is over the limit of {limits.FRAME_BODY_BYTES_MAX}.",
        )
    return HEADER.pack(VERSION, len(packed), type_, 0, stream) + packed


def typed(plain: Any, type_: Any) -> Any:
    """`plain`, which came out of a body, as `type_`. Raises `msgspec.ValidationError`.

    Binary is a type of msgpack's own: a string where bytes are expected is an error, not base64.
    """
    return msgspec.convert(plain, type_, builtin_types=(bytes,))


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
        incomplete = self._buffer
        incomplete += data if incomplete else b""
        received = incomplete or data  # most often frames come whole, and need no other copy
        start = 0
        try:
            while len(received) - start >= HEADER.size:
                header = HEADER.unpack_from(received, start)
                type_, length, stream = self._check_header(*header)
                end = start + HEADER.size + length
                if len(received) < end:
                    break
                body = decode_body(bytes(received[start + HEADER.size : end]))
                start = end
                yield Frame(type_, stream, body)
        finally:
            if incomplete:
                del incomplete[:start]
            else:
                incomplete += data[start:]

    def _check_header(
        self, version: bytes, length: int, type_: int, reserved: int, stream: int
    ) -> tuple[FrameType, int, int]:
        if version != VERSION:
            raise FrameError(
                "protocol.version",
                f"The frame begins with {version.hex(' ')}, not with {VERSION.hex(' ')}: the peer "
                "speaks another version of the protocol, or another protocol.",
                "Use the program and the daemon of one release.",
            )
        if length > self.body_bytes_max:
            raise FrameError(
                "protocol.frame-too-long",
                f"A frame announces {length} bytes; the limit is {self.body_bytes_max}.",
                "Split the request, or stay under the limit that the hello settled.",
            )
        known = _TYPES.get(type_)
        if known is None:
            raise FrameError("protocol.unknown-type", f"There is no frame type {type_}.")
        if reserved != 0:
            raise FrameError("protocol.malformed", "Bytes 10 and 11 of a header must be zero.")
        return known, length, stream


def decode_body(data: bytes) -> dict[str, Any]:
    """The map in `data`. Raises `FrameError` for anything that the format does not allow."""
    body = _decode_shortest(data)
    return _decode_any(data) if body is None else body


def _decode_shortest(data: bytes) -> dict[str, Any] | None:
    """The same for most of what is allowed, at a third of the cost; for anything else None.

    A value is at least a byte, so that a short body has not too many. The decoder is one that
    takes the same key twice; but what its value would be written as has each key once.
    """
    if len(data) > limits.BODY_ELEMENTS_MAX:
        return None
    try:
        body: dict[str, Any] = msgspec.msgpack.decode(data)
        if msgspec.msgpack.encode(body) != data:
            return None
        _check_values(body)
    except (FrameError, ValueError, TypeError, OverflowError, RecursionError):
        return None
    return body


def _decode_any(data: bytes) -> dict[str, Any]:
    """However the values are written, and with a reason for what is not allowed."""
    budget = _Budget()
    try:
        body = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            ext_hook=_refuse_extension,
            object_pairs_hook=budget.take_map,
            list_hook=budget.take_array,
        )
    except (ValueError, TypeError, RecursionError) as error:
        reason = f"The body is not msgpack: {_reason(error)}."
        raise FrameError("protocol.malformed", reason) from error
    _check_values(body)
    checked: dict[str, Any] = body
    return checked


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).rstrip(".")


def _refuse_extension(code: int, data: bytes) -> Any:
    raise _extension(code)


def _extension(code: int) -> FrameError:
    return FrameError("protocol.malformed", f"The body has an extension type ({code}).")


class _Budget:
    """Stops the unpacking itself at the limit of values: 4 MiB of empty arrays are four million
    objects, and checking them afterwards would be too late for the memory and the time."""

    def __init__(self) -> None:
        self._left = limits.BODY_ELEMENTS_MAX
        self._containers_left = limits.BODY_ELEMENTS_MAX + 1  # the outermost is not counted

    def _take(self, values: int) -> None:
        self._left -= values
        self._containers_left -= 1
        if self._left < 0 or self._containers_left < 0:
            raise _too_many()

    def take_array(self, values: list[Any]) -> list[Any]:
        self._take(len(values))
        return values

    def take_map(self, pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
        self._take(len(pairs))
        map_ = dict(pairs)
        if len(map_) != len(pairs):
            raise FrameError("protocol.malformed", "A map has the same key twice.")
        return map_


def _too_many() -> FrameError:
    return FrameError("protocol.malformed", f"The body has over {limits.BODY_ELEMENTS_MAX} values.")


def _check_values(body: Any) -> None:
    """The rules that msgpack does not know: a map, string keys, finite floats, depth and number.

    Infinity is refused with NaN: neither survives the JSON of the journal and of `--json`.
    """
    if not isinstance(body, dict):
        raise FrameError("protocol.malformed", f"The body is a {type(body).__name__}, not a map.")
    containers: list[Any] = [body]
    total = 0
    for _ in range(limits.BODY_DEPTH_MAX):
        nested: list[Any] = []
        for container in containers:
            total += len(container)
            values = container
            if isinstance(container, dict):
                values = container.values()
                for key in container:
                    if type(key) is not str:
                        raise FrameError("protocol.malformed", f"The map key {key!r} is no string.")
            for value in values:
                kind = type(value)
                if kind in _PLAIN:
                    continue
                if kind is dict or kind is list or _is_nested(value):
                    nested.append(value)
        if total > limits.BODY_ELEMENTS_MAX:
            raise _too_many()
        if not nested:
            return
        containers = nested
    raise FrameError("protocol.malformed", f"The body nests over {limits.BODY_DEPTH_MAX} levels.")


_PLAIN: Final = frozenset({str, int, bytes, bool, type(None)})
"""What most values are, so that most are looked at once."""


def _is_nested(value: Any) -> bool:
    if isinstance(value, float) and not math.isfinite(value):
        raise FrameError("protocol.malformed", "The body has a float that is not finite.")
    if isinstance(value, _EXTENSIONS):
        raise _extension(-1)  # the one extension that msgpack does not ask its hook about
    return isinstance(value, (dict, list, tuple))


_EXTENSIONS: Final = (msgpack.Timestamp, datetime.datetime, msgspec.msgpack.Ext)
"""What the two decoders make of them."""
