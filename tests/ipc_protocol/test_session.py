"""The session: both tables over their full product, and what each end may not do."""

from dataclasses import dataclass
from itertools import product
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc_protocol import limits
from ipc_protocol.errors import Failure, LocalProtocolError, Problem
from ipc_protocol.events import (
    CancelReceived,
    ErrorReceived,
    Event,
    Failed,
    GoodbyeReceived,
    Hello,
    ItemReceived,
    Limits,
    Opened,
    Request,
    RequestReceived,
    ResultReceived,
    settle,
)
from ipc_protocol.frames import HEADER, VERSION, FrameDecoder, FrameError, FrameType, encode
from ipc_protocol.inference import Nothing
from ipc_protocol.limits import BODY_BYTES_MIN
from ipc_protocol.session import Session
from ipc_protocol.states import SESSION, STREAM, SessionState, StreamState

NOTHING = Nothing()


class Text(msgspec.Struct):
    text: str


def hello(name: str = "peer", **bounds: int) -> Hello:
    return Hello(name=name, limits=Limits(**bounds))


def opened(*, initiator: bool = True, ours: Hello | None = None, **theirs: int) -> Session:
    """A session whose greeting is over, at one end; the other end is the test."""
    session = Session(ours or hello("ours"), initiator=initiator)
    session.hello()
    (event,) = session.receive(encode(FrameType.HELLO, 0, hello("theirs", **theirs)))
    assert isinstance(event, Opened)
    return session


@dataclass(frozen=True)
class Pair:
    initiator: Session
    acceptor: Session


def pair(ours: Hello | None = None, theirs: Hello | None = None) -> Pair:
    both = Pair(
        Session(ours or hello("initiator"), initiator=True),
        Session(theirs or hello("acceptor"), initiator=False),
    )
    both.acceptor.receive(both.initiator.hello())
    both.initiator.receive(both.acceptor.hello())
    return both


def only(events: list[Event]) -> Event:
    (event,) = events
    return event


def violation(session: Session, data: bytes) -> Problem:
    """What the session says to `data`: it fails, tells the peer so, and takes nothing more."""
    event = session.receive(data)[-1]
    assert isinstance(event, Failed)
    assert session.state is SessionState.FAILED
    (frame,) = FrameDecoder().feed(event.farewell)
    assert (frame.type, frame.stream) == (FrameType.ERROR, 0)
    assert frame.body == msgspec.to_builtins(event.problem)
    assert session.receive(encode(FrameType.GOODBYE, 0, {})) == []
    assert session.receive_end() == []
    return event.problem


def body_of(type_: FrameType) -> dict[str, Any]:
    return {
        FrameType.HELLO: {"name": "peer"},
        FrameType.REQUEST: {"method": "test.echo"},
        FrameType.ERROR: {"code": "request.internal", "message": "No."},
    }.get(type_, {})


# ---- The tables ---------------------------------------------------------------------------------

ALIVE = [SessionState.GREETING, SessionState.OPEN, SessionState.LEAVING]


@pytest.mark.parametrize(
    ("state", "type_"), list(product(ALIVE, FrameType)), ids=lambda value: value.name.lower()
)
def test_a_session_takes_exactly_the_frames_of_its_table(
    state: SessionState, type_: FrameType
) -> None:
    session = Session(hello(), initiator=True)
    session.hello()
    if state is not SessionState.GREETING:
        session.receive(encode(FrameType.HELLO, 0, hello()))
        session.request("test.echo", NOTHING)  # stream 1, for ITEM, RESULT and ERROR
        session.receive(encode(FrameType.REQUEST, 2, Request(method="test.echo")))  # for CANCEL
    if state is SessionState.LEAVING:
        session.receive(encode(FrameType.GOODBYE, 0, {}))
    assert session.state is state
    stream = {FrameType.HELLO: 0, FrameType.GOODBYE: 0, FrameType.CANCEL: 2, FrameType.REQUEST: 4}
    data = encode(type_, stream.get(type_, 1), body_of(type_))
    after = SESSION.get((state, type_))
    if after is None:
        problem = violation(session, data)
        assert problem.code == "protocol.sequence"
        assert problem.message == f"A {type_.name} frame came while {state.value}."
    else:
        assert not isinstance(only(session.receive(data)), Failed)
        assert session.state is after


