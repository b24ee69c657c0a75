"""Agents that are added and retired while the daemon runs, and those that stay retired."""

from typing import Any

import pytest

from ipc_protocol.errors import Failure
from ipc_protocol.work import MemoryEntry, Offer, Offered
from orchestrator.bus.registration import (
    AddAgent,
    RegisterAgents,
    Registered,
    Registration,
    RetireAgent,
    add_agent,
    register_agents,
    retire_agent,
    undone,
)
from orchestrator.bus.routing import BUS, OPERATOR
from orchestrator.bus.store_effects import PerformInStore, perform_in_store
from orchestrator.store.audit import first_broken

Bus = Any
"""The fixture `bus`."""

NEWCLAW = Registration(name="newclaw", consumes=["user.request"], publishes=["user.reply"])


async def failure_of(awaitable: Any) -> Failure:
    with pytest.raises(Failure) as failure:
        await awaitable
    return failure.value


async def add(bus: Bus, agent: Registration) -> None:
    await bus.store.apply(add_agent, BUS, AddAgent(agent=agent, by=OPERATOR))


async def retire(bus: Bus, name: str) -> int:
    left = await bus.store.apply(retire_agent, BUS, RetireAgent(name=name, by=OPERATOR))
    assert isinstance(left, int)
    return left


async def audited(bus: Bus) -> list[Any]:
    rows = await bus.reader.fetch("SELECT owner, action, subject FROM audit ORDER BY id")
    assert await bus.reader.view(first_broken) is None
    return list(rows)


# ---- Adding -------------------------------------------------------------------------------------


async def test_an_agent_that_is_added_receives_from_then_on(bus: Bus) -> None:
    with bus.store.changes.subscribe({"agent.added"}, 4) as changes:
        await add(bus, NEWCLAW)
        assert (await anext(changes)).data == {"agent": "newclaw", "by": OPERATOR}
    assert (await bus.ask()).subscribers == ["devclaw", "newclaw", "opsclaw"]
    assert await audited(bus) == [(OPERATOR, "agent.add", "newclaw")]


@pytest.mark.parametrize(
    ("agent", "code"),
    [
        (Registration(name="opsclaw"), "request.invalid"),
        (Registration(name="other", role="conductor"), "request.invalid"),
        (Registration(name="Other"), "bus.invalid-topic"),
    ],
)
async def test_an_agent_that_does_not_fit_is_not_added(
    bus: Bus, agent: Registration, code: str
) -> None:
    refused = await failure_of(add(bus, agent))
    assert refused.code == code
    assert refused.problem.cure
    assert await audited(bus) == []


async def test_an_agent_comes_and_goes_only_by_the_bus(bus: Bus) -> None:
    for reducer, wanted in (
        (add_agent, AddAgent(agent=NEWCLAW, by="opsclaw")),
        (retire_agent, RetireAgent(name="devclaw", by="opsclaw")),
    ):
        refused = await failure_of(bus.store.apply(reducer, "opsclaw", wanted))
        assert refused.code == "store.ownership"


# ---- Retiring -----------------------------------------------------------------------------------


async def test_a_retired_agent_receives_nothing_more_and_finishes_what_it_has(bus: Bus) -> None:
    await bus.ask()
    with bus.store.changes.subscribe({"agent.retired"}, 4) as changes:
        assert await retire(bus, "opsclaw") == 1
        assert (await anext(changes)).data == {"agent": "opsclaw", "by": OPERATOR}
    assert (await failure_of(bus.ask(topic="ops.disk"))).code == "bus.no-subscriber"
    assert (await failure_of(bus.ask(topic="agent.opsclaw"))).code == "bus.no-subscriber"
    done = await bus.do_next("opsclaw", ("user.reply", "mine"), ("agent.devclaw", "yours"))
    assert (done.state, len(done.messages), done.dead_letters) == ("done", 2, [])
    assert await bus.reader.view(undone, "opsclaw") == 0
    assert await audited(bus) == [(OPERATOR, "agent.retire", "opsclaw")]


