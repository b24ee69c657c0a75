"""The bodies of OpenAI's requests, by type, and how one is read.

Everything that is known stands in a type here; what has no effect on the answer is named in
`IGNORED`, what is not offered in `REFUSED`. Any other name is an error that names the closest one,
since a mistyped parameter would else be silently without effect. Inside messages and tools unknown
fields are ignored: clients send back what they were given, and more of it each year.
Pure.
"""

import difflib
import re
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta

from ipc_protocol.limits import BODY_DEPTH_MAX, STREAMS_MAX
from orchestrator.gateway.openai_errors import ApiError, invalid

IGNORED: Final = frozenset(
    {
        "metadata",
        "parallel_tool_calls",  # one call at a time is what both values allow
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "store",
        "user",
    }
)
"""For the books of the server, not for the answer."""

REFUSED: Final[dict[str, tuple[Any, ...]]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "moderation": (),
    "web_search_options": (),
    "functions": (),
    "function_call": ("none",),
}
"""What OpenAI has and this endpoint has not, with the values that ask for nothing."""

INSTEAD: Final = {
    "n": "Send the request once for each answer.",
    "best_of": "Send the request once for each answer.",
    "functions": "Use 'tools'.",
    "function_call": "Use 'tool_choice'.",
}

STOP_MAX: Final = 16
STOP_CHARACTERS_MAX: Final = 256
"""So much of an answer is held back until it is known not to be the beginning of one."""
TOOLS_MAX: Final = 128
TOP_LOGPROBS_MAX: Final = 20
"""These are OpenAI's own limits, but for stop strings, of which it takes four."""
TEXTS_MAX: Final = 2 * STREAMS_MAX
"""Of one request for embeddings, as many as OpenAI takes: their vectors fit into one frame."""

DEPTH_MAX: Final = BODY_DEPTH_MAX - 4
"""Of JSON: a schema of tools is put below four more levels on its way to the engine."""

Text = Annotated[str, Meta(min_length=1)]
StopText = Annotated[str, Meta(min_length=1, max_length=STOP_CHARACTERS_MAX)]
Tokens = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """What all requests have."""

    model: Text


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool = False
    include_obfuscation: bool = False


class GenerationBody(Body, frozen=True, kw_only=True):
    """What both kinds of generation have. Bounds are OpenAI's; `top_k`, `min_p` and
    `repeat_penalty` are llama.cpp's, and go to it as they are."""

    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: Tokens | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repeat_penalty: Annotated[float, Meta(gt=0, le=10)] = 1.0
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopText | Annotated[list[StopText], Meta(max_length=STOP_MAX)] = []
    service_tier: str | None = None


class Part(msgspec.Struct, frozen=True):
    """Of a message's content."""

    type: str
    text: str | None = None
    refusal: str | None = None


class CalledFunction(msgspec.Struct, frozen=True):
    name: str
    arguments: str = "{}"


class ToolCall(msgspec.Struct, frozen=True):
    """As the assistant has made it before. Without `function` it is of a kind not offered here."""

    id: str = ""
    function: CalledFunction | None = None


class ChatTurn(msgspec.Struct, frozen=True):
    """One message."""

    role: str
    content: str | list[Part] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class FunctionDefinition(msgspec.Struct, frozen=True):
    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class ToolDefinition(msgspec.Struct, frozen=True):
    type: str
    function: FunctionDefinition | None = None


class ChosenFunction(msgspec.Struct, frozen=True):
    name: str


class ToolChoice(msgspec.Struct, frozen=True):
    type: str
    function: ChosenFunction | None = None


class NamedSchema(msgspec.Struct, frozen=True, rename={"definition": "schema"}):
    name: str = ""
    definition: dict[str, Any] | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    type: str
    json_schema: NamedSchema | None = None


class ChatBody(GenerationBody, frozen=True, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[ChatTurn], Meta(min_length=1)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Meta(ge=0, le=TOP_LOGPROBS_MAX)] | None = None
    response_format: ResponseFormat = ResponseFormat("text")
    tools: Annotated[list[ToolDefinition], Meta(max_length=TOOLS_MAX)] = []
    tool_choice: str | ToolChoice | None = None


class CompletionBody(GenerationBody, frozen=True, kw_only=True):
    """`POST /v1/completions`. A prompt of tokens is no text, and is refused."""

    prompt: Text | Annotated[list[Text], Meta(min_length=1, max_length=1)]
    logprobs: Annotated[int, Meta(ge=0, le=TOP_LOGPROBS_MAX)] | None = None


class EmbeddingBody(Body, frozen=True, kw_only=True):
    """`POST /v1/embeddings`."""

    input: Text | Annotated[list[Text], Meta(min_length=1, max_length=TEXTS_MAX)]
    encoding_format: str = "float"
    dimensions: Annotated[int, Meta(ge=1)] | None = None


B = TypeVar("B", bound=Body)


def read_body(data: bytes, kind: type[B]) -> B:
    """The body as its type. Raises `ApiError` for anything else; null is the same as absent."""
    try:
        body = msgspec.json.decode(data)
    except (ValueError, RecursionError) as error:
        raise invalid(f"The body is not JSON that can be read: {error}.", None) from error
    if not isinstance(body, dict):
        raise invalid("The body is not a JSON object.", None)
    _check_depth(body)
    given = {name: value for name, value in body.items() if value is not None}
    known = kind.__struct_fields__
    for name, value in given.items():
        if name not in known and name not in IGNORED:
            _refuse(name, value, known)
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        raise _misfit(error) from error


def _check_depth(body: dict[str, Any]) -> None:
    """Raises `ApiError` for what nests deeper than the line to the daemon takes."""
    level: list[Any] = [body]
    for _ in range(DEPTH_MAX):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
    if level:
        raise invalid(f"The body nests over {DEPTH_MAX} levels.", None)


def _refuse(name: str, value: Any, known: tuple[str, ...]) -> None:
    """Raises `ApiError`, unless the value asks for nothing."""
    if name in REFUSED:
        if value in REFUSED[name]:
            return
        instead = INSTEAD.get(name, "Leave it out.")
        raise invalid(
            f"Parameter '{name}' is not supported here. {instead}", name, "unsupported_parameter"
        )
    close = difflib.get_close_matches(name[:NAME_CHARACTERS_MAX], [*known, *IGNORED], n=1)
    meant = f"; did you mean '{close[0]}'?" if close else "."
    shown = name[:NAME_CHARACTERS_MAX]
    raise invalid(f"Unknown parameter '{shown}'{meant}", shown, "unknown_parameter")


NAME_CHARACTERS_MAX: Final = 64
"""Of a name that nobody knows: looking for the closest one costs its length."""

_MISFIT: Final = re.compile(r"(?P<what>.*) - at `\$\.?(?P<where>.*)`", re.DOTALL)
_MISSING: Final = re.compile(r"Object missing required field `(?P<name>[^`]*)`")


def _misfit(error: msgspec.ValidationError) -> ApiError:
    """msgspec says what was expected, and where: `... - at `$.messages[0].role``."""
    words = str(error)
    found = _MISFIT.fullmatch(words)
    what, where = (found["what"], found["where"]) if found else (words, "")
    if missing := _MISSING.fullmatch(what):
        name = f"{where}.{missing['name']}" if where else missing["name"]
        return invalid(f"Missing required parameter '{name}'.", name, "missing_required_parameter")
    return invalid(f"Invalid value for '{where}': {what}.", where or None, "invalid_value")