def test_a_failed_session_is_in_no_row_of_the_table() -> None:
    assert not [row for row in SESSION if row[0] is SessionState.FAILED]
    assert SessionState.FAILED not in SESSION.values()


ANSWERS = [FrameType.ITEM, FrameType.RESULT, FrameType.ERROR]


def our_stream(state: StreamState) -> Session:
    session = opened()
    session.request("test.echo", NOTHING)
    if state is StreamState.CANCELLING:
        assert session.cancel(1)
    if state is StreamState.CLOSED:
        session.receive(encode(FrameType.RESULT, 1, {}))
    return session


@pytest.mark.parametrize(
    ("state", "type_"), list(product(StreamState, ANSWERS)), ids=lambda value: value.name.lower()
)
def test_a_stream_takes_exactly_the_answers_of_its_table(
    state: StreamState, type_: FrameType
) -> None:
    session = our_stream(state)
    data = encode(type_, 1, body_of(type_))
    after = STREAM.get((state, type_))
    if after is None:
        assert violation(session, data).code == "protocol.sequence"
    else:
        event = only(session.receive(data))
        assert isinstance(event, ItemReceived | ResultReceived | ErrorReceived)
        assert session.idle is (after is StreamState.CLOSED)


def their_stream(state: StreamState) -> Session:
    session = opened(initiator=False)
    session.receive(encode(FrameType.REQUEST, 1, Request(method="test.echo")))
    if state is StreamState.CANCELLING:
        session.receive(encode(FrameType.CANCEL, 1, {}))
    if state is StreamState.CLOSED:
        session.result(1, NOTHING)
    return session


@pytest.mark.parametrize("state", StreamState)
def test_a_stream_takes_a_cancellation_by_its_table_or_after_its_answer(state: StreamState) -> None:
    session = their_stream(state)
    events = session.receive(encode(FrameType.CANCEL, 1, {}))
    if state is StreamState.OPEN:
        assert events == [CancelReceived(stream=1)]
        assert session.is_withdrawn(1)
    elif state is StreamState.CLOSED:
        assert events == []  # answer and cancellation crossed on the way
        assert session.state is SessionState.OPEN
    else:
        assert isinstance(only(events), Failed)


@pytest.mark.parametrize(
    ("state", "type_"), list(product(StreamState, ANSWERS)), ids=lambda value: value.name.lower()
)
def test_a_stream_is_answered_exactly_as_its_table_allows(
    state: StreamState, type_: FrameType
) -> None:
    session = their_stream(state)

    def answer() -> bytes:
        if type_ is FrameType.ITEM:
            return session.item(1, Text("an item"))
        if type_ is FrameType.RESULT:
            return session.result(1, Text("the result"))
        return session.error(1, Problem(code="request.internal", message="No."))

    if (state, type_) in STREAM:
        (frame,) = FrameDecoder().feed(answer())
        assert (frame.type, frame.stream) == (type_, 1)
        assert session.idle is (STREAM[state, type_] is StreamState.CLOSED)
    else:
        with pytest.raises(LocalProtocolError, match="does not wait for"):
            answer()


def test_the_tables_have_no_row_beyond_what_was_tested() -> None:
    assert {type_ for _, type_ in STREAM} == {*ANSWERS, FrameType.CANCEL}
    assert {state for state, type_ in STREAM if type_ is FrameType.CANCEL} == {StreamState.OPEN}


# ---- The hello ----------------------------------------------------------------------------------


def test_the_hello_settles_common_features_and_the_smaller_limits() -> None:
    one = Hello(
        name="one", features=["b", "a", "x"], limits=Limits(body_bytes_max=9000, streams_max=9)
    )
    two = Hello(
        name="two", features=["y", "a", "b"], limits=Limits(body_bytes_max=10_000, streams_max=3)
    )
    settled = settle(one, two)
    assert settled.peer == "two"
    assert settled.features == ["a", "b"]
    assert settled.limits == Limits(body_bytes_max=9000, streams_max=3)
    assert settle(two, one).limits == settled.limits


def test_both_ends_settle_the_same() -> None:
    both = pair(hello("one", streams_max=5), hello("two", body_bytes_max=20_000))
    assert both.initiator.settled.limits == both.acceptor.settled.limits
    assert both.initiator.settled.peer == "two"
    assert both.acceptor.settled.peer == "one"


