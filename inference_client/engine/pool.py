"""The asyncio side of a loaded model: requests come in, answers go out, a thread decodes.

A request is prepared here (its tokens, its grammar) and handed to the decode thread. Cancelling a
coroutine marks its work, and the next step frees the slot.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, Final

from inference_client.engine.answer import Answer
from inference_client.engine.context import Context
from inference_client.engine.decoding import Decoder, now_us
from inference_client.engine.device_sampling import Chain, suits
from inference_client.engine.grammar import Grammar, Grammars
from inference_client.engine.planning.planner import Planner, Policy
from inference_client.engine.planning.queue import RequestQueue
from inference_client.engine.planning.request import Request
from inference_client.engine.planning.slots import SlotTable
from inference_client.engine.planning.swap import SwapArea
from inference_client.engine.schemas import Schemas
from inference_client.engine.threads import Cores
from inference_client.engine.work import SendItem, Work
from ipc_protocol import inference
from ipc_protocol.errors import Failure
from ipc_protocol.limits import BODY_ELEMENTS_MAX, STREAMS_MAX

WAITING_MAX: Final = STREAMS_MAX
"""Requests that may wait: as many as one connection can have under way."""

TEXT_INLINE_MAX: Final = 32 * 1024
"""Characters of a chat that are tokenised on the loop (3 ms); more of them go to a thread."""

MESSAGE_CHARS: Final = 1024
"""What a message of a chat costs beside its text, in characters of it."""

STOPS_MAX: Final = 32
STOP_CHARS_MAX: Final = 256
"""Stop strings of a request, and characters of each. All of them are looked for behind every token,
while everybody waits: so many take 5 µs."""

TOP_K_MAX: Final = 2**31 - 1
"""llama.cpp has 4 bytes for it."""

LOGPROBS_MAX: Final = 32
"""Other tokens whose likelihood comes with each: more than any interface offers."""

LIKELIHOODS_VALUES_MAX: Final = BODY_ELEMENTS_MAX - 64
"""Values in the body of an answer, but for those that have nothing to do with likelihoods."""
TOKEN_VALUES: Final = 4
"""Of each token: its place in the list, and the three fields of a `TokenLogprob`."""
OTHER_VALUES: Final = 3
"""Of each other one in its place: it, its piece and its likelihood."""


class Pool:
    """A loaded model that serves requests. `on_broken` is called if its decode thread fails."""

    def __init__(
        self,
        context: Context,
        policy: Policy,
        swap: SwapArea,
        info: inference.ModelInfo,
        cores: Cores,
        on_broken: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._model = context.model
        self._device_sampling = info.device_sampling
        slots = SlotTable(
            context.slots, context.cells, layout=context.layout, partial=info.partial_removal
        )
        planner = Planner(RequestQueue(WAITING_MAX), slots, policy, swap)
        self._decoder = Decoder(context, planner, info, cores, self._break)
        self._context_tokens = info.context
        self._schemas = Schemas(
            partial(Grammars, self._model.vocab, self._model.vocabulary, self._model.end_tokens)
        )
        self._awaited: set[asyncio.Future[Any]] = set()
        self._next_id = 0
        self._on_broken = on_broken
        self._broken = False

    def start(self) -> None:
        self._decoder.start()

    async def stop(self) -> None:
        """End after the present step."""
        await self._schemas.close()
        await self._decoder.stop()

    async def generate(
        self, params: inference.Generate, send: SendItem | None = None
    ) -> inference.Generated:
        """Wait for the answer; `send` is given its parts as they come, if `params.stream`."""
        arrived_us = now_us()
        _check(params)
        self._check_produced(params.produced)
        if params.schema is None:
            return await self._answer(params, None, arrived_us, send)
        async with contextlib.AsyncExitStack() as stack:
            async with _in_time(params.deadline_us):
                grammar = await stack.enter_async_context(self._schemas.grammar(params.schema))
            return await self._answer(params, grammar, arrived_us, send)

    async def score(self, params: inference.Score) -> inference.Scored:
        """Wait for the likelihood of a continuation."""
        arrived_us = now_us()
        _check_share(params.share)
        prompt = await self._tokens(self._model.tokenise, params.prompt)
        tail = tuple(await self._tokens(self._model.tokenise, params.continuation))
        _require(prompt, "`prompt` is empty")
        _require(tail, "`continuation` is empty")
        request = self._new_request(params, prompt, arrived_us=arrived_us, tokens_max=0, tail=tail)
        result: inference.Scored = await self._wait(Work(request, self._loop.create_future()))
        return result

    async def status(self) -> inference.EngineStatus:
        outcome: asyncio.Future[inference.EngineStatus] = self._loop.create_future()
        self._require_whole()
        self._awaited.add(outcome)
        try:
            self._decoder.report(outcome)
            return await outcome
        finally:
            self._awaited.discard(outcome)

    async def _answer(
        self,
        params: inference.Generate,
        grammar: Grammar | None,
        arrived_us: int,
        send: SendItem | None,
    ) -> inference.Generated:
        prompt = await self._prompt(params)
        request = self._new_request(
            params,
            prompt + params.produced,
            arrived_us=arrived_us,
            prompt_tokens=len(prompt),
            tokens_max=params.tokens_max,
        )
        if params.deadline_us is not None:
            request.deadline_us = arrived_us + params.deadline_us
        work = Work(
            request,
            self._loop.create_future(),
            answer=Answer(self._model, params, grammar, prompt),
            chain=self._chain(params),
            streams=params.stream,
        )
        result: inference.Generated = await self._wait(
            work, send if params.stream else None, params.interval_us / 1e6
        )
        return result

    def _check_produced(self, produced: list[int]) -> None:
        """Before it is replayed, which everybody waits for."""
        if len(produced) >= self._context_tokens:
            raise Failure(
                "inference.context",
                f"The answer has {len(produced)} tokens already, and the context holds "
                f"{self._context_tokens}.",
                "Send less, or give the engine a larger context.",
                context=self._context_tokens,
            )
        known = range(self._model.vocabulary)
        _require(
            all(token in known for token in produced),
            "`produced` has tokens that the model does not know",
        )

    async def _prompt(self, params: inference.Generate) -> list[int]:
        if params.prompt is not None:
            return await self._tokens(self._model.plain_prompt, params.prompt)
        size = sum(len(message.content) + MESSAGE_CHARS for message in params.messages)
        if size > TEXT_INLINE_MAX:
            return await asyncio.to_thread(self._model.prompt, params.messages)
        return self._model.prompt(params.messages)

    async def _tokens(self, tokenise: Callable[[str], list[int]], text: str) -> list[int]:
        if len(text) > TEXT_INLINE_MAX:
            return await asyncio.to_thread(tokenise, text)
        return tokenise(text)

    def _new_request(
        self, params: inference.Generate | inference.Score, tokens: list[int], **others: Any
    ) -> Request:
        self._next_id += 1
        return Request(
            self._next_id,
            params.agent,
            params.priority,
            tokens,
            share=params.share,
            **others,
        )

    def _chain(self, params: inference.Generate) -> Chain | None:
        here = params.schema is not None or params.logprobs is not None
        if not self._device_sampling or here or not suits(params.sampling):
            return None
        return Chain(params.sampling, self._model.vocabulary, len(params.produced))

    async def _wait(
        self, work: Work, send: SendItem | None = None, interval_seconds: float = 0.0
    ) -> Any:
        self._require_whole()
        self._decoder.submit(work)
        self._awaited.add(work.outcome)
        try:
            return await work.wait(send, interval_seconds)
        finally:
            self._awaited.discard(work.outcome)

    def _require_whole(self) -> None:
        if self._broken:
            raise Failure("inference.unavailable", "The engine has failed.", "It is restarted.")

    def _break(self, error: BaseException) -> None:
        self._broken = True
        for outcome in self._awaited:
            if not outcome.done():
                outcome.set_exception(
                    Failure("inference.unavailable", f"The engine has failed: {error}.")
                )
        self._on_broken()


@contextlib.asynccontextmanager
async def _in_time(deadline_us: int | None) -> AsyncIterator[None]:
    """Raises `inference.deadline` when it has passed."""
    try:
        async with asyncio.timeout(None if deadline_us is None else deadline_us / 1e6):
            yield
    except TimeoutError as error:
        raise Failure(
            "inference.deadline",
            "The answer cannot come before its deadline; others have too many schemas under way.",
            "Allow more time, or use the same schema for more requests.",
        ) from error


def _check(params: inference.Generate) -> None:
    """Raises `request.invalid` for what no model could serve."""
    _require(params.tokens_max > 0, "`tokens_max` is less than 1")
    chat = bool(params.messages)
    _require(chat or params.prompt, "`messages` is empty, and there is no `prompt`")
    _require(not (chat and params.prompt is not None), "it has both `messages` and a `prompt`")
    _check_sampling(params.sampling)
    _check_share(params.share)
    logprobs = params.logprobs
    if logprobs is None:
        return
    _require(0 <= logprobs <= LOGPROBS_MAX, f"`logprobs` is from 0 to {LOGPROBS_MAX}")
    room = LIKELIHOODS_VALUES_MAX // (TOKEN_VALUES + OTHER_VALUES * logprobs)
    _require(
        params.stream or params.tokens_max <= room,
        f"the likelihoods of more than {room} tokens do not fit into one frame; it may be streamed",
    )


def _check_sampling(sampling: inference.Sampling) -> None:
    _require(0 <= sampling.temperature < 100, "`temperature` is from 0 to 100")
    _require(0 < sampling.top_p <= 1, "`top_p` is above 0, and at most 1")
    _require(0 <= sampling.min_p <= 1, "`min_p` is from 0 to 1")
    _require(0 <= sampling.top_k <= TOP_K_MAX, f"`top_k` is from 0, which is all, to {TOP_K_MAX}")
    _require(0 < sampling.repeat_penalty <= 10, "`repeat_penalty` is above 0, and at most 10")
    for name in ("presence_penalty", "frequency_penalty"):
        _require(abs(getattr(sampling, name)) <= 10, f"`{name}` is from -10 to 10")
    _require(
        len(sampling.stop) <= STOPS_MAX
        and all(0 < len(stop) <= STOP_CHARS_MAX for stop in sampling.stop),
        f"`stop` has at most {STOPS_MAX} strings, each of 1 to {STOP_CHARS_MAX} characters",
    )


def _check_share(share: inference.Share) -> None:
    _require(share.weight > 0, "`share.weight` is above 0")
    _require(
        min(share.running_max, share.tokens_per_minute) >= 0,
        "the limits of `share` are at least 0, which is none",
    )


def _require(condition: object, what: str) -> None:
    if not condition:
        raise Failure("request.invalid", f"The request cannot be served: {what}.")
