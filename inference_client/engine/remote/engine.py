"""A remote model behind the same queue as a local one: whoever speaks OpenAI's interface.

This process dials nothing. It decides who is asked for next when one of `slots` requests at once is
free, and has egress send it, over its own line to the orchestrator. What comes back is an answer of
a stranger: bounded, parsed, and checked where it has to keep to a schema.

A server that is slow does not make this engine hang: every request has its end by a time limit of
its own, here or in egress, and the engine counts a step with every tick of its clock.
"""

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Final

from inference_client.engine.planning.request import Request
from inference_client.engine.remote import messages as messages
from inference_client.engine.remote.exchange import Exchange
from inference_client.engine.remote.messages import RemoteAnswer
from inference_client.engine.remote.retries import BACKOFF, Backoff
from inference_client.engine.remote.schema import AnswerSchema
from inference_client.engine.remote.turns import Turns
from inference_client.engine.report import Accounts
from ipc_protocol import methods
from ipc_protocol.aio import Call, Handlers
from ipc_protocol.errors import Failure
from ipc_protocol.inference import (
    REMOTE,
    EngineStart,
    EngineStatus,
    Generate,
    Generated,
    ModelInfo,
    Nothing,
    Score,
    Scored,
    Usage,
)

log = logging.getLogger(__name__)

WAITING_MAX: Final = 4096
"""As with a local model: 200 agents with 20 requests each."""

REQUEST_BYTES_MAX: Final = 2 * 1024 * 1024
"""What egress takes: 500,000 tokens of prompt."""

TICK_SECONDS: Final = 1.0
"""How often somebody is looked for whose tokens of this minute were used up. Minutes are not finer
than that, and the watch over engines asks every 5 s."""


class RemoteEngine:
    """Serves one remote model. `broken` is set when its clock has failed."""

    def __init__(self, backoff: Backoff = BACKOFF, tick_seconds: float = TICK_SECONDS) -> None:
        self.broken = asyncio.Event()
        self._backoff = backoff
        self._tick_seconds = tick_seconds
        self._front: _Front | None = None

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Handlers]:
        ticking = asyncio.ensure_future(self._tick())
        ticking.add_done_callback(self._on_ticked)
        try:
            yield (
                Handlers()
                .add(methods.ENGINE_START, self._start)
                .add(methods.ENGINE_STATUS, self._status)
                .add(methods.ENGINE_GENERATE, self._generate)
                .add(methods.ENGINE_SCORE, self._score)
            )
        finally:
            ticking.cancel()
            await asyncio.gather(ticking, return_exceptions=True)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._tick_seconds)
            if self._front is not None:
                self._front.tick()

    def _on_ticked(self, ticking: "asyncio.Future[None]") -> None:
        if not ticking.cancelled():
            log.error("the clock of the engine failed", exc_info=ticking.exception())
            self.broken.set()

    async def _start(self, start: EngineStart, _: Call) -> ModelInfo:
        if self._front is not None:
            raise Failure(
                "request.invalid", "The engine has a model already.", "Start another engine."
            )
        if start.slots < 1:
            raise Failure("request.invalid", "`slots` is at least 1.")
        self._front = _Front(start, self._backoff)
        return self._front.info

    async def _status(self, _: Nothing, __: Call) -> EngineStatus:
        return self._loaded.status()

    async def _generate(self, asked: Generate, call: Call) -> Generated:
        return await self._loaded.generate(asked, call)

    async def _score(self, _: Score, __: Call) -> Scored:
        raise Failure(
            "request.unknown-method",
            "A remote model cannot say how likely a text is.",
            "Let a local model state preferences, or set `preference_weight = 0`.",
        )

    @property
    def _loaded(self) -> "_Front":
        if self._front is None:
            raise Failure(
                "inference.unavailable", "The engine has no model yet.", "Send `engine.start`."
            )
        return self._front


