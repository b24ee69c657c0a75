"""What a component is tried with: a message that somebody makes up, or one that a daemon recorded.

A recorded delivery is repeated with the time, the seed, the configuration and the answers that it
had. What its component kept in its own memory from earlier messages is not on record: a component
that depends on it may do something else.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from ipc_protocol.components import ComponentInfo
from ipc_protocol.control import DeliveryRecord, JournaledEffect
from ipc_protocol.values import Envelope
from ipc_protocol.work import (
    AgentProfile,
    Beginning,
    ComponentStart,
    Handle,
    WorkerReady,
    WorkerStart,
)
from orchestrator import prompts
from orchestrator.components.compiling import Progress
from orchestrator.components.running import Bounds, Ran, run
from orchestrator.components.standin import StandIn
from orchestrator.components.starting import component_start
from orchestrator.components.workbench import Workbench
from orchestrator.config.loader import NO_OVERRIDES, read
from orchestrator.config.problems import ConfigErrors, ConfigProblem
from orchestrator.config.types import AgentConfig

NAME: Final = "component"
"""Of an agent that nobody has named."""
CORRELATION: Final = "isolated"
MESSAGE_TTL_US: Final = 3_600_000_000

ELSEWHERE: Final = ("component", "delegate", "model")
"""Keys of an agent's file that name what need not be here to try its component."""


class Try(msgspec.Struct, frozen=True, kw_only=True):
    """A message, and the world that it is tried in."""

    start: WorkerStart
    """The component's hash is filled in."""
    handle: Handle
    grants: list[str] | None = None
    """None grants what the component imports."""
    state: dict[str, bytes] = {}
    publishes: list[str] | None = None
    """None is all topics."""
    record: tuple[JournaledEffect, ...] | None = None
    bounds: Bounds = Bounds()


class Tried(msgspec.Struct, frozen=True):
    """What came of it. `remarks` are what a person should know before believing it."""

    info: ComponentInfo
    ran: Ran
    remarks: list[str]


def agent_of(file: Path) -> AgentConfig:
    """The agent with a component that `file` describes. Raises `ConfigErrors`."""
    config, findings = read(file, NO_OVERRIDES)
    problems, _ = findings.in_order()
    agents = [agent for agent in config.agents.values() if agent.component is not None]
    here = [problem for problem in problems if problem.key.rpartition(".")[2] not in ELSEWHERE]
    if not here and len(agents) != 1:
        expected = "exactly one agent with a `component`"
        found = f"{len(agents)} of them"
        here = [ConfigProblem(file=file, line=None, key="agent", found=found, expected=expected)]
    if here:
        raise ConfigErrors(here, [])
    return agents[0]


def made_up(
    message: Envelope,
    *,
    agent: AgentConfig | None = None,
    config: bytes | None = None,
    seed: int,
    state: dict[str, bytes],
) -> Try:
    """A message as an agent would get it now. `config` takes the place of the agent's own."""
    component = ComponentStart(sha256="", config=b"", grants=[])
    bounds = Bounds()
    if agent is not None:
        component = component_start(agent, "")
        limits = agent.limits
        bounds = Bounds(memory_bytes=limits.memory_bytes, scratch_bytes=limits.scratch_bytes)
    if config is not None:
        component = msgspec.structs.replace(component, config=config)
    name = NAME if agent is None else agent.name
    beginning = Beginning(
        now_us=message.sent_us,
        seed=seed,
        loop=0,
        prompts=prompts.load(name, prompts.shipped_folder()),
    )
    return Try(
        start=WorkerStart(profile=_profile(name, agent), component=component),
        handle=Handle(delivery=1, attempt=1, envelope=message, beginning=beginning),
        grants=None if agent is None else component.grants,
        state=state,
        publishes=None if agent is None else agent.publishes,
        bounds=bounds,
    )


def envelope(topic: str, sender: str, payload: bytes) -> Envelope:
    now_us = time.time_ns() // 1000
    return Envelope(
        id=1,
        topic=topic,
        sender=sender,
        payload=payload,
        correlation=CORRELATION,
        priority="normal",
        sent_us=now_us,
        expires_us=now_us + MESSAGE_TTL_US,
    )


def recorded(record: DeliveryRecord, effects: Sequence[JournaledEffect]) -> Try:
    """The delivery of a record, with the answers that it had."""
    assert record.start.component is not None
    return Try(
        start=record.start,
        handle=record.handle,
        grants=record.start.component.grants,
        publishes=record.start.profile.publishes,
        record=tuple(effects),
    )


async def attempt(
    bench: Workbench, file: Path, what: Try, on_progress: Callable[[Progress], None] | None = None
) -> Tried:
    """Compile the component, and let it handle the message. Raises `component.*`."""
    ready = await bench.compiled(file, on_progress)
    try:
        info = ready.info
        stand_in = StandIn(what.state, what.publishes, what.record or ())
        start = _started(what, info)
        ran = await run(bench, ready, start, lambda up: _handed(what, up), stand_in, what.bounds)
    finally:
        ready.close()
    return Tried(info, ran, _remarks(what, info, ran))


def _started(what: Try, info: ComponentInfo) -> WorkerStart:
    component = what.start.component
    assert component is not None
    grants = info.shape.grants if what.grants is None else what.grants
    replace = msgspec.structs.replace
    return replace(
        what.start, component=replace(component, sha256=info.sha256, grants=list(grants))
    )


def _handed(what: Try, up: WorkerReady) -> Handle:
    """What is made up begins with the loop that is there."""
    if what.record is not None:
        return what.handle
    beginning = msgspec.structs.replace(what.handle.beginning, loop=up.loop)
    return msgspec.structs.replace(what.handle, beginning=beginning)


def _remarks(what: Try, info: ComponentInfo, ran: Ran) -> list[str]:
    if what.record is None:
        return []
    remarks, beginning = [], what.handle.beginning
    if beginning.component != info.sha256:
        remarks.append(
            f"The record is of another component, {beginning.component or 'none at all'}."
        )
    if ran.ready is not None and beginning.loop != ran.ready.loop:
        remarks.append(f"The record is of version {beginning.loop} of the loop.")
    if ran.asked:
        remarks.append(f"{len(ran.asked)} requests went beyond the record.")
    return remarks


def _profile(name: str, agent: AgentConfig | None) -> AgentProfile:
    return AgentProfile(
        name=name,
        role="agent",
        identity="" if agent is None else agent.identity,
        duties=[] if agent is None else agent.duties,
        delegates={},
        tools=[],
        publishes=[] if agent is None else agent.publishes,
        steps_max=8 if agent is None else agent.limits.steps,
        tokens_max=2048 if agent is None else agent.limits.tokens,
    )
