"""One answer in the making: which token comes next, which follow of themselves, and what they say.

With a schema, the token is chosen first and then checked; only one that is refused has the whole
vocabulary masked. What the schema leaves no choice about is *forced*: it is appended without asking
the model (jump-forward decoding, as SGLang calls it), so that only the open places are decoded.

An answer belongs to the decode thread. It knows no cache and no queue.
"""

from typing import Protocol

from inference_client.engine.grammar import Grammar
from inference_client.engine.sampling import Logits, likeliest, log_softmax, penalises, pick
from inference_client.engine.text import TextStream
from ipc_protocol.inference import Generate, TokenLogprob


class Vocabulary(Protocol):
    """What an answer needs of a model."""

    def piece(self, token: int) -> bytes: ...

    def ends(self, token: int) -> bool: ...


class Answer:
    """`produced` are the tokens of an answer that was begun before; it goes on behind them."""

    def __init__(
        self, vocabulary: Vocabulary, params: Generate, grammar: Grammar | None, prompt: list[int]
    ) -> None:
        self._vocabulary = vocabulary
        self._sampling = params.sampling
        self._logprobs = params.logprobs
        self._matcher = None if grammar is None else grammar.start()
        self._text = TextStream([] if grammar else params.sampling.stop)
        self._before = list(prompt) if penalises(params.sampling) else None
        self.tokens: list[int] = []
        self.forced = 0
        self._ended_itself = False
        self.logprobs: list[TokenLogprob] = []
        self.ended = False
        """It is whole: the model ended it, a stop string came, or nothing more may follow."""
        self.take(*params.produced)

    @property
    def generated(self) -> int:
        """Its tokens, and the one that ended it."""
        return len(self.tokens) + self._ended_itself

    @property
    def typed(self) -> bool:
        """It has a schema to keep to."""
        return self._matcher is not None

    @property
    def text(self) -> str:
        """What is certain of its text."""
        return self._text.text

    def logprobs_from(self, place: int) -> list[TokenLogprob]:
        """Of the tokens from a place on; none of those that were produced before."""
        return self.logprobs[max(0, place - (len(self.tokens) - len(self.logprobs))) :]

    def force(self, room: int) -> list[int]:
        """The tokens that follow whatever the model thinks, at most `room`; now part of it."""
        if self._matcher is None or self.ended:
            return []
        forced = self._matcher.forced()[:room]
        self.forced += len(forced)
        if self._logprobs is not None:
            self.logprobs += [
                TokenLogprob(piece=self._vocabulary.piece(token), logprob=0.0) for token in forced
            ]
        self.take(*forced)
        return forced

    def choose(self, logits: Logits) -> int:
        """Sample the next token. Raises `inference.schema` where none fits."""
        before = self._before or ()
        token = pick(logits, self._sampling, len(self.tokens), before)
        if self._matcher is not None and not self._matcher.allows(token):
            allowed = self._matcher.allowed()
            token = pick(logits, self._sampling, len(self.tokens), before, allowed)
        if self._logprobs is not None:
            self._note(logits, token)
        self.take(token)
        return token

    def take(self, *tokens: int) -> None:
        """These are the next tokens, whoever chose them. The one that ends it is no part of it."""
        for token in tokens:
            if self._vocabulary.ends(token):
                self.ended = self._ended_itself = True
                return
            self.tokens.append(token)
            if self._matcher is not None:
                self._matcher.accept([token])
            if self._before is not None:
                self._before.append(token)
            self._text.feed(self._vocabulary.piece(token))
            if self._text.stopped:
                self.ended = True
                return
        if self._matcher is not None and self._matcher.complete:
            self.ended = True

    def finish(self) -> None:
        """Nothing follows: what was held back is text now."""
        self._text.finish()

    def _note(self, logits: Logits, token: int) -> None:
        assert self._logprobs is not None
        logprobs = log_softmax(logits)
        others = [
            (self._vocabulary.piece(other), float(logprobs[other]))
            for other in likeliest(logprobs, self._logprobs)
        ]
        piece = self._vocabulary.piece(token)
        self.logprobs.append(
            TokenLogprob(piece=piece, logprob=float(logprobs[token]), others=others)
        )
