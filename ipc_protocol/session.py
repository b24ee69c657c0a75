"""The state machine of one connection, for either end. Bytes in, events out; no socket, no clock.

Theory of operation. Both ends say HELLO once: the initiator first, the acceptor in reply. From then
on either end opens streams with REQUEST: the initiator's ids are odd, the acceptor's even, each
larger than the one before. A stream carries any number of ITEMs from the one who was asked, then
exactly one RESULT or ERROR. The one who asked may send CANCEL; the stream still ends with a RESULT
or an ERROR. GOODBYE announces an orderly end: no new streams, open ones finish.

`SESSION` and `STREAM` of `states` are the whole of it: a pair that is not in them is a violation.
Beside them stands one rule: an ERROR on stream 0 is the peer's last word and ends the session.
`Session.receive` never raises for what the peer does: it returns a `Failed` event with the reason
and the bytes to send before hanging up. Misuse by this program raises `LocalProtocolError`.
"""

from typing import Any

import msgspec

from ipc_protocol import limits
from ipc_protocol.errors import LocalProtocolError, Problem
from ipc_protocol.events import (
    CancelReceived,
    ErrorReceived,
    Event,
    Failed,
    GoodbyeReceived,
    Hello,
    ItemReceived,
    Opened,
    Request,
    RequestReceived,
    ResultReceived,
    Settled,
    settle,
)
from ipc_protocol.frames import (
    STREAM_MAX,
    Frame,
    FrameDecoder,
    FrameError,
    FrameType,
    encode,
    typed,
)
from ipc_protocol.states import SESSION, STREAM, SessionState, StreamState


