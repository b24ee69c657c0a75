"""Runs one component in a sealed worker: what it may import, what a call may cost, what it said.

Theory of operation. The component has one store, one instance and its memory for as long as nothing
goes wrong. Each call gets its fuel anew and a deadline, from which the time that it waits for an
effect is left out. Whatever ends a call in disorder (a trap, a limit, a delivery that is withdrawn
while the component waits for an effect) leaves the instance in a state that nobody knows: the store
is discarded, and this host is `dead`. What was staged until then is lost with it, which is the
point.

What fails here is a `Failure` of *component.*, with the Wasm backtrace and the fuel in its details.
"""

import resource
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, TextIO

import msgspec

from agent_runtime.component import (
    answers,
    boundary,
    contract,
    library,
    limits,
    linking,
    permission,
    shipped,
    traps,
)
from agent_runtime.component.grants import Grants
from agent_runtime.component.invocation import Ask, Invocation, NoRoom
from agent_runtime.component.log import Log, escaped, shortened
from agent_runtime.component.native import Native
from agent_runtime.component.types import ERR, Case, ComponentType, decode
from agent_runtime.component.wasi import Wasi
from agent_runtime.component.wasi.filesystem import private_scratch
from agent_runtime.component.wasi.moment import Moment
from agent_runtime.component.wasi.surroundings import Surroundings, outside_moment
from agent_runtime.component.wasi.trap import HostTrap
from agent_runtime.loop.consulting import (
    ACTS,
    TAKES_OVER,
    Consult,
    Consultable,
    Consulted,
)
from ipc_protocol.components import ComponentShape
from ipc_protocol.errors import Failure
from ipc_protocol.work import (
    AgentProfile,
    ComponentStart,
    Effect,
    EffectResult,
    Handle,
    Usage,
)

MIND: Final = "mind@"
"""How a world begins whose component takes over phases of the loop."""
_EPOCHS: Final = 1
"""The ticker moves the epoch by one when time is up."""


