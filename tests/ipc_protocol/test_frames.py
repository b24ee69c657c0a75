"""The decoder: every case is fed whole, byte by byte, and with bytes of another frame behind it."""

import math
import struct
from collections.abc import Callable, Iterable
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc_protocol import limits
from ipc_protocol.frames import (
    HEADER,
    VERSION,
    Frame,
    FrameDecoder,
    FrameError,
    FrameType,
    _decode_any,
    _decode_shortest,
    decode_body,
    encode,
    typed,
)

NEXT = encode(FrameType.GOODBYE, 0, {})

Cut = Callable[[bytes], Iterable[bytes]]
FEEDING: dict[str, Cut] = {
    "whole": lambda data: [data],
    "byte by byte": lambda data: [data[at : at + 1] for at in range(len(data))],
    "with trailing bytes": lambda data: [data + NEXT[:9]],
}


@pytest.fixture(params=list(FEEDING.values()), ids=list(FEEDING))
def cut(request: pytest.FixtureRequest) -> Cut:
    chosen: Cut = request.param
    return chosen


def read(decoder: FrameDecoder, pieces: Iterable[bytes]) -> list[Frame]:
    return [frame for piece in pieces for frame in decoder.feed(piece)]


def raw(body: bytes, *, type_: int = 2, stream: int = 1, reserved: int = 0) -> bytes:
    return HEADER.pack(VERSION, len(body), type_, reserved, stream) + body


def refusal(pieces: Iterable[bytes]) -> FrameError:
    decoder = FrameDecoder()
    with pytest.raises(FrameError) as caught:
        read(decoder, pieces)
    with pytest.raises(FrameError, match=r"."):
        list(decoder.feed(NEXT))  # a decoder that has failed takes nothing more
    return caught.value


def nested(levels: int, innermost: Any) -> dict[str, Any]:
    body: Any = innermost
    for _ in range(levels):
        body = {"in": body}
    assert isinstance(body, dict)
    return body


# ---- What is right ------------------------------------------------------------------------------


@pytest.mark.parametrize("type_", FrameType)
def test_a_frame_of_every_type_comes_out_as_it_went_in(type_: FrameType, cut: Cut) -> None:
    body = {"text": "ä", "bytes": b"\xff\x00", "list": [1, -1, None, True, 0.5], "map": {"": {}}}
    assert read(FrameDecoder(), cut(encode(type_, 7, body))) == [Frame(type_, 7, body)]


def test_nothing_comes_out_before_the_last_byte() -> None:
    data = encode(FrameType.RESULT, 3, {"a": "b"})
    decoder = FrameDecoder()
    for at in range(len(data) - 1):
        assert list(decoder.feed(data[at : at + 1])) == []
        assert decoder.pending_bytes == at + 1
    assert len(list(decoder.feed(data[-1:]))) == 1
    assert decoder.pending_bytes == 0


def test_frames_that_arrive_together_come_out_in_order() -> None:
    data = b"".join(encode(FrameType.ITEM, stream, {"n": stream}) for stream in (1, 3, 5))
    decoder = FrameDecoder()
    assert [frame.stream for frame in decoder.feed(data + NEXT[:9])] == [1, 3, 5]
    assert decoder.pending_bytes == 9


def test_the_largest_stream_id_fits_the_header(cut: Cut) -> None:
    (frame,) = read(FrameDecoder(), cut(encode(FrameType.ITEM, 2**32 - 1, {})))
    assert frame.stream == 2**32 - 1


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(min_value=-(2**63), max_value=2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(
    st.lists(st.dictionaries(st.text(), values, max_size=4), max_size=4),
    st.lists(st.integers(min_value=1, max_value=40), min_size=1),
)
def test_any_bodies_in_any_pieces_come_out_as_they_went_in(
    bodies: list[dict[str, Any]], sizes: list[int]
) -> None:
    data = b"".join(encode(FrameType.ITEM, 1, body) for body in bodies)
    pieces, at, turn = [], 0, 0
    while at < len(data):
        pieces.append(data[at : at + sizes[turn % len(sizes)]])
        at, turn = at + len(pieces[-1]), turn + 1
    assert [frame.body for frame in read(FrameDecoder(), pieces)] == bodies


odd_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(width=32)
    | st.text(max_size=3)
    | st.binary(max_size=3)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=4))
    | st.just(msgpack.Timestamp(1)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=2) | st.integers(-9, 9), inner, max_size=3)
    ),
    max_leaves=8,
)
odd_bodies = st.builds(
    lambda body, single: msgpack.packb(body, use_single_float=single),
    st.dictionaries(st.text(max_size=2), odd_values, max_size=3) | odd_values,
    st.booleans(),
).filter(bool)


