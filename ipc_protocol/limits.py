"""Every bound of the protocol, each with the sum or the reason behind it.

Sizes are bytes, times are seconds unless the name ends in another unit.
"""

from typing import Final

HEADER_BYTES: Final = 16
"""version (4) + length (4) + type (2) + reserved (2) + stream (4)."""

PAYLOAD_BYTES_MAX: Final = 256 * 1024
"""The largest message an agent may publish: a page of text many times over, and small enough that
an inbox of 64 of them fits into 16 MiB."""

FRAME_BODY_BYTES_MAX: Final = 4 * 1024 * 1024
"""One body. Holds a full inbox read of 8 payloads of the largest size with room for their
envelopes, or the vectors of 2,048 texts at 256 dimensions of 4 bytes."""

assert FRAME_BODY_BYTES_MAX >= 8 * PAYLOAD_BYTES_MAX

ECHO_TOPICS_MAX: Final = (FRAME_BODY_BYTES_MAX - 1024 * 1024) // PAYLOAD_BYTES_MAX
"""Topics on which an agent of the brain *echo* says again what it got: so that the largest payload,
once for each of them, fits into one frame with all around it."""

BODY_DEPTH_MAX: Final = 32
"""Nesting of maps and arrays. A JSON Schema inside a request is the deepest thing that is sent:
ten levels of schema cost twenty of nesting."""

BODY_ELEMENTS_MAX: Final = 131_072
"""Values in one body. A decoder spends about 1 µs on each, so that a hostile body
costs 0.13 s at most."""

STREAMS_MAX: Final = 1024
"""Requests under way on one connection in one direction: two hundred agents with a few each."""

STREAM_ITEMS_MAX: Final = 256
"""Items of one streamed response held for a slow reader before the connection stops reading."""

FORK_TOKEN_BYTES: Final = 8
"""What pairs a request for a worker with the datagram of its descriptors: a counter, big-endian."""

HELLO_SECONDS_MAX: Final = 2.0
"""A peer that has not said hello by then is not a peer. A loaded machine answers in 50 ms."""

WRITE_HIGH_WATER_BYTES: Final = 1024 * 1024
WRITE_LOW_WATER_BYTES: Final = 256 * 1024
"""A writer waits above the high mark until the transport has drained to the low one: a quarter of
the largest frame stays queued, so the socket never runs dry while the writer wakes up."""

WRITE_TOGETHER_BYTES_MAX: Final = 64 * 1024
"""Frames that wait for the end of a turn of the loop, to be sent together: beyond this a system
call costs what its bytes cost. Those that the transport still holds are counted with them."""

assert WRITE_TOGETHER_BYTES_MAX <= WRITE_LOW_WATER_BYTES  # else both marks would be crossed at once

SOCKET_READ_BYTES: Final = 256 * 1024
"""One read: a full kernel buffer of a Unix socket (208 KiB by default)."""

BODY_BYTES_MIN: Final = 8 * 1024
"""The least body that an end must accept: every error fits, with room for its cure."""

SENTENCE_CHARACTERS_MAX: Final = 500
"""What is kept of a sentence and of a cure where the whole error would not fit."""

assert BODY_BYTES_MIN >= 2 * 4 * SENTENCE_CHARACTERS_MAX + 1024  # 4 bytes each, and the names

WRITE_BYTES_MAX: Final = WRITE_HIGH_WATER_BYTES + 2 * FRAME_BODY_BYTES_MAX
"""What is kept for a peer that does not read: the high mark, the frame that crossed it, and as much
again of errors and cancellations, which do not wait for their turn."""

CLOSE_SECONDS_MAX: Final = 1.0
"""How long a closing connection waits for the peer to take what was written."""