async def test_what_a_retired_agent_offers_is_judged_as_before(bus: Bus) -> None:
    await bus.ask()
    delivery = await bus.leased("opsclaw")
    await retire(bus, "opsclaw")
    for topic, code in (("user.reply", None), ("ops.other", "bus.not-permitted")):
        wanted = PerformInStore(
            delivery=delivery,
            incarnation="w1",
            step=1 if code is None else 2,
            effect=Offer(topic=topic, payload_bytes=1),
            started_us=bus.now_us,
        )
        found = await bus.store.apply(perform_in_store, "opsclaw", wanted)
        assert isinstance(found, Offered)
        assert (None if found.problem is None else found.problem.code) == code


async def test_to_retire_an_agent_again_says_what_is_left(bus: Bus) -> None:
    await bus.ask()
    assert [await retire(bus, "opsclaw"), await retire(bus, "opsclaw")] == [1, 1]
    assert len(await audited(bus)) == 1
    await bus.do_next("opsclaw")
    assert await retire(bus, "opsclaw") == 0


async def test_what_a_conductor_has_to_compose_is_left_too(bus: Bus) -> None:
    await bus.ask(topic="ops.disk")
    await bus.do_next("opsclaw")
    assert await bus.state() == "composing"
    assert await retire(bus, "conductor") == 1


async def test_an_unknown_agent_is_not_retired(bus: Bus) -> None:
    assert (await failure_of(retire(bus, "nobody"))).code == "agent.unknown"


async def test_memory_and_audit_of_a_retired_agent_stay(bus: Bus) -> None:
    entry = MemoryEntry(text="t", outcome="success", lesson="l", importance=0.5)
    await bus.ask(topic="ops.disk")
    await bus.do_next("opsclaw", memories=[entry])
    await retire(bus, "opsclaw")
    assert await bus.value("SELECT count(*) FROM memory WHERE owner = 'opsclaw'") == 1


# ---- The next start -----------------------------------------------------------------------------


async def test_a_start_leaves_those_retired_whom_the_operator_has_retired(bus: Bus) -> None:
    await bus.ask()
    await retire(bus, "opsclaw")
    await bus.store.close()
    await bus.open()
    agents = [
        Registration(name=name, consumes=["user.request"], publishes=["user.reply"])
        for name in ("opsclaw", "devclaw")
    ]
    with bus.store.changes.subscribe({"agent.registered"}, 4) as changes:
        registered = await bus.store.apply(register_agents, BUS, RegisterAgents(agents=agents))
        told = (await anext(changes)).data
    assert registered == Registered(active=["devclaw"], retired=["conductor"], withheld=["opsclaw"])
    assert told == {"agents": ["devclaw"], "retired": ["conductor"], "withheld": ["opsclaw"]}
    assert (await bus.ask(correlation="c2")).subscribers == ["devclaw"]
    done = await bus.do_next("opsclaw", ("user.reply", "still mine"))
    assert done.dead_letters == []


async def test_an_agent_that_only_left_the_configuration_comes_back_with_it(bus: Bus) -> None:
    opsclaw = Registration(name="opsclaw", consumes=["ops.>"])
    await bus.register()
    registered = await bus.store.apply(register_agents, BUS, RegisterAgents(agents=[opsclaw]))
    assert (registered.active, registered.withheld) == (["opsclaw"], [])


async def test_an_agent_that_is_added_again_is_an_agent_like_others(bus: Bus) -> None:
    await retire(bus, "opsclaw")
    opsclaw = Registration(name="opsclaw", consumes=["ops.>"])
    await add(bus, opsclaw)
    assert (await bus.ask(topic="ops.disk")).subscribers == ["opsclaw"]
    registered = await bus.store.apply(register_agents, BUS, RegisterAgents(agents=[opsclaw]))
    assert (registered.active, registered.withheld) == (["opsclaw"], [])