@given(odd_bodies | st.binary(max_size=12).map(lambda data: b"\x82" + data))
def test_what_the_quick_decoder_takes_the_thorough_one_takes_for_the_same(data: bytes) -> None:
    quick = _decode_shortest(data)
    if quick is not None:
        assert repr(quick) == repr(_decode_any(data))


LONGER = {
    "a number in more bytes than it needs": (b"\x81\xa1a\xcd\x00\x01", {"a": 1}),
    "a float of four bytes": (b"\x81\xa1a\xca\x3f\x80\x00\x00", {"a": 1.0}),
    "a long form of a short text": (b"\x81\xd9\x01a\x01", {"a": 1}),
    "a long form of a short map": (b"\xde\x00\x01\xa1a\x01", {"a": 1}),
    "a long form of a short array": (b"\x81\xa1a\xdd\x00\x00\x00\x01\x01", {"a": [1]}),
    "more bytes than there may be values": (
        msgpack.packb({"a": bytes(limits.BODY_ELEMENTS_MAX)}),
        {"a": bytes(limits.BODY_ELEMENTS_MAX)},
    ),
}


@pytest.mark.parametrize(("body", "value"), LONGER.values(), ids=LONGER.keys())
def test_a_body_may_be_written_at_length(body: bytes, value: dict[str, Any]) -> None:
    assert _decode_shortest(body) is None
    assert decode_body(body) == value


# ---- A wrong header -----------------------------------------------------------------------------

HEADERS = {
    "another version": (HEADER.pack(b"AGD\x02", 1, 2, 0, 1), "protocol.version"),
    "another protocol": (b"GET / HTTP/1.1\r\n", "protocol.version"),
    "one byte over the limit": (
        HEADER.pack(VERSION, limits.FRAME_BODY_BYTES_MAX + 1, 2, 0, 1),
        "protocol.frame-too-long",
    ),
    "the largest length there is": (
        HEADER.pack(VERSION, 2**32 - 1, 2, 0, 1),
        "protocol.frame-too-long",
    ),
    "type zero": (HEADER.pack(VERSION, 1, 0, 0, 1), "protocol.unknown-type"),
    "an unknown type": (HEADER.pack(VERSION, 1, 8, 0, 1), "protocol.unknown-type"),
    "reserved bytes": (HEADER.pack(VERSION, 1, 2, 1, 1), "protocol.malformed"),
}


@pytest.mark.parametrize(("header", "code"), HEADERS.values(), ids=HEADERS.keys())
def test_a_wrong_header_is_refused_before_its_body_arrives(
    header: bytes, code: str, cut: Cut
) -> None:
    assert refusal(cut(header)).code == code


def test_the_limit_is_the_one_that_was_settled(cut: Cut) -> None:
    decoder = FrameDecoder(body_bytes_max=10)
    assert len(read(decoder, [raw(msgpack.packb({"a": "123456"}))])) == 1
    with pytest.raises(FrameError, match="announces 11 bytes; the limit is 10") as caught:
        read(decoder, cut(raw(msgpack.packb({"a": "1234567"}))[:16]))
    assert caught.value.code == "protocol.frame-too-long"
    assert caught.value.cure