class _Violation(Exception):
    def __init__(self, code: str, message: str, cure: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.cure = cure


class _Refusal(Exception):
    """The peer gave the whole connection up, and said why."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem


class Session:
    """One end of a connection. `initiator` is the end that connected, and greets first."""

    def __init__(self, hello: Hello, *, initiator: bool) -> None:
        self._hello = hello
        self._decoder = FrameDecoder(hello.limits.body_bytes_max)
        self._state = SessionState.GREETING
        self._greeted = False
        self._departing = False
        self._initiator = initiator
        self._settled: Settled | None = None
        self._next_stream = 1 if initiator else 2
        self._highest_from_peer = 0
        self._ours: dict[int, StreamState] = {}
        self._theirs: dict[int, StreamState] = {}

    # -- what the shell asks

    @property
    def state(self) -> SessionState:
        return self._state

    @property
    def settled(self) -> Settled:
        """Raises `LocalProtocolError` before the hello is settled."""
        if self._settled is None:
            raise LocalProtocolError("The hello is not settled yet.")
        return self._settled

    @property
    def idle(self) -> bool:
        """No stream is open in either direction."""
        return not self._ours and not self._theirs

    @property
    def may_request(self) -> bool:
        """Neither end is leaving, and the peer takes one more request."""
        return (
            self._greeted
            and self._state is SessionState.OPEN
            and not self._departing
            and len(self._ours) < self.settled.limits.streams_max
        )

    @property
    def talking(self) -> bool:
        """Frames other than the hello may be sent: the greeting is over and nothing has failed."""
        return self._greeted and self._state in (SessionState.OPEN, SessionState.LEAVING)

    @property
    def may_say_goodbye(self) -> bool:
        return self.talking and not self._departing

    def is_withdrawn(self, stream: int) -> bool:
        """The peer no longer wants the answer that `stream` waits for."""
        return self._theirs.get(stream) is StreamState.CANCELLING

    # -- bytes in

    def receive(self, data: bytes) -> list[Event]:
        """The events that `data` brings, in order. After a `Failed` there are no more."""
        events: list[Event] = []
        if self._state is SessionState.FAILED:
            return events
        try:
            for frame in self._decoder.feed(data):
                event = self._on_frame(frame)
                if event is not None:
                    events.append(event)
        except _Refusal as refusal:
            # An error frame is the last thing said, except to somebody who has just said one.
            self._state = SessionState.FAILED
            events.append(Failed(problem=refusal.problem))
        except (FrameError, _Violation) as error:
            events.append(self._fail(error.code, str(error), error.cure))
        except msgspec.ValidationError as error:
            events.append(self._fail("protocol.malformed", f"{error}."))
        return events

    def receive_end(self) -> list[Event]:
        """The peer closed its end. Empty when it left in order, between frames."""
        if self._state is SessionState.FAILED:
            return []
        orderly = self._state is SessionState.LEAVING and self.idle
        truncated = self._decoder.pending_bytes
        self._state = SessionState.FAILED
        if orderly and not truncated:
            return []
        message = (
            f"The connection ended {truncated} bytes into a frame."
            if truncated
            else "The peer hung up."
        )
        return [Failed(problem=Problem(code="protocol.closed", message=message))]

    def hello_timed_out(self) -> Failed:
        """The shell's clock ran out while the session was greeting."""
        return self._fail(
            "protocol.hello-timeout",
            f"No hello came within {limits.HELLO_SECONDS_MAX} s.",
            "Send HELLO as the first frame, as soon as the connection stands.",
        )

    def _on_frame(self, frame: Frame) -> Event | None:
        if frame.type is FrameType.ERROR and frame.stream == 0:
            raise _Refusal(typed(frame.body, Problem))
        after = SESSION.get((self._state, frame.type))
        if after is None:
            raise _Violation(
                "protocol.sequence", f"A {frame.type.name} frame came while {self._state.value}."
            )
        if frame.stream != 0 and frame.type in (FrameType.HELLO, FrameType.GOODBYE):
            raise _Violation("protocol.sequence", f"A {frame.type.name} frame belongs to stream 0.")
        event = _READERS[frame.type](self, frame)
        self._state = after
        return event

    def _on_hello(self, frame: Frame) -> Event:
        self._settled = settle(self._hello, typed(frame.body, Hello))
        self._decoder.body_bytes_max = self._settled.limits.body_bytes_max
        return Opened(settled=self._settled)

    def _on_request(self, frame: Frame) -> Event:
        if not self._is_of_peer(frame.stream) or frame.stream <= self._highest_from_peer:
            raise _Violation(
                "protocol.sequence",
                f"Stream {frame.stream} is not the peer's to open: its ids are "
                f"{'even' if self._initiator else 'odd'} and rise; the last was "
                f"{self._highest_from_peer}.",
            )
        if len(self._theirs) >= self.settled.limits.streams_max:
            raise _Violation(
                "protocol.too-many-streams",
                f"Over {self.settled.limits.streams_max} requests are under way.",
                "Wait for answers before asking more.",
            )
        request: Request = typed(frame.body, Request)
        self._highest_from_peer = frame.stream
        self._theirs[frame.stream] = StreamState.OPEN
        return RequestReceived(stream=frame.stream, request=request)

    def _on_item(self, frame: Frame) -> Event:
        self._advance(self._ours, frame)
        return ItemReceived(stream=frame.stream, value=frame.body)

    def _on_result(self, frame: Frame) -> Event:
        self._advance(self._ours, frame)
        return ResultReceived(stream=frame.stream, value=frame.body)

    def _on_error(self, frame: Frame) -> Event:
        problem: Problem = typed(frame.body, Problem)
        self._advance(self._ours, frame)
        return ErrorReceived(stream=frame.stream, problem=problem)

    def _on_cancel(self, frame: Frame) -> Event | None:
        was_open = self._is_of_peer(frame.stream) and frame.stream <= self._highest_from_peer
        if was_open and frame.stream not in self._theirs:
            return None  # the answer and the cancellation crossed on the way
        self._advance(self._theirs, frame)
        return CancelReceived(stream=frame.stream)

    def _on_goodbye(self, frame: Frame) -> Event:
        return GoodbyeReceived()

    def _is_of_peer(self, stream: int) -> bool:
        """The initiator's ids are odd, the acceptor's even; 0 is nobody's."""
        return stream > 0 and (stream % 2 == 1) is not self._initiator

    def _advance(self, streams: dict[int, StreamState], frame: Frame) -> None:
        before = streams.get(frame.stream)
        after = None if before is None else STREAM.get((before, frame.type))
        if after is None:
            where = "that is not open" if before is None else f"that is {before.value}"
            raise _Violation(
                "protocol.sequence",
                f"A {frame.type.name} frame came on stream {frame.stream} {where}.",
            )
        _move(streams, frame.stream, after)

    def _fail(self, code: str, message: str, cure: str = "") -> Failed:
        problem = _shortened(Problem(code=code, message=message, cure=cure))
        self._state = SessionState.FAILED
        return Failed(problem=problem, farewell=encode(FrameType.ERROR, 0, problem))

    # -- frames out

    def hello(self) -> bytes:
        if self._greeted:
            raise LocalProtocolError("A session says hello once.")
        self._greeted = True
        return encode(FrameType.HELLO, 0, self._hello)

    def request(self, method: str, params: msgspec.Struct) -> tuple[int, bytes]:
        """Open a stream. Returns its id and the frame. Raises `FrameError` when it is too long."""
        self._require_open()
        if not self.may_request:
            raise LocalProtocolError("No further stream may be opened.")
        stream = self._next_stream
        if stream > STREAM_MAX - 2:
            raise LocalProtocolError("The stream ids of this connection are used up.")
        data = self._encode(FrameType.REQUEST, stream, {"method": method, "params": params})
        self._next_stream += 2
        self._ours[stream] = StreamState.OPEN
        return stream, data

    def item(self, stream: int, value: msgspec.Struct) -> bytes:
        return self._answer(FrameType.ITEM, stream, value)

    def result(self, stream: int, value: msgspec.Struct) -> bytes:
        return self._answer(FrameType.RESULT, stream, value)

    def error(self, stream: int, problem: Problem) -> bytes:
        """Never fails for what the problem says: one that cannot be sent whole is shortened."""
        try:
            return self._answer(FrameType.ERROR, stream, problem)
        except FrameError:
            return self._answer(FrameType.ERROR, stream, _shortened(problem))

    def cancel(self, stream: int) -> bytes:
        """Withdraw a request; empty when its answer is already here or it was withdrawn before."""
        self._require_open()
        if self._ours.get(stream) is not StreamState.OPEN:
            return b""
        self._ours[stream] = StreamState.CANCELLING
        return encode(FrameType.CANCEL, stream, {})

    def goodbye(self) -> bytes:
        """Announce the orderly end: no new streams from here, and the open ones finish."""
        self._require_open()
        if self._departing:
            raise LocalProtocolError("A session says goodbye once.")
        self._departing = True
        return encode(FrameType.GOODBYE, 0, {})

    def _answer(self, type_: FrameType, stream: int, value: msgspec.Struct) -> bytes:
        self._require_open()
        before = self._theirs.get(stream)
        after = None if before is None else STREAM.get((before, type_))
        if after is None:
            raise LocalProtocolError(f"Stream {stream} does not wait for a {type_.name}.")
        data = self._encode(type_, stream, value)
        _move(self._theirs, stream, after)
        return data

    def _encode(
        self, type_: FrameType, stream: int, body: msgspec.Struct | dict[str, Any]
    ) -> bytes:
        data = encode(type_, stream, body)
        if len(data) - limits.HEADER_BYTES > self.settled.limits.body_bytes_max:
            raise FrameError(
                "protocol.frame-too-long",
                f"A body of {len(data) - limits.HEADER_BYTES} bytes is over the "
                f"{self.settled.limits.body_bytes_max} that the hello settled.",
            )
        return data

    def _require_open(self) -> None:
        if not self.talking:
            raise LocalProtocolError(
                f"The session is {self._state.value}{'' if self._greeted else ', without a hello'}."
            )


def _shortened(problem: Problem) -> Problem:
    return Problem(
        code=_sendable(problem.code),
        message=_sendable(problem.message),
        cure=_sendable(problem.cure),
    )


def _sendable(text: str) -> str:
    """The beginning of `text`, without the lone surrogates that UTF-8 cannot say."""
    return text[: limits.SENTENCE_CHARACTERS_MAX].encode(errors="replace").decode()


def _move(streams: dict[int, StreamState], stream: int, state: StreamState) -> None:
    if state is StreamState.CLOSED:
        del streams[stream]
    else:
        streams[stream] = state


_READERS = {
    FrameType.HELLO: Session._on_hello,
    FrameType.REQUEST: Session._on_request,
    FrameType.ITEM: Session._on_item,
    FrameType.RESULT: Session._on_result,
    FrameType.ERROR: Session._on_error,
    FrameType.CANCEL: Session._on_cancel,
    FrameType.GOODBYE: Session._on_goodbye,
}
