"""The daemon lets an agent out of quarantine when a person says so, and only then."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from embedding_engines import IMPATIENT, HarmedEngine, clock_us, supervised, until

from ipc_protocol import control
from ipc_protocol.control import EngineSummary
from ipc_protocol.inference import EngineStatus, ModelInfo
from orchestrator import daemon
from orchestrator.bus.attention import (
    AnswerAttention,
    RaiseAttention,
    answer_attention,
    raise_attention,
)
from orchestrator.bus.routing import BUS, OPERATOR
from orchestrator.config.types import Config
from orchestrator.control.views import Views
from orchestrator.daemon import Daemon
from orchestrator.metrics import Metrics
from orchestrator.store.changes import Change
from orchestrator.store.store import Store


class FakeDriver:
    """What of a driver the daemon tells that something has changed."""

    def __init__(self) -> None:
        self.state = "quarantined"
        self.urged = 0

    def urge(self, rank: int) -> None:
        self.urged += 1

    def release(self) -> None:
        self.state = "idle"


class Bench:
    """A daemon that follows the changes of a real store, and drivers that only listen."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.views = Views(store.reader("test"))
        self.drivers = {"opsclaw": FakeDriver(), "devclaw": FakeDriver()}
        self.daemon = Daemon(
            Config(source=Path("agentd.toml"), prompts=Path("prompts")),
            store,
            self.views,
            Metrics("0", []),
            cast(Any, None),
            {},
            HarmedEngine(),
            cast(Any, self.drivers),
        )

    async def ask(self, agent: str) -> int:
        return await self.store.apply(
            raise_attention, BUS, RaiseAttention(agent=agent, question="Restart it?")
        )

    async def answer(self, question: int, text: str) -> None:
        given = AnswerAttention(attention=question, text=text)
        await self.store.apply(answer_attention, OPERATOR, given)

    @contextlib.asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.daemon._follow_changes())
        await asyncio.sleep(0)
        try:
            yield
            assert not task.done(), f"the daemon has ended: {task}"
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def followed(self) -> None:
        """Everything that was committed has been followed when this one has been."""
        before = self.drivers["devclaw"].urged
        self.store.changes.publish_nowait(
            [Change(kind="delivery.waiting", data={"agent": "devclaw", "rank": 0}, at_us=0)]
        )

        async def urged() -> bool:
            return self.drivers["devclaw"].urged > before

        await until(urged)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    store = await Store.open(tmp_path / "agentd.db", clock_us=clock_us)
    yield Bench(store)
    await store.close()


async def test_yes_releases_the_agent_that_was_asked_about_and_no_other(bench: Bench) -> None:
    async with bench.following():
        await bench.answer(await bench.ask("opsclaw"), "Yes, I have fixed it.")
        await bench.followed()
        assert bench.drivers["opsclaw"].state == "idle"
        assert bench.drivers["devclaw"].state == "quarantined"


async def test_no_releases_nobody(bench: Bench) -> None:
    async with bench.following():
        await bench.answer(await bench.ask("opsclaw"), "no")
        await bench.followed()
        assert bench.drivers["opsclaw"].state == "quarantined"


async def test_an_answer_about_an_agent_that_is_gone_is_no_concern_of_the_daemon(
    bench: Bench,
) -> None:
    async with bench.following():
        await bench.answer(await bench.ask("retired"), "yes")
        await bench.followed()


async def test_a_release_among_lost_changes_is_made_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "CHANGES_MAX", 1)
    first, second = await bench.ask("opsclaw"), await bench.ask("devclaw")
    async with bench.following():
        published = bench.store.changes.publish_nowait
        lost: list[Any] = []
        # The answers come in one batch behind a change that fills the queue.
        monkeypatch.setattr(bench.store.changes, "publish_nowait", lost.extend)
        await bench.answer(first, "ok")
        await bench.answer(second, "no")
        other = Change(kind="delivery.waiting", data={"agent": "devclaw", "rank": 0}, at_us=0)
        published([other, *lost])
        monkeypatch.setattr(bench.store.changes, "publish_nowait", published)

        async def released() -> bool:
            return bench.drivers["opsclaw"].state == "idle"

        await until(released)
        assert bench.drivers["devclaw"].state == "quarantined"


async def test_after_a_lag_an_open_question_releases_nobody(bench: Bench) -> None:
    await bench.answer(await bench.ask("opsclaw"), "yes")
    await bench.ask("opsclaw")  # it was quarantined again
    await bench.daemon._release_answered()
    assert bench.drivers["opsclaw"].state == "quarantined"
    assert await bench.views.quarantines() == {"opsclaw": None}


# ---- Health --------------------------------------------------------------------------------------


def test_an_engine_that_is_up_and_does_not_answer_is_not_healthy() -> None:
    info = ModelInfo(name="m", kind="embedding", architecture="test")
    stuck = EngineSummary(name="embed", state="ready", restarts=0)
    answering = EngineSummary(
        name="embed", state="ready", restarts=0, status=EngineStatus(model=info)
    )
    assert daemon._healthy([], [answering])
    assert not daemon._healthy([], [answering, stuck])


async def test_monitoring_is_told_which_engine_does_not_answer(bench: Bench) -> None:
    bench.drivers.clear()
    health = await bench.daemon._on_health(cast(Any, None), cast(Any, None))
    assert health == control.Health(healthy=False, detail="not up: engine/embed")
    engine = HarmedEngine(IMPATIENT)
    bench.daemon._engines = [engine]
    async with supervised(engine):

        async def healthy() -> bool:
            return (await bench.daemon._on_health(cast(Any, None), cast(Any, None))).healthy

        await until(healthy)