def test_frames_before_a_wrong_one_are_still_delivered() -> None:
    frames = FrameDecoder().feed(NEXT + HEADERS["reserved bytes"][0])
    assert next(frames).type is FrameType.GOODBYE
    with pytest.raises(FrameError):
        next(frames)


# ---- A wrong body -------------------------------------------------------------------------------

EVIL = limits.BODY_ELEMENTS_MAX + 1


def array(count: int, items: bytes) -> bytes:
    return b"\x81\xa1a\xdd" + struct.pack(">I", count) + items


BODIES = {
    "an empty body": (b"", "not msgpack"),
    "a byte that msgpack never uses": (b"\xc1", "not msgpack"),
    "a body cut short": (b"\x81\xa1a", "not msgpack: .*incomplete"),
    "a text cut short": (b"\x81\xa1a\xd9\x05abc", "not msgpack"),
    "bytes behind the map": (b"\x80\x80", "not msgpack: .*extra data"),
    "an array": (b"\x90", "is a list, not a map"),
    "a text": (b"\xa1a", "is a str, not a map"),
    "nil": (b"\xc0", "is a NoneType, not a map"),
    "an extension": (msgpack.packb({"a": msgpack.ExtType(5, b"x")}), r"extension type \(5\)"),
    "a timestamp": (msgpack.packb({"a": msgpack.Timestamp(1)}), r"extension type \(-1\)"),
    "a long timestamp": (msgpack.packb({"a": [msgpack.Timestamp(2**40, 1)]}), "extension type"),
    "an extension as the body": (msgpack.packb(msgpack.ExtType(5, b"x")), "extension type"),
    "a timestamp as the body": (msgpack.packb(msgpack.Timestamp(1)), "not a map"),
    "a timestamp as a key": (b"\x81\xd6\xff\x00\x00\x00\x01\x01", "not msgpack"),
    "the same key twice": (b"\x82\xa1a\x01\xa1a\x02", "same key twice"),
    "the same key twice, deep inside": (b"\x81\xa1m\x91\x82\xa1a\x01\xa1a\x01", "same key twice"),
    "a number as a key": (b"\x81\x01\x02", "map key"),
    "nil as a key": (b"\x81\xc0\x02", "map key"),
    "bytes as a key": (b"\x81\xc4\x01a\x02", "map key b'a' is no string"),
    "bytes as a key, deep inside": (b"\x81\xa1a\x91\x81\xc4\x01a\x02", "map key b'a'"),
    "text that is not UTF-8": (b"\x81\xa1a\xa1\xff", "not msgpack: .*utf-8"),
    "half a surrogate pair": (b"\x81\xa1a\xa3\xed\xa0\x80", "not msgpack: .*utf-8"),
    "not a number": (msgpack.packb({"a": math.nan}), "not finite"),
    "not a number, nested": (msgpack.packb({"a": [1.0, {"b": math.nan}]}), "not finite"),
    "a signalling NaN": (b"\x81\xa1a\xca\x7f\xa0\x00\x00", "not finite"),
    "infinity": (msgpack.packb({"a": math.inf}), "not finite"),
    "infinity, nested and negative": (msgpack.packb({"a": {"b": [-math.inf]}}), "not finite"),
    "one level too many": (msgpack.packb(nested(limits.BODY_DEPTH_MAX + 1, 1)), "nests over 32"),
    "more levels than msgpack takes": (b"\x81\xa1a" + b"\x91" * 5000 + b"\x90", "StackError"),
    "one value too many in an array": (array(EVIL, b"\xc0" * EVIL), "over 131072 values"),
    "one value too many in a map": (
        msgpack.packb({str(key): 0 for key in range(EVIL)}),
        "over 131072 values",
    ),
    "one value too many in many arrays": (
        array(EVIL // 2, b"\x91\xc0" * (EVIL // 2)),
        "over 131072 values",
    ),
    "empty arrays without end": (array(4_000_000, b"\x90" * 4_000_000), "over 131072 values"),
    "empty maps without end": (array(4_000_000, b"\x80" * 4_000_000), "over 131072 values"),
    "an array that lies about its length": (array(2**32 - 1, b""), "not msgpack"),
}


@pytest.mark.parametrize(("body", "reason"), BODIES.values(), ids=BODIES.keys())
def test_a_malformed_body_is_refused(body: bytes, reason: str, cut: Cut) -> None:
    if len(body) > 2**20:
        cut = FEEDING["whole"]  # the same bytes one by one say nothing more
    error = refusal(cut(raw(body)))
    assert error.code == "protocol.malformed"
    with pytest.raises(FrameError, match=reason):
        decode_body(body)


def test_a_body_is_not_looked_at_before_it_is_complete() -> None:
    assert list(FrameDecoder().feed(raw(b"\xc1" * 100)[:-1])) == []


def test_the_deepest_body_that_is_allowed_holds_values_on_its_last_level() -> None:
    deepest = nested(limits.BODY_DEPTH_MAX, 1)
    assert decode_body(msgpack.packb(deepest)) == deepest
    with pytest.raises(FrameError, match="nests over"):
        decode_body(msgpack.packb(nested(limits.BODY_DEPTH_MAX, {})))


def test_the_fullest_body_that_is_allowed_has_every_value_counted_once() -> None:
    pairs = limits.BODY_ELEMENTS_MAX // 2
    body = {"a": [[0]] * (pairs - 1) + [0]}
    assert decode_body(msgpack.packb(body)) == body
    with pytest.raises(FrameError, match="over 131072 values"):
        decode_body(msgpack.packb({"a": [[0]] * pairs}))


# ---- What is sent obeys the same rules ----------------------------------------------------------


class Thing(msgspec.Struct):
    pair: tuple[int, int]
    blob: bytes


def test_a_struct_is_sent_as_a_map_with_its_bytes_as_they_are(cut: Cut) -> None:
    (frame,) = read(FrameDecoder(), cut(encode(FrameType.ITEM, 1, Thing((1, 2), b"\xff"))))
    assert frame.body == {"pair": [1, 2], "blob": b"\xff"}


UNSENDABLE = {
    "not a number": ({"a": math.nan}, "not finite"),
    "infinity": ({"a": (1, -math.inf)}, "not finite"),
    "an integer over 64 bits": ({"a": 2**64}, "cannot be written as msgpack"),
    "half a surrogate pair": ({"a": "\udc80"}, "cannot be written as msgpack"),
    "an object": ({"a": object()}, "cannot be written as msgpack"),
    "a key that is no string": ({"a": {1: 2}}, "map key 1 is no string"),
    "too deep": (nested(limits.BODY_DEPTH_MAX + 1, 1), "nests over"),
    "too many": ({"a": [0] * EVIL}, "over 131072 values"),
    "not a map": (["a"], "is a list, not a map"),
}


@pytest.mark.parametrize(("body", "reason"), UNSENDABLE.values(), ids=UNSENDABLE.keys())
def test_what_the_peer_would_refuse_is_not_sent(body: Any, reason: str) -> None:
    with pytest.raises(FrameError, match=reason) as caught:
        encode(FrameType.ITEM, 1, body)
    assert caught.value.code == "protocol.malformed"


def test_a_body_over_the_limit_is_not_sent() -> None:
    fits = {"a": b"x" * (limits.FRAME_BODY_BYTES_MAX - 8)}
    assert len(encode(FrameType.ITEM, 1, fits)) == HEADER.size + limits.FRAME_BODY_BYTES_MAX
    with pytest.raises(FrameError, match="4194305 bytes is over the limit") as caught:
        encode(FrameType.ITEM, 1, {"a": fits["a"] + b"x"})
    assert caught.value.code == "protocol.frame-too-long"


def test_text_is_not_taken_for_bytes() -> None:
    with pytest.raises(
        msgspec.ValidationError, match=r"Expected `bytes`, got `str` - at `\$.blob`"
    ):
        typed({"pair": [1, 2], "blob": "aGk="}, Thing)
