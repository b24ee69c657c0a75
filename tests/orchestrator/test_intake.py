"""Publishing for operators and other programs: who waits, and what is refused."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ipc_protocol.errors import Failure
from ipc_protocol.work import Completion
from orchestrator.bus.completion import Complete, complete
from orchestrator.bus.limits import PAYLOADS_MAX
from orchestrator.bus.opening import Accepted, Publish
from orchestrator.bus.registration import RegisterAgents, Registration, register_agents
from orchestrator.bus.routing import BUS
from orchestrator.intake import Intake
from orchestrator.metrics import Metrics
from orchestrator.store.store import Store
from tests.leasing import lease_one

AGENT = "sink"


class Desk:
    """An intake, and a worker that completes when it is told to."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.intake = Intake(store, store.reader("intake"), Metrics("0", []))

    async def publish(self, *, handled: bool = False, **more: Any) -> Accepted:
        given = {"topic": "a.in", "payloads": [b"x"], "screened": True, **more}
        return await self.intake.publish("a program", Publish(**given), handled=handled)

    async def complete_next(self) -> None:
        leased = await lease_one(self.store, AGENT)
        assert leased is not None
        done = Complete(
            delivery=leased.delivery.delivery,
            incarnation="w",
            completion=Completion(outcome="acted", reason="as told"),
        )
        await self.store.apply(complete, AGENT, done)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    store = await Store.open(tmp_path / "agentd.db", clock_us=lambda: 1_800_000_000_000_000)
    agents = [Registration(name=AGENT, consumes=["a.in"])]
    await store.apply(register_agents, BUS, RegisterAgents(agents=agents))
    desk = Desk(store)
    running = asyncio.create_task(desk.intake.run())
    yield desk
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await store.close()


async def test_who_waits_hears_when_it_is_handled(desk: Desk) -> None:
    waiting = asyncio.create_task(desk.publish(handled=True))
    await asyncio.sleep(0)  # it is the first to publish
    await desk.publish()
    assert not waiting.done()
    await desk.complete_next()
    async with asyncio.timeout(10):
        assert (await waiting).messages == [1]


@pytest.mark.parametrize("leaves", [None, 0, 1])
async def test_all_who_wait_for_one_message_hear_of_it(desk: Desk, leaves: int | None) -> None:
    waiting = []
    for _ in range(2):
        waiting.append(asyncio.create_task(desk.publish(handled=True, message_ids=["m1"])))
        await asyncio.sleep(0)
        await desk.publish()
    if leaves is not None:
        gone = waiting.pop(leaves)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
    for _ in range(3):
        await desk.complete_next()
    async with asyncio.timeout(10):
        for each in waiting:
            assert (await each).messages == [1]


async def test_what_was_handled_before_is_not_waited_for(desk: Desk) -> None:
    first = await desk.publish(message_ids=["m1"])
    await desk.complete_next()
    async with asyncio.timeout(10):
        again = await desk.publish(handled=True, message_ids=["m1"])
    assert (again.messages, again.repeated) == (first.messages, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"payloads": []},
        {"payloads": [b""] * (PAYLOADS_MAX + 1)},
        {"payloads": [b""] * 50_000},
        {"message_ids": ["a", "b"]},
        {"payloads": [b"", b""], "message_ids": ["a", "a"]},
        {"message_ids": [""]},
        {"correlation": ""},
    ],
)
async def test_a_request_of_the_wrong_shape_is_an_error(desk: Desk, wrong: dict[str, Any]) -> None:
    with pytest.raises(Failure) as refused:
        await desk.publish(**wrong)
    assert refused.value.code == "request.invalid"
    assert (await desk.publish()).messages == [1]


async def test_nobody_opens_a_conversation_in_the_name_of_the_bus(desk: Desk) -> None:
    with pytest.raises(Failure) as refused:
        await desk.publish(correlation="zzzzzzzz.zzzz")
    assert refused.value.code == "conversation.unknown"
    made = (await desk.publish()).correlations
    assert (await desk.publish(correlation=made[0])).correlations == made
