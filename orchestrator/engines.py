"""What is asked of engines, and requests that outlive their engines' deaths.

A request that was under way when its engine ended is asked again of the next one, so that its
caller sees a delay at most: a generation goes on from the tokens that it had (`resuming`). Those
that may have ended the engine are tried one at a time before anybody else is asked (`suspects`),
and one that is found to do so is refused. A model that is not loaded is loaded when somebody asks,
and one that has to make room for another has its requests asked again when it is back
(`model_memory`).
"""

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, TypeVar

import msgspec

from inference_client import gguf
from inference_client.client import EngineClient
from ipc_protocol.aio import Handlers
from ipc_protocol.control import EngineSummary
from ipc_protocol.errors import Failure, Problem
from ipc_protocol.inference import (
    Embedded,
    EngineStart,
    Generate,
    Generated,
    GeneratedText,
    ModelInfo,
    Score,
    Scored,
)
from ipc_protocol.limits import STREAMS_MAX
from ipc_protocol.values import rank
from orchestrator.engine_life import WATCH, End, Ended, Engine, Life, Watch
from orchestrator.model_memory import ModelMemory, Residence
from orchestrator.residency import expected_bytes
from orchestrator.resuming import Answer
from orchestrator.store.database import VECTOR_BYTES
from orchestrator.suspects import DEATHS_ALONE_MAX, TRIAL_SECONDS_MAX, Suspects

log = logging.getLogger(__name__)

R = TypeVar("R")

Listener = Callable[[GeneratedText], Awaitable[None]]
"""Is told of an answer as it comes: first of the slot, then of what came since it was last told."""

DEATHS_PER_REQUEST_MAX: Final = 5
"""Texts under which their engine died this often are taken for the cause, and refused."""

REQUESTS_MAX: Final = STREAMS_MAX - 24
"""To one model at once, those that wait for it included. What is left of the line's streams is for
questions about its status: an engine that cannot be asked would be taken for one that hangs."""

LOADS_FAILED_MAX: Final = 5
"""So many in a row, and those who wait are told; 3 s of backoff for one that dies at once. One may
be an operator's signal."""

OPTIONAL_SECONDS_MAX: Final = 2.0
"""How long a vector is waited for by what goes on without one: a memory is found by its words too.
An engine that is up answers within milliseconds, and one that has just died is back in a second."""

VECTOR_DIMENSIONS: Final = VECTOR_BYTES // 4
"""What the store holds of a text: floats of 4 bytes."""


def _now_us() -> int:
    return time.monotonic_ns() // 1000


