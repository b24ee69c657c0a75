"""A worker in its own process, over a real socket pair."""

import socket

import pytest
from deliveries import ANSWER, FINISH, READ_DISK, REFLECTION, handle, profile, travelling
from worker_peer import Orchestrator

from agent_runtime.loop import LOOP_VERSION
from agent_runtime.worker import Worker, worker_main
from ipc_protocol.errors import Failure
from ipc_protocol.events import CancelReceived, Failed, ResultReceived
from ipc_protocol.frames import FrameType, encode
from ipc_protocol.inference import Nothing
from ipc_protocol.methods import WORKER_HANDLE, WORKER_START
from ipc_protocol.work import (
    EffectResult,
    Infer,
    Note,
    Noted,
    Recall,
    Recalled,
    ToolResult,
    UseTool,
)

RESULTS: list[EffectResult] = [
    Noted(),
    Recalled(memories=[]),
    READ_DISK,
    ToolResult(ok=True, output="/ is 97% full"),
    FINISH,
    ANSWER,
    REFLECTION,
]
WANTED = travelling(handle(must_take=True))


def finish(orchestrator: Orchestrator, delivery: int, results: list[EffectResult] = RESULTS) -> str:
    """Answer every effect of a delivery and return what it replied."""
    for result in results:
        stream, _ = orchestrator.effect()
        orchestrator.result(stream, result)
    return orchestrator.completion(delivery).outputs[-1].payload.decode()


def test_a_worker_tells_the_version_of_its_loop(orchestrator: Orchestrator) -> None:
    event = orchestrator.start(profile())
    assert isinstance(event, ResultReceived)
    assert event.value == {"loop": LOOP_VERSION}


def test_a_delivery_is_handled_effect_by_effect(orchestrator: Orchestrator) -> None:
    orchestrator.start(profile())
    delivery = orchestrator.handle(WANTED)
    asked = []
    for result in RESULTS:
        stream, request = orchestrator.effect()
        assert stream % 2 == 0
        assert request.delivery == WANTED.delivery
        asked.append((request.step, type(request.effect)))
        orchestrator.result(stream, result)
    completion = orchestrator.completion(delivery)
    assert completion.outcome == "acted"
    assert asked == list(enumerate([Note, Recall, Infer, UseTool, Infer, Infer, Infer], start=1))


def test_deliveries_that_come_early_wait_their_turn(orchestrator: Orchestrator) -> None:
    orchestrator.start(profile())
    first, second = orchestrator.handle(WANTED), orchestrator.handle(WANTED)
    assert finish(orchestrator, first) == finish(orchestrator, second)


def test_a_withdrawn_delivery_is_dropped_while_it_waits(orchestrator: Orchestrator) -> None:
    orchestrator.start(profile())
    delivery = orchestrator.handle(WANTED)
    stream, _ = orchestrator.effect()
    orchestrator.cancel(delivery)
    event = orchestrator.event()
    assert event == CancelReceived(stream=stream)
    assert orchestrator.problem(delivery).code == "request.cancelled"
    # The answer to the withdrawn effect is late, and does no harm to the next delivery.
    orchestrator.result(stream, Noted())
    assert "/ is 97% full" in finish(orchestrator, orchestrator.handle(WANTED))


def test_a_delivery_withdrawn_before_its_turn_is_never_begun(orchestrator: Orchestrator) -> None:
    orchestrator.start(profile())
    first = orchestrator.handle(WANTED)
    second = orchestrator.handle(WANTED)
    third = orchestrator.handle(WANTED)
    stream, _ = orchestrator.effect()
    orchestrator.cancel(third)
    assert orchestrator.problem(third).code == "request.cancelled"
    orchestrator.result(stream, RESULTS[0])
    finish(orchestrator, first, RESULTS[1:])
    finish(orchestrator, second)


def test_an_effect_that_ends_in_an_error_ends_the_delivery(orchestrator: Orchestrator) -> None:
    orchestrator.start(profile())
    delivery = orchestrator.handle(WANTED)
    stream, _ = orchestrator.effect()
    problem = Failure("journal.mismatch", "Entry 1 is another effect.").problem
    orchestrator.line.send(orchestrator.line.session.error(stream, problem))
    assert orchestrator.problem(delivery).code == "journal.mismatch"
    finish(orchestrator, orchestrator.handle(WANTED))


def test_a_result_of_no_known_kind_ends_the_delivery(orchestrator: Orchestrator) -> None:
    orchestrator.start(profile())
    delivery = orchestrator.handle(WANTED)
    stream, _ = orchestrator.effect()
    orchestrator.line.send(orchestrator.line.session.result(stream, Nothing()))
    assert orchestrator.problem(delivery).code == "protocol.malformed"


def test_a_worker_that_does_not_know_who_it_is_handles_nothing(orchestrator: Orchestrator) -> None:
    problem = orchestrator.problem(orchestrator.handle(WANTED))
    assert problem.code == "request.invalid"
    assert WORKER_START.name in problem.cure


@pytest.mark.parametrize(
    ("method", "code"),
    [(WORKER_HANDLE.name, "request.invalid"), ("worker.dance", "request.unknown-method")],
)
def test_a_wrong_request_is_refused_and_the_worker_lives(
    orchestrator: Orchestrator, method: str, code: str
) -> None:
    orchestrator.start(profile())
    assert orchestrator.problem(orchestrator.request(method, Nothing())).code == code
    finish(orchestrator, orchestrator.handle(WANTED))


def test_the_end_of_the_line_is_the_end_of_the_worker(orchestrator: Orchestrator) -> None:
    orchestrator.start(profile())
    orchestrator.sock.close()
    assert orchestrator.exit() == (0, "")


def test_a_whole_delivery_opens_no_file_and_imports_nothing(orchestrator: Orchestrator) -> None:
    orchestrator.start(profile())
    finish(orchestrator, orchestrator.handle(WANTED))
    orchestrator.sock.close()
    assert orchestrator.exit() == (0, "")


def test_the_end_of_the_line_in_the_middle_of_a_delivery_too(orchestrator: Orchestrator) -> None:
    orchestrator.start(profile())
    orchestrator.handle(WANTED)
    orchestrator.effect()
    orchestrator.sock.close()
    assert orchestrator.exit() == (0, "")


def test_a_goodbye_lets_the_worker_refuse_what_it_cannot_finish(
    orchestrator: Orchestrator,
) -> None:
    orchestrator.start(profile())
    delivery = orchestrator.handle(WANTED)
    stream, _ = orchestrator.effect()
    orchestrator.line.send(orchestrator.line.session.goodbye())
    orchestrator.result(stream, Noted())
    assert orchestrator.problem(delivery).code == "protocol.closed"
    orchestrator.sock.close()
    assert orchestrator.exit() == (0, "")


def test_a_peer_that_breaks_the_protocol_is_left_with_a_reason(orchestrator: Orchestrator) -> None:
    orchestrator.line.send(encode(FrameType.RESULT, 99, {}))
    event = orchestrator.event()
    assert isinstance(event, Failed) and event.problem.code == "protocol.sequence"
    status, errors = orchestrator.exit()
    assert status == 1
    assert errors.startswith("worker: A RESULT frame")


def test_a_defect_leaves_its_traceback_and_a_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: Worker) -> int:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(Worker, "run", broken)
    left, right = socket.socketpair()
    with left, right, pytest.raises(SystemExit) as leaving:
        worker_main(left)
    assert leaving.value.code == 1
    assert "ZeroDivisionError: a defect" in capsys.readouterr().err
