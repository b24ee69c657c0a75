"""A request with what only the shell needs: its answer, and who waits for it.

The decode thread fills it by calls on the event loop; the coroutine that waits for it sends on what
has come.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from inference_client.engine.answer import Answer
from inference_client.engine.device_sampling import Chain
from inference_client.engine.planning.request import Request
from ipc_protocol import inference
from ipc_protocol.errors import Failure

SendItem = Callable[[inference.GeneratedText], Awaitable[None]]


@dataclass(eq=False)
class Work:
    """`answer` is None for a continuation that is only scored."""

    request: Request
    outcome: asyncio.Future[Any]
    answer: Answer | None = None
    chain: Chain | None = None
    streams: bool = False
    announced: bool = False
    """Its receiver has heard that it has a slot."""
    first_token_us: int = 0
    last_token_us: int = 0
    logprob: float = 0.0
    cancelled: bool = False
    sent_text: int = 0
    sent_tokens: int = 0
    sent_forced: int = 0
    sent_preemptions: int = 0
    """How much of the answer, behind what was produced before, is on its way to the receiver; only
    the decode thread counts."""
    unsent: list[inference.GeneratedText] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    # -- on the decode thread

    @property
    def has_news(self) -> bool:
        answer = self.answer
        return answer is not None and (
            len(answer.text) > answer.replayed_chars + self.sent_text
            or len(answer.tokens) > answer.replayed_tokens + self.sent_tokens
        )

    def news(self) -> inference.GeneratedText:
        """What has come of the answer since it was asked for news before."""
        answer = self.answer
        assert answer is not None
        text = answer.replayed_chars + self.sent_text
        tokens = answer.replayed_tokens + self.sent_tokens
        forced, preemptions = self.sent_forced, self.sent_preemptions
        self.sent_text = len(answer.text) - answer.replayed_chars
        self.sent_tokens = len(answer.tokens) - answer.replayed_tokens
        self.sent_forced, self.sent_preemptions = answer.forced, self.request.preemptions
        return inference.GeneratedText(
            text=answer.text[text:],
            tokens=answer.tokens[tokens:],
            logprobs=answer.logprobs_from(tokens),
            forced_tokens=self.sent_forced - forced,
            preemptions=self.sent_preemptions - preemptions,
        )

    # -- on the event loop

    def deliver_item(self, item: inference.GeneratedText) -> None:
        self.unsent.append(item)
        self.arrived.set()

    def deliver(self, result: Any) -> None:
        if not self.outcome.done():
            self.outcome.set_result(result)

    def deliver_failure(self, failure: Failure) -> None:
        if not self.outcome.done():
            self.outcome.set_exception(failure)

    async def wait(self, send: SendItem | None, interval_seconds: float) -> Any:
        """The result. `send` is given what comes before it, an item at most every so often."""
        self.outcome.add_done_callback(lambda _: self.arrived.set())
        try:
            while send is not None:
                await self.arrived.wait()
                self.arrived.clear()
                items, self.unsent = self.unsent, []
                if items:
                    await send(_joined(items))
                if self.outcome.done() and not self.unsent:
                    break
                if interval_seconds:
                    await asyncio.wait((self.outcome,), timeout=interval_seconds)
            return await self.outcome
        finally:
            self.cancelled = True


def _joined(items: list[inference.GeneratedText]) -> inference.GeneratedText:
    if len(items) == 1:
        return items[0]
    return inference.GeneratedText(
        text="".join(item.text for item in items),
        tokens=[token for item in items for token in item.tokens],
        logprobs=[logprob for item in items for logprob in item.logprobs],
        forced_tokens=sum(item.forced_tokens for item in items),
        preemptions=sum(item.preemptions for item in items),
    )
