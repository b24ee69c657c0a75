"""The screener with a real store and a real engine that is late, dies or hangs."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from embedding_engines import HarmedEngine, clock_us, supervised, until

from ipc_protocol.errors import Failure
from ipc_protocol.inference import Embedded
from ipc_protocol.work import Evidence
from orchestrator.bus.opening import Publish
from orchestrator.bus.publishing import publish
from orchestrator.bus.registration import RegisterAgents, Registration, register_agents
from orchestrator.bus.routing import BUS, OPERATOR
from orchestrator.config.types import AgentConfig
from orchestrator.screener import Screener
from orchestrator.store.store import Store

AGENTS = [
    AgentConfig(name="opsclaw", duties=["disk full"], consumes=["user.request"]),
    AgentConfig(name="devclaw", duties=["write a script"], consumes=["user.request"]),
]


class Bench:
    """A store with two agents, and what becomes of messages that are published into it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.reader = store.reader("test")

    async def publish(self, *texts: str) -> list[int]:
        receipts = [
            await self.store.apply(
                publish,
                OPERATOR,
                Publish(topic="user.request", payloads=[text.encode()], correlation=text),
            )
            for text in texts
        ]
        return [receipt.messages[0] for receipt in receipts]

    async def evidence(self, message: int) -> dict[str, Evidence]:
        """What is attached to the deliveries of a message that was let go."""
        rows = await self.reader.fetch(
            "SELECT agent, evidence FROM delivery WHERE message = ? AND screened = 1", (message,)
        )
        return {agent: msgspec.json.decode(found, type=Evidence) for agent, found in rows}

    async def fallback(self, message: int) -> Any:
        ((name,),) = await self.reader.fetch(
            "SELECT fallback FROM message WHERE id = ?", (message,)
        )
        return name

    async def let_go(self, messages: Sequence[int]) -> None:
        async def all_of_them() -> bool:
            return all([await self.evidence(message) for message in messages])

        await until(all_of_them)

    async def health(self) -> list[Any]:
        rows = await self.reader.fetch("SELECT data FROM health WHERE kind = 'screening'")
        return [msgspec.json.decode(data)["message"] for (data,) in rows]

    @contextlib.asynccontextmanager
    async def screening(
        self, engine: HarmedEngine, seconds_max: float, more: Sequence[AgentConfig] = ()
    ) -> AsyncIterator[None]:
        screener = Screener(
            [*AGENTS, *more],
            ["thanks"],
            self.store,
            self.store.reader("screening"),
            engine,
            seconds_max,
        )
        task = asyncio.create_task(screener.run())
        try:
            yield
            assert not task.done(), "the screener has ended, and the daemon with it"
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    store = await Store.open(tmp_path / "agentd.db", clock_us=clock_us)
    registrations = [
        Registration(name=agent.name, consumes=agent.consumes, publishes=[]) for agent in AGENTS
    ]
    await store.apply(register_agents, BUS, RegisterAgents(agents=registrations))
    yield Bench(store)
    await store.close()


async def test_without_an_engine_messages_are_let_go_with_a_fallback_and_a_word_to_people(
    bench: Bench,
) -> None:
    async with bench.screening(HarmedEngine(), seconds_max=0.1):
        (message,) = await bench.publish("disk full")
        await bench.let_go([message])
        found = await bench.evidence(message)
        assert set(found) == {"opsclaw", "devclaw"}
        for name, evidence in found.items():
            assert evidence.agent == name
            assert set(evidence.scores.values()) == {0.0}
            assert evidence.recipients == ("devclaw", "opsclaw")
            assert evidence.verdict is not None and evidence.verdict.action == "uncertain"
        assert await bench.fallback(message) == found["devclaw"].fallback == "opsclaw"

        async def told() -> bool:
            return await bench.health() == [message]

        await until(told)


async def test_only_the_first_message_waits_for_an_engine_that_is_away(bench: Bench) -> None:
    messages = await bench.publish(*(f"message {number}" for number in range(8)))
    began = time.monotonic()
    async with bench.screening(HarmedEngine(), seconds_max=0.5):
        await bench.let_go(messages)
    assert time.monotonic() - began < 3 * 0.5


async def test_an_engine_that_comes_late_screens_what_comes_after_it(bench: Bench) -> None:
    engine = HarmedEngine()
    async with bench.screening(engine, seconds_max=0.1):
        (early,) = await bench.publish("disk full")
        await bench.let_go([early])
        async with supervised(engine):

            async def compared() -> bool:
                (message,) = await bench.publish(f"disk full {time.monotonic_ns()}")
                await bench.let_go([message])
                return (await bench.evidence(message))["opsclaw"].nearest == "disk full"

            await until(compared)


