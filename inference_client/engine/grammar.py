"""Typed answers: which tokens a JSON Schema lets through, with llguidance as the parser.

`narrowing` decides what of a schema is promised; llguidance compiles that and follows each answer.
Where one continuation is left its tokens are *forced*: the pool appends them without decoding.

`schemas` keeps what was compiled. A `Matcher` belongs to the decode thread.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLParserLimits

from inference_client.engine import narrowing
from ipc_protocol.errors import Failure

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

GRAMMAR_TOKENS: Final = 4096
"""All answers of a grammar share one lexer, which remembers every state it was in, up to 250,000.
A counted string adds about 25 for a token, so that after as many a fresh grammar is made."""

CAUSE_CHARS_MAX: Final = 200

SPACING: Final["JsonCompileOptions"] = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    # Without \u each text has one way to be written, and no name hides from a comparison.
    "json_allowed_escapes": '"\\bfnrt',
}
"""As `json.dumps` writes it: one way only, so that braces, keys and separators are forced."""

LIMITS: Final = LLParserLimits(
    # Of one step of one answer, which all others wait for: 20,000 are about 2 ms. The names of 256
    # optional properties need a tenth of the items.
    step_lexer_fuel=20_000,
    step_max_items=10_000,
    verbose_errors=False,
)


class Grammars:
    """Compiles schemas for one vocabulary. One thread at a time."""

    def __init__(self, vocab: Any, vocabulary: int, end_tokens: Sequence[int]) -> None:
        """`vocab` is llama.cpp's pointer; takes 0.25 s."""
        # Imports llama_cpp, which `llama` has to have prepared: there is no pointer before it has.
        from llguidance.llamacpp import lltokenizer_from_vocab

        self._ends = frozenset(end_tokens)
        self._tokens = lltokenizer_from_vocab(vocab, vocabulary, list(end_tokens))

    def compile(self, text: str) -> "Grammar":
        """The grammar of a schema as `narrowing.serialised` writes it: 1 ms as a rule. Raises
        `inference.schema`."""
        schema = narrowing.narrowed(text)
        self._check_characters(json.dumps(schema, ensure_ascii=False))
        for pattern in narrowing.patterns(schema):
            # One that matches only what JSON cannot write would be a dead end in mid-answer.
            self._prepared(pattern)
        return self._prepared(schema)

    def renew(self, grammar: "Grammar") -> None:
        """Give it a fresh lexer. Answers that it has begun keep the old one."""
        grammar.renew(self._matcher(grammar.source))

    def _check_characters(self, text: str) -> None:
        """Some vocabularies have no token for some bytes, and tokenising drops these."""
        if text.isascii():
            return
        if self._tokens.decode_bytes(self._tokens.tokenize_str(text)) != text.encode():
            raise _failure("it has characters that the model's vocabulary cannot write")

    def _prepared(self, schema: dict[str, Any]) -> "Grammar":
        source = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=SPACING)
        return Grammar(source, self._matcher(source), self._ends)

    def _matcher(self, source: str) -> LLMatcher:
        return LLMatcher(self._tokens, source, log_level=0, limits=LIMITS)


class Grammar:
    """One schema, compiled. The decode thread starts answers; the thread of `Grammars` renews."""

    def __init__(self, source: str, matcher: LLMatcher, ends: frozenset[int]) -> None:
        """Tries its beginning. Raises `inference.schema`."""
        self.source = source
        self._matcher = matcher
        self._ends = ends
        self._tokens = 0
        trial = self.start()
        self.opening: Final = tuple(trial.forced())
        """The tokens that every answer begins with: known without a matcher."""
        trial.accept(self.opening)
        self.fixed: Final = trial.complete
        """There is one answer, and the opening is all of it."""
        if not self.fixed:
            trial.allowed()

    def start(self) -> "Matcher":
        """A copy for one answer: up to some 80 MB with a grammar that is built to be hostile."""
        return Matcher(self, self._matcher.deep_copy(), self._ends)

    @property
    def worn(self) -> bool:
        """Its lexer has grown so large that the next answer needs a fresh one."""
        return self._tokens >= GRAMMAR_TOKENS

    def wear(self, tokens: int) -> None:
        """So many tokens went through its lexer."""
        self._tokens += tokens

    def renew(self, matcher: LLMatcher) -> None:
        """From now on answers start with this one."""
        self._matcher = matcher
        self._tokens = 0


class Matcher:
    """One answer, as far as it has come."""

    def __init__(self, grammar: Grammar, matcher: LLMatcher, ends: frozenset[int]) -> None:
        self._grammar = grammar
        self._matcher = matcher
        self._ends = ends

    def forced(self) -> list[int]:
        """The tokens that come next whatever the model thinks; none where it has a choice.

        A token at the end of a forced text that a longer one could replace is left to the model, so
        the tokens are those of the whole text.
        """
        tokens = self._matcher.compute_ff_tokens()
        self._check()
        # Where the vocabulary has no token for a byte of the text, the run is right up to there.
        return tokens[: self._matcher.validate_tokens(tokens)]

    def allows(self, token: int) -> bool:
        if token in self._ends:
            return self.may_end
        return self._matcher.validate_tokens([token]) == 1

    def allowed(self) -> npt.NDArray[np.int32]:
        """All tokens that may come next, in ascending order; those that end the answer among them
        only where it is whole. At least one. Raises `inference.schema`."""
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        tokens = np.flatnonzero(np.unpackbits(mask, bitorder="little")).astype(np.int32)
        if not self.may_end:
            tokens = tokens[~np.isin(tokens, list(self._ends))]
        if not len(tokens):
            raise self._failed("no text fits at one place")
        return tokens

    def accept(self, tokens: Sequence[int]) -> None:
        """Tokens that are allowed, and no end. Raises `inference.schema`."""
        self._grammar.wear(len(tokens))
        self._matcher.consume_tokens(list(tokens))
        self._check()

    @property
    def complete(self) -> bool:
        """The answer is whole, and only its end may follow: the model need not be asked."""
        return self.may_end and self._matcher.is_stopped()

    @property
    def may_end(self) -> bool:
        """The answer is whole, and more may follow."""
        return self._matcher.is_accepting() and not self._matcher.is_error()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise self._failed(self._matcher.get_error())

    def _failed(self, cause: str) -> Failure:
        self._grammar.wear(GRAMMAR_TOKENS)
        return _failure(cause)


def check(text: str) -> None:
    """A finished answer parses, also by the rules of a strict parser. Raises `inference.schema`."""
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise _failure(f"an answer does not parse, {error}") from error


def _failure(cause: str) -> Failure:
    line = cause.partition("\n")[0][:CAUSE_CHARS_MAX].rstrip(". ")
    if "coerce_one_of" in line:  # an option of llguidance that would break the promise
        line = "the options of `oneOf` may overlap, where `anyOf` would do"
    return Failure(
        "inference.schema",
        f"The JSON Schema cannot be kept: {line}.",
        "Make sure that values exist for it, and leave out what docs/protocol.md does not list.",
    )