class _Front:
    """The queue in front of one remote model, and the requests that are out."""

    def __init__(self, start: EngineStart, backoff: Backoff) -> None:
        self.info = ModelInfo(
            name=start.name, kind="language", architecture=REMOTE, slots=start.slots
        )
        self._dialect = messages.Dialect(start.remote_model or start.name)
        self._backoff = backoff
        self._turns = Turns(start.slots, WAITING_MAX)
        self._granted: dict[int, asyncio.Event] = {}
        self._ids = itertools.count(1)
        self._accounts = Accounts()
        self._steps = 0

    def status(self) -> EngineStatus:
        now_us = _now_us()
        return EngineStatus(
            model=self.info,
            slots=self._turns.slots(now_us),
            queue=self._turns.queue(now_us),
            usage=self._accounts.listed(),
            steps=self._steps,
            working=self._turns.working,
        )

    def tick(self) -> None:
        self._steps += 1
        self._grant()

    async def generate(self, asked: Generate, call: Call) -> Generated:
        """Raises what `messages`, `schema` and `exchange` raise, and
        `inference.busy`, `inference.context`, `inference.budget` and `inference.deadline`."""
        messages.check(asked)
        # On a thread, as its check later: a large one takes longer than the others may wait.
        schema = None
        if asked.schema is not None:
            schema = await asyncio.to_thread(AnswerSchema, asked.schema)
        body = self._dialect.body_of(asked)
        if len(body) > REQUEST_BYTES_MAX:
            raise Failure(
                "inference.context",
                f"A request of {len(body)} bytes for {self.info.name} is over the "
                f"{REQUEST_BYTES_MAX} that are sent.",
                "Send less text.",
            )
        seconds = None if asked.deadline_us is None else max(0.0, asked.deadline_us / 1e6)
        try:
            async with asyncio.timeout(seconds):
                return await self._answer(asked, schema, call)
        except TimeoutError as error:
            raise Failure(
                "inference.deadline",
                f"{self.info.name} has not answered within the {seconds:g} s of the deadline.",
                "Allow more time, or ask in a more urgent class.",
            ) from error

    async def _answer(self, asked: Generate, schema: AnswerSchema | None, call: Call) -> Generated:
        request = self._request(asked)
        answer = RemoteAnswer(self.info.name)
        async with self._turn(request, answer):
            heard = self._heard(request, answer)
            await Exchange(call, asked, self._dialect, answer, self._backoff, heard).run()
        finish = answer.finish
        usage = _usage(request, answer)
        self._accounts.add(request.agent, usage)
        if schema is not None:
            if finish == "length":
                raise Failure(
                    "inference.budget",
                    f"{asked.tokens_max} tokens were too few for the answer.",
                    "Give it a larger budget, or a schema that allows less.",
                    prompt_tokens=usage.prompt_tokens,
                    cached_tokens=usage.cached_tokens,
                    generated_tokens=usage.generated_tokens,
                )
            await asyncio.to_thread(schema.check, answer.text, self.info.name)
        return Generated(text=answer.text, finish=finish, usage=usage, logprobs=answer.logprobs)

    def _heard(self, request: Request, answer: RemoteAnswer) -> Callable[[], None]:
        """To be called whenever something of its answer has come."""

        def heard() -> None:
            self._steps += 1
            if answer.characters and not request.ready:
                self._turns.begun(request, _now_us())

        return heard

    def _request(self, asked: Generate) -> Request:
        now_us = _now_us()
        request = Request(
            id=next(self._ids),
            agent=asked.agent,
            priority=asked.priority,
            tokens=[0],  # nobody here has the vocabulary: what counts is how many there may be
            tokens_max=asked.tokens_max,
            arrived_us=now_us,
            share=asked.share,
            deadline_us=None if asked.deadline_us is None else now_us + asked.deadline_us,
        )
        request.prompt_tokens = messages.prompt_tokens_of(asked)
        return request

    @contextlib.asynccontextmanager
    async def _turn(self, request: Request, answer: RemoteAnswer) -> AsyncIterator[None]:
        """Waits for a slot, and holds it. Raises `inference.busy`."""
        granted = asyncio.Event()
        self._turns.submit(request)
        self._granted[request.id] = granted
        try:
            self._grant()
            await granted.wait()
            yield
        finally:
            del self._granted[request.id]
            spent = request.prompt_tokens + answer.generated_tokens if request.ready else None
            self._turns.leave(request, spent, _now_us())
            self._grant()

    def _grant(self) -> None:
        for request in self._turns.grant(_now_us()):
            self._granted[request.id].set()


def _usage(request: Request, answer: RemoteAnswer) -> Usage:
    now_us = _now_us()
    assert request.started_us is not None
    counted = answer.usage
    return Usage(
        prompt_tokens=request.prompt_tokens if counted is None else counted.prompt_tokens,
        cached_tokens=0 if counted is None else counted.cached_tokens,
        generated_tokens=answer.generated_tokens,
        queue_us=request.started_us - request.arrived_us,
        first_token_us=(request.first_us or now_us) - request.arrived_us,
        total_us=now_us - request.arrived_us,
    )


def _now_us() -> int:
    return time.monotonic_ns() // 1000