def test_frames_behind_the_hello_are_taken_in_the_same_breath() -> None:
    session = Session(hello(), initiator=False)
    request = encode(FrameType.REQUEST, 1, Request(method="test.echo"))
    events = session.receive(encode(FrameType.HELLO, 0, hello("theirs")) + request)
    assert [type(event) for event in events] == [Opened, RequestReceived]


def test_the_settled_limit_holds_from_the_first_frame_behind_the_hello() -> None:
    session = Session(hello(body_bytes_max=BODY_BYTES_MIN), initiator=False)
    request = encode(FrameType.REQUEST, 1, Request(method="m", params={"a": b"x" * BODY_BYTES_MIN}))
    problem = violation(session, encode(FrameType.HELLO, 0, hello()) + request)
    assert problem.code == "protocol.frame-too-long"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": 7},
        {"name": "x" * 201},
        {"name": "a", "features": [1]},
        {"name": "a", "limits": {"streams_max": 0}},
        {"name": "a", "limits": {"body_bytes_max": BODY_BYTES_MIN - 1}},
        {"name": "a", "limits": {"body_bytes_max": -1}},
    ],
)
def test_a_hello_that_cannot_be_kept_is_refused(body: dict[str, Any]) -> None:
    session = Session(hello(), initiator=False)
    assert violation(session, encode(FrameType.HELLO, 0, body)).code == "protocol.malformed"


def test_a_hello_of_a_later_release_may_say_more() -> None:
    session = Session(hello(), initiator=False)
    body = {"name": "later", "limits": {"more": 1}, "colour": "red"}
    assert isinstance(only(session.receive(encode(FrameType.HELLO, 0, body))), Opened)


def test_no_hello_in_time_fails_the_session() -> None:
    session = Session(hello(), initiator=False)
    failed = session.hello_timed_out()
    assert failed.problem.code == "protocol.hello-timeout"
    assert failed.problem.cure
    assert failed.farewell
    assert session.receive(encode(FrameType.HELLO, 0, hello())) == []


# ---- The peer's faults --------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [0, 2, 4], ids="stream {}".format)
def test_an_initiator_opens_only_odd_streams(stream: int) -> None:
    session = opened(initiator=False)
    request = encode(FrameType.REQUEST, stream, Request(method="test.echo"))
    assert "its ids are odd" in violation(session, request).message


@pytest.mark.parametrize("stream", [0, 1, 3], ids="stream {}".format)
def test_an_acceptor_opens_only_even_streams(stream: int) -> None:
    session = opened(initiator=True)
    request = encode(FrameType.REQUEST, stream, Request(method="test.echo"))
    assert "its ids are even" in violation(session, request).message


@pytest.mark.parametrize("stream", [1, 3, 5], ids="stream {}".format)
def test_stream_ids_only_rise(stream: int) -> None:
    session = opened(initiator=False)
    session.receive(encode(FrameType.REQUEST, 5, Request(method="test.echo")))
    session.result(5, NOTHING)
    problem = violation(session, encode(FrameType.REQUEST, stream, Request(method="test.echo")))
    assert problem.code == "protocol.sequence"
    assert "the last was 5" in problem.message


def test_stream_ids_may_leave_gaps() -> None:
    session = opened(initiator=False)
    for stream in (1, 9, 2**32 - 1):
        event = only(session.receive(encode(FrameType.REQUEST, stream, Request(method="m"))))
        assert event == RequestReceived(stream=stream, request=Request(method="m"))


def test_more_requests_than_settled_end_the_connection() -> None:
    session = opened(initiator=False, streams_max=2)
    for stream in (1, 3):
        session.receive(encode(FrameType.REQUEST, stream, Request(method="m")))
    session.result(1, NOTHING)
    session.receive(encode(FrameType.REQUEST, 5, Request(method="m")))
    problem = violation(session, encode(FrameType.REQUEST, 7, Request(method="m")))
    assert problem.code == "protocol.too-many-streams"
    assert problem.cure


