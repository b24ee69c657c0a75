"""Agents that take what comes: their deliveries wait for no comparison, those of others do."""

from typing import Any

import pytest

from ipc_protocol.work import Completion, Evidence, Outgoing
from orchestrator.bus.completion import Complete, complete
from orchestrator.bus.evidence import Screening, attach_screening, unscreened_messages
from orchestrator.bus.registration import Registration
from orchestrator.bus.routing import BUS

Bus = Any
"""The fixture `bus`."""

GATE = Registration(
    name="gate", consumes=["ops.>", "gate.>"], publishes=["user.reply", "ops.next"], screened=False
)
LIGHT = Registration(name="light", consumes=["gate.>"], screened=False)
OPS = Registration(
    name="ops", consumes=["ops.>"], publishes=["user.reply", "gate.next"], delegates=["gate"]
)


@pytest.fixture
async def mixed(empty_bus: Bus) -> Bus:
    await empty_bus.register(GATE, LIGHT, OPS)
    return empty_bus


async def attach(bus: Bus, message: int) -> None:
    """What the screener finds out: it is the business of `ops`, which has it."""
    evidence = Evidence(
        agent="ops",
        score=0.5,
        margin=0.5,
        scores={"ops": 0.5},
        nobody=0.0,
        nearest="",
        fallback="ops",
        recipients=("ops",),
    )
    found = Screening(message=message, evidence={"ops": evidence}, fallback="ops")
    await bus.store.apply(attach_screening, BUS, found)


async def test_a_message_to_them_alone_passes_no_screener(mixed: Bus) -> None:
    with mixed.store.changes.subscribe({"message.published"}, 4) as changes:
        await mixed.ask(topic="gate.one", screened=False)
        assert (await anext(changes)).data["unscreened"] is False
    assert await mixed.reader.view(unscreened_messages) == []
    for agent in ("gate", "light"):
        beginning = (await mixed.lease(agent)).handle.beginning
        assert (beginning.evidence, beginning.must_take) == (None, False)


async def test_among_mixed_receivers_the_others_are_screened(mixed: Bus) -> None:
    receipt = await mixed.ask(topic="ops.disk", screened=False)
    assert receipt.subscribers == ["gate", "ops"]
    assert await mixed.lease("ops") is None
    assert (await mixed.lease("gate")).handle.beginning.evidence is None
    (waiting,) = await mixed.reader.view(unscreened_messages)
    assert waiting.agents == ["ops"]
    await attach(mixed, receipt.message)
    assert (await mixed.lease("ops")).handle.beginning.evidence.score == 0.5


@pytest.mark.parametrize("gate_first", [True, False])
async def test_what_nobody_takes_comes_to_the_fallback_owner(mixed: Bus, gate_first: bool) -> None:
    receipt = await mixed.ask(topic="ops.disk", screened=False)
    if gate_first:
        await mixed.do_next("gate", outcome="ignored")
    await attach(mixed, receipt.message)
    await mixed.do_next("ops", outcome="ignored")
    if not gate_first:
        assert await mixed.lease("ops") is None
        await mixed.do_next("gate", outcome="ignored")
    beginning = (await mixed.lease("ops")).handle.beginning
    assert beginning.must_take
    assert beginning.evidence.score == 0.5


async def test_what_they_have_taken_comes_to_nobody_else(mixed: Bus) -> None:
    receipt = await mixed.ask(topic="ops.disk", screened=False)
    await mixed.do_next("gate")
    await attach(mixed, receipt.message)
    await mixed.do_next("ops", outcome="ignored")
    assert await mixed.lease("ops") is None
    assert await mixed.state() == "answered"


async def test_what_agents_send_to_them_needs_no_screening_either(mixed: Bus) -> None:
    await mixed.ask(topic="ops.disk")
    await mixed.do_next("gate")
    outputs = [Outgoing(topic=topic, payload=b"") for topic in ("gate.next", "agent.gate")]
    wanted = Complete(
        delivery=await mixed.leased("ops"),
        incarnation="w1",
        completion=Completion(outcome="acted", reason="", outputs=outputs),
    )
    await mixed.store.apply(complete, "ops", wanted)
    took = []
    for _ in range(2):
        lease = await mixed.lease("gate")
        took.append((lease.handle.envelope.topic, lease.handle.beginning.must_take))
        await mixed.complete("gate", lease.handle.delivery)
    assert took == [("gate.next", False), ("agent.gate", True)]


async def test_what_the_operator_addresses_to_them_waits_for_nothing(mixed: Bus) -> None:
    await mixed.ask(topic="agent.gate", screened=False)
    assert not (await mixed.lease("gate")).handle.beginning.must_take
