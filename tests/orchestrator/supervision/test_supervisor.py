"""A supervisor keeps a child alive, and in quarantine until a person releases it."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import pytest

from orchestrator.supervision.child import ChildState
from orchestrator.supervision.restart import Died, Quarantine, RestartPolicy
from orchestrator.supervision.supervisor import Supervisor

FRAGILE = RestartPolicy(deaths_max=1, backoff_us_min=1, backoff_us_max=1)


class Child:
    """Dies as often as it is told to, then lives on."""

    def __init__(self, deaths: int = 0) -> None:
        self.starts = 0
        self.living = asyncio.Event()
        self._deaths = deaths

    async def live(self) -> Died:
        self.starts += 1
        if self.starts > self._deaths:
            self.living.set()
            await asyncio.Event().wait()
        return Died()


@contextlib.asynccontextmanager
async def running(supervisor: Supervisor, child: Child) -> AsyncIterator[None]:
    task = asyncio.create_task(supervisor.run(child.live))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until_quarantined(supervisor: Supervisor) -> None:
    async with asyncio.timeout(5):
        while True:
            if supervisor.state is ChildState.QUARANTINED:
                return
            await asyncio.sleep(0)


async def test_a_child_that_was_held_is_not_started_before_it_is_released() -> None:
    supervisor, child = Supervisor("worker/opsclaw", FRAGILE, lambda: 0), Child()
    supervisor.hold("it died six times")
    async with running(supervisor, child):
        await until_quarantined(supervisor)
        assert (child.starts, supervisor.detail) == (0, "it died six times")
        supervisor.release()
        async with asyncio.timeout(5):
            await child.living.wait()
        assert child.starts == 1


async def test_an_answer_that_comes_before_the_supervisor_runs_is_not_lost() -> None:
    supervisor, child = Supervisor("worker/opsclaw", FRAGILE, lambda: 0), Child()
    supervisor.hold("it died six times")
    supervisor.release()
    async with running(supervisor, child), asyncio.timeout(5):
        await child.living.wait()


async def test_what_is_renewed_while_its_quarantine_is_written_down_lives_at_once() -> None:
    async def ask(_: Quarantine) -> None:
        supervisor.renew()

    supervisor, child = Supervisor("worker/opsclaw", FRAGILE, lambda: 0, ask), Child(deaths=2)
    async with running(supervisor, child), asyncio.timeout(5):
        await child.living.wait()


async def test_a_release_from_before_the_question_answers_nothing() -> None:
    asked = asyncio.Event()

    async def ask(_: Quarantine) -> None:
        supervisor.release()
        asked.set()

    supervisor, child = Supervisor("worker/opsclaw", FRAGILE, lambda: 0, ask), Child(deaths=2)
    async with running(supervisor, child):
        async with asyncio.timeout(5):
            await asked.wait()
        for _ in range(5):
            await asyncio.sleep(0)
        assert supervisor.state is ChildState.QUARANTINED
        supervisor.release()
        async with asyncio.timeout(5):
            await child.living.wait()


async def test_of_a_restart_at_once_says_nothing_since_nobody_waits_for_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def live() -> Died:
        ended.append(None)
        if len(ended) > 2:
            living.set()
            await asyncio.Event().wait()
        return Died(own=len(ended) > 1)

    ended: list[None] = []
    living = asyncio.Event()
    supervisor = Supervisor("engine/small", FRAGILE, lambda: 0)
    with caplog.at_level(logging.INFO):
        task = asyncio.create_task(supervisor.run(live))
        async with asyncio.timeout(5):
            await living.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert supervisor.restarts == 2
    assert len([one for one in caplog.messages if "starts again" in one]) == 1
