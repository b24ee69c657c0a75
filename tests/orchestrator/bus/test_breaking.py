"""Rings of full inboxes on a real bus: found, broken, said aloud, and then everything flows."""

import asyncio
import json
import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from orchestrator.bus.breaking import break_ring, held_up
from orchestrator.bus.leasing import ResumeDue, resume_due
from orchestrator.bus.limits import BACKPRESSURE_RETRY_US
from orchestrator.bus.registration import Registration
from orchestrator.bus.rings import Attempt, Held, Ring
from orchestrator.bus.routing import BUS
from orchestrator.ring_breaker import RingBreaker

Bus = Any
"""The fixture `bus`."""

ROUNDS_MAX = 400


class Relays:
    """Agents that pass on what they get, as long as its payload, a number, is over 0."""

    def __init__(self, bus: Bus, routes: Mapping[str, Sequence[str]], inbox: int) -> None:
        self.bus = bus
        self.routes = routes
        self.inbox = inbox
        self.accepted = 0
        self.breaker = RingBreaker(bus.store, bus.store.reader("rings"), lambda: bus.now_us)

    async def join(self) -> None:
        await self.bus.register(
            *(
                Registration(
                    name=name,
                    consumes=[f"to.{name}"],
                    publishes=[f"to.{receiver}" for receiver in receivers if receiver != name],
                    delegates=[name] if name in receivers else [],
                    inbox=self.inbox,
                )
                for name, receivers in self.routes.items()
            )
        )

    async def fill(self, hops: int = 3) -> None:
        """Every inbox to the last place, each message in a conversation of its own."""
        for _ in range(self.inbox):
            for name in self.routes:
                self.accepted += 1
                await self.bus.ask(
                    str(hops), topic=f"to.{name}", correlation=f"c{self.accepted:02}"
                )

    async def work(self, agent: str) -> bool:
        """Handle one delivery of `agent`. False if it has none."""
        lease = await self.bus.lease(agent)
        if lease is None:
            return False
        handle = lease.handle
        hops = int(handle.envelope.payload)
        outputs = [
            (f"agent.{name}" if name == agent else f"to.{name}", str(hops - 1))
            for name in (self.routes[agent] if hops else ())
        ]
        await self.bus.complete(agent, handle.delivery, *outputs)
        return True

    async def round(self, order: Sequence[str] | None = None) -> None:
        """Retry what is due, handle all there is, and let half a second pass."""
        await self.bus.store.apply(resume_due, BUS, ResumeDue())
        for agent in order or list(self.routes):
            while await self.work(agent):
                pass
        self.bus.now_us += BACKPRESSURE_RETRY_US // 2

    async def until_nothing_is_left(self) -> None:
        for _ in range(ROUNDS_MAX):
            await self.round()
            await self.breaker.look()
            if not await self.bus.value("SELECT count(*) FROM delivery WHERE finished_us IS NULL"):
                return
        raise AssertionError("something is stuck")

    async def health(self) -> list[tuple[str, dict[str, Any]]]:
        rows = await self.bus.reader.fetch(
            "SELECT detail, data FROM health WHERE kind = 'ring' ORDER BY id"
        )
        return [(detail, json.loads(data)) for detail, data in rows]

    async def require_everything_accounted_for(self) -> None:
        """Each accepted message is done or a dead letter, and each conversation has its end."""
        fetch = self.bus.reader.fetch
        assert await fetch("SELECT DISTINCT state FROM conversation") == [("answered",)]
        assert await fetch("SELECT DISTINCT code FROM dead_letter WHERE code <> 'bus.ring'") == []
        assert (
            await fetch(
                "SELECT id FROM message WHERE NOT EXISTS (SELECT 1 FROM delivery d"
                " WHERE d.message = message.id AND d.state IN ('done', 'dead'))"
            )
            == []
        )
        dead = await fetch("SELECT id FROM delivery WHERE state = 'dead' ORDER BY id")
        letters = await fetch("SELECT delivery FROM dead_letter ORDER BY delivery")
        assert dead == letters
        reported = [letter for _, data in await self.health() for letter in data["dead_letters"]]
        assert len(reported) == len(letters)