class LanguageEngine(Engine):
    """An engine that generates text. It is loaded while its `residence` says so, or for good."""

    KIND: ClassVar[Literal["language", "embedding", "remote"]] = "language"

    def __init__(
        self,
        start: EngineStart,
        clock_us: Callable[[], int],
        on_restart: Callable[[str], None],
        watch: Watch = WATCH,
        *,
        residence: Residence | None = None,
        handlers: Handlers | None = None,
    ) -> None:
        super().__init__(start, clock_us, on_restart, watch, handlers=handlers)
        if residence is None:
            everything = ModelMemory(sys.maxsize, devices=False)
            residence = everything.residence(start.name, pinned=True)
        self._residence = residence
        self._leave = residence.leave
        self._suspects = Suspects()
        self._refusal: Problem | None = None
        """Why it cannot be loaded: what is said to whoever asks until the next attempt."""
        self._loads_failed = 0

    async def generate(self, params: Generate, on_item: Listener | None = None) -> Generated:
        """The whole answer; with `on_item` it is told as it comes, whatever `params.stream` says.

        Raises `inference.deadline`, `inference.culprit`, `inference.busy`, `model.invalid`,
        `inference.unavailable` for a model that cannot be loaded, and whatever the engine says.
        """
        answer, news = Answer(params, _now_us(), listened=on_item is not None), asyncio.Event()
        asked = self._generate(params, answer, news)
        return await (asked if on_item is None else _telling(on_item, asked, answer, news))

    async def score(self, params: Score) -> Scored:
        """How likely one text is as the continuation of another. Raises as `generate` does."""
        with self._request(params) as request:
            while True:
                life = await self._turn(request)
                with contextlib.suppress(Ended), self._under_way(request, life, params):
                    return await life.answer(lambda client: client.score(params))

    async def _generate(self, params: Generate, answer: Answer, news: asyncio.Event) -> Generated:
        with self._request(params) as request:

            async def ask(client: EngineClient) -> Generated:
                return await client.generate(answer.ask(_now_us()), take)

            async def take(item: GeneratedText) -> None:
                answer.take(item, _now_us())
                self._hear(request, answer.progress)
                news.set()

            while True:
                life = await self._turn_in_time(request, answer)
                with contextlib.suppress(Ended), self._under_way(request, life, params):
                    return answer.whole(await life.answer(ask))
                answer.fall(_now_us())

    # -- one request among others

    @contextlib.contextmanager
    def _request(self, params: Generate | Score) -> Iterator[int]:
        """The number of a request, which needs the model for as long as the block lasts. Raises
        `inference.busy`."""
        if len(self._suspects) >= REQUESTS_MAX:
            raise Failure(
                "inference.busy",
                f"{REQUESTS_MAX} requests for the model {self.name} are under way.",
                "Wait for answers before asking more.",
            )
        urgency = rank(params.priority)
        request = self._suspects.enter(urgency)
        try:
            with self._residence.asking(urgency):
                yield request
        finally:
            self._suspects.leave(request)
            self._changed.set()

    async def _turn(self, request: int) -> Life:
        """Wait until the request may be asked, and of whom."""
        while True:
            life = await self._wait_life()
            if self._suspects.may_ask(request):
                return life
            self._changed.clear()
            await self._changed.wait()

    async def _turn_in_time(self, request: int, answer: Answer) -> Life:
        """Raises `inference.deadline`."""
        try:
            async with asyncio.timeout(answer.seconds_left(_now_us())):
                return await self._turn(request)
        except TimeoutError:
            raise answer.late() from None

    @contextlib.contextmanager
    def _under_way(self, request: int, life: Life, params: Generate | Score) -> Iterator[None]:
        """While it is asked. Raises `inference.culprit` if it has ended the engine too often."""
        self._suspects.ask(request)
        trial: asyncio.TimerHandle | None = None
        if self._suspects.on_trial(request):
            loop = asyncio.get_running_loop()
            trial = loop.call_later(TRIAL_SECONDS_MAX, self._acquit, request)
        try:
            yield
        except Ended:
            log.info("engine/%s ended under a request, which is asked again", self.name)
            self._suspects.fall(request, deliberate=life.deliberate)
            self._changed.set()
            if self._suspects.is_culprit(request):
                raise self._culprit(params) from None
            raise
        finally:
            if trial is not None:
                trial.cancel()

    def _hear(self, request: int, tokens: int) -> None:
        tried = self._suspects.on_trial(request)
        self._suspects.hear(request, tokens)
        if tried and not self._suspects.on_trial(request):
            self._changed.set()

    def _acquit(self, request: int) -> None:
        self._suspects.acquit(request)
        self._changed.set()

    def _culprit(self, params: Generate | Score) -> Failure:
        failure = Failure(
            "inference.culprit",
            f"The engine {self.name} died {DEATHS_ALONE_MAX} times of a request of "
            f"{params.agent}, class {params.priority}, which was alone in it.",
            "The engine's log says how it died. Ask for something else.",
            agent=params.agent,
            priority=params.priority,
            engine=self.name,
        )
        log.error("%s", failure.problem.message)
        return failure

    # -- loading

    async def _enter(self) -> None:
        self._refusal = None
        try:
            await self._residence.enter(self._estimate)
        except Failure as failure:
            self._refuse(failure)
            raise

    async def _estimate(self) -> int:
        """Bytes, from the header of its file. Raises `model.invalid`."""
        start = self._start
        header = await asyncio.to_thread(gguf.read, Path(start.path))
        return expected_bytes(header.size, header.kv_bytes_per_token, start.context, start.kv_type)

    async def _load(self, client: EngineClient) -> ModelInfo:
        try:
            info = await super()._load(client)
        except Failure as failure:
            # One that dies of it is tried again first; one that takes too long was waited for.
            if failure.code == "model.invalid" or isinstance(failure.__cause__, TimeoutError):
                self._refuse(failure)
            raise
        self._residence.measured(info)
        return info

    def _exit(self, end: End | None) -> None:
        self._loads_failed = self._loads_failed + 1 if end is None else 0
        if self._loads_failed >= LOADS_FAILED_MAX and self._refusal is None:
            self._refuse(
                Failure(
                    "inference.unavailable",
                    f"The engine {self.name} failed {self._loads_failed} times in a row before its "
                    "model was loaded.",
                    "Its log says why; `agentd doctor` looks for what is missing.",
                    engine=self.name,
                )
            )
        self._residence.left(restarts=end is not None)

    def _refuse(self, failure: Failure) -> None:
        self._refusal = failure.problem
        self._changed.set()

    async def _wait_life(self) -> Life:
        """Raises why there will be none for now."""
        while self._life is None:
            if self._refusal is not None:
                raise Failure.of(self._refusal)
            self._changed.clear()
            await self._changed.wait()
        return self._life

    async def summary(self) -> EngineSummary:
        found = await super().summary()
        if found.state == "unloaded" and self._residence.wanted:
            return msgspec.structs.replace(found, detail="it is asked for, and waits for room")
        return found

    @property
    def _state(self) -> Literal["unloaded", "starting", "ready", "backoff"]:
        state = super()._state
        return "unloaded" if state == "starting" and self._residence.unloaded else state


