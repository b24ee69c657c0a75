"""OpenAI's interface seen from the client: a request as JSON, an answer from a stream of events.

Only what every server of that interface knows is sent: `top_k`, `min_p` and the repeat penalty are
not in it, and a server that is strict refuses what it does not know. Pure.
"""

from typing import Annotated, Any, Final, Literal, NoReturn

import msgspec
from msgspec import Meta, field

from ipc_protocol.errors import Failure
from ipc_protocol.inference import Generate, GeneratedText, TokenLogprob

CHAT_PATH: Final = "/chat/completions"
TEXT_PATH: Final = "/completions"

DONE: Final = "[DONE]"
"""The data of the last event."""

LOGPROBS_MAX: Final = 20
"""Of other tokens in the place of one: what the interface allows."""

ANSWER_CHARACTERS_MAX: Final = 256 * 1024
"""60,000 tokens, of at most 4 bytes a character: a quarter of a frame."""

LOGPROBS_KEPT_MAX: Final = 15_000
"""Likelihoods of one answer, which all travel in one body: each is 7 values of it at most."""

CHARACTERS_PER_TOKEN: Final = 4
"""About, in English and in code, where a server does not count for us."""

SAID_CHARACTERS_MAX: Final = 300
"""Kept of what a server says about an error, which may be anything."""

TOKENS_COUNTED_MAX: Final = 10_000_000
"""No context is as long. What a server counts is charged to the agent, and ends up in metrics."""

REDIRECTS: Final = range(300, 400)

LimitName = Literal["max_tokens", "max_completion_tokens"]
"""How the limit of an answer is called: by all servers at first, and by some of them now, which
refuse the other name. Only the interface for messages has the second one."""

CONTEXT_CODES: Final = frozenset({"context_length_exceeded", "exceed_context_size_error"})
"""How OpenAI and llama-server name a prompt that is too long."""


# ---- What is asked -------------------------------------------------------------------------------


def check(asked: Generate) -> None:
    """Whether a remote server can be asked this at all. Raises `request.invalid`."""
    if (asked.prompt is None) == (not asked.messages):
        _refuse("A request has either `messages` or a `prompt`.", "Give one of the two.")
    if asked.tokens_max < 1:
        _refuse("`tokens_max` is at least 1.", "Ask for at least one token.")
    if asked.produced:
        _refuse("A remote model cannot go on behind tokens.", "Ask for the whole answer again.")
    if asked.prompt is not None and (asked.schema is not None or asked.logprobs is not None):
        _refuse(
            "A remote model takes `schema` and `logprobs` with `messages` alone.",
            "Send the prompt as a message.",
        )
    if asked.logprobs is not None and not 0 <= asked.logprobs <= LOGPROBS_MAX:
        _refuse(
            f"`logprobs` is from 0 to {LOGPROBS_MAX} with a remote model.", "Ask for fewer of them."
        )


def path_of(asked: Generate) -> str:
    return TEXT_PATH if asked.prompt is not None else CHAT_PATH


class Dialect:
    """How one server wants to be asked for a model that it calls so. It is asked in the older way
    until it refuses that, which is known from then on."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._limit: LimitName = "max_tokens"

    def body_of(self, asked: Generate) -> bytes:
        limit: LimitName = self._limit if asked.prompt is None else "max_tokens"
        return body_of(asked, self._model, limit)

    def learn(self, asked: Generate, sent: bytes, status: int, said: bytes) -> bool:
        """Whether a refusal of what was `sent` for `asked` names another way, and so `body_of` has
        another text now."""
        newer: LimitName = "max_completion_tokens"
        if status != 400 or newer.encode() not in said:
            return False
        self._limit = newer
        return self.body_of(asked) != sent


def body_of(asked: Generate, model: str, limit: LimitName = "max_tokens") -> bytes:
    """The request as JSON, for a server that calls the model and the limit so."""
    body: dict[str, Any] = {
        "model": model,
        limit: asked.tokens_max,
        "stream": True,
        "stream_options": {"include_usage": True},
        **_sampling(asked),
    }
    if asked.prompt is not None:
        body["prompt"] = asked.prompt
    else:
        body["messages"] = msgspec.to_builtins(asked.messages)
    if asked.schema is not None:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": asked.schema},
        }
    if asked.logprobs is not None:
        body["logprobs"] = True
        body["top_logprobs"] = asked.logprobs
    return msgspec.json.encode(body)


def prompt_tokens_of(asked: Generate) -> int:
    """About how long the prompt is: nobody here has the model's vocabulary."""
    characters = sum(len(message.content) for message in asked.messages) + len(asked.prompt or "")
    return tokens_in(characters)


