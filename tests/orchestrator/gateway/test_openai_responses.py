"""Answers of the protocol, as OpenAI's clients read them."""

import base64
import json
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc_protocol.errors import CODES, Failure
from ipc_protocol.inference import Embedded, Generated, GeneratedText, TokenLogprob, Usage
from ipc_protocol.serving import ServedModel, ServeEmbed, ServeGenerate
from orchestrator.gateway.openai_errors import ApiError, of_failure
from orchestrator.gateway.openai_requests import Asked, EmbedAsked
from orchestrator.gateway.openai_responses import (
    DONE,
    Answer,
    ChatAnswer,
    CompletionAnswer,
    Identity,
    embeddings_list,
    models_list,
    one_model,
)
from orchestrator.gateway.openai_tools import AnswerReader, Call, read_answer

IDENTITY = Identity("abc", 1_700_000_000)
USAGE = Usage(
    prompt_tokens=5,
    cached_tokens=3,
    generated_tokens=2,
    forced_tokens=1,
    queue_us=0,
    first_token_us=1,
    total_us=2,
)
LOGPROBS = [
    TokenLogprob(piece=b"Hi", logprob=-0.5, others=[(b"Hi", -0.5), (b"\xc3", -1.5)]),
    TokenLogprob(piece=b" you", logprob=-0.25),
]


def asked(**fields: Any) -> Asked:
    serve = ServeGenerate(key="k", model="small", logprobs=fields.pop("logprobs", None))
    plain = Asked(serve=serve, stream=True, include_usage=False, tools=False, tier=None)
    return msgspec.structs.replace(plain, **fields)


def generated(text: str = "Hi you", **fields: Any) -> Generated:
    return Generated(text=text, usage=USAGE, **{"finish": "stop", **fields})


def events(data: bytes) -> list[dict[str, Any]]:
    """The JSON of events, without the last one of a stream."""
    lines = data.removesuffix(DONE).decode().split("\n\n")
    assert lines.pop() == ""
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def streamed(answer: Answer, *texts: str, finish: str = "stop") -> list[dict[str, Any]]:
    pieces = [answer.piece(GeneratedText(text=text)) for text in ("", *texts)]
    closing = answer.closing(generated("".join(texts), finish=finish))
    assert closing.endswith(DONE)
    return events(b"".join([*pieces, closing]))


def deltas(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]


# ---- Chat ----------------------------------------------------------------------------------------


def test_a_whole_chat_has_its_message_and_what_it_cost() -> None:
    answer = json.loads(ChatAnswer(asked(tier="flex"), IDENTITY).whole(generated()))
    (choice,) = answer["choices"]
    assert (answer["id"], answer["object"]) == ("chatcmpl-abc", "chat.completion")
    assert (answer["created"], answer["model"]) == (1_700_000_000, "small")
    assert answer["service_tier"] == "flex"
    assert choice["message"] == {"role": "assistant", "content": "Hi you", "refusal": None}
    assert (choice["finish_reason"], choice["logprobs"]) == ("stop", None)
    assert answer["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 2,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {"accepted_prediction_tokens": 1},
    }


def test_a_streamed_chat_begins_with_its_role_and_ends_with_its_reason() -> None:
    chunks = streamed(ChatAnswer(asked(), IDENTITY), "Hi", " you", finish="length")
    assert deltas(chunks) == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "Hi"},
        {"content": " you"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [
        None,
        None,
        None,
        "length",
    ]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert all("usage" not in chunk for chunk in chunks)


def test_an_answer_that_comes_at_once_has_a_beginning_too() -> None:
    chunks = events(ChatAnswer(asked(), IDENTITY).closing(generated("")))
    assert deltas(chunks)[0]["role"] == "assistant"


def test_usage_comes_last_and_is_null_before() -> None:
    *chunks, last = streamed(ChatAnswer(asked(include_usage=True), IDENTITY), "Hi")
    assert [chunk["usage"] for chunk in chunks] == [None] * len(chunks)
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 7)


def test_logprobs_of_a_chat_have_bytes_and_others() -> None:
    answer = ChatAnswer(asked(logprobs=2), IDENTITY).whole(generated(logprobs=LOGPROBS))
    first, second = json.loads(answer)["choices"][0]["logprobs"]["content"]
    assert (first["token"], first["logprob"], first["bytes"]) == ("Hi", -0.5, [72, 105])
    assert first["top_logprobs"][1] == {"token": "\ufffd", "logprob": -1.5, "bytes": [195]}
    assert second["top_logprobs"] == []


def test_logprobs_of_a_stream_come_with_their_text_or_before_it() -> None:
    answer = ChatAnswer(asked(logprobs=0), IDENTITY)
    (opening, chunk) = events(answer.piece(GeneratedText(logprobs=LOGPROBS[:1])))
    assert opening["choices"][0]["logprobs"] is None
    assert chunk["choices"][0]["delta"] == {"content": ""}
    assert chunk["choices"][0]["logprobs"]["content"][0]["token"] == "Hi"