async def test_a_message_waits_for_the_engine_that_starts_in_time(bench: Bench) -> None:
    engine = HarmedEngine()
    async with bench.screening(engine, seconds_max=30), supervised(engine):
        (message,) = await bench.publish("disk full")
        await bench.let_go([message])
        assert (await bench.evidence(message))["opsclaw"].score > 0.5
        assert await bench.health() == []


async def test_a_message_that_kills_the_engine_is_let_go_and_blocks_nobody(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.engines.DEATHS_PER_REQUEST_MAX", 2)
    engine = HarmedEngine()
    async with supervised(engine), bench.screening(engine, seconds_max=30):
        fine, deadly, later = await bench.publish("disk full", "die", "write a script")
        await bench.let_go([fine, deadly, later])
        assert (await bench.evidence(fine))["opsclaw"].nearest
        assert not (await bench.evidence(deadly))["opsclaw"].nearest
        assert (await bench.evidence(later))["devclaw"].nearest
        assert await bench.fallback(deadly) == "opsclaw"
        assert await bench.health() == [deadly]


async def test_a_message_that_hangs_the_engine_is_let_go(bench: Bench) -> None:
    engine = HarmedEngine()
    async with supervised(engine):
        assert await engine.embed(["warm"], wait_seconds=None)
        async with bench.screening(engine, seconds_max=0.5):
            (message,) = await bench.publish("stuck")
            await bench.let_go([message])


async def test_whatever_goes_wrong_with_one_message_the_next_one_is_screened(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = HarmedEngine.embed

    async def embed(self: HarmedEngine, texts: list[str], *more: Any, **named: Any) -> Embedded:
        embedded = await whole(self, texts, *more, **named)
        vectors = [
            vector[:-1] if text == "odd" else vector
            for text, vector in zip(texts, embedded.vectors, strict=True)
        ]
        return msgspec.structs.replace(embedded, vectors=vectors)

    monkeypatch.setattr(HarmedEngine, "embed", embed)
    engine = HarmedEngine()
    async with supervised(engine), bench.screening(engine, seconds_max=30):
        odd, plain = await bench.publish("odd", "plain")
        await bench.let_go([odd, plain])
        assert not (await bench.evidence(odd))["opsclaw"].nearest
        assert (await bench.evidence(plain))["opsclaw"].nearest


async def test_a_full_disk_is_waited_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    apply, refused = bench.store.apply, list[str]()

    async def full_at_first(reducer: Any, actor: str, arguments: Any) -> Any:
        if refused.count(reducer.__name__) < 4:
            refused.append(reducer.__name__)
            raise Failure("store.full", "The disk is full.")
        return await apply(reducer, actor, arguments)

    (message,) = await bench.publish("disk full")
    monkeypatch.setattr("orchestrator.store.store.FULL_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(bench.store, "apply", full_at_first)
    engine = HarmedEngine()
    async with supervised(engine), bench.screening(engine, seconds_max=30):
        await bench.let_go([message])
        assert refused.count("attach_screening") == 4
        assert (await bench.evidence(message))["opsclaw"].nearest


async def test_agents_who_come_are_compared_with_once_their_duties_are_embedded(
    bench: Bench,
) -> None:
    engine = HarmedEngine()
    gate = AgentConfig(name="gate", duties=["guard the gate"], consumes=["user.request"])
    async with supervised(engine):
        screener = Screener(
            AGENTS, ["thanks"], bench.store, bench.store.reader("screening"), engine, 30.0
        )
        task = asyncio.create_task(screener.run())
        try:
            (before,) = await bench.publish("guard the gate")
            await bench.let_go([before])
            assert "gate" not in (await bench.evidence(before))["opsclaw"].scores
            screener.know({agent.name: agent for agent in [*AGENTS, gate]})

            async def compared() -> bool:
                (message,) = await bench.publish(f"guard the gate {time.monotonic_ns()}")
                await bench.let_go([message])
                return "gate" in (await bench.evidence(message))["opsclaw"].scores

            await until(compared)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_one_that_takes_what_comes_is_not_compared_with(bench: Bench) -> None:
    engine = HarmedEngine()
    gate = AgentConfig(name="gate", component=Path("gate.wasm"), consumes=["user.request"])
    async with supervised(engine), bench.screening(engine, seconds_max=30.0, more=[gate]):
        (message,) = await bench.publish("disk full")
        await bench.let_go([message])
        assert "gate" not in (await bench.evidence(message))["opsclaw"].scores