def tokens_in(characters: int) -> int:
    """About how many tokens make a text, at least one."""
    return max(1, characters // CHARACTERS_PER_TOKEN)


def _sampling(asked: Generate) -> dict[str, Any]:
    sampling = asked.sampling
    found: dict[str, Any] = {"temperature": sampling.temperature}
    if sampling.temperature:
        found["top_p"] = sampling.top_p
        found["seed"] = sampling.seed
    if sampling.presence_penalty:
        found["presence_penalty"] = sampling.presence_penalty
    if sampling.frequency_penalty:
        found["frequency_penalty"] = sampling.frequency_penalty
    # Within a schema a stop string would cut what has to parse.
    if sampling.stop and asked.schema is None:
        found["stop"] = sampling.stop
    return found


def _refuse(sentence: str, cure: str) -> NoReturn:
    raise Failure("request.invalid", sentence, cure)


# ---- What is answered ----------------------------------------------------------------------------


_Count = Annotated[int, Meta(ge=0, le=TOKENS_COUNTED_MAX)]


class _CachedTokens(msgspec.Struct, frozen=True):
    cached_tokens: _Count | None = None


class RemoteUsage(msgspec.Struct, frozen=True):
    """What the server has counted."""

    prompt_tokens: _Count = 0
    completion_tokens: _Count = 0
    prompt_tokens_details: _CachedTokens | None = None

    @property
    def cached_tokens(self) -> int:
        details = self.prompt_tokens_details
        return 0 if details is None else min(details.cached_tokens or 0, self.prompt_tokens)


class _Likely(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    octets: list[Annotated[int, Meta(ge=0, le=255)]] | None = field(default=None, name="bytes")

    @property
    def piece(self) -> bytes:
        return self.token.encode() if self.octets is None else bytes(self.octets)


class _Token(_Likely, frozen=True):
    top_logprobs: list[_Likely] | None = None

    def logprob_of(self) -> TokenLogprob:
        others = [(other.piece, other.logprob) for other in self.top_logprobs or ()]
        return TokenLogprob(piece=self.piece, logprob=self.logprob, others=others)


class _Logprobs(msgspec.Struct, frozen=True):
    content: list[_Token] | None = None


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    index: int = 0
    delta: _Delta | None = None
    text: str | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None

    @property
    def content(self) -> str:
        if self.delta is None:
            return self.text or ""
        return self.delta.content or self.delta.refusal or ""


class _Chunk(msgspec.Struct, frozen=True):
    choices: list[_Choice] = []
    usage: RemoteUsage | None = None
    error: Any = None


class RemoteAnswer:
    """One answer in the making. Feed it the data of each event."""

    def __init__(self, model: str) -> None:
        self.model = model
        self._pieces: list[str] = []
        self._reason: str | None = None
        self._likelihoods = 0
        self.characters = 0
        self.usage: RemoteUsage | None = None
        self.logprobs: list[TokenLogprob] = []
        self.done = False
        """The server has said that nothing follows."""

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    @property
    def generated_tokens(self) -> int:
        """As the server has counted them, or about."""
        if self.usage is not None:
            return self.usage.completion_tokens
        return tokens_in(self.characters) if self.characters else 0

    @property
    def finish(self) -> Literal["stop", "length"]:
        """How a whole answer ended. Raises `egress.failed` or `egress.refused` for one that is not.

        A server that does not say `[DONE]` has ended it with its reason.
        """
        if self._reason is None:
            raise Failure(
                "egress.failed",
                f"The answer of {self.model} ended before it was whole.",
                "Ask again; the server's log may say why.",
                reason="broken",
            )
        if self._reason == "content_filter":
            raise Failure(
                "egress.refused",
                f"The server of {self.model} withheld its answer: content_filter.",
                "Ask for something else, or another model.",
            )
        return "length" if self._reason == "length" else "stop"

    def feed(self, data: str) -> GeneratedText:
        """What an event adds. Raises `egress.failed` for what it cannot be, and `egress.refused`
        for an error in the middle of an answer."""
        if data == DONE:
            self.done = True
            return GeneratedText()
        try:
            chunk = msgspec.json.decode(data, type=_Chunk)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise Failure(
                "egress.failed",
                f"The server of {self.model} streams what is not OpenAI's interface: {error}.",
                "See whether `url` is right.",
                reason="broken",
            ) from error
        if chunk.error is not None:
            raise _refused(self.model, 0, chunk.error)
        self.usage = chunk.usage or self.usage
        texts: list[str] = []
        logprobs: list[TokenLogprob] = []
        for choice in chunk.choices:
            if choice.index == 0:
                texts.append(choice.content)
                if choice.logprobs is not None:
                    logprobs += [one.logprob_of() for one in choice.logprobs.content or ()]
                self._reason = choice.finish_reason or self._reason
        return self._take("".join(texts), logprobs)

    def _take(self, text: str, logprobs: list[TokenLogprob]) -> GeneratedText:
        self.characters += len(text)
        self._likelihoods += sum(1 + len(one.others) for one in logprobs)
        if self.characters > ANSWER_CHARACTERS_MAX or self._likelihoods > LOGPROBS_KEPT_MAX:
            raise Failure(
                "egress.failed",
                f"The answer of {self.model} is longer than can be kept.",
                f"Ask for fewer tokens, or likelihoods; {ANSWER_CHARACTERS_MAX} characters fit.",
                reason="too-long",
            )
        if text:
            self._pieces.append(text)
        self.logprobs += logprobs
        return GeneratedText(text=text, logprobs=logprobs)


# ---- What is refused -----------------------------------------------------------------------------


def refusal_of(model: str, status: int, body: bytes) -> Failure:
    """What an answer with another status than 200 means."""
    try:
        said = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        said = body.decode(errors="replace")
    return _refused(model, status, said.get("error", said) if isinstance(said, dict) else said)


def _refused(model: str, status: int, said: Any) -> Failure:
    codes: set[Any] = set()
    text = said
    if isinstance(said, dict):
        codes = {value for value in (said.get("code"), said.get("type")) if isinstance(value, str)}
        text = said.get("message", "")
    sentence = _shown(text if isinstance(text, str) else "")
    if codes & CONTEXT_CODES:
        return Failure(
            "inference.context",
            f"The prompt does not fit into the context of {model}: {sentence}",
            "Send less text, or ask for fewer tokens.",
        )
    answered = f"with {status}" if status else "with an error"
    return Failure(
        "egress.refused",
        f"The server of {model} answered {answered}: {sentence or 'it does not say why'}",
        _cure_of(status),
        status=status,
    )


def _cure_of(status: int) -> str:
    if status in REDIRECTS:
        return "It redirects, which is not followed: give the `url` that it leads to."
    return _CURES.get(status, "Ask again later; the server's log may say why.")


_CURES: Final[dict[int, str]] = {
    400: "The server may not know a parameter that was used; its message says which.",
    401: "Correct `key` in the table of the model.",
    403: "Correct `key` in the table of the model, or what the key may do.",
    404: "Correct `url` or `remote_model` in the table of the model.",
}


def _shown(text: str) -> str:
    """Printable, in one line, and short: what a stranger says ends up before a person."""
    line = "".join(one if one.isprintable() else " " for one in text[:SAID_CHARACTERS_MAX])
    return " ".join(line.split())
