"""From OpenAI's requests to those of the protocol, or to the error that is the answer. Pure."""

import math
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from ipc_protocol.inference import Sampling
from ipc_protocol.serving import ServeEmbed, ServeGenerate
from ipc_protocol.values import PRIORITIES, Priority
from orchestrator.gateway.openai_bodies import (
    ChatBody,
    CompletionBody,
    EmbeddingBody,
    GenerationBody,
    ResponseFormat,
    read_body,
)
from orchestrator.gateway.openai_errors import ApiError, invalid
from orchestrator.gateway.openai_messages import chat_messages
from orchestrator.gateway.openai_tools import answer_schema, instructions, tool_use

PRIORITY_HEADER: Final = "X-Agentd-Priority"
DEADLINE_HEADER: Final = "X-Agentd-Deadline-Seconds"

DEADLINE_SECONDS_MAX: Final = 86_400.0
"""Whoever gives more has mistaken the unit."""

COMPLETION_TOKENS: Final = 16
"""What OpenAI's completions take for `max_tokens` where it is not given. Chat takes all there is
room for."""

SEEDS: Final = 2**32 - 1
"""llama.cpp's seeds are 32 bits, the largest of which means a random one."""

TOP_P_MIN: Final = 1e-6
"""Leaves the most likely token alone, as OpenAI's 0 does, which no engine takes for a share."""

TIERS: Final[dict[str, Priority | None]] = {
    "auto": None,
    "default": None,
    "flex": "low",
    "priority": "high",
    **{priority: priority for priority in PRIORITIES},
}
"""OpenAI's service tiers and the five classes. None is the class of the key."""


class Caller(msgspec.Struct, frozen=True):
    """What the headers of a request say."""

    key: str
    priority: Priority | None
    deadline_us: int | None


class Asked(msgspec.Struct, frozen=True):
    """A request for text, and what its answer has to look like."""

    serve: ServeGenerate
    """It is streamed also for the text beside tools, of which a part is an answer too."""
    stream: bool
    include_usage: bool
    tools: bool
    """The answer is the JSON object of `openai_tools`."""
    tier: str | None


class EmbedAsked(msgspec.Struct, frozen=True):
    serve: ServeEmbed
    base64: bool
    dimensions: int | None
    """That the vectors must have."""


def read_caller(headers: Mapping[str, str]) -> Caller:
    """Raises `ApiError`. A missing key is an empty one; whose key it is, others say. Bytes that are
    no UTF-8 are no character of any key."""
    given = headers.get("Authorization", "").encode("utf-8", "replace").decode()
    scheme, _, key = given.partition(" ")
    priority = None
    if (named := headers.get(PRIORITY_HEADER)) is not None:
        priority = _class_of(named, PRIORITY_HEADER)
    return Caller(
        key=key.strip() if scheme.lower() == "bearer" else "",
        priority=priority,
        deadline_us=_deadline_us(headers.get(DEADLINE_HEADER)),
    )


def _class_of(tier: str, param: str) -> Priority | None:
    if tier not in TIERS:
        raise invalid(
            f"Invalid value for '{param}': '{tier}'. Expected one of {', '.join(TIERS)}.",
            param,
            "invalid_value",
        )
    return TIERS[tier]


def _deadline_us(text: str | None) -> int | None:
    """Microseconds from now; none are left where the deadline is in the past."""
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds <= DEADLINE_SECONDS_MAX:
        raise invalid(
            f"Invalid value for '{DEADLINE_HEADER}': expected seconds from now, at most "
            f"{DEADLINE_SECONDS_MAX:g}.",
            DEADLINE_HEADER,
            "invalid_value",
        )
    if seconds <= 0:
        raise ApiError(
            504,
            "The deadline was over when the request came.",
            kind="timeout_error",
            param=DEADLINE_HEADER,
            code="inference.deadline",
            retry=False,
        )
    return math.ceil(seconds * 1e6)


# ---- Text ----------------------------------------------------------------------------------------