def ring_of(size: int) -> dict[str, list[str]]:
    names = "abcde"[:size]
    return {name: [names[(place + 1) % size]] for place, name in enumerate(names)}


@pytest.mark.parametrize("size", [2, 3, 4, 5])
async def test_a_ring_is_found_broken_and_everything_flows(
    empty_bus: Bus, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    relays = Relays(empty_bus, ring_of(size), inbox=2)
    await relays.join()
    await relays.fill()
    with caplog.at_level(logging.ERROR):
        await relays.until_nothing_is_left()
    await relays.require_everything_accounted_for()
    detail, data = (await relays.health())[0]
    names = list(ring_of(size))
    assert data["agents"] == names
    assert detail.startswith(f"a waits for room with b, b with {names[2 % size]}")
    assert detail in caplog.text
    # The youngest conversation of all was given up first.
    assert data["correlation"] == f"c{relays.accepted:02}"
    # One given up is enough for a ring through which everything moves on at once.
    assert len(await relays.health()) < relays.accepted


async def test_a_ring_of_one_is_an_agent_that_waits_for_itself(empty_bus: Bus) -> None:
    """Each message for it becomes two. The first has the place of what it came from."""
    relays = Relays(empty_bus, {"a": ["a", "a"]}, inbox=2)
    await relays.join()
    await relays.fill(hops=1)
    await relays.until_nothing_is_left()
    await relays.require_everything_accounted_for()
    detail, data = (await relays.health())[0]
    assert data["agents"] == ["a"]
    assert detail.startswith("a waits for room in its own inbox.")


async def test_an_agent_that_feeds_itself_through_another_is_a_ring_with_it(empty_bus: Bus) -> None:
    relays = Relays(empty_bus, {"a": ["b"], "b": ["a"], "c": ["a"]}, inbox=2)
    await relays.join()
    await relays.fill()
    await relays.until_nothing_is_left()
    await relays.require_everything_accounted_for()
    assert {tuple(data["agents"]) for _, data in await relays.health()} == {("a", "b")}


async def test_a_fan_out_ring_is_broken(empty_bus: Bus) -> None:
    relays = Relays(empty_bus, {"a": ["b", "c"], "b": ["a"], "c": ["a"]}, inbox=2)
    await relays.join()
    await relays.fill()
    await relays.until_nothing_is_left()
    await relays.require_everything_accounted_for()
    assert (await relays.health())[0][1]["agents"][0] == "a"


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_waits_for_whatever_comes_to_an_end(empty_bus: Bus, seed: int) -> None:
    print(f"seed {seed}")
    chance = random.Random(seed)
    names = "abcde"[: chance.randint(2, 5)]
    routes = {
        name: chance.sample([each for each in names if each != name], chance.randint(0, 2))
        if len(names) > 2
        else [each for each in names if each != name]
        for name in names
    }
    relays = Relays(empty_bus, routes, inbox=chance.randint(2, 4))
    await relays.join()
    await relays.fill(hops=chance.randint(1, 3))
    await relays.until_nothing_is_left()
    await relays.require_everything_accounted_for()


async def test_a_jam_that_passes_is_left_alone(empty_bus: Bus) -> None:
    """`b` has one delivery that it has not begun. Nothing is given up for as long as that takes."""
    relays = Relays(empty_bus, ring_of(2), inbox=2)
    await relays.join()
    await relays.fill(hops=1)
    first = await empty_bus.leased("b")
    for _ in range(20):
        await relays.round(order=["a"])
        await relays.breaker.look()
    await empty_bus.complete("b", first)
    await relays.until_nothing_is_left()
    assert await empty_bus.value("SELECT count(*) FROM dead_letter") == 0
    assert await relays.health() == []


async def found_ring(relays: Relays) -> Ring:
    """Let everything be parked, and say what a breaker would break."""
    await relays.round()
    rows = await relays.bus.reader.fetch(
        "SELECT agent, json_group_array(id) FROM delivery WHERE state = 'parked' GROUP BY agent"
    )
    inboxes = {agent: tuple(sorted(json.loads(held))) for agent, held in rows}
    return Ring(agents=tuple(sorted(inboxes)), inboxes=inboxes)


async def test_a_ring_that_has_moved_is_not_broken(empty_bus: Bus) -> None:
    relays = Relays(empty_bus, ring_of(2), inbox=2)
    await relays.join()
    await relays.fill()
    ring = await found_ring(relays)
    moved = Ring(agents=ring.agents, inboxes={**ring.inboxes, "a": ring.inboxes["a"][1:]})
    assert await empty_bus.store.apply(break_ring, BUS, moved) is None
    empty_bus.now_us += BACKPRESSURE_RETRY_US
    await empty_bus.store.apply(resume_due, BUS, ResumeDue())
    assert await empty_bus.store.apply(break_ring, BUS, ring) is None  # all are tried again
    assert await empty_bus.value("SELECT count(*) FROM dead_letter") == 0


async def test_all_that_is_parked_of_the_conversation_is_given_up(empty_bus: Bus) -> None:
    relays = Relays(empty_bus, ring_of(2), inbox=2)
    await relays.join()
    for topic, correlation in [("a", "old"), ("b", "old"), ("a", "new"), ("b", "new")]:
        await empty_bus.ask("3", topic=f"to.{topic}", correlation=correlation)
    ring = await found_ring(relays)
    broken = await empty_bus.store.apply(break_ring, BUS, ring)
    assert (broken.correlation, len(broken.dead_letters)) == ("new", 2)
    rows = await empty_bus.reader.fetch("SELECT receiver, code, reason FROM dead_letter")
    reason = (
        "a waits for room with b, b with a; no inbox of theirs could ever empty, and this "
        "conversation was the youngest."
    )
    assert rows == [("a", "bus.ring", reason), ("b", "bus.ring", reason)]
    assert await empty_bus.state("new") == "answered"
    assert await empty_bus.state("old") == "open"


async def test_what_is_looked_at(empty_bus: Bus) -> None:
    relays = Relays(empty_bus, {"a": ["b"], "b": [], "c": []}, inbox=2)
    await relays.join()
    await relays.fill(hops=1)
    assert await empty_bus.reader.view(held_up, ["c"]) == []
    assert await relays.work("a")
    attempt = Attempt(at_us=empty_bus.now_us, full=("b",))
    of_a_and_b = [
        Held(delivery=1, agent="a", attempt=attempt),
        Held(delivery=4, agent="a"),
        Held(delivery=2, agent="b"),
        Held(delivery=5, agent="b"),
    ]
    assert await empty_bus.reader.view(held_up, []) == of_a_and_b
    assert len(await empty_bus.reader.view(held_up, ["c"])) == len(of_a_and_b) + 2


class Looks(RingBreaker):
    """Counts how often it looks."""

    count = 0

    async def look(self) -> bool:
        self.count += 1
        return await super().look()


async def test_nobody_looks_while_nobody_is_parked(empty_bus: Bus) -> None:
    relays = Relays(empty_bus, ring_of(2), inbox=2)
    reader = empty_bus.store.reader("looks")
    breaker = Looks(empty_bus.store, reader, lambda: empty_bus.now_us, look_seconds=0)

    async def looks_while_nothing_happens() -> int:
        before = breaker.count
        for _ in range(20):
            await reader.view(held_up, [])
        return breaker.count - before

    await relays.join()
    running = asyncio.create_task(breaker.run())
    await looks_while_nothing_happens()
    assert breaker.count == 1  # what a start finds
    await relays.fill(hops=1)
    await relays.work("a")
    assert await looks_while_nothing_happens() > 1
    for _ in range(40):
        await relays.round()
        await looks_while_nothing_happens()
    await relays.require_everything_accounted_for()
    assert len(await relays.health()) > 0
    await looks_while_nothing_happens()
    assert await looks_while_nothing_happens() == 0
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