# ---- Chat with tools -----------------------------------------------------------------------------

CALL = '{"tool": "weather", "arguments": {"city": "Zürich"}}'


def test_a_call_is_a_tool_call() -> None:
    answer = ChatAnswer(asked(tools=True), IDENTITY).whole(generated(CALL))
    (choice,) = json.loads(answer)["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert (call["id"], call["type"]) == ("call_abc", "function")
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Zürich"}'}


def test_a_streamed_call_comes_when_it_is_whole() -> None:
    chunks = streamed(ChatAnswer(asked(tools=True), IDENTITY), CALL[:20], CALL[20:])
    opening, call, end = deltas(chunks)
    assert call["tool_calls"][0]["index"] == 0
    assert call["tool_calls"][0]["function"]["name"] == "weather"
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert (opening["content"], end) == ("", {})


def test_the_text_beside_tools_is_the_text_alone() -> None:
    answer = ChatAnswer(asked(tools=True), IDENTITY).whole(generated('{"answer": "Hi\\n"}'))
    (choice,) = json.loads(answer)["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Hi\n", "stop")


def test_the_text_beside_tools_is_streamed_as_it_comes() -> None:
    chunks = streamed(ChatAnswer(asked(tools=True), IDENTITY), '{"answ', 'er": "H', "i", '"}')
    assert deltas(chunks)[1:-1] == [{"content": "H"}, {"content": "i"}]


def test_what_cannot_be_sent_before_its_end_is_sent_there() -> None:
    answer = '{"answer": {"a": 1}}'
    chunks = streamed(ChatAnswer(asked(tools=True), IDENTITY), answer)
    assert deltas(chunks)[1:-1] == [{"content": '{"a": 1}'}]


BUDGET = Failure("inference.budget", "It is over.", prompt_tokens=4, generated_tokens=3)


def test_a_text_beside_tools_that_the_tokens_end_is_cut_short() -> None:
    answer = ChatAnswer(asked(tools=True), IDENTITY)
    answer.piece(GeneratedText(text='{"answer": "Hi \\"you'))
    (end,) = events(answer.closing(answer.cut_short(BUDGET)))
    assert (end["choices"][0]["delta"], end["choices"][0]["finish_reason"]) == ({}, "length")
    whole = json.loads(answer.whole(answer.cut_short(BUDGET)))
    assert whole["choices"][0]["message"]["content"] == 'Hi "you'
    assert whole["usage"]["total_tokens"] == 7


@pytest.mark.parametrize("text", ["", CALL[:-1], '{"answer": ', '{"answer": {"a": 1'])
def test_what_is_typed_is_not_cut_short(text: str) -> None:
    answer = ChatAnswer(asked(tools=True), IDENTITY)
    answer.piece(GeneratedText(text=text))
    with pytest.raises(Failure, match="It is over"):
        answer.cut_short(BUDGET)


def test_another_failure_is_no_end_of_an_answer() -> None:
    with pytest.raises(Failure, match="It is over"):
        ChatAnswer(asked(), IDENTITY).cut_short(BUDGET)
    with pytest.raises(Failure, match="It is over"):
        CompletionAnswer(asked(), IDENTITY).cut_short(BUDGET)
    beside = ChatAnswer(asked(tools=True), IDENTITY)
    beside.piece(GeneratedText(text='{"answer": "Hi'))
    with pytest.raises(Failure, match="late"):
        beside.cut_short(Failure("inference.deadline", "Too late."))


@pytest.mark.parametrize("text", ["", "Hello", "[]", "{}", '{"tool": "x"}', "[" * 100_000, "1"])
def test_an_answer_that_is_neither_is_an_error(text: str) -> None:
    with pytest.raises(ApiError, match="neither") as caught:
        read_answer(text)
    assert caught.value.status == 502


@given(st.text(), st.booleans(), st.data())
def test_however_an_answer_is_cut_its_pieces_are_the_text(
    text: str, ascii_: bool, data: st.DataObject
) -> None:
    written = json.dumps({"answer": text}, ensure_ascii=ascii_)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(written)), max_size=8)))
    reader = AnswerReader()
    found = "".join(
        reader.feed(written[start:end])
        for start, end in zip([0, *cuts], [*cuts, len(written)], strict=True)
    )
    content = read_answer(written)
    assert isinstance(content, str)
    assert (found, reader.rest(content)) == (text, "") == (content, "")


@pytest.mark.parametrize("lone", ["\\ud83d", "\\ude00", "\\ud83d\\ud83d\\ude00", "\\ud83dx"])
def test_half_a_pair_of_surrogates_is_shown_as_unreadable(lone: str) -> None:
    written = f'{{"answer": "a{lone}b"}}'
    reader = AnswerReader()
    found = "".join(map(reader.feed, written))
    content = read_answer(written)
    assert isinstance(content, str)
    assert content.encode("utf-8").startswith("a\ufffd".encode())
    assert found + reader.rest(content) == content


