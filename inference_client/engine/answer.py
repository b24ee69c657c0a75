"""One answer in the making: which token comes next, which follow of themselves, and what they say.

With a schema, the token is chosen first and then checked; only one that is refused has the whole
vocabulary masked. What the schema leaves no choice about is *forced*: it is appended without asking
the model (jump-forward decoding, as SGLang calls it), so that only the open places are decoded.

An answer belongs to the decode thread. It knows no cache and no queue. Until its first token is
chosen it holds next to nothing: what its grammar begins with is known, and the matcher comes later.
"""

from typing import Protocol

from inference_client.engine.grammar import Grammar, Matcher
from inference_client.engine.sampling import Logits, likeliest, log_softmax, penalises, pick
from inference_client.engine.text import TextStream
from ipc_protocol.inference import Generate, TokenLogprob


class Vocabulary(Protocol):
    """What an answer needs of a model."""

    def piece(self, token: int) -> bytes: ...

    def ends(self, token: int) -> bool: ...


class Answer:
    """With `produced` it goes on behind them: `replay` takes them, on the decode thread."""

    def __init__(
        self, vocabulary: Vocabulary, params: Generate, grammar: Grammar | None, prompt: list[int]
    ) -> None:
        self._vocabulary = vocabulary
        self._sampling = params.sampling
        self._logprobs = params.logprobs
        self._grammar = grammar
        self._matcher: Matcher | None = None
        """None before it is needed."""
        self._text = TextStream([] if grammar else params.sampling.stop)
        self._before = list(prompt) if penalises(params.sampling) else None
        self.tokens: list[int] = []
        self.forced = 0
        self._ended_itself = False
        self.logprobs: list[TokenLogprob] = []
        self.ended = False
        """It is whole: the model ended it, a stop string came, or nothing more may follow."""
        self._produced = params.produced
        self.replayed_tokens = 0
        self.replayed_chars = 0
        """How much of its tokens and its certain text was produced before."""

    @property
    def generated(self) -> int:
        """Its tokens, and the one that ended it."""
        return len(self.tokens) + self._ended_itself

    @property
    def typed(self) -> bool:
        """It has a schema to keep to."""
        return self._grammar is not None

    @property
    def text(self) -> str:
        """What is certain of its text."""
        return self._text.text

    def logprobs_from(self, place: int) -> list[TokenLogprob]:
        """Of the tokens from a place on; none of those that were produced before."""
        return self.logprobs[max(0, place - self.replayed_tokens) :]

    def replay(self) -> None:
        """Take what was produced before, once. Raises `inference.schema` where it does not fit."""
        produced, self._produced = self._produced, []
        if not produced:
            return
        if self._grammar is not None:
            self._follow(self._grammar)
        self.take(*produced)
        self.replayed_tokens, self.replayed_chars = len(self.tokens), len(self.text)

    def force(self, room: int) -> list[int]:
        """The tokens that follow whatever the model thinks, at most `room`; now part of it.

        What was produced before is replayed first, if it was not yet, and takes of the room.
        """
        before = len(self.tokens)
        self.replay()
        if self._grammar is None or self.ended:
            return []
        room = max(0, room - (len(self.tokens) - before))
        if self.tokens or self._matcher is not None:
            forced = self._follow(self._grammar).forced()[:room]
        else:
            forced = list(self._grammar.opening[:room])
            self.ended = self._grammar.fixed and len(forced) == len(self._grammar.opening)
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
        if self._grammar is not None:
            matcher = self._follow(self._grammar)
            if not matcher.allows(token):
                allowed = matcher.allowed()
                token = pick(logits, self._sampling, len(self.tokens), before, allowed)
        if self._logprobs is not None and not self._vocabulary.ends(token):
            self._note(logits, token)
        self.take(token)
        return token

    def _follow(self, grammar: Grammar) -> Matcher:
        """The matcher, behind the tokens that there are."""
        if self._matcher is None:
            self._matcher = grammar.start()
            self._matcher.accept(self.tokens)
        return self._matcher

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
