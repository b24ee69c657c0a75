"""The workers of one agent, one incarnation after the other, sometimes two side by side.

An incarnation is a worker from its fork to the notice of its death. Here it is begun, with the
component of its version where the agent has one, and ended; who lives and for how long is decided
by `driver`.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable
from typing import Final

import msgspec

from ipc_protocol.aio import Handlers
from ipc_protocol.errors import Failure
from ipc_protocol.inference import Nothing
from ipc_protocol.methods import WORKER_START, WORKER_STOP
from ipc_protocol.work import AgentProfile, Fork, WorkerReady, WorkerStart
from orchestrator.bus.leasing import ReleaseLeases, release_leases
from orchestrator.bus.observations import Span, record_span
from orchestrator.bus.routing import BUS
from orchestrator.components.versions import ComponentVersions, OnProgress
from orchestrator.metrics import Metrics
from orchestrator.store.store import Store
from orchestrator.supervision.restart import Died
from orchestrator.workers import Worker, Zygote

log = logging.getLogger(__name__)

INIT_GRACE_SECONDS: Final = 30.0
"""Between the deadline of a component's own calls and the end of a start: the worker stops them
itself, and takes this long only where it hangs or the machine swaps."""

STOP_SECONDS_MAX: Final = 2.0
"""A worker that is asked to stop says goodbye to its component, which may write down what it has in
mind. One that takes longer loses that, and nothing else."""


class Incarnation(msgspec.Struct):
    """One worker that is up."""

    name: str
    component: str
    """The SHA-256 of what it runs; empty where that is the loop alone."""
    worker: Worker
    ready: WorkerReady
    began_us: int
    until_over: contextlib.AsyncExitStack


class Incarnations:
    """Begins and ends the workers of one agent."""

    def __init__(
        self,
        agent: str,
        fork: Callable[[int], Fork],
        profile: Callable[[], AgentProfile],
        echo: list[str] | None,
        versions: ComponentVersions | None,
        handlers: Handlers,
        *,
        store: Store,
        zygote: Zygote,
        metrics: Metrics,
        clock_us: Callable[[], int],
    ) -> None:
        self._agent = agent
        self._fork = fork
        self._profile = profile
        self._echo = echo
        self._versions = versions
        self._handlers = handlers
        self._store = store
        self._zygote = zygote
        self._metrics = metrics
        self._clock_us = clock_us
        self._unreturned: set[str] = set()
        """Incarnations whose lease could not be given back."""

    async def begin(self, component: str, on_progress: OnProgress | None = None) -> Incarnation:
        """Fork and start a worker, with the component of that hash, if any.

        Raises `component.*` and `sandbox.refused`, and `ZygoteDied`.
        """
        name, began_us = f"{self._agent}.{secrets.token_hex(8)}", self._clock_us()
        async with contextlib.AsyncExitStack() as stack:
            start, native = WorkerStart(profile=self._profile(), echo=self._echo), None
            if component:
                assert self._versions is not None
                ready = await self._versions.ready(component, on_progress)
                stack.callback(ready.close)
                native = ready.native_fd
                start = WorkerStart(
                    profile=start.profile, component=self._versions.start(component)
                )
            worker = await stack.enter_async_context(self._worker(native))
            answer = await _started(worker, start)
            return Incarnation(
                name=name,
                component=component,
                worker=worker,
                ready=answer,
                began_us=began_us,
                until_over=stack.pop_all(),
            )

    def _worker(self, native: int | None) -> contextlib.AbstractAsyncContextManager[Worker]:
        if native is None:
            return self._zygote.worker(self._fork, self._handlers)

        def fork(token: int) -> Fork:
            return msgspec.structs.replace(self._fork(token), native=True)

        return self._zygote.worker(fork, self._handlers, (native,))

    async def end(self, incarnation: Incarnation, *, in_order: bool) -> tuple[Died, str]:
        """See a worker to its death: how it died, in a word and in words.

        With `in_order` it is asked to stop first.
        """
        worker = incarnation.worker
        try:
            if in_order:
                await _stopped(worker)
        finally:
            # On a full disk its successor gives it back, or the next start of the daemon.
            with contextlib.suppress(Failure):
                await self.give_back(incarnation.name)
            await incarnation.until_over.aclose()
        self._metrics.worker_died(self._agent)
        if not worker.exited.done():
            died, words = Died(), "it was killed, and no notice of its death came"
        else:
            exit_ = worker.exited.result()
            died, words = Died(orderly=exit_.orderly, own=exit_.own), exit_.description
        await self._write_life(incarnation, words)
        return died, words

    async def give_back(self, name: str) -> None:
        """What a worker still held goes back, unless its death was counted already."""
        self._unreturned.add(name)
        await self.give_back_unreturned()

    async def give_back_unreturned(self) -> None:
        """Before anything is leased: what earlier ones could not give back. Raises `store.full`."""
        for name in tuple(self._unreturned):
            await self._store.apply(release_leases, BUS, ReleaseLeases(incarnation=name))
            self._unreturned.discard(name)

    async def _write_life(self, incarnation: Incarnation, end: str) -> None:
        life = Span(
            name="worker",
            started_us=incarnation.began_us,
            finished_us=max(incarnation.began_us, self._clock_us()),
            data={
                "agent": self._agent,
                "incarnation": incarnation.name,
                "component": incarnation.component,
                "end": end,
            },
        )
        with contextlib.suppress(Failure):  # a full disk has no room for what can be missed
            await self._store.apply(record_span, BUS, life)


async def _started(worker: Worker, start: WorkerStart) -> WorkerReady:
    if start.component is None:
        return await worker.connection.call(WORKER_START, start)
    seconds = start.component.call_us / 1e6 + INIT_GRACE_SECONDS
    try:
        async with asyncio.timeout(seconds):
            return await worker.connection.call(WORKER_START, start)
    except TimeoutError as error:
        raise Failure(
            "component.deadline",
            f"The component has not come to the end of its `init` within {seconds:g} s.",
            "Look into the log for what its worker said.",
        ) from error


async def _stopped(worker: Worker) -> None:
    """Ask it to stop, and wait for that as long as it may take."""
    with contextlib.suppress(Failure, TimeoutError):
        async with asyncio.timeout(STOP_SECONDS_MAX):
            await worker.connection.call(WORKER_STOP, Nothing())
            # It ends by itself once it has answered; so its end is one in order.
            await worker.connection.wait_closed()