def test_a_cancelled_request_counts_until_it_is_answered() -> None:
    session = opened(initiator=False, streams_max=1)
    session.receive(encode(FrameType.REQUEST, 1, Request(method="m")))
    session.receive(encode(FrameType.CANCEL, 1, {}))
    problem = violation(session, encode(FrameType.REQUEST, 3, Request(method="m")))
    assert problem.code == "protocol.too-many-streams"


@pytest.mark.parametrize("stream", [0, 2, 3], ids="stream {}".format)
def test_a_cancellation_of_what_was_never_asked_is_a_violation(stream: int) -> None:
    session = opened(initiator=False)
    session.request("test.echo", NOTHING)  # stream 2 is this end's own
    session.receive(encode(FrameType.REQUEST, 1, Request(method="m")))
    assert violation(session, encode(FrameType.CANCEL, stream, {})).code == "protocol.sequence"


@pytest.mark.parametrize("type_", [FrameType.HELLO, FrameType.GOODBYE])
def test_frames_of_the_session_itself_belong_to_stream_0(type_: FrameType) -> None:
    session = Session(hello(), initiator=False)
    if type_ is FrameType.GOODBYE:
        session = opened(initiator=False)
    problem = violation(session, encode(type_, 1, body_of(type_)))
    assert problem.message == f"A {type_.name} frame belongs to stream 0."


@pytest.mark.parametrize(
    ("type_", "body"),
    [
        (FrameType.REQUEST, {}),
        (FrameType.REQUEST, {"method": 1}),
        (FrameType.REQUEST, {"method": "m", "params": []}),
    ],
)
def test_a_body_of_the_wrong_shape_is_malformed(type_: FrameType, body: dict[str, Any]) -> None:
    problem = violation(opened(initiator=False), encode(type_, 1, body))
    assert problem.code == "protocol.malformed"
    assert "$" in problem.message or "method" in problem.message


def test_an_error_without_a_code_is_malformed() -> None:
    session = our_stream(StreamState.OPEN)
    assert violation(session, encode(FrameType.ERROR, 1, {})).code == "protocol.malformed"


def test_a_broken_frame_fails_the_session_after_the_events_before_it() -> None:
    session = opened(initiator=False)
    request = encode(FrameType.REQUEST, 1, Request(method="m"))
    events = session.receive(request + b"not a frame at all")
    assert [type(event) for event in events] == [RequestReceived, Failed]


def test_what_the_peer_wrote_is_not_thrown_back_at_it_in_full() -> None:
    body: bytes = msgpack.packb({b"x" * 100_000: 1})
    data = HEADER.pack(VERSION, len(body), FrameType.REQUEST, 0, 1) + body
    assert len(violation(opened(initiator=False), data).message) == 500


# ---- The peer's last word -----------------------------------------------------------------------


@pytest.mark.parametrize("state", ALIVE)
def test_an_error_on_stream_0_is_the_last_word_in_any_state(state: SessionState) -> None:
    session = Session(hello(), initiator=True)
    session.hello()
    if state is not SessionState.GREETING:
        session.receive(encode(FrameType.HELLO, 0, hello()))
    if state is SessionState.LEAVING:
        session.receive(encode(FrameType.GOODBYE, 0, {}))
    problem = Problem(code="protocol.version", message="Another.", cure="Update.", details={"v": 2})
    event = only(session.receive(encode(FrameType.ERROR, 0, problem)))
    assert event == Failed(problem=problem, farewell=b"")  # and gets no answer
    assert session.state is SessionState.FAILED


def test_a_last_word_that_says_nothing_is_malformed() -> None:
    session = Session(hello(), initiator=True)
    assert violation(session, encode(FrameType.ERROR, 0, {})).code == "protocol.malformed"


# ---- The end ------------------------------------------------------------------------------------


def test_after_the_goodbye_open_streams_finish() -> None:
    both = pair()
    stream, request = both.initiator.request("test.echo", NOTHING)
    both.acceptor.receive(request)
    assert only(both.acceptor.receive(both.initiator.goodbye())) == GoodbyeReceived()
    both.initiator.receive(both.acceptor.goodbye())
    result = both.acceptor.result(stream, Text("done"))
    assert only(both.initiator.receive(result)) == ResultReceived(
        stream=stream, value={"text": "done"}
    )
    assert both.initiator.receive_end() == []
    assert both.acceptor.receive_end() == []


