"""An answer that goes on where the engine that began it has died. Pure.

A generation is always streamed from its engine, so that at any moment the tokens are known that it
has brought so far. The next engine gets them as `produced`, and sends what comes behind them:
tokens and text are cut at the same places, so the items of all engines joined are the answer, and
no token or character comes twice. What is held back of the text (half a character, the beginning of
a stop string) follows from the tokens alone, and so is let out by whichever engine goes on.

Times are microseconds of any steady clock.
"""

from typing import Final

import msgspec

from ipc_protocol.errors import Failure
from ipc_protocol.inference import Generate, Generated, GeneratedText, TokenLogprob

KEPT_INTERVAL_US: Final = 100_000
"""From one item to the next where nobody listens: what a death of the engine costs at most, for ten
small frames a second and request."""


class Answer:
    """One request and what has come of it so far. `listened` if somebody waits for its items."""

    def __init__(self, params: Generate, now_us: int, *, listened: bool) -> None:
        self._params = params
        self._interval_us = params.interval_us if listened else KEPT_INTERVAL_US
        self._tokens = list(params.produced)
        self._logprobs: list[TokenLogprob] = []
        self._arrived_us = self._asked_us = now_us
        self._slot_us: int | None = None
        """When the present engine gave it a slot."""
        self._first_token_us: int | None = None
        self._worked_us = 0
        """In slots of engines that have died."""
        self._forced = self._forced_before = 0
        self._preemptions = self._preemptions_before = 0
        """Of all engines, and of those before the present one."""
        self._items = 0
        self._slot_told: bool | None = None
        """None before the first slot."""
        self._text_told = False
        self._tokens_told = len(self._tokens)
        self._logprobs_told = 0
        self._text_untold: list[str] = []

    @property
    def tokens(self) -> int:
        """How many there are."""
        return len(self._tokens)

    @property
    def progress(self) -> int:
        """Tokens, or items of an engine that knows no tokens."""
        return max(self.tokens, self._items)

    def seconds_left(self, now_us: int) -> float | None:
        """Until its deadline, or None without one. Raises `inference.deadline` behind it."""
        if self._params.deadline_us is None:
            return None
        left_us = self._params.deadline_us - (now_us - self._arrived_us)
        if left_us <= 0:
            raise self.late()
        return left_us / 1e6

    def late(self) -> Failure:
        """What to raise when the deadline has passed."""
        assert self._params.deadline_us is not None
        return Failure(
            "inference.deadline",
            f"The answer did not come within {max(0, self._params.deadline_us) / 1e6:g} s.",
            "Ask with a later deadline, in a more urgent class, or for fewer tokens.",
            generated_tokens=self.tokens,
        )

    # -- one engine after another

    def ask(self, now_us: int) -> Generate:
        """What the next engine is asked. Raises `inference.deadline`."""
        left = self.seconds_left(now_us)
        self._asked_us = now_us
        self._forced_before, self._preemptions_before = self._forced, self._preemptions
        return msgspec.structs.replace(
            self._params,
            produced=list(self._tokens),
            stream=True,
            interval_us=self._interval_us,
            deadline_us=None if left is None else round(left * 1e6),
        )

    def take(self, item: GeneratedText, now_us: int) -> None:
        """An item of the present engine."""
        if self._slot_us is None:
            self._slot_us = now_us
        if self._slot_told is None:
            self._slot_told = False
        if item.tokens and self._first_token_us is None:
            self._first_token_us = now_us
        self._items += 1
        self._tokens += item.tokens
        self._logprobs += item.logprobs
        self._forced += item.forced_tokens
        self._preemptions += item.preemptions
        self._text_untold.append(item.text)

    def fall(self, now_us: int) -> None:
        """The present engine has died. Raises `inference.unavailable` where no other can go on: a
        remote server says no tokens, so what a listener has been told cannot be continued."""
        if self._slot_us is not None:
            self._worked_us += now_us - self._slot_us
            self._slot_us = None
        if self.tokens > len(self._params.produced):
            return
        if self._text_told:
            raise Failure(
                "inference.unavailable",
                "The engine ended within an answer that no other can continue.",
                "Ask again, from the beginning.",
            )
        self._text_untold.clear()
        self._logprobs.clear()
        self._logprobs_told = 0

    def whole(self, generated: Generated) -> Generated:
        """The whole answer, from that of the last engine, whose text is whole, and whose costs are
        of its own part; of the others those are known that they have told. Likelihoods came with
        the items alone. Times are from the arrival here: what the request has not spent in slots,
        it has waited."""
        usage, before_us = generated.usage, self._asked_us - self._arrived_us
        first_token_us = before_us + usage.first_token_us
        if self._first_token_us is not None:
            first_token_us = min(first_token_us, self._first_token_us - self._arrived_us)
        return msgspec.structs.replace(
            generated,
            usage=msgspec.structs.replace(
                usage,
                queue_us=before_us - self._worked_us + usage.queue_us,
                first_token_us=first_token_us,
                total_us=before_us + usage.total_us,
                forced_tokens=self._forced_before + usage.forced_tokens,
                preemptions=self._preemptions_before + usage.preemptions,
            ),
            logprobs=list(self._logprobs),
        )

    # -- the listener

    def news(self) -> GeneratedText | None:
        """What the listener has not been told, as one item; None when there is nothing.

        The first item is the slot alone. Then a slow listener gets in one what came in many.
        """
        if self._slot_told is False:
            self._slot_told = True
            return GeneratedText()
        item = GeneratedText(
            text="".join(self._text_untold),
            tokens=self._tokens[self._tokens_told :],
            logprobs=self._logprobs[self._logprobs_told :],
        )
        self._text_untold.clear()
        self._text_told |= bool(item.text)
        self._tokens_told, self._logprobs_told = len(self._tokens), len(self._logprobs)
        return item if item.text or item.tokens else None
