"""Whatever the peer sends, a session answers with events: nothing is ever raised out of it."""

import msgpack
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc_protocol.errors import Problem
from ipc_protocol.events import Failed, Hello, Request
from ipc_protocol.frames import HEADER, VERSION, FrameDecoder, FrameType, encode
from ipc_protocol.inference import Nothing
from ipc_protocol.session import Session
from ipc_protocol.states import SessionState

CONVERSATION = b"".join(
    [
        encode(FrameType.HELLO, 0, Hello(name="peer", features=["a"])),
        encode(FrameType.REQUEST, 1, Request(method="ctl.ask", params={"text": "disk is full"})),
        encode(FrameType.REQUEST, 3, Request(method="ctl.watch")),
        encode(FrameType.CANCEL, 3, {}),
        encode(FrameType.ITEM, 2, {"n": [1, 2.5, None, {"deep": b"\x00"}]}),
        encode(FrameType.RESULT, 2, {"text": "yes"}),
        encode(FrameType.ERROR, 4, Problem(code="tool.failed", message="No.")),
        encode(FrameType.GOODBYE, 0, {}),
    ]
)
"""What a peer may say to the session of `fresh` without a fault."""


def fresh() -> Session:
    session = Session(Hello(name="fuzzed"), initiator=False)
    session.hello()
    return session


def asking() -> Session:
    """After its own greeting, with two requests of its own under way."""
    session = fresh()
    session.receive(encode(FrameType.HELLO, 0, Hello(name="peer")))
    session.request("test.one", Nothing())
    session.request("test.two", Nothing())
    return session


def feed(session: Session, data: bytes, piece: int) -> None:
    """Feeds `data` in pieces, and checks what must hold whatever it was."""
    failures = 0
    for at in range(0, len(data), piece):
        for event in session.receive(data[at : at + piece]):
            assert not failures, "nothing comes after a failure"
            if isinstance(event, Failed):
                failures += 1
                frames = list(FrameDecoder().feed(event.farewell))
                assert len(frames) <= 1
                assert all(frame.type is FrameType.ERROR for frame in frames)
    assert (session.state is SessionState.FAILED) == bool(failures)
    session.receive_end()
    assert session.state is SessionState.FAILED
    assert session.receive(data) == []


pieces = st.integers(min_value=1, max_value=200)


def test_the_conversation_that_is_mutated_is_a_valid_one() -> None:
    session = asking()
    events = session.receive(CONVERSATION[CONVERSATION.index(VERSION, 1) :])
    assert not any(isinstance(event, Failed) for event in events)
    assert len(events) == 7


@given(st.binary(max_size=200), pieces)
def test_random_bytes_never_raise(data: bytes, piece: int) -> None:
    feed(fresh(), data, piece)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(FrameType) | st.integers(0, 9),
            st.integers(0, 6),
            st.sampled_from([0, 0, 0, 1]),
            st.binary(max_size=40),
        ),
        max_size=6,
    ),
    pieces,
)
def test_valid_headers_around_random_bodies_never_raise(
    frames: list[tuple[int, int, int, bytes]], piece: int
) -> None:
    data = b"".join(
        HEADER.pack(VERSION, len(body), type_, reserved, stream) + body
        for type_, stream, reserved, body in frames
    )
    feed(asking(), data, piece)


json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=4)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5) | st.integers(-9, 9), inner, max_size=3)
    ),
    max_leaves=8,
)
fields = st.dictionaries(
    st.sampled_from(
        ["name", "features", "limits", "method", "params", "code", "message", "cure", "details"]
    )
    | st.text(max_size=3),
    json,
    max_size=5,
)


@given(
    st.lists(st.tuples(st.sampled_from(FrameType), st.integers(0, 6), fields), max_size=8), pieces
)
def test_well_formed_frames_of_any_content_in_any_order_never_raise(
    frames: list[tuple[FrameType, int, dict[str, object]]], piece: int
) -> None:
    data = b""
    for type_, stream, body in frames:
        packed: bytes = msgpack.packb(body, unicode_errors="surrogatepass")
        data += HEADER.pack(VERSION, len(packed), type_, 0, stream) + packed
    feed(fresh(), data, piece)
    feed(asking(), data, piece)


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["flip", "drop", "insert", "repeat", "cut"]),
            st.integers(0, len(CONVERSATION) - 1),
            st.integers(0, 255),
        ),
        min_size=1,
        max_size=6,
    ),
    pieces,
)
def test_mutated_conversations_never_raise(
    mutations: list[tuple[str, int, int]], piece: int
) -> None:
    data = bytearray(CONVERSATION)
    for kind, position, value in mutations:
        at = position % max(len(data), 1)
        match kind:
            case "flip" if data:
                data[at] ^= value or 1
            case "drop":
                del data[at : at + value % 20]
            case "insert":
                data[at:at] = bytes([value]) * (value % 7)
            case "repeat":
                data[at:at] = data[at : at + value]
            case "cut":
                del data[at:]
    feed(fresh(), bytes(data), piece)
    feed(asking(), bytes(data), piece)
