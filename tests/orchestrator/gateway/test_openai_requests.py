"""OpenAI's requests, as bytes, and what becomes of them."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ipc_protocol.frames import FrameError, FrameType, encode
from ipc_protocol.inference import ChatMessage
from ipc_protocol.limits import BODY_DEPTH_MAX
from ipc_protocol.serving import OfKey
from orchestrator.gateway.openai_bodies import ChatBody, CompletionBody, EmbeddingBody
from orchestrator.gateway.openai_errors import (
    MESSAGE_CHARACTERS_MAX,
    PARAM_CHARACTERS_MAX,
    ApiError,
)
from orchestrator.gateway.openai_requests import (
    DEADLINE_HEADER,
    DEADLINE_SECONDS_MAX,
    PRIORITY_HEADER,
    TOP_P_MIN,
    Asked,
    Caller,
    read_caller,
    read_chat,
    read_completion,
    read_embedding,
)
from orchestrator.gateway.openai_tools import called

CALLER = Caller(key="sk-1", priority=None, deadline_us=None)
HELLO = [{"role": "user", "content": "Hello."}]


def chat(caller: Caller = CALLER, **fields: Any) -> Asked:
    body = {"model": "small", "messages": HELLO, **fields}
    return read_chat(json.dumps(body).encode(), caller, seed=7)


def completion(**fields: Any) -> Asked:
    body = {"model": "small", "prompt": "Once", **fields}
    return read_completion(json.dumps(body).encode(), CALLER, seed=7)


def refused(read: Any, *arguments: Any, **fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(*arguments, **fields)
    return caught.value


# ---- Parameters ----------------------------------------------------------------------------------


def test_a_chat_becomes_a_request_of_the_protocol() -> None:
    asked = chat(
        max_completion_tokens=5, max_tokens=9, temperature=0.5, top_p=0.9, top_k=0, min_p=0,
        presence_penalty=1, frequency_penalty=-1, repeat_penalty=1.1, seed=-1, stop=["a", "b"],
        logprobs=True, top_logprobs=3, stream=True, stream_options={"include_usage": True},
    )  # fmt: skip
    serve, sampling = asked.serve, asked.serve.sampling
    assert (serve.key, serve.model, serve.tokens_max, serve.logprobs) == ("sk-1", "small", 5, 3)
    assert serve.messages == [ChatMessage(role="user", content="Hello.")]
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (
        0.5,
        0.9,
        0,
        0,
    )
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1, -1)
    assert (sampling.repeat_penalty, sampling.stop) == (1.1, ["a", "b"])
    assert 0 <= sampling.seed < 2**32 - 1
    assert asked.stream and serve.stream and asked.include_usage and not asked.tools


def test_what_is_not_given_is_as_openai_has_it() -> None:
    asked = chat()
    assert asked.serve.sampling.temperature == 1
    assert asked.serve.sampling.top_p == 1
    assert asked.serve.sampling.seed == 7
    assert (asked.serve.tokens_max, asked.serve.logprobs, asked.serve.schema) == (None, None, None)
    assert not asked.stream
    assert completion().serve.tokens_max == 16


def test_null_is_the_same_as_absent() -> None:
    assert chat(temperature=None, tools=None, stop=None, n=None, whatever=None) == chat()


def test_what_has_no_effect_on_an_answer_is_ignored() -> None:
    fields = {"user": "u", "metadata": {"a": "b"}, "store": True, "parallel_tool_calls": False}
    assert chat(**fields) == chat()


def test_usage_is_included_in_a_stream_alone() -> None:
    assert not chat(stream_options={"include_usage": True}).include_usage


def test_one_stop_string_is_a_list_of_one() -> None:
    assert chat(stop="END").serve.sampling.stop == ["END"]
    assert chat(logprobs=True).serve.logprobs == 0


def test_a_completion_has_its_prompt_and_its_own_logprobs() -> None:
    asked = completion(prompt=["Once"], max_tokens=3, logprobs=2)
    assert (asked.serve.prompt, asked.serve.tokens_max, asked.serve.logprobs) == ("Once", 3, 2)
    assert asked.serve.messages == []


def test_an_unknown_parameter_is_named_with_the_closest_known_one() -> None:
    error = refused(chat, temprature=1)
    assert error.message == "Unknown parameter 'temprature'; did you mean 'temperature'?"
    assert (error.status, error.param, error.code) == (400, "temprature", "unknown_parameter")
    assert refused(chat, zzz=1).message == "Unknown parameter 'zzz'."


@pytest.mark.parametrize(
    ("name", "harmless", "other"),
    [
        ("n", 1, 2), ("best_of", 1, 3), ("echo", False, True), ("logit_bias", {}, {"1": 2}),
        ("modalities", ["text"], ["audio"]), ("function_call", "none", "auto"),
    ],
)  # fmt: skip
def test_what_is_not_offered_is_refused_unless_it_asks_for_nothing(
    name: str, harmless: Any, other: Any
) -> None:
    assert chat(**{name: harmless}) == chat()
    error = refused(chat, **{name: other})
    assert (error.param, error.code) == (name, "unsupported_parameter")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"top_p": -1}, "top_p"),
        ({"stop": [""]}, "stop[0]"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"model": ""}, "model"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"service_tier": "gold"}, "service_tier"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
    ],
)
def test_a_value_out_of_place_is_an_error_that_names_it(fields: Any, param: str) -> None:
    error = refused(chat, **fields)
    assert error.status == 400
    assert error.param == param
    assert param in error.message


def test_a_missing_parameter_is_named() -> None:
    error = refused(read_chat, b'{"model": "m"}', CALLER, 0)
    assert error.message == "Missing required parameter 'messages'."


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b"1e999", b"null"])
def test_what_is_no_json_object_is_an_error(body: bytes) -> None:
    error = refused(read_chat, body, CALLER, 0)
    assert (error.status, error.param) == (400, None)


def test_a_body_that_the_line_would_refuse_for_its_depth_is_refused_here() -> None:
    deep: dict[str, Any] = {}
    for _ in range(BODY_DEPTH_MAX):
        deep = {"x": [deep]}
    assert "nests" in refused(chat, response_format=deep).message


# ---- Headers -------------------------------------------------------------------------------------


def test_the_key_is_the_bearers() -> None:
    assert read_caller({"Authorization": "Bearer sk-1"}).key == "sk-1"
    assert read_caller({"Authorization": "bearer  sk-1 "}).key == "sk-1"
    assert read_caller({"Authorization": "Basic sk-1"}).key == ""
    assert read_caller({}) == Caller(key="", priority=None, deadline_us=None)


def test_the_class_is_the_headers_before_the_bodys() -> None:
    caller = read_caller({PRIORITY_HEADER: "urgent"})
    assert chat(caller, service_tier="flex").serve.priority == "urgent"
    assert chat(service_tier="flex").serve.priority == "low"
    assert chat(service_tier="priority").serve.priority == "high"
    assert chat(service_tier="background").serve.priority == "background"
    assert chat(service_tier="auto").serve.priority is None
    assert chat(service_tier="auto").tier == "auto"


def test_an_unknown_class_is_an_error_that_lists_them() -> None:
    error = refused(read_caller, {PRIORITY_HEADER: "now"})
    assert error.param == PRIORITY_HEADER
    assert "background" in error.message


def test_a_deadline_is_in_microseconds_from_now() -> None:
    caller = read_caller({DEADLINE_HEADER: "1.5"})
    assert caller.deadline_us == 1_500_000
    assert chat(caller).serve.deadline_us == 1_500_000


@pytest.mark.parametrize("text", ["soon", "nan", "inf", str(DEADLINE_SECONDS_MAX + 1)])
def test_a_deadline_that_is_none_is_an_error(text: str) -> None:
    assert refused(read_caller, {DEADLINE_HEADER: text}).status == 400


@pytest.mark.parametrize("text", ["0", "-1", "-inf"])
def test_a_deadline_in_the_past_is_over(text: str) -> None:
    error = refused(read_caller, {DEADLINE_HEADER: text})
    assert (error.status, error.code) == (504, "inference.deadline")


# ---- Messages ------------------------------------------------------------------------------------


def said(*turns: dict[str, Any]) -> list[tuple[str, str]]:
    messages = chat(messages=list(turns)).serve.messages
    return [(message.role, message.content) for message in messages]


def test_a_developer_is_a_system_and_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert said(
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": parts, "name": "ada"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}], "audio": None},
    ) == [("system", "Be brief."), ("user", "ab"), ("assistant", "No.")]


def test_calls_and_their_results_are_told_to_any_model() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": '{"a": "é"}'}}
    odd = {"id": "c2", "type": "function", "function": {"name": "odd", "arguments": "{"}}
    assert said(
        {"role": "user", "content": "What time?"},
        {"role": "assistant", "content": None, "tool_calls": [call, odd]},
        {"role": "tool", "tool_call_id": "c1", "content": "noon"},
        {"role": "tool", "tool_call_id": "c3", "content": "?"},
        {"role": "assistant", "content": "Noon.", "tool_calls": None},
    ) == [
        ("user", "What time?"),
        (
            "assistant",
            '{"tool": "now", "arguments": {"a": "é"}}\n{"tool": "odd", "arguments": "{"}',
        ),
        ("user", "Result of now:\nnoon\n\nResult:\n?"),
        ("assistant", "Noon."),
    ]


@pytest.mark.parametrize(
    ("turn", "param"),
    [
        ({"role": "function", "content": "x"}, "messages[0].role"),
        ({"role": "user", "content": None}, "messages[0].content"),
        ({"role": "tool"}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]},
            "messages[0].content[0].type",
        ),
        (
            {"role": "assistant", "tool_calls": [{"id": "c", "type": "custom"}]},
            "messages[0].tool_calls[0]",
        ),
    ],
)
def test_a_message_that_cannot_be_told_is_an_error(turn: Any, param: str) -> None:
    error = refused(chat, messages=[turn])
    assert (error.status, error.param) == (400, param)


# ---- Schemas and tools ---------------------------------------------------------------------------

CITY = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/City"}, "near": {"anyOf": [{"$ref": "#"}]}},
    "$defs": {"City": {"enum": ["Paris", "Rome"]}},
}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "Of a city.", "parameters": CITY},
}
NOW = {"type": "function", "function": {"name": "now"}}


def test_a_response_format_is_a_schema() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    format_ = {
        "type": "json_schema",
        "json_schema": {"name": "a", "strict": True, "schema": schema},
    }
    assert chat(response_format=format_).serve.schema == schema
    assert chat(response_format={"type": "json_object"}).serve.schema == {"type": "object"}
    assert chat(response_format={"type": "text"}).serve.schema is None


def test_tools_are_described_and_the_answer_is_one_of_them_or_text() -> None:
    asked = chat(tools=[WEATHER, NOW])
    system, user = asked.serve.messages
    assert asked.tools
    assert asked.serve.stream and not asked.stream
    assert system.role == "system"
    assert "weather: Of a city." in system.content
    assert '{"answer": TEXT}' in system.content
    assert user.content == "Hello."
    assert asked.serve.schema is not None
    answer, weather, now = asked.serve.schema["anyOf"]
    assert answer["properties"] == {"answer": {"type": "string"}}
    assert weather["properties"]["tool"] == {"const": "weather"}
    definitions = asked.serve.schema["$defs"]
    assert now["properties"]["arguments"] == {"$ref": "#/$defs/tool1"}
    assert definitions["tool1"]["additionalProperties"] is False


def test_references_within_a_tools_schema_move_with_it() -> None:
    asked = chat(tools=[WEATHER])
    assert asked.serve.schema is not None
    moved = asked.serve.schema["$defs"]["tool0"]
    assert moved["properties"]["city"] == {"$ref": "#/$defs/tool0/$defs/City"}
    assert moved["properties"]["near"] == {"anyOf": [{"$ref": "#/$defs/tool0"}]}


def test_instructions_follow_the_system_message_that_there_is() -> None:
    messages = [{"role": "system", "content": "Be brief."}, *HELLO]
    system, _ = chat(messages=messages, tools=[NOW]).serve.messages
    assert system.content.startswith("Be brief.\n\nYou can call these tools:\n- now\n")


def test_a_required_or_named_tool_leaves_no_other_answer() -> None:
    required = chat(tools=[WEATHER, NOW], tool_choice="required").serve
    assert required.schema is not None and len(required.schema["anyOf"]) == 2
    assert "Call one of them" in required.messages[0].content
    named = {"type": "function", "function": {"name": "now"}}
    schema = chat(tools=[WEATHER, NOW], tool_choice=named).serve.schema
    assert schema is not None and schema["properties"]["tool"] == {"const": "now"}


def test_a_text_answer_beside_tools_keeps_to_its_format() -> None:
    asked = chat(tools=[NOW], response_format={"type": "json_object"})
    assert asked.serve.schema is not None
    assert asked.serve.schema["$defs"]["answer"] == {"type": "object"}


def test_tools_that_may_not_be_called_are_as_none() -> None:
    assert chat(tools=[NOW], tool_choice="none") == chat() == chat(tools=[], tool_choice="none")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tools": [NOW], "tool_choice": "never"}, "tool_choice"),
        ({"tools": [NOW], "tool_choice": {"type": "function"}}, "tool_choice"),
        (
            {"tools": [NOW], "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice",
        ),
        (
            {"tools": [NOW], "tool_choice": {"type": "custom", "function": {"name": "now"}}},
            "tool_choice",
        ),
        ({"tools": [{"type": "custom"}]}, "tools[0]"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"tools": [NOW, NOW]}, "tools"),
        ({"tools": [NOW] * 129}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [NOW], "logprobs": True}, "logprobs"),
    ],
)
def test_tools_that_cannot_be_offered_are_an_error(fields: Any, param: str) -> None:
    error = refused(chat, **fields)
    assert (error.status, error.param) == (400, param)


# ---- Vectors -------------------------------------------------------------------------------------


def embedding(**fields: Any) -> Any:
    body = {"model": "embed", "input": "text", **fields}
    return read_embedding(json.dumps(body).encode(), CALLER)


def test_one_text_is_a_list_of_one() -> None:
    asked = embedding(encoding_format="base64", dimensions=256)
    assert (asked.serve.texts, asked.base64, asked.dimensions) == (["text"], True, 256)
    assert embedding(input=["a", "b"]).serve.texts == ["a", "b"]


@pytest.mark.parametrize(
    "fields",
    [
        {"input": ""}, {"input": []}, {"input": [1, 2]}, {"input": [[1]]},
        {"input": ["x"] * 2049}, {"encoding_format": "hex"}, {"dimensions": 0},
    ],
)  # fmt: skip
def test_an_input_that_is_no_text_is_an_error(fields: Any) -> None:
    assert refused(embedding, **fields).status == 400


# ---- Whatever comes ------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "role", "content", "$ref", "function", "name", "text", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
NAMES = sorted(
    {*ChatBody.__struct_fields__, *CompletionBody.__struct_fields__}
    | {*EmbeddingBody.__struct_fields__, "user", "n", "echo"}
)
BODIES = st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4)


@given(BODIES, st.booleans())
@example(
    {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"x": 10**30}}}]}, True
)
@example({"messages": [{"role": "user", "content": "\ud800"}]}, False)
def test_whatever_the_body_it_becomes_a_request_that_can_be_sent_or_an_error(
    fields: dict[str, Any], whole: bool
) -> None:
    """And an error names its parameter, if anything, by something that can be sent too."""
    base = {"model": "m", "messages": HELLO, "prompt": "x", "input": "x"} if whole else {}
    for read, type_ in (
        (lambda data: read_chat(data, CALLER, 1).serve, ChatBody),
        (lambda data: read_completion(data, CALLER, 1).serve, CompletionBody),
        (lambda data: read_embedding(data, CALLER).serve, EmbeddingBody),
    ):
        known = (*type_.__struct_fields__, "user", "n", "echo")
        body = {name: value for name, value in {**base, **fields}.items() if name in known}
        try:
            serve = read(json.dumps(body).encode())
            encode(FrameType.REQUEST, 1, serve)
        except ApiError as error:
            assert 400 <= error.status < 500
            assert json.loads(error.body)["error"]["message"]
        except FrameError:
            pass  # which the caller is told as `request.invalid`


@given(st.binary(max_size=64))
def test_whatever_the_bytes_they_are_refused(data: bytes) -> None:
    with pytest.raises(ApiError):
        read_chat(data, CALLER, 0)


HEADER_TEXTS = st.text(st.characters(exclude_categories=())) | st.just("Bearer \udcff")
"""Bytes that are no UTF-8 come as lone surrogates."""


@given(
    st.dictionaries(
        st.sampled_from([PRIORITY_HEADER, DEADLINE_HEADER, "Authorization"]), HEADER_TEXTS
    )
)
@example({"Authorization": "Bearer \udcff"})
@example({PRIORITY_HEADER: "\udcff"})
def test_whatever_the_headers_they_are_read_or_refused(headers: dict[str, str]) -> None:
    try:
        encode(FrameType.REQUEST, 1, OfKey(key=read_caller(headers).key))
    except ApiError as error:
        assert error.status in (400, 504)
        assert json.loads(error.body)


def test_an_error_quotes_so_much_of_what_was_sent_and_no_more() -> None:
    error = refused(chat, messages=[{"role": "x" * 1_000_000, "content": ""}])
    assert len(error.message) == MESSAGE_CHARACTERS_MAX and error.message.endswith("…")
    name = "x" * 1_000_000
    assert len(error.body) < 2000
    assert len(ApiError(400, "no", param=name).param or "") == PARAM_CHARACTERS_MAX


def test_arguments_of_a_call_that_cannot_be_written_again_are_shown_as_the_text_they_are() -> None:
    """Nesting that can be read, and not be written one level deeper, and half a pair."""
    for depth in range(900, 1100):
        text = "[" * depth + "]" * depth
        assert json.dumps(text)[1:-1] in called("f", text)
    assert called("f", '"\\ud800"') == '{"tool": "f", "arguments": "\ufffd"}'


def test_a_share_of_nothing_leaves_the_most_likely_token() -> None:
    assert chat(top_p=0).serve.sampling.top_p == TOP_P_MIN
    assert chat(top_p=0.5).serve.sampling.top_p == 0.5
