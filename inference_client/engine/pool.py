"""The thin shell around the planner: a decode thread, and coroutines that wait for it.

The asyncio side prepares a request (tokens, grammar, sampler) and hands it over; the decode thread
owns planner, context and samplers, and after every step tells the loop what came of it. Cancelling
a coroutine marks its work, and the next step frees the slot.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Final

import msgspec

from inference_client.engine.llama import Context, Sampler, log_probability
from inference_client.engine.planner import Planner, Policy, Row, Step
from inference_client.engine.queue import Request, RequestQueue
from inference_client.engine.report import Accounts, status_of
from inference_client.engine.schema import grammar_of
from inference_client.engine.slots import SlotTable
from inference_client.engine.text import TextStream
from ipc_protocol import inference
from ipc_protocol.errors import Failure
from ipc_protocol.limits import STREAMS_MAX
from ipc_protocol.values import Priority

log = logging.getLogger(__name__)

WAITING_MAX: Final = STREAMS_MAX
"""Requests that may wait: as many as one connection can have under way."""

COMMANDS_MAX: Final = 2 * STREAMS_MAX
"""Commands to the decode thread: each request submits once, and the rest asks for the status."""

TEXT_INLINE_MAX: Final = 32 * 1024
"""Characters of a chat that are tokenised on the loop (3 ms); more of them go to a thread."""

GRAMMARS_MAX: Final = 256

SendText = Callable[[str], Awaitable[None]]


def now_us() -> int:
    return time.monotonic_ns() // 1000


@dataclass(eq=False)
class Work:
    """A request with what only the shell needs: its sampler, its text, and who waits for it."""

    request: Request
    outcome: asyncio.Future[Any]
    sampler: Sampler | None = None
    text: TextStream | None = None
    constrained: bool = False
    first_token_us: int = 0
    logprob: float = 0.0
    cancelled: bool = False
    unsent: list[str] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def deliver_text(self, text: str) -> None:
        self.unsent.append(text)
        self.arrived.set()

    def deliver(self, result: Any) -> None:
        if not self.outcome.done():
            self.outcome.set_result(result)

    def deliver_failure(self, failure: Failure) -> None:
        if not self.outcome.done():
            self.outcome.set_exception(failure)


class Pool:
    """A loaded model that serves requests."""

    def __init__(self, context: Context, policy: Policy, info: inference.ModelInfo) -> None:
        self._loop = asyncio.get_running_loop()
        self._context = context
        self._model = context.model
        slots = SlotTable(context.slots, context.cells, partial=self._model.partial_removal)
        self._planner = Planner(RequestQueue(WAITING_MAX), slots, policy)
        self._commands: queue.Queue[Callable[[], None] | None] = queue.Queue(COMMANDS_MAX)
        self._works: dict[int, Work] = {}
        self._accounts = Accounts()
        self._awaited: set[asyncio.Future[Any]] = set()
        self._next_id = 0
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self._grammar = lru_cache(GRAMMARS_MAX)(_grammar_of_json)
        self._results: list[Callable[[], None]] = []
        self._info = info
        self._on_broken: Callable[[], None] = _ignore
        self._broken = False

    def start(self, on_broken: Callable[[], None]) -> None:
        """Begin to decode. `on_broken` is called on the loop if the decode thread fails."""
        self._on_broken = on_broken
        self._thread.start()

    async def stop(self) -> None:
        """End the decode thread after its present step, and free what llama.cpp holds."""
        if not self._broken:
            await asyncio.to_thread(self._commands.put, None)
        await asyncio.to_thread(self._thread.join)
        for work in self._works.values():
            self._release(work)
        self._context.close()
        self._model.close()

    # -- the asyncio side

    async def generate(
        self, params: inference.Generate, send: SendText | None = None
    ) -> inference.Generated:
        """Wait for the answer; `send` is given its text as it comes."""
        _require(params.tokens_max > 0, "`tokens_max` is less than 1")
        grammar = None
        if params.schema is not None:
            grammar = self._grammar(msgspec.json.encode(params.schema))
        request = await self._chat_request(params)
        request.tokens_max = params.tokens_max
        work = Work(
            request,
            self._loop.create_future(),
            sampler=Sampler(self._model, params.sampling, grammar),
            text=TextStream([] if grammar else params.sampling.stop),
            constrained=grammar is not None,
        )
        result: inference.Generated = await self._wait(work, send)
        return result

    async def score(self, params: inference.Score) -> inference.Scored:
        """Wait for the likelihood of a continuation."""
        prompt = self._model.tokenise(params.prompt)
        tail = tuple(self._model.tokenise(params.continuation))
        _require(prompt, "`prompt` is empty")
        _require(tail, "`continuation` is empty")
        request = self._new_request(params.agent, params.priority, prompt)
        request.tail = tail
        result: inference.Scored = await self._wait(Work(request, self._loop.create_future()), None)
        return result

    async def status(self) -> inference.EngineStatus:
        outcome: asyncio.Future[inference.EngineStatus] = self._loop.create_future()
        self._awaited.add(outcome)
        try:
            self._command(partial(self._report, outcome))
            return await outcome
        finally:
            self._awaited.discard(outcome)

    async def _chat_request(self, params: inference.Generate) -> Request:
        _require(params.messages, "`messages` is empty")
        if sum(len(message.content) for message in params.messages) > TEXT_INLINE_MAX:
            tokens = await asyncio.to_thread(self._model.prompt, params.messages)
        else:
            tokens = self._model.prompt(params.messages)
        return self._new_request(params.agent, params.priority, tokens)

    def _new_request(self, agent: str, priority: Priority, tokens: list[int]) -> Request:
        self._next_id += 1
        return Request(self._next_id, agent, priority, tokens, 0, now_us())

    async def _wait(self, work: Work, send: SendText | None) -> Any:
        try:
            self._command(partial(self._submit, work))
        except Failure:
            self._release(work)
            raise
        self._awaited.add(work.outcome)
        work.outcome.add_done_callback(lambda _: work.arrived.set())
        try:
            while send is not None and not work.outcome.done():
                await work.arrived.wait()
                work.arrived.clear()
                text, work.unsent = "".join(work.unsent), []
                if text:
                    await send(text)
            return await work.outcome
        finally:
            self._awaited.discard(work.outcome)
            work.cancelled = True

    def _command(self, command: Callable[[], None]) -> None:
        if self._broken:
            raise Failure("inference.unavailable", "The engine has failed.", "It is restarted.")
        try:
            self._commands.put_nowait(command)
        except queue.Full:
            raise Failure(
                "inference.busy", "The engine has too many requests.", "Ask again later."
            ) from None

    # -- the decode thread

    def _run(self) -> None:
        try:
            while self._take_commands():
                self._drop_cancelled()
                if not self._planner.idle:
                    self._step()
                self._publish()
        except BaseException as error:
            log.exception("the decode thread has failed")
            self._loop.call_soon_threadsafe(self._break, error)

    def _break(self, error: BaseException) -> None:
        self._broken = True
        failure = Failure("inference.unavailable", f"The engine has failed: {error}.")
        for outcome in self._awaited:
            if not outcome.done():
                outcome.set_exception(failure)
        self._on_broken()

    def _take_commands(self) -> bool:
        """Carry out what was asked, waiting for it when there is nothing else to do."""
        wait = self._planner.idle and not self._works
        while True:
            try:
                command = self._commands.get(block=wait)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()
            wait = False

    def _submit(self, work: Work) -> None:
        try:
            self._planner.submit(work.request)
        except Failure as failure:
            self._release(work)
            self._results.append(partial(work.deliver_failure, failure))
        else:
            self._works[work.request.id] = work

    def _drop_cancelled(self) -> None:
        for work in [work for work in self._works.values() if work.cancelled]:
            self._finish(work)

    def _step(self) -> None:
        step = self._planner.plan(now_us())
        self._context.apply(step.operations)
        if not step.rows:
            return
        ends = self._context.decode(step.rows)
        if ends is None:
            stuck = self._planner.refuse()
            if stuck is not None:
                self._fail(self._works[stuck.id], _no_room())
            return
        self._planner.commit(step)
        self._read(step, ends)

    def _read(self, step: Step, ends: list[int]) -> None:
        for row, end in zip(step.rows, ends, strict=True):
            work = self._works[row.request.id]
            if row.request.tail:
                self._score(work, row, end)
            elif row.outputs:
                self._sample(work, end)

    def _sample(self, work: Work, end: int) -> None:
        assert work.sampler is not None
        assert work.text is not None
        request = work.request
        try:
            token = work.sampler.sample(self._context.logits(end))
        except Failure as failure:
            self._fail(work, failure)
            return
        if not work.first_token_us:
            work.first_token_us = now_us()
        self._planner.produce(request, token)
        ended = self._model.ends(token)
        text = "" if ended else work.text.feed(self._model.piece(token))
        complete = work.constrained and work.text.text[-1:] in ("}", "]", '"')
        if ended or work.text.stopped or (complete and work.sampler.may_end):
            self._conclude(work, text + work.text.finish(), "stop")
        elif len(request.produced) >= request.tokens_max:
            rest = text + work.text.finish()
            if work.constrained:
                self._fail(work, _over_budget(work))
            else:
                self._conclude(work, rest, "length")
        elif text:
            self._results.append(partial(work.deliver_text, text))

    def _score(self, work: Work, row: Row, end: int) -> None:
        """Add the log-likelihoods of the tokens that follow the outputs of this row."""
        request = work.request
        for index in range(row.outputs):
            behind = row.outputs - 1 - index
            position = row.start + len(row.tokens) - 1 - behind
            token = request.tail[position - (request.prompt_tokens - 1)]
            work.logprob += log_probability(self._context.logits(end - behind), token)
        if row.outputs and not work.first_token_us:
            work.first_token_us = now_us()
        if request.scored:
            usage = self._finish(work)
            result = inference.Scored(logprob=work.logprob, usage=usage)
            self._results.append(partial(work.deliver, result))

    def _conclude(self, work: Work, rest: str, finish: str) -> None:
        assert work.text is not None
        usage = self._finish(work)
        self._results.append(partial(work.deliver_text, rest))
        result = inference.Generated(
            text=work.text.text, finish="stop" if finish == "stop" else "length", usage=usage
        )
        self._results.append(partial(work.deliver, result))

    def _fail(self, work: Work, failure: Failure) -> None:
        self._finish(work)
        self._results.append(partial(work.deliver_failure, failure))

    def _finish(self, work: Work) -> inference.Usage:
        """Let go of everything the work holds, and account for it."""
        request = work.request
        self._planner.finish(request)
        del self._works[request.id]
        self._release(work)
        end_us = now_us()
        usage = inference.Usage(
            prompt_tokens=request.prompt_tokens,
            cached_tokens=request.cached_tokens,
            generated_tokens=len(request.produced),
            queue_us=(request.started_us or end_us) - request.arrived_us,
            first_token_us=(work.first_token_us or end_us) - request.arrived_us,
            total_us=end_us - request.arrived_us,
        )
        self._accounts.add(request.agent, usage)
        return usage

    def _release(self, work: Work) -> None:
        if work.sampler is not None:
            work.sampler.close()

    def _publish(self) -> None:
        if self._results:
            results, self._results = self._results, []
            self._loop.call_soon_threadsafe(_deliver, results)

    def _report(self, outcome: asyncio.Future[inference.EngineStatus]) -> None:
        status = status_of(self._info, self._planner, self._accounts, now_us())
        self._results.append(partial(_settle, outcome, status))


def _grammar_of_json(schema: bytes) -> str:
    return grammar_of(msgspec.json.decode(schema))


def _require(condition: object, what: str) -> None:
    if not condition:
        raise Failure("request.invalid", f"The request cannot be served: {what}.")


def _ignore() -> None:
    """Nobody asked to be told."""


def _deliver(results: list[Callable[[], None]]) -> None:
    for result in results:
        result()


def _settle(outcome: asyncio.Future[Any], result: Any) -> None:
    if not outcome.done():
        outcome.set_result(result)


def _over_budget(work: Work) -> Failure:
    return Failure(
        "inference.budget",
        f"The answer was not complete after {len(work.request.produced)} tokens.",
        "Allow more tokens, or bound the strings and arrays of the schema.",
        generated_tokens=len(work.request.produced),
    )


def _no_room() -> Failure:
    return Failure(
        "inference.context",
        "The KV cache has no room for the request, though nothing else is in it.",
        "Give the engine a larger context.",
    )
