"""Plays a plan: who asks when, and what came of it. How something is asked is the caller's to say.

The load generator over HTTP and the run of the engine alone use this, so both are under the very
same load.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from orchestrator.bench.inference_load import Actor, Answer, Ask, Outcome, Plan, Said

Heard = Callable[[], None]
"""To be called whenever text has come."""

Asking = Callable[[Actor, Ask, Heard], Awaitable[Said]]
"""Asks, and returns when the answer has ended. Raises `AskError`; cancelling withdraws it."""

MICROSECONDS: Final = 1_000_000

ANSWERED: Final[Outcome] = "answered"
LEFT: Final[Outcome] = "left"
FAILED: Final[Outcome] = "failed"


class AskError(Exception):
    """A server refused, or did not keep to its interface."""


async def play(plan: Plan, asking: Asking) -> list[Answer]:
    """All answers, in the order in which they ended. Raises `TimeoutError` at the plan's limit."""
    stage = _Stage(plan, asking)
    async with asyncio.timeout(plan.limit_s), asyncio.TaskGroup() as group:
        for actor in plan.actors:
            act = stage.by_schedule if actor.every_s else stage.one_by_one
            group.create_task(act(actor))
    return stage.answers


class _Stage:
    """One run."""

    def __init__(self, plan: Plan, asking: Asking) -> None:
        self.answers: list[Answer] = []
        self._asking = asking
        self._loop = asyncio.get_running_loop()
        self._start_s = self._loop.time()
        self._start_ns = time.monotonic_ns()
        self._barrier = asyncio.Barrier(len(plan.actors)) if plan.rounds else None

    async def one_by_one(self, actor: Actor) -> None:
        await self._until(actor.begin_s)
        while True:
            for number, ask in enumerate(actor.asks):
                if self._is_over(actor):
                    return
                await asyncio.sleep(ask.delay_s)
                await self._ask(actor, number, self._now_us())
                if self._barrier is not None:
                    await self._barrier.wait()
            if not actor.until_s:
                return

    async def by_schedule(self, actor: Actor) -> None:
        """An answer's time begins when its request was due, however late it was sent."""
        async with asyncio.TaskGroup() as group:
            number, due_s = 0, actor.begin_s
            while due_s < actor.until_s:
                await self._until(due_s)
                due_us = round(due_s * MICROSECONDS)
                group.create_task(self._ask(actor, number % len(actor.asks), due_us))
                number += 1
                due_s = actor.begin_s + number * actor.every_s

    async def _ask(self, actor: Actor, number: int, asked_us: int) -> None:
        arrivals: list[int] = []
        said, outcome, error = Said(), ANSWERED, ""
        leaves = actor.until_s and not actor.every_s
        try:
            async with asyncio.timeout_at(
                self._start_s + actor.until_s if leaves else None
            ) as waiting:

                def heard() -> None:
                    arrivals.append(self._now_us())
                    waiting.reschedule(None)

                said = await self._asking(actor, actor.asks[number], heard)
        except TimeoutError:
            outcome = LEFT
        except AskError as failure:
            outcome, error = FAILED, str(failure)
        self.answers.append(
            Answer(
                actor=actor.name,
                kind=actor.kind,
                number=number,
                asked_us=asked_us,
                ended_us=self._now_us(),
                outcome=outcome,
                arrivals_us=arrivals,
                said=said,
                error=error,
            )
        )

    async def _until(self, at_s: float) -> None:
        await asyncio.sleep(max(0.0, self._start_s + at_s - self._loop.time()))

    def _is_over(self, actor: Actor) -> bool:
        return bool(actor.until_s) and self._loop.time() - self._start_s >= actor.until_s

    def _now_us(self) -> int:
        return (time.monotonic_ns() - self._start_ns) // 1000