def test_a_call_says_nothing_while_it_is_written() -> None:
    reader = AnswerReader()
    assert [reader.feed(one) for one in CALL] == [""] * len(CALL)
    assert read_answer(CALL) == Call("weather", '{"city": "Zürich"}')


# ---- Completions ---------------------------------------------------------------------------------


def test_a_whole_completion_has_its_text_and_tokens() -> None:
    answer = CompletionAnswer(asked(logprobs=2), IDENTITY).whole(generated(logprobs=LOGPROBS))
    whole = json.loads(answer)
    (choice,) = whole["choices"]
    assert (whole["id"], whole["object"]) == ("cmpl-abc", "text_completion")
    assert choice["text"] == "Hi you"
    assert choice["logprobs"] == {
        "tokens": ["Hi", " you"],
        "token_logprobs": [-0.5, -0.25],
        "top_logprobs": [{"Hi": -0.5, "\ufffd": -1.5}, {}],
        "text_offset": [0, 2],
    }


def test_a_streamed_completion_has_no_beginning_of_its_own() -> None:
    chunks = streamed(CompletionAnswer(asked(), IDENTITY), "Hi", " you")
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["Hi", " you", ""]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]


def test_offsets_go_on_through_a_stream() -> None:
    answer = CompletionAnswer(asked(logprobs=0), IDENTITY)
    pieces = [answer.piece(GeneratedText(text="", logprobs=[one])) for one in LOGPROBS]
    offsets = [event["choices"][0]["logprobs"]["text_offset"] for event in events(b"".join(pieces))]
    assert offsets == [[0], [2]]


# ---- Models and vectors --------------------------------------------------------------------------

MODELS = [
    ServedModel(name="small", kind="language", context=4096),
    ServedModel(name="embed", kind="embedding"),
]


def test_models_are_listed_with_their_context() -> None:
    listed = json.loads(models_list(MODELS))
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["small", "embed"]
    assert listed["data"][0]["max_model_len"] == 4096
    assert "max_model_len" not in listed["data"][1]
    assert json.loads(one_model(MODELS, "embed")) == listed["data"][1]


def test_a_model_that_is_not_there_is_404() -> None:
    with pytest.raises(ApiError) as caught:
        one_model(MODELS, "large")
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")


def embed_asked(**fields: Any) -> EmbedAsked:
    serve = ServeEmbed(key="k", model="embed", texts=["a"])
    return EmbedAsked(serve=serve, **{"base64": False, "dimensions": None, **fields})


def test_vectors_are_numbers_or_base64() -> None:
    vector = struct.pack("<2f", 0.5, -0.25)
    embedded = Embedded(dimensions=2, vectors=[vector], tokens=3)
    listed = json.loads(embeddings_list(embedded, embed_asked(dimensions=2)))
    assert listed["data"] == [{"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}]
    assert listed["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    packed = json.loads(embeddings_list(embedded, embed_asked(base64=True)))
    assert base64.b64decode(packed["data"][0]["embedding"]) == vector


def test_vectors_of_another_width_are_refused() -> None:
    with pytest.raises(ApiError, match="have 2"):
        embeddings_list(Embedded(dimensions=2, vectors=[]), embed_asked(dimensions=3))


# ---- Errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "status", "theirs"),
    [
        ("serve.unauthorized", 401, "invalid_api_key"),
        ("serve.not-permitted", 403, "serve.not-permitted"),
        ("model.unknown", 404, "model_not_found"),
        ("request.invalid", 400, "request.invalid"),
        ("inference.context", 400, "context_length_exceeded"),
        ("inference.schema", 400, "inference.schema"),
        ("inference.budget", 422, "inference.budget"),
        ("inference.busy", 429, "rate_limit_exceeded"),
        ("inference.deadline", 504, "inference.deadline"),
        ("inference.culprit", 500, "inference.culprit"),
        ("inference.unavailable", 503, "inference.unavailable"),
        ("egress.failed", 502, "egress.failed"),
        ("request.internal", 500, "request.internal"),
    ],
)
def test_a_failure_has_a_status_and_a_code(code: str, status: int, theirs: str) -> None:
    error = of_failure(Failure(code, "It went wrong.", "Do this."))
    assert (error.status, error.code) == (status, theirs)
    told = json.loads(error.body)["error"]
    assert set(told) == {"message", "type", "param", "code"}
    assert told["message"] == "It went wrong. Do this."


def test_every_failure_is_an_error_of_http() -> None:
    assert all(400 <= of_failure(Failure(code, "x")).status < 600 for code in CODES)


def test_an_error_says_whether_to_ask_again() -> None:
    busy = of_failure(Failure("inference.busy", "x")).headers
    assert (busy["x-should-retry"], busy["Retry-After"]) == ("true", "1")
    culprit = of_failure(Failure("inference.culprit", "x")).headers
    assert culprit["x-should-retry"] == "false"
    assert "Retry-After" not in culprit
    assert "x-should-retry" not in of_failure(Failure("inference.budget", "x")).headers
    assert of_failure(Failure("serve.unauthorized", "x")).headers["WWW-Authenticate"] == "Bearer"