def read_chat(data: bytes, caller: Caller, seed: int) -> Asked:
    """`seed` is what the request gets that names none. Raises `ApiError`."""
    body = read_body(data, ChatBody)
    use = tool_use(body)
    schema = _schema_of(body.response_format)
    logprobs = _chat_logprobs(body)
    if use is not None and logprobs is not None:
        raise invalid("'logprobs' cannot be had with 'tools'.", "logprobs")
    if use is not None:
        schema = answer_schema(use, schema)
    serve = ServeGenerate(
        key=caller.key,
        model=body.model,
        priority=_priority(body, caller),
        messages=chat_messages(body.messages, None if use is None else instructions(use)),
        tokens_max=body.max_completion_tokens or body.max_tokens,
        schema=schema,
        sampling=_sampling(body, seed),
        logprobs=logprobs,
        deadline_us=caller.deadline_us,
        stream=body.stream or (use is not None and not use.required),
    )
    return _asked(body, serve, tools=use is not None)


def read_completion(data: bytes, caller: Caller, seed: int) -> Asked:
    """The same, of a plain prompt."""
    body = read_body(data, CompletionBody)
    serve = ServeGenerate(
        key=caller.key,
        model=body.model,
        priority=_priority(body, caller),
        prompt=body.prompt if isinstance(body.prompt, str) else body.prompt[0],
        tokens_max=body.max_tokens or COMPLETION_TOKENS,
        sampling=_sampling(body, seed),
        logprobs=body.logprobs,
        deadline_us=caller.deadline_us,
        stream=body.stream,
    )
    return _asked(body, serve, tools=False)


def _asked(body: GenerationBody, serve: ServeGenerate, *, tools: bool) -> Asked:
    return Asked(
        serve=serve,
        stream=body.stream,
        include_usage=body.stream and body.stream_options.include_usage,
        tools=tools,
        tier=body.service_tier,
    )


def _priority(body: GenerationBody, caller: Caller) -> Priority | None:
    """The header's class goes before the body's, which not every client lets its user set."""
    tier = None if body.service_tier is None else _class_of(body.service_tier, "service_tier")
    return caller.priority or tier


def _chat_logprobs(body: ChatBody) -> int | None:
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid("'top_logprobs' is only allowed with 'logprobs'.", "top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None


def _schema_of(format_: ResponseFormat) -> dict[str, Any] | None:
    match format_.type:
        case "text":
            return None
        case "json_object":
            return {"type": "object"}
        case "json_schema":
            if format_.json_schema is None or format_.json_schema.definition is None:
                param = "response_format.json_schema.schema"
                raise invalid(
                    f"Missing required parameter '{param}'.", param, "missing_required_parameter"
                )
            return format_.json_schema.definition
    raise invalid(
        f"Invalid value for 'response_format.type': '{format_.type}'. Expected 'text', "
        "'json_object' or 'json_schema'.",
        "response_format.type",
        "invalid_value",
    )


def _sampling(body: GenerationBody, seed: int) -> Sampling:
    """OpenAI's defaults where it has any, ours for what it does not know."""
    ours = Sampling()
    return Sampling(
        temperature=body.temperature,
        top_k=ours.top_k if body.top_k is None else body.top_k,
        top_p=1.0 if body.top_p is None else max(body.top_p, TOP_P_MIN),
        min_p=ours.min_p if body.min_p is None else body.min_p,
        repeat_penalty=body.repeat_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        seed=(seed if body.seed is None else body.seed) % SEEDS,
        stop=[body.stop] if isinstance(body.stop, str) else body.stop,
    )


# ---- Vectors -------------------------------------------------------------------------------------


def read_embedding(data: bytes, caller: Caller) -> EmbedAsked:
    """Raises `ApiError`."""
    body = read_body(data, EmbeddingBody)
    if body.encoding_format not in ("float", "base64"):
        raise invalid(
            f"Invalid value for 'encoding_format': '{body.encoding_format}'. Expected 'float' or "
            "'base64'.",
            "encoding_format",
            "invalid_value",
        )
    texts = [body.input] if isinstance(body.input, str) else body.input
    return EmbedAsked(
        serve=ServeEmbed(key=caller.key, model=body.model, texts=texts),
        base64=body.encoding_format == "base64",
        dimensions=body.dimensions,
    )
