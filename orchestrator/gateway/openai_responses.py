"""From the answers of the protocol to OpenAI's: whole, or as the events of a stream.

An answer object belongs to one request, and is told what comes in order: `piece` of every item,
then `closing` of the answer, or `whole`. They return bytes to send. Pure.
"""

import base64
import struct
from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeAlias

import msgspec

from ipc_protocol.errors import Failure
from ipc_protocol.inference import Embedded, Generated, GeneratedText, TokenLogprob, Usage
from ipc_protocol.serving import ServedModel
from orchestrator.gateway.openai_errors import ApiError, invalid
from orchestrator.gateway.openai_requests import Asked, EmbedAsked
from orchestrator.gateway.openai_tools import AnswerReader, Call, read_answer, written_answer

DONE: Final = b"data: [DONE]\n\n"
"""The last event of a stream that has not failed."""

_to_json: Final = msgspec.json.Encoder().encode


class Identity(msgspec.Struct, frozen=True):
    """What an answer is known by: `number` is of no other one, `created_s` since the epoch."""

    number: str
    created_s: int


def event(data: bytes) -> bytes:
    """One server-sent event. JSON has no line breaks of its own."""
    return b"data: " + data + b"\n\n"


def usage_of(usage: Usage) -> dict[str, Any]:
    """What a schema forces is to OpenAI a prediction that came true: it was not decoded."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.generated_tokens,
        "total_tokens": usage.prompt_tokens + usage.generated_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"accepted_prediction_tokens": usage.forced_tokens},
    }


class _Events:
    """What both kinds of answers have around their choices."""

    def __init__(self, asked: Asked, prefix: str, identity: Identity) -> None:
        self._asked = asked
        self._about: dict[str, Any] = {
            "id": f"{prefix}-{identity.number}",
            "created": identity.created_s,
            "model": asked.serve.model,
            "system_fingerprint": None,
        }
        if asked.tier is not None:
            self._about["service_tier"] = asked.tier

    def whole(self, kind: str, choice: dict[str, Any], usage: Usage) -> bytes:
        answer = {
            **self._about,
            "object": kind,
            "choices": [{"index": 0, **choice}],
            "usage": usage_of(usage),
        }
        return _to_json(answer)

    def chunk(self, kind: str, choice: dict[str, Any]) -> bytes:
        answer = {**self._about, "object": kind, "choices": [{"index": 0, **choice}]}
        if self._asked.include_usage:
            answer["usage"] = None
        return event(_to_json(answer))

    def end(self, kind: str, usage: Usage) -> bytes:
        if not self._asked.include_usage:
            return DONE
        answer = {**self._about, "object": kind, "choices": [], "usage": usage_of(usage)}
        return event(_to_json(answer)) + DONE


# ---- Chat ----------------------------------------------------------------------------------------


class ChatAnswer:
    """`chat.completion`, or its chunks. With tools, the text inside of the JSON object is sent as
    it comes, and a call when it is whole."""

    def __init__(self, asked: Asked, identity: Identity) -> None:
        self._asked = asked
        self._events = _Events(asked, "chatcmpl", identity)
        self._call_id = f"call_{identity.number}"
        self._reader = AnswerReader() if asked.tools else None
        self._opened = False

    def whole(self, generated: Generated) -> bytes:
        message: dict[str, Any] = {"role": "assistant", "content": generated.text, "refusal": None}
        finish: str = generated.finish
        if self._reader is not None:
            found = read_answer(generated.text)
            if isinstance(found, Call):
                message |= {"content": None, "tool_calls": [self._call(found)]}
                finish = "tool_calls"
            else:
                message["content"] = found
        choice = {
            "message": message,
            "logprobs": self._logprobs(generated.logprobs),
            "finish_reason": finish,
        }
        return self._events.whole("chat.completion", choice, generated.usage)

    def piece(self, item: GeneratedText) -> bytes:
        text = item.text if self._reader is None else self._reader.feed(item.text)
        sent = self._opening()
        if text or item.logprobs:
            sent += self._chunk({"content": text}, logprobs=item.logprobs)
        return sent

    def closing(self, generated: Generated) -> bytes:
        sent, finish = self._opening(), str(generated.finish)
        if self._reader is not None:
            found = read_answer(generated.text)
            if isinstance(found, Call):
                sent += self._chunk({"tool_calls": [{"index": 0, **self._call(found)}]})
                finish = "tool_calls"
            elif rest := self._reader.rest(found):
                sent += self._chunk({"content": rest})
        sent += self._chunk({}, finish=finish)
        return sent + self._events.end("chat.completion.chunk", generated.usage)

    def cut_short(self, failure: Failure) -> Generated:
        """The answer, when the tokens have ended it within a text beside tools.

        Nobody wants that text typed, so it ends as it would without tools. Raises any other
        `failure`.
        """
        if failure.code != "inference.budget" or self._reader is None or not self._reader.text:
            raise failure
        spent = failure.problem.details
        usage = Usage(
            prompt_tokens=spent.get("prompt_tokens", 0),
            cached_tokens=spent.get("cached_tokens", 0),
            generated_tokens=spent.get("generated_tokens", 0),
            queue_us=0,
            first_token_us=0,
            total_us=0,
        )
        return Generated(text=written_answer(self._reader.text), finish="length", usage=usage)

    def _opening(self) -> bytes:
        """The first chunk says who speaks."""
        if self._opened:
            return b""
        self._opened = True
        return self._chunk({"role": "assistant", "content": "", "refusal": None})

    def _chunk(
        self,
        delta: dict[str, Any],
        *,
        logprobs: Sequence[TokenLogprob] = (),
        finish: str | None = None,
    ) -> bytes:
        told = self._logprobs(logprobs) if logprobs else None
        choice = {"delta": delta, "logprobs": told, "finish_reason": finish}
        return self._events.chunk("chat.completion.chunk", choice)

    def _call(self, call: Call) -> dict[str, Any]:
        function = {"name": call.name, "arguments": call.arguments}
        return {"id": self._call_id, "type": "function", "function": function}

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if self._asked.serve.logprobs is None:
            return None
        return {"content": list(map(_chat_token, tokens)), "refusal": None}


def _chat_token(token: TokenLogprob) -> dict[str, Any]:
    others = [_likelihood(piece, logprob) for piece, logprob in token.others]
    return {**_likelihood(token.piece, token.logprob), "top_logprobs": others}


def _likelihood(piece: bytes, logprob: float) -> dict[str, Any]:
    return {"token": _text_of(piece), "logprob": logprob, "bytes": list(piece)}


def _text_of(piece: bytes) -> str:
    """A token may be half a character."""
    return piece.decode("utf-8", "replace")


# ---- Completions ---------------------------------------------------------------------------------


class CompletionAnswer:
    """`text_completion`, whole or in chunks, which are of the same form."""

    def __init__(self, asked: Asked, identity: Identity) -> None:
        self._asked = asked
        self._events = _Events(asked, "cmpl", identity)
        self._offset = 0

    def whole(self, generated: Generated) -> bytes:
        choice = self._choice(generated.text, generated.logprobs, generated.finish)
        return self._events.whole("text_completion", choice, generated.usage)

    def piece(self, item: GeneratedText) -> bytes:
        if not item.text and not item.logprobs:
            return b""
        choice = self._choice(item.text, item.logprobs, None)
        return self._events.chunk("text_completion", choice)

    def closing(self, generated: Generated) -> bytes:
        last = self._events.chunk("text_completion", self._choice("", (), generated.finish))
        return last + self._events.end("text_completion", generated.usage)

    def cut_short(self, failure: Failure) -> Generated:
        """No tools, no text beside them. Raises the `failure`."""
        raise failure

    def _choice(
        self, text: str, tokens: Sequence[TokenLogprob], finish: str | None
    ) -> dict[str, Any]:
        return {"text": text, "logprobs": self._logprobs(tokens), "finish_reason": finish}

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        """Offsets are characters from the beginning of the answer."""
        if self._asked.serve.logprobs is None:
            return None
        offsets, texts = [], []
        for token in tokens:
            offsets.append(self._offset)
            texts.append(_text_of(token.piece))
            self._offset += len(texts[-1])
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [
                {_text_of(piece): logprob for piece, logprob in token.others} for token in tokens
            ],
            "text_offset": offsets,
        }


Answer: TypeAlias = ChatAnswer | CompletionAnswer

# ---- Models and vectors --------------------------------------------------------------------------


def models_list(models: Iterable[ServedModel]) -> bytes:
    return _to_json({"object": "list", "data": list(map(_model, models))})


def one_model(models: Iterable[ServedModel], name: str) -> bytes:
    """Raises `ApiError` where the key may use no model of that name."""
    for model in models:
        if model.name == name:
            return _to_json(_model(model))
    raise ApiError(
        404, f"There is no model '{name}' for this key.", param="model", code="model_not_found"
    )


def _model(model: ServedModel) -> dict[str, Any]:
    """`max_model_len` is what vLLM calls the context. When a model was made nobody here knows."""
    about = {"id": model.name, "object": "model", "created": 0, "owned_by": "agentd"}
    return {**about, "max_model_len": model.context} if model.context else about


def embeddings_list(embedded: Embedded, asked: EmbedAsked) -> bytes:
    """Raises `ApiError` where the vectors have another width than the request wants."""
    if asked.dimensions not in (None, embedded.dimensions):
        raise invalid(
            f"Invalid value for 'dimensions': this model's vectors have {embedded.dimensions}.",
            "dimensions",
            "invalid_value",
        )
    data = [
        {"object": "embedding", "index": index, "embedding": _vector(vector, asked)}
        for index, vector in enumerate(embedded.vectors)
    ]
    usage = {"prompt_tokens": embedded.tokens, "total_tokens": embedded.tokens}
    return _to_json({"object": "list", "data": data, "model": asked.serve.model, "usage": usage})


def _vector(vector: bytes, asked: EmbedAsked) -> str | list[float]:
    if asked.base64:
        return base64.b64encode(vector).decode()
    return list(struct.unpack(f"<{len(vector) // 4}f", vector))