async def _telling(
    on_item: Listener,
    generating: Coroutine[Any, Any, Generated],
    answer: Answer,
    news: asyncio.Event,
) -> Generated:
    """Tell a listener of an answer while it is made.

    A slow one gets more at once and less often: it must not hold up the line of the engine, on
    which everybody's answers come. What fails, the answer or the listener, ends both.
    """
    try:
        async with asyncio.TaskGroup() as tasks:
            generated = tasks.create_task(generating)
            generated.add_done_callback(lambda _: news.set())
            over = False
            while not over:
                news.clear()
                over = generated.done()
                while (item := answer.news()) is not None:
                    await on_item(item)
                if not over:
                    await news.wait()
    except ExceptionGroup as group:  # the first is the reason
        raise group.exceptions[0] from None
    return generated.result()


class RemoteEngine(LanguageEngine):
    """An engine that passes on what it is asked to a remote server, by what `handlers` offer it."""

    KIND = "remote"

    async def _estimate(self) -> int:
        return 0


class EmbeddingEngine(Engine):
    """An engine that turns texts into vectors of length 1, as wide as the store has them. It is
    always loaded."""

    KIND = "embedding"

    async def embed(
        self, texts: list[str], wait_seconds: float | None = OPTIONAL_SECONDS_MAX
    ) -> Embedded:
        """A vector per text, and what they cost.

        Raises `inference.unavailable` when they have not come in `wait_seconds`; None waits for as
        long as it takes, and is for what cannot go on without them.
        """
        try:
            async with asyncio.timeout(wait_seconds):
                return await self._embed(texts)
        except TimeoutError as error:
            raise Failure(
                "inference.unavailable",
                f"The engine {self.name} has not answered within {wait_seconds:g} s.",
                "`agentd ctl status` says how it is.",
            ) from error

    async def _embed(self, texts: list[str]) -> Embedded:
        for _ in range(DEATHS_PER_REQUEST_MAX):
            life = await self._wait_life()
            try:
                return await life.answer(lambda client: client.embed(texts))
            except Ended:
                log.info("engine/%s died under a request, which is asked again", self.name)
        raise Failure(
            "inference.unavailable",
            f"The engine {self.name} died {DEATHS_PER_REQUEST_MAX} times under one request.",
            "Its log says why; the request itself may be the cause.",
        )

    def _check(self, info: ModelInfo) -> None:
        if info.dimensions == VECTOR_DIMENSIONS:
            return
        model = f"{info.architecture} ({self._start.path})" if self._start.path else info.name
        raise Failure(
            "model.invalid",
            f"The embedding model {model} makes vectors of {info.dimensions} dimensions, and the "
            f"store holds {VECTOR_DIMENSIONS}.",
            f"Configure `wordllama`, or a model of {VECTOR_DIMENSIONS} dimensions, as "
            "`embedding.engine`.",
            model=self._start.path or info.name,
            found=info.dimensions,
            expected=VECTOR_DIMENSIONS,
        )
