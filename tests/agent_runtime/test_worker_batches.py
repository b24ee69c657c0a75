"""Several deliveries in one request: what comes together, and what an end in the middle leaves."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
import wat_components as wat
from deliveries import handle, profile, travelling
from test_worker import RESULTS, finish
from worker_peer import SETTING, Orchestrator

from agent_runtime import worker as worker_module
from agent_runtime.echo import ECHO_TOPICS_MAX
from agent_runtime.gathering import GATHERED_BYTES_MAX, GATHERED_MAX
from agent_runtime.wire import BlockingLine
from agent_runtime.worker import Worker
from ipc_protocol.errors import Failure
from ipc_protocol.events import (
    CancelReceived,
    ErrorReceived,
    Event,
    Hello,
    ItemReceived,
    ResultReceived,
)
from ipc_protocol.frames import typed
from ipc_protocol.methods import WORKER_HANDLE, WORKER_START
from ipc_protocol.work import (
    Completion,
    ComponentStart,
    Delivery,
    Done,
    Note,
    Outgoing,
    Work,
    WorkerStart,
)


def messages(*numbers: int, text: str = "97", must_take: bool = True) -> list[Delivery]:
    return [travelling(handle(text, must_take=must_take), number) for number in numbers]


def numbers_of(done: list[Done]) -> list[int]:
    return [finished.delivery for item in done for finished in item.finished]


@pytest.fixture
def echo(orchestrator: Orchestrator) -> Orchestrator:
    orchestrator.start(profile(), echo=[])
    return orchestrator


# ---- Echo ----------------------------------------------------------------------------------------


def test_an_echo_answers_a_batch_with_one_item(echo: Orchestrator) -> None:
    stream = echo.handle(*messages(1, 2, 3))
    done = echo.done(stream)
    assert [finished.delivery for finished in done] == [1, 2, 3]
    assert [finished.completion for finished in done] == 3 * [
        Completion(outcome="acted", reason="echo")
    ]
    echo.ended(stream)


def test_an_echo_says_what_it_got_on_each_of_its_topics(orchestrator: Orchestrator) -> None:
    orchestrator.start(profile(), echo=["a", "b"])
    outputs = orchestrator.completion(orchestrator.handle(*messages(1, text="hear"))).outputs
    assert outputs == [Outgoing(topic="a", payload=b"hear"), Outgoing(topic="b", payload=b"hear")]


def test_an_echo_on_too_many_topics_does_not_start(orchestrator: Orchestrator) -> None:
    event = orchestrator.start(profile(), echo=["x"] * (ECHO_TOPICS_MAX + 1))
    assert isinstance(event, ErrorReceived) and event.problem.code == "request.invalid"
    problem = orchestrator.problem(orchestrator.handle(*messages(1)))
    assert WORKER_START.name in problem.cure


def test_an_echo_opens_no_file_and_imports_nothing(echo: Orchestrator) -> None:
    echo.completion(echo.handle(*messages(1)))
    echo.sock.close()
    assert echo.exit() == (0, "")


# ---- What goes together --------------------------------------------------------------------------


def test_a_batch_of_nothing_is_answered_at_once(echo: Orchestrator) -> None:
    echo.ended(echo.handle())


def test_a_frame_takes_so_many_completions(echo: Orchestrator) -> None:
    stream = echo.handle(*messages(*range(1, GATHERED_MAX + 3)))
    assert [finished.delivery for finished in echo.done(stream)] == [*range(1, GATHERED_MAX + 1)]
    assert [finished.delivery for finished in echo.done(stream)] == [
        GATHERED_MAX + 1,
        GATHERED_MAX + 2,
    ]
    echo.ended(stream)


def test_a_frame_takes_so_many_bytes(orchestrator: Orchestrator) -> None:
    orchestrator.start(profile(), echo=["a"])
    text = "x" * (GATHERED_BYTES_MAX // 2)
    stream = orchestrator.handle(*messages(1, 2, 3, text=text))
    assert [finished.delivery for finished in orchestrator.done(stream)] == [1, 2]
    assert [finished.delivery for finished in orchestrator.done(stream)] == [3]
    orchestrator.ended(stream)


def test_requests_that_wait_are_served_in_their_order(echo: Orchestrator) -> None:
    streams = [echo.handle(*messages(number)) for number in range(1, 9)]
    for stream in streams:
        echo.completion(stream)


def test_what_is_finished_is_told_before_an_effect_is_asked_for(
    orchestrator: Orchestrator,
) -> None:
    orchestrator.start(profile())
    stream = orchestrator.handle(*messages(11, 12))
    for result in RESULTS:
        asked, request = orchestrator.effect()
        assert request.delivery == 11
        orchestrator.result(asked, result)
    (finished,) = orchestrator.done(stream)
    assert finished.delivery == 11
    asked, request = orchestrator.effect()
    assert (request.delivery, request.step) == (12, 1)
    assert isinstance(request.effect, Note)
    orchestrator.result(asked, RESULTS[0])
    for result in RESULTS[1:]:
        asked, _ = orchestrator.effect()
        orchestrator.result(asked, result)
    (finished,) = orchestrator.done(stream)
    assert finished.delivery == 12
    orchestrator.ended(stream)


# ---- An end in the middle ------------------------------------------------------------------------


def test_an_effect_that_is_refused_ends_the_batch_at_its_delivery(
    orchestrator: Orchestrator,
) -> None:
    orchestrator.start(profile())
    stream = orchestrator.handle(*messages(11, 12, 13))
    for result in RESULTS:
        asked, _ = orchestrator.effect()
        orchestrator.result(asked, result)
    (finished,) = orchestrator.done(stream)
    assert finished.delivery == 11
    asked, _ = orchestrator.effect()
    refused = Failure("journal.mismatch", "Entry 1 is another effect.", step=1).problem
    orchestrator.line.send(orchestrator.line.session.error(asked, refused))
    problem = orchestrator.problem(stream)
    assert problem.code == "journal.mismatch"
    assert problem.details == {"step": 1, "delivery": 12}
    # Nothing of those behind it is left over.
    finish(orchestrator, orchestrator.handle(*messages(14)))


def test_a_withdrawn_batch_is_dropped_at_the_delivery_in_hand(orchestrator: Orchestrator) -> None:
    orchestrator.start(profile())
    stream = orchestrator.handle(*messages(11, 12))
    asked, _ = orchestrator.effect()
    orchestrator.cancel(stream)
    assert orchestrator.event() == CancelReceived(stream=asked)
    problem = orchestrator.problem(stream)
    assert (problem.code, problem.details) == ("request.cancelled", {"delivery": 11})
    finish(orchestrator, orchestrator.handle(*messages(13)))


@contextlib.contextmanager
def with_component(handle: str) -> Iterator[Orchestrator]:
    """An agent whose component does that with each message, and asks for nothing."""
    orchestrator = Orchestrator(wat.agent(handle=handle))
    try:
        component = ComponentStart(sha256="", config=b"replies", grants=[])
        assert isinstance(orchestrator.start(profile(), component=component), ResultReceived)
        yield orchestrator
    finally:
        orchestrator.close()


def test_the_completions_of_a_component_go_together() -> None:
    with with_component(wat.ECHO) as orchestrator:
        stream = orchestrator.handle(*messages(11, 12, 13))
        done = orchestrator.done(stream)
        assert [finished.delivery for finished in done] == [11, 12, 13]
        for finished in done:
            assert finished.completion.outputs == [Outgoing(topic="replies", payload=b"97")]
            assert finished.completion.usage is not None
        orchestrator.ended(stream)


def test_a_trap_ends_the_batch_and_the_worker_says_which_delivery_it_was() -> None:
    with with_component(wat.trap_on(3)) as orchestrator:
        stream = orchestrator.handle(*messages(11, 12, 13, 14))
        assert [finished.delivery for finished in orchestrator.done(stream)] == [11, 12]
        problem = orchestrator.problem(stream)
        assert problem.code == "component.trapped"
        assert problem.details["delivery"] == 13
        assert "backtrace" in problem.details
        status, _ = orchestrator.exit()
        assert status == 1


def test_a_message_that_its_component_refuses_ends_the_batch_but_not_the_worker() -> None:
    second = "(i32.eq (global.get $count) (i32.const 2))"
    refusing = f"(if (result i32) {second} (then {wat.refuse('no')}) (else {wat.ECHO}))"
    with with_component(refusing) as orchestrator:
        stream = orchestrator.handle(*messages(11, 12, 13))
        assert [finished.delivery for finished in orchestrator.done(stream)] == [11]
        problem = orchestrator.problem(stream)
        assert (problem.code, problem.details) == ("component.refused", {"delivery": 12})
        assert orchestrator.completion(orchestrator.handle(*messages(13))).outcome == "acted"


# ---- Between quick deliveries --------------------------------------------------------------------


class Clock:
    """Each time that it is asked it is later by as much as is between two looks at the line."""

    def __init__(self) -> None:
        self.asked = 0
        self.when: dict[int, Callable[[], object]] = {}
        """What happens just before it is asked for the time the so manieth time."""

    def monotonic(self) -> float:
        self.asked += 1
        self.when.get(self.asked, lambda: None)()
        return self.asked * worker_module.GLANCE_SECONDS


class Line:
    """The other end of a worker that runs in a thread, on a clock that the test moves."""

    def __init__(self, sock: socket.socket, clock: Clock) -> None:
        self.clock = clock
        self._line = BlockingLine(sock, Hello(name="orchestrator"), initiator=True)
        self._events: list[Event] = []
        self.event()
        self.request(WORKER_START.name, WorkerStart(profile=profile(), echo=[]))
        self.event()

    def event(self) -> Event:
        while not self._events:
            self._events.extend(self._line.receive())
        return self._events.pop(0)

    def request(self, method: str, params: Work | WorkerStart) -> int:
        stream, data = self._line.session.request(method, params)
        self._line.send(data)
        return stream

    def work(self, *numbers: int) -> int:
        work = Work(setting=SETTING, deliveries=messages(*numbers))
        return self.request(WORKER_HANDLE.name, work)

    def cancel(self, stream: int) -> None:
        self._line.send(self._line.session.cancel(stream))

    def until_end(self, stream: int) -> tuple[list[Done], Event]:
        """The items of a stream, and what ended it."""
        done: list[Done] = []
        while isinstance(event := self.event(), ItemReceived):
            assert event.stream == stream
            done.append(typed(event.value, Done))
        return done, event

    def close(self) -> None:
        self._line.close()


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    clock = Clock()
    monkeypatch.setattr(worker_module, "time", clock)
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    thread = threading.Thread(target=Worker(theirs).run)
    thread.start()
    line = Line(ours, clock)
    yield line
    line.close()
    thread.join(10)
    assert not thread.is_alive()


def test_a_cancellation_is_noticed_between_two_deliveries(line: Line) -> None:
    stream = 3  # the next one of the initiator's
    # It looks before each delivery, and asks for the time twice for each: at the fifth asking the
    # first two are done.
    line.clock.when = {5: lambda: line.cancel(stream)}
    assert line.work(11, 12, 13, 14) == stream
    done, end = line.until_end(stream)
    assert numbers_of(done) == [11, 12]
    assert isinstance(end, ErrorReceived)
    assert (end.problem.code, end.problem.details) == ("request.cancelled", {"delivery": 13})
    # The worker goes on with what comes next.
    done, end = line.until_end(line.work(13, 14))
    assert numbers_of(done) == [13, 14]
    assert end == ResultReceived(stream=5, value={})


def test_a_cancellation_after_the_last_delivery_changes_nothing(line: Line) -> None:
    stream = 3
    line.clock.when = {4: lambda: line.cancel(stream)}
    line.work(11, 12)
    done, end = line.until_end(stream)
    assert numbers_of(done) == [11, 12]
    assert isinstance(end, ResultReceived)
    assert numbers_of(line.until_end(line.work(13))[0]) == [13]


def test_a_request_that_comes_between_two_deliveries_waits_its_turn(line: Line) -> None:
    line.clock.when = {3: lambda: line.work(21)}
    first = line.work(11, 12)
    done, _ = line.until_end(first)
    assert numbers_of(done) == [11, 12]
    done, _ = line.until_end(first + 2)
    assert numbers_of(done) == [21]


def test_a_request_that_is_withdrawn_while_another_is_handled_is_answered_at_once(
    line: Line,
) -> None:
    waiting = 5
    line.clock.when = {3: lambda: line.work(21), 5: lambda: line.cancel(waiting)}
    first = line.work(11, 12, 13, 14)
    end = line.event()
    assert isinstance(end, ErrorReceived) and end.stream == waiting
    assert (end.problem.code, end.problem.details) == ("request.cancelled", {})
    assert numbers_of(line.until_end(first)[0]) == [11, 12, 13, 14]


def test_no_completion_waits_longer_than_a_moment(line: Line) -> None:
    stream = line.work(*range(1, 26))
    done, _ = line.until_end(stream)
    # Each takes two thousandths of a second of this clock, and the first may wait for 20 of them.
    assert [len(item.finished) for item in done] == [11, 11, 3]


def test_a_peer_that_leaves_in_the_middle_is_not_waited_for(line: Line) -> None:
    line.clock.when = {3: line.close}
    line.work(11, 12)