class Host:
    """One component, instantiated. Not to be used by two threads, nor with another at a time."""

    def __init__(
        self,
        native: Native,
        start: ComponentStart,
        profile: AgentProfile,
        log: TextIO,
        *,
        scratch: str | None = None,
    ) -> None:
        """Link what is granted, and instantiate.

        `log` gets what the component says. `scratch` is the folder that it is given where that is
        granted: the worker's own if it is None. Raises `Failure`: what `contract.fit` and
        `permission.require` raise, or that it cannot be instantiated within its limits.
        """
        found = _described(native, start.types)
        self.shape: Final[ComponentShape] = contract.fit(found, shipped.load())
        permission.require(self.shape, start, profile.name)
        self.inert: Final = permission.inert(self.shape, start)
        self.holds_memory = False
        """What calls have freed is kept for the next one, until `release_memory`."""
        self.dead = False
        """A call has failed, or `init` has refused: it is of no more use."""
        self.last_call: Usage | None = None
        """What the last call cost, also if it failed."""
        self._start = start
        self._profile = profile
        self._ticker = native.ticker
        self._log = Log(log)
        self._around = Surroundings(self._log, _moment_outside())
        self._grants = Grants(profile, self._log)
        self._invocation: Invocation | None = None
        self._usage: Usage | None = None
        self._waited_ns = 0
        self._memory_bytes_before = 0
        library.hold_freed_memory()
        self._store = library.Store(library.engine())
        self._functions = self._instantiated(native, found, scratch)

    @property
    def consultable(self) -> frozenset[Consultable]:
        """The phases of the loop in which the component is asked."""
        return TAKES_OVER if self.shape.world.startswith(MIND) else ACTS

    def init(self) -> None:
        """To be called once, first. Raises *component.init*, with the backtrace of a trap."""
        try:
            answer = self._run_outside("init", self._profile.name, self._start.config)
        except Failure as failure:
            problem = failure.problem
            raise Failure(
                "component.init",
                problem.message,
                problem.cure,
                **{"cause": problem.code, **problem.details},
            ) from failure
        self._usage = None  # It led to no completion.
        if answer.name == ERR:
            self.dead = True
            self._discard()
            raise Failure(
                "component.init",
                f"`init` of the component refused: {_said(answer)}",
                "See `config` of the agent, and what the component expects of it.",
            )

    def consult(self, consult: Consult, handle: Handle, ask: Ask) -> Consulted:
        """Ask the component about the delivery in hand.

        Raises `Failure`: *component.refused* for its own refusal and *component.output* for what
        cannot be sent, after which it can be consulted again; else the component is `dead`. What
        `ask` raises is raised here, and leaves it dead as well.
        """
        self.holds_memory = True
        invocation = self._invocation_of(handle)
        invocation.phase = consult.phase
        invocation.ask = lambda effect: self._waited_for(ask, effect)
        self._grants.invocation = invocation
        self._around.moment = invocation.moment
        try:
            return self._consulted(consult, invocation)
        except BaseException:
            invocation.take()  # What was staged by a call that failed has not happened.
            self._usage = None
            raise
        finally:
            self._grants.invocation = None

    def release_memory(self) -> None:
        """To be called when no call comes soon."""
        library.release_freed_memory()
        self.holds_memory = False

    def shutdown(self) -> None:
        """To be called last. A component that is dead, or does not end, is just left."""
        if self.dead:
            return
        try:
            self._run_outside("shutdown")
        except Failure:
            self.dead = False  # It is in the log; the component was at its end either way.
        else:
            self._discard()

    def usage(self) -> Usage | None:
        """What its calls have cost for the delivery in hand since this was last asked, if any."""
        usage, self._usage = self._usage, None
        return usage

    # -- what is asked

    def _invocation_of(self, handle: Handle) -> Invocation:
        """The delivery's, in all its phases. Another attempt comes as another `Handle`."""
        if self._invocation is None or self._invocation.handle is not handle:
            self._invocation = Invocation(handle)
            self._usage = None
        return self._invocation

    def _consulted(self, consult: Consult, invocation: Invocation) -> Consulted:
        envelope = answers.told(invocation.handle.envelope)
        advice = judgement = returned = None
        left_out = 0
        match consult.phase:
            case "triage":
                evidence = invocation.handle.beginning.evidence
                returned = self._accepted("triage", envelope, answers.told_screening(evidence))
                if returned is not None:
                    advice = answers.advice(returned, self._profile)
            case "act":
                function = "act" if self.consultable is TAKES_OVER else "handle"
                returned = self._accepted(function, envelope)
                if returned is not None:
                    left_out = self._stage_returned(returned, invocation)
            case "reflect":
                sent = answers.told_sent(consult.sent, self._profile.name, envelope)
                returned = self._accepted("reflect", envelope, sent)
                if returned is not None:
                    judgement = answers.judgement(returned)
        return Consulted(
            taken=returned is not None,
            advice=advice,
            judgement=judgement,
            left_out=left_out,
            **invocation.take()._asdict(),
        )

    def _accepted(self, function: str, *arguments: Any) -> Any:
        """What a call answers with *ok*."""
        answer = self._run(function, *arguments)
        if answer.name == ERR:
            raise Failure(
                "component.refused",
                f"`{function}` of the component refused: {_said(answer)}",
                "The reason is the component's own.",
            )
        return answer.payload

    def _stage_returned(self, envelopes: list[dict[str, Any]], invocation: Invocation) -> int:
        """How many there was no room for."""
        correlation = invocation.handle.envelope.correlation
        outputs = answers.outgoing(envelopes, correlation)
        try:
            left_out = invocation.send_returned(outputs)
        except NoRoom as full:
            raise Failure(
                "component.output",
                f"The component returned more than a completion holds. {full}",
                "Send less for one message, or smaller messages.",
            ) from full
        if invocation.sent > limits.OUTPUTS_SENT_MAX:
            self._log.host(
                f"{len(outputs)} messages were returned: what is beyond "
                f"{limits.OUTPUTS_SENT_MAX} becomes dead letters, the last {left_out} of them one"
            )
        return left_out

    # -- calls

    def _instantiated(
        self, native: Native, found: ComponentType, scratch: str | None
    ) -> linking.Exports:
        start = self._start
        given = (scratch or private_scratch()) if start.preopen_scratch else None
        wasi = Wasi(self._around, given)
        functions = {
            name: self._grants.functions(name) or wasi.functions(name, interface)
            for name, interface in found.imports.items()
        }
        linker = linking.link(found, functions, wasi.drop)
        self._store.set_limits(
            memory_size=start.memory_bytes,
            table_elements=start.table_elements,
            instances=limits.INSTANCES_MAX,
            tables=limits.TABLES_MAX,
            memories=limits.MEMORIES_MAX,
        )
        self._memory_bytes_before = _memory_bytes_peak()
        with self._call("instantiation"):
            instance = boundary.instantiate(linker, self._store, native.component)
        return linking.exports(self._store, instance, found)

    def _run_outside(self, function: str, *arguments: Any) -> Any:
        self._around.moment = _moment_outside()
        return self._run(function, *arguments)

    def _run(self, function: str, *arguments: Any) -> Any:
        if not self._functions:
            raise Failure(
                "component.trapped",
                "The component has failed or ended before: its memory is lost.",
                "Its worker has to start again.",
            )
        with self._call(function):
            return self._functions[function](*arguments)

    @contextmanager
    def _call(self, function: str) -> Iterator[None]:
        """One call into the component, with what it may cost. What goes wrong kills it."""
        self._log.begin_call()
        self._waited_ns = 0
        self._store.set_fuel(self._start.fuel)
        self._store.set_epoch_deadline(_EPOCHS)
        began_ns = time.perf_counter_ns()
        self._ticker.arm(self._start.call_us / 1e6)
        try:
            yield
        except BaseException as error:
            self._end_call(began_ns)
            self.dead = True
            self._discard()
            if error is self._grants.interruption or not isinstance(error, Exception):
                raise
            raise self._failure(function, error) from error
        self._end_call(began_ns)

    def _end_call(self, began_ns: int) -> None:
        self._ticker.disarm()
        self._log.end_call()
        call = Usage(
            fuel=self._start.fuel - self._store.get_fuel(),
            call_us=(time.perf_counter_ns() - began_ns - self._waited_ns) // 1000,
            memory_bytes_peak=_memory_bytes_peak() - self._memory_bytes_before,
        )
        so_far = self._usage or Usage(fuel=0, call_us=0, memory_bytes_peak=0)
        self.last_call = call
        self._usage = Usage(
            fuel=so_far.fuel + call.fuel,
            call_us=so_far.call_us + call.call_us,
            memory_bytes_peak=call.memory_bytes_peak,
        )

    def _waited_for(self, ask: Ask, effect: Effect) -> EffectResult:
        began_ns = time.perf_counter_ns()
        self._ticker.pause()
        try:
            return ask(effect)
        finally:
            self._ticker.resume()
            self._waited_ns += time.perf_counter_ns() - began_ns

    # -- the end

    def _failure(self, function: str, error: Exception) -> Failure:
        """The failed call as a problem, written to the log with all that is known."""
        backtrace = ""
        if isinstance(error, library.WasmtimeError):
            trap = library.trap_of(error)
            # The names of functions are the component's own.
            frames = map(escaped, trap.backtrace.splitlines())
            backtrace = shortened("\n".join(frames), limits.BACKTRACE_CHARS_MAX)
            found = traps.explained(trap.kind, trap.code, trap.message, self._start.memory_bytes)
        elif isinstance(error, HostTrap):
            found = traps.ended_by_host(str(error))
        elif isinstance(error, MemoryError):
            found = traps.out_of_memory()
        elif isinstance(error, Failure):
            found = traps.Explained(
                error.code, f"failed: {error.problem.message}", error.problem.cure
            )
        else:
            self._log.host("".join(traceback.format_exception(error)))
            found = traps.ended_by_host(f"a function of the host failed: {error!r}")
        reason = escaped(shortened(found.reason, limits.REASON_CHARS_MAX)).rstrip(".")
        message = f"`{function}` of the component {reason}."
        self._log.host(f"{message}\n{backtrace}")
        assert self.last_call is not None
        return Failure(
            found.code if found.code in traps.CODES else "component.trapped",
            message,
            found.cure,
            backtrace=backtrace,
            fuel=self.last_call.fuel,
            call_us=self.last_call.call_us,
        )

    def _discard(self) -> None:
        self._functions = {}
        self._around.handles.clear()
        self._store.close()


def _said(answer: Case) -> str:
    return escaped(shortened(str(answer.payload), limits.REASON_CHARS_MAX))


def _described(native: Native, encoded: bytes) -> ComponentType:
    """What the component imports and exports. The boundary holds it to the component's own word."""
    if encoded:
        with suppress(msgspec.MsgspecError):
            return decode(encoded)
    return library.describe(native.component)


def _moment_outside() -> Moment:
    return outside_moment(time.time_ns() // 1000)


def _memory_bytes_peak() -> int:
    """The most that was ever resident of this process. The library does not say what the linear
    memories have; what this grows by from before they were made is close."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