def test_a_request_that_crossed_our_goodbye_is_still_taken() -> None:
    both = pair()
    _, request = both.initiator.request("test.echo", NOTHING)
    both.acceptor.goodbye()
    assert isinstance(only(both.acceptor.receive(request)), RequestReceived)


def test_hanging_up_without_a_goodbye_is_a_failure() -> None:
    session = opened()
    (failed,) = session.receive_end()
    assert failed == Failed(problem=Problem(code="protocol.closed", message="The peer hung up."))


def test_hanging_up_with_open_streams_is_a_failure_in_spite_of_the_goodbye() -> None:
    session = our_stream(StreamState.OPEN)
    session.receive(encode(FrameType.GOODBYE, 0, {}))
    assert len(session.receive_end()) == 1


def test_hanging_up_inside_a_frame_says_so() -> None:
    session = opened()
    session.receive(encode(FrameType.GOODBYE, 0, {}) + b"AGD")
    (failed,) = session.receive_end()
    assert isinstance(failed, Failed)
    assert failed.problem.message == "The connection ended 3 bytes into a frame."


# ---- Misuse by this end -------------------------------------------------------------------------


def test_nothing_but_the_hello_is_said_before_the_hello() -> None:
    session = Session(hello(), initiator=True)
    for misuse in (lambda: session.request("m", NOTHING), session.goodbye, lambda: session.settled):
        with pytest.raises(LocalProtocolError):
            misuse()
    session.receive(encode(FrameType.HELLO, 0, hello()))
    with pytest.raises(LocalProtocolError, match="open, without a hello"):
        session.request("m", NOTHING)


def test_a_session_says_hello_once() -> None:
    session = opened()
    with pytest.raises(LocalProtocolError):
        session.hello()


def test_a_session_says_goodbye_once() -> None:
    session = opened()
    assert session.may_say_goodbye
    session.goodbye()
    assert not session.may_say_goodbye
    with pytest.raises(LocalProtocolError):
        session.goodbye()


def test_no_stream_is_opened_after_our_goodbye() -> None:
    session = opened()
    session.goodbye()
    assert not session.may_request
    with pytest.raises(LocalProtocolError):
        session.request("m", NOTHING)


def test_no_stream_is_opened_after_the_peers_goodbye() -> None:
    session = opened()
    session.receive(encode(FrameType.GOODBYE, 0, {}))
    assert not session.may_request
    with pytest.raises(LocalProtocolError):
        session.request("m", NOTHING)


def test_no_more_streams_are_opened_than_the_hello_settled() -> None:
    session = opened(streams_max=2)
    session.request("m", NOTHING)
    assert session.may_request
    session.request("m", NOTHING)
    assert not session.may_request
    with pytest.raises(LocalProtocolError):
        session.request("m", NOTHING)
    session.receive(encode(FrameType.RESULT, 1, {}))
    assert session.request("m", NOTHING)[0] == 5


def test_a_failed_session_says_nothing_more() -> None:
    session = their_stream(StreamState.OPEN)
    session.receive(b"not a frame at all")
    for misuse in (
        lambda: session.request("m", NOTHING),
        lambda: session.result(1, NOTHING),
        lambda: session.cancel(1),
        session.goodbye,
    ):
        with pytest.raises(LocalProtocolError, match="failed"):
            misuse()


def test_a_stream_that_was_never_opened_is_not_answered() -> None:
    with pytest.raises(LocalProtocolError, match="Stream 9"):
        opened(initiator=False).result(9, NOTHING)


def test_the_last_stream_ids_are_not_reused() -> None:
    session = opened()
    session._next_stream = 2**32 - 1
    with pytest.raises(LocalProtocolError, match="used up"):
        session.request("m", NOTHING)


def test_withdrawing_twice_or_too_late_says_nothing() -> None:
    session = our_stream(StreamState.OPEN)
    assert session.cancel(1)
    assert session.cancel(1) == b""
    assert our_stream(StreamState.CLOSED).cancel(1) == b""


# ---- The peer's limits --------------------------------------------------------------------------


def test_a_request_over_the_peers_limit_is_not_sent_and_takes_no_stream() -> None:
    session = opened(body_bytes_max=BODY_BYTES_MIN)
    with pytest.raises(FrameError, match="over the 8192 that the hello settled") as caught:
        session.request("m", Text("x" * BODY_BYTES_MIN))
    assert caught.value.code == "protocol.frame-too-long"
    assert session.idle
    assert session.request("m", NOTHING)[0] == 1


