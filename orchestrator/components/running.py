"""One message in isolation: what a component makes of it, in a worker like any other.

The worker is forked, sealed and started as a daemon does it. What it asks for is answered by a
stand-in for the daemon, so nothing that it does has an effect anywhere.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from ipc_protocol.aio import Call, Handlers
from ipc_protocol.errors import Failure, Problem
from ipc_protocol.inference import Nothing
from ipc_protocol.methods import WORK_EFFECT, WORKER_START, WORKER_STOP
from ipc_protocol.work import (
    Completion,
    Effect,
    EffectRequest,
    EffectResult,
    Fork,
    Handle,
    WorkerReady,
    WorkerStart,
)
from orchestrator.components.compiling import Ready
from orchestrator.components.standin import StandIn
from orchestrator.components.workbench import UID, Workbench
from orchestrator.supervision import childlog
from orchestrator.workers import Worker, handle_alone

GRACE_SECONDS: Final = 60.0
"""Beyond what the calls of a component may take: the rest of a run takes milliseconds."""

TRAP_CURE: Final = "The backtrace says where; its log, what it said before."
"""Here, where a run is what others are told to try."""

CALLS_MAX: Final = 5
"""`init`, three phases of a mind, and `shutdown`."""


class Bounds(msgspec.Struct, frozen=True):
    """What the worker itself may have."""

    memory_bytes: int = 256 * 1024 * 1024
    scratch_bytes: int = 16 * 1024 * 1024


class Ran(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it. Either `completion` or `problem` is there."""

    ready: WorkerReady | None
    """None where the component did not even start."""
    completion: Completion | None
    problem: Problem | None
    asked: list[Effect]
    """What was answered by the stand-in, and not from the record."""
    log: list[str]


async def run(
    bench: Workbench,
    component: Ready,
    start: WorkerStart,
    handle: Callable[[WorkerReady], Handle],
    stand_in: StandIn,
    bounds: Bounds = Bounds(),  # noqa: B008 (it is frozen)
) -> Ran:
    """Start the component, hand it one message, and stop it. Raises `sandbox.refused`.

    `handle` makes the message for the worker that is up.
    """
    assert start.component is not None
    log: list[str] = []
    ready: WorkerReady | None = None
    completion: Completion | None = None
    problem: Problem | None = None
    seconds_max = CALLS_MAX * start.component.call_us / 1e6 + GRACE_SECONDS

    async def serve(request: EffectRequest, _: Call) -> EffectResult:
        return stand_in.answer(request)

    def fork(token: int) -> Fork:
        return Fork(
            token=token,
            agent=start.profile.name,
            sandbox=bench.sandbox,
            uid=UID,
            memory_bytes_max=bounds.memory_bytes,
            scratch_bytes_max=bounds.scratch_bytes,
            native=True,
        )

    handlers = Handlers().add(WORK_EFFECT, serve)
    with _said_by(f"worker/{start.profile.name}", log):
        async with bench.zygote.worker(fork, handlers, (component.native_fd,)) as worker:
            try:
                async with asyncio.timeout(seconds_max):
                    line = worker.connection
                    ready = await line.call(WORKER_START, start)
                    completion = await handle_alone(line, handle(ready))
                    with contextlib.suppress(Failure):  # what it does at its end changes nothing
                        await line.call(WORKER_STOP, Nothing())
            except Failure as failure:
                problem = await _reason(worker, failure)
            except TimeoutError:
                problem = Problem(
                    code="component.deadline",
                    message=f"The worker did not come to an end within {seconds_max:g} s.",
                    cure="The host, and not the component, hangs: its log may say where.",
                )
    return Ran(ready=ready, completion=completion, problem=problem, asked=stand_in.asked, log=log)


@contextlib.contextmanager
def _said_by(name: str, lines: list[str]) -> Iterator[None]:
    """What the program `name` writes to its log goes to `lines`, and nowhere else."""

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if isinstance(record.args, tuple) and record.args[0] == name:
                lines.append(str(record.args[1]))

    followed = logging.getLogger(childlog.__name__)
    level, propagate, keep = followed.level, followed.propagate, Keep()
    followed.setLevel(logging.INFO)
    followed.propagate = False
    followed.addHandler(keep)
    try:
        yield
    finally:
        followed.removeHandler(keep)
        followed.propagate = propagate
        followed.setLevel(level)


async def _reason(worker: Worker, failure: Failure) -> Problem:
    """What the worker said, or how it ended without a word."""
    if failure.code != "protocol.closed":
        problem = failure.problem
        told_to_run = failure.code == "component.trapped" and "backtrace" in problem.details
        return msgspec.structs.replace(problem, cure=TRAP_CURE) if told_to_run else problem
    death = await worker.exited
    return Problem(
        code="component.trapped",
        message=f"The worker died without a word: it {death.description}.",
        cure="It may have reached the memory of its process; its log may say more.",
    )
