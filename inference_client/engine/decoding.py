"""The decode thread: it takes commands, plans a step, decodes it, and tells what came of it.

It alone owns planner, context and answers. What it has to tell is gathered during a step and called
on the event loop all at once, behind it.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from inference_client.engine.context import Context
from inference_client.engine.grammar import check
from inference_client.engine.llama import DecodeError
from inference_client.engine.planning.planner import Planner, Row, Step
from inference_client.engine.planning.request import Request
from inference_client.engine.planning.slots import SwapIn, SwapOut
from inference_client.engine.report import Accounts, status_of
from inference_client.engine.sampling import log_softmax
from inference_client.engine.telemetry import Telemetry
from inference_client.engine.threads import Cores
from inference_client.engine.work import Work
from ipc_protocol import inference
from ipc_protocol.errors import Failure
from ipc_protocol.limits import STREAMS_MAX

log = logging.getLogger(__name__)

COMMANDS_MAX: Final = 2 * STREAMS_MAX
"""Commands to the decode thread: each request submits once, and the rest asks for the status."""

Command = Callable[[], None]


def now_us() -> int:
    return time.monotonic_ns() // 1000


class Decoder:
    """`start`, `stop`, `submit` and `report` are called on the event loop; all else runs on the
    thread."""

    def __init__(
        self,
        context: Context,
        planner: Planner,
        info: inference.ModelInfo,
        cores: Cores,
        on_broken: Callable[[BaseException], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._context = context
        self._planner = planner
        self._info = info
        self._cores = cores
        self._on_broken = on_broken
        self._commands: queue.Queue[Command | None] = queue.Queue(COMMANDS_MAX)
        self._works: dict[int, Work] = {}
        self._chains: dict[int, Work] = {}
        self._accounts = Accounts()
        self._telemetry = Telemetry()
        self._results: list[Callable[[], None]] = []
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)

    # -- on the event loop

    def start(self) -> None:
        self._thread.start()

    async def stop(self) -> None:
        """End the thread after its present step, and free what llama.cpp holds."""
        if self._thread.is_alive():
            await asyncio.to_thread(self._commands.put, None)
        await asyncio.to_thread(self._thread.join)
        for work in self._works.values():
            self._release(work)
        self._cores.close()
        self._context.close()
        self._context.model.close()

    def submit(self, work: Work) -> None:
        """Let a request wait for its slot. Raises `inference.busy`."""
        try:
            self._command(partial(self._submit, work))
        except Failure:
            if work.chain is not None:
                work.chain.close()
            raise

    def report(self, outcome: asyncio.Future[inference.EngineStatus]) -> None:
        """Settle `outcome` with the status between two steps. Raises `inference.busy`."""
        self._command(partial(self._report, outcome))

    def _command(self, command: Command) -> None:
        try:
            self._commands.put_nowait(command)
        except queue.Full:
            raise Failure(
                "inference.busy", "The engine has too many requests.", "Ask again later."
            ) from None

    # -- the thread

    def _run(self) -> None:
        try:
            pause_us: int | None = None
            while self._take_commands(pause_us):
                self._drop_cancelled()
                pause_us = None if self._planner.idle else self._step()
                self._publish()
        except BaseException as error:
            log.exception("the decode thread has failed")
            self._loop.call_soon_threadsafe(self._on_broken, error)

    def _take_commands(self, pause_us: int | None) -> bool:
        """Carry out what was asked, waiting for it so long, or for ever where there is no time."""
        wait = pause_us != 0
        seconds = None if pause_us is None else pause_us / 1e6
        while True:
            try:
                command = self._commands.get(wait, seconds)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()
            wait = False

    def _submit(self, work: Work) -> None:
        answer, request = work.answer, work.request
        try:
            if answer is not None:
                answer.replay()
                request.tokens += answer.force(request.tokens_max - len(answer.tokens))
                self._telemetry.forced_tokens += answer.forced
                if answer.ended or len(answer.tokens) >= request.tokens_max:
                    self._end(work)
                    return
            self._planner.submit(request)
        except Failure as failure:
            self._release(work)
            self._results.append(partial(work.deliver_failure, failure))
        else:
            self._works[request.id] = work

    def _drop_cancelled(self) -> None:
        for work in [work for work in self._works.values() if work.cancelled]:
            self._finish(work, answered=False)

    def _step(self) -> int | None:
        """Decode one batch. Returns after how many µs the next one is due, None for not before
        something is asked."""
        started_us = now_us()
        step = self._planner.plan(started_us)
        whole = self._move(step)
        for request in step.expired:
            self._fail(self._works[request.id], _too_late(started_us - request.arrived_us))
        if not whole:
            return 0
        if not step.rows:
            return step.retry_us
        self._prepare(step.rows)
        before_us = now_us()
        ends = self._context.decode(step.rows)
        if ends is None:
            stuck = self._planner.refuse()
            if stuck is not None:
                self._fail(self._works[stuck.id], _no_room())
            return 0
        elapsed_us = now_us() - before_us
        self._planner.commit(step, elapsed_us)
        self._telemetry.stepped(elapsed_us, sum(len(row.tokens) for row in step.rows))
        self._read(step, ends)
        return 0

    def _move(self, step: Step) -> bool:
        """Make the cache as the step wants it. What could not be put back has to be planned
        anew."""
        lost = []
        for operation in step.operations:
            if not isinstance(operation, SwapOut | SwapIn):
                self._context.apply(operation)
                continue
            before_us = now_us()
            size = self._context.apply(operation)
            self._planner.swapped(operation, size, now_us() - before_us)
            if isinstance(operation, SwapIn) and not size:
                lost.append(self._planner.slots.slots[operation.slot].request)
        for request in lost:
            assert request is not None, "a sequence is put back for a request"
            self._planner.lost(request)
        return not lost

    def _prepare(self, rows: list[Row]) -> None:
        """What has to be so before a batch: threads, chains, and that its receivers know."""
        self._context.use_threads(self._cores.poll())
        self._attach(rows)
        for row in rows:
            self._announce(self._works[row.request.id])
        self._publish()

    def _read(self, step: Step, ends: list[int]) -> None:
        for row, end in zip(step.rows, ends, strict=True):
            work = self._works[row.request.id]
            if row.request.tail:
                self._score(work, row, end)
            elif row.outputs:
                self._sample(work, end)

    def _announce(self, work: Work) -> None:
        """Tell that it has its slot: should the engine die now, it may be the cause."""
        if work.streams and not work.announced:
            work.announced = True
            self._results.append(partial(work.deliver_item, inference.GeneratedText()))

    def _sample(self, work: Work, end: int) -> None:
        answer, request = work.answer, work.request
        assert answer is not None
        before, forced_before = len(answer.tokens), answer.forced
        try:
            if work.chain is not None:
                token = self._context.sampled(end)
                if token < 0:
                    raise DecodeError("the device has not sampled")
                work.chain.accept(token)
                answer.take(token)
            else:
                answer.choose(self._context.logits(end))
            answer.force(request.tokens_max - len(answer.tokens))
        except Failure as failure:
            self._fail(work, failure)
            return
        fresh = answer.tokens[before:]
        self._telemetry.forced_tokens += answer.forced - forced_before
        self._time(work, len(fresh))
        if answer.ended or len(answer.tokens) >= request.tokens_max:
            self._end(work)
            return
        self._planner.produce(request, fresh)
        if work.streams:
            self._results.append(partial(work.deliver_item, work.news()))

    def _time(self, work: Work, tokens: int) -> None:
        present_us = now_us()
        if work.last_token_us:
            elapsed_us = present_us - work.last_token_us
            self._telemetry.produced(work.request.priority, max(tokens, 1), elapsed_us)
        else:
            work.first_token_us = present_us
        work.last_token_us = present_us

    def _score(self, work: Work, row: Row, end: int) -> None:
        """Add the log-likelihoods of the tokens that follow the outputs of this row."""
        request = work.request
        for index in range(row.outputs):
            behind = row.outputs - 1 - index
            position = row.start + len(row.tokens) - 1 - behind
            token = request.tail[position - (request.prompt_tokens - 1)]
            work.logprob += float(log_softmax(self._context.logits(end - behind))[token])
        if row.outputs and not work.first_token_us:
            work.first_token_us = now_us()
        if request.scored:
            usage = self._finish(work, answered=True)
            result = inference.Scored(logprob=work.logprob, usage=usage)
            self._results.append(partial(work.deliver, result))

    # -- the end of a request

    def _end(self, work: Work) -> None:
        """The answer is whole, or its budget is spent."""
        answer = work.answer
        assert answer is not None
        if answer.typed and not answer.ended:
            self._fail(work, _over_budget(work.request, len(answer.tokens)))
            return
        stopped = answer.ended
        answer.finish()
        if answer.typed:
            try:
                check(answer.text)
            except Failure as failure:
                self._fail(work, failure)
                return
        if work.streams and work.has_news:
            self._results.append(partial(work.deliver_item, work.news()))
        result = inference.Generated(
            text=answer.text,
            finish="stop" if stopped else "length",
            usage=self._finish(work, answered=True),
            # A stream has had them with its items.
            logprobs=[] if work.streams else answer.logprobs,
        )
        self._results.append(partial(work.deliver, result))

    def _fail(self, work: Work, failure: Failure) -> None:
        self._finish(work, answered=False)
        self._results.append(partial(work.deliver_failure, failure))

    def _finish(self, work: Work, *, answered: bool) -> inference.Usage:
        """Let go of everything the work holds, and account for it. Only from what was answered is
        learned how long answers are."""
        request, answer = work.request, work.answer
        if answered:
            self._planner.finish(request)
        else:
            self._planner.cancel(request)
        self._works.pop(request.id, None)
        self._release(work)
        end_us = now_us()
        usage = inference.Usage(
            prompt_tokens=request.prompt_tokens,
            cached_tokens=request.cached_tokens,
            generated_tokens=0 if answer is None else answer.generated,
            forced_tokens=0 if answer is None else answer.forced,
            queue_us=(request.started_us or end_us) - request.arrived_us,
            first_token_us=(work.first_token_us or end_us) - request.arrived_us,
            total_us=end_us - request.arrived_us,
            preemptions=request.preemptions,
        )
        self._accounts.add(request.agent, usage)
        return usage

    # -- sampling on the device

    def _attach(self, rows: list[Row]) -> None:
        """Each sequence of the step has the chain of its own request, or none."""
        for row in rows:
            work = self._works[row.request.id]
            if self._chains.get(row.slot) is work:
                continue
            if row.slot in self._chains:
                self._detach(row.slot)
            if work.chain is None:
                continue
            self._detach_all(work)
            if self._context.attach(row.slot, work.chain):
                self._chains[row.slot] = work
            else:
                work.chain.close()
                work.chain = None

    def _detach_all(self, work: Work) -> None:
        for slot in [slot for slot, other in self._chains.items() if other is work]:
            self._detach(slot)

    def _detach(self, slot: int) -> None:
        self._context.attach(slot, None)
        del self._chains[slot]

    def _release(self, work: Work) -> None:
        if work.chain is not None:
            self._detach_all(work)
            work.chain.close()
            work.chain = None

    # -- what is told

    def _publish(self) -> None:
        if self._results:
            results, self._results = self._results, []
            self._loop.call_soon_threadsafe(_deliver, results)

    def _report(self, outcome: asyncio.Future[inference.EngineStatus]) -> None:
        status = status_of(
            self._info,
            self._planner,
            self._accounts,
            self._telemetry,
            threads=self._cores.threads,
            now_us=now_us(),
        )
        self._results.append(partial(_settle, outcome, status))


def _deliver(results: list[Callable[[], None]]) -> None:
    for result in results:
        result()


def _settle(
    outcome: asyncio.Future[inference.EngineStatus], status: inference.EngineStatus
) -> None:
    if not outcome.done():
        outcome.set_result(status)


def _over_budget(request: Request, tokens: int) -> Failure:
    return Failure(
        "inference.budget",
        f"The answer was not complete after {tokens} tokens.",
        "Allow more tokens, or bound the strings and arrays of the schema.",
        generated_tokens=tokens,
        prompt_tokens=request.prompt_tokens,
        cached_tokens=request.cached_tokens,
    )


def _too_late(waited_us: int) -> Failure:
    return Failure(
        "inference.deadline",
        f"The answer cannot come before its deadline; it has waited {waited_us / 1e6:g} s.",
        "Allow more time, or ask in a more urgent class.",
        waited_us=waited_us,
    )


def _no_room() -> Failure:
    return Failure(
        "inference.context",
        "The KV cache has no room for the request, though nothing else is in it.",
        "Give the engine a larger context.",
    )