def test_a_result_over_the_peers_limit_leaves_the_stream_to_an_error() -> None:
    session = opened(initiator=False, body_bytes_max=BODY_BYTES_MIN)
    session.receive(encode(FrameType.REQUEST, 1, Request(method="m")))
    with pytest.raises(FrameError):
        session.result(1, Text("x" * BODY_BYTES_MIN))
    assert session.error(1, Problem(code="protocol.frame-too-long", message="Too long."))


@pytest.mark.parametrize(
    "problem",
    [
        Problem(
            code="tool.failed", message="\N{PILE OF POO}" * 9000, cure="\N{PILE OF POO}" * 9000
        ),
        Problem(code="tool.failed", message="short", details={"all": "x" * 9000}),
        Problem(code="tool.failed", message="half a pair: \udc80", cure="Look."),
        Problem(code="tool.failed", message="strange", details={"what": object()}),
    ],
)
def test_an_error_always_reaches_a_peer_with_the_least_limit(problem: Problem) -> None:
    session = opened(initiator=False, body_bytes_max=BODY_BYTES_MIN)
    session.receive(encode(FrameType.REQUEST, 1, Request(method="m")))
    (frame,) = FrameDecoder(BODY_BYTES_MIN).feed(session.error(1, problem))
    assert frame.body["code"] == "tool.failed"
    assert frame.body["message"].startswith(problem.message[:5])
    assert session.idle


# ---- Errors as values ---------------------------------------------------------------------------


def test_a_failure_reads_as_its_sentence_and_its_cure() -> None:
    failure = Failure("store.full", "The disk is full.", "Make room.", free_bytes=0)
    assert str(failure) == "The disk is full. Make room."
    assert failure.code == "store.full"
    assert failure.problem.details == {"free_bytes": 0}


def test_a_failure_needs_a_code_of_the_protocol() -> None:
    with pytest.raises(AssertionError):
        Failure("no.such-code", "?")


def test_a_problem_of_a_later_release_is_a_failure_too() -> None:
    failure = Failure.of(Problem(code="later.code", message="New."))
    assert failure.code == "later.code"
    assert str(failure) == "New."


# ---- Two ends -----------------------------------------------------------------------------------


@given(st.data())
def test_two_ends_that_follow_the_rules_never_fail(data: st.DataObject) -> None:
    both = pair()
    ends = {"initiator": both.initiator, "acceptor": both.acceptor}
    wire: dict[str, list[bytes]] = {"initiator": [], "acceptor": []}
    asked: dict[str, set[int]] = {"initiator": set(), "acceptor": set()}
    open_: dict[str, set[int]] = {"initiator": set(), "acceptor": set()}
    for _ in range(data.draw(st.integers(1, 40))):
        name = data.draw(st.sampled_from(sorted(ends)))
        other = "acceptor" if name == "initiator" else "initiator"
        match data.draw(st.sampled_from(["request", "item", "result", "cancel", "deliver"])):
            case "request":
                stream, frame = ends[name].request("m", NOTHING)
                asked[name].add(stream)
                wire[other].append(frame)
            case "item" if open_[name]:
                stream = data.draw(st.sampled_from(sorted(open_[name])))
                wire[other].append(ends[name].item(stream, NOTHING))
            case "result" if open_[name]:
                stream = data.draw(st.sampled_from(sorted(open_[name])))
                open_[name].remove(stream)
                wire[other].append(ends[name].result(stream, NOTHING))
            case "cancel" if asked[name]:
                stream = data.draw(st.sampled_from(sorted(asked[name])))
                wire[other].append(ends[name].cancel(stream))
            case "deliver" if wire[name]:
                for event in ends[name].receive(wire[name].pop(0)):
                    assert not isinstance(event, Failed), event
                    if isinstance(event, RequestReceived):
                        open_[name].add(event.stream)


def test_the_limits_of_the_protocol_are_those_of_an_empty_hello() -> None:
    assert Hello(name="").limits == Limits(
        body_bytes_max=limits.FRAME_BODY_BYTES_MAX, streams_max=limits.STREAMS_MAX
    )
