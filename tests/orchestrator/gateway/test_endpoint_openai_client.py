"""The official `openai` package against the endpoint, unmodified."""

import asyncio
import inspect
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from pydantic import BaseModel
from scripted_models import LIMITED_KEY, Models, client_at, program, served, unused_port

from ipc_protocol.errors import Failure
from ipc_protocol.frames import FrameType, encode
from ipc_protocol.inference import ChatMessage, Generated, TokenLogprob, Usage
from orchestrator.gateway.openai_bodies import (
    IGNORED,
    REFUSED,
    ChatBody,
    CompletionBody,
    EmbeddingBody,
)

OF_THE_CLIENT = {"extra_headers", "extra_query", "extra_body", "timeout"}
"""They say how to ask, and are not sent."""
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello."}]
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@pytest.fixture
def models() -> Models:
    return Models()


@pytest.fixture
async def client(tmp_path: Path, models: Models) -> AsyncIterator[openai.AsyncOpenAI]:
    path = tmp_path / "models"
    async with served(path, models), client_at(path) as client:
        yield client


# ---- What is answered ----------------------------------------------------------------------------


async def test_a_chat_is_answered(client: openai.AsyncOpenAI, models: Models) -> None:
    answer = await client.chat.completions.create(
        model="small", messages=HELLO, max_tokens=5, temperature=0, seed=3
    )
    assert answer.choices[0].message.content == "Hello."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None and answer.usage.total_tokens == 10
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 4
    (asked,) = models.language.asked
    assert asked.messages == [ChatMessage(role="user", content="Hello.")]
    assert (asked.tokens_max, asked.sampling.seed, asked.sampling.temperature) == (5, 3, 0)


async def test_a_request_is_the_clients_with_its_class_and_share(
    client: openai.AsyncOpenAI, models: Models
) -> None:
    await client.chat.completions.create(model="small", messages=HELLO)
    await client.chat.completions.create(
        model="large",
        messages=HELLO,
        service_tier="flex",
        extra_headers={"X-Agentd-Deadline-Seconds": "5"},
    )
    first, second = models.language.asked
    assert (first.agent, first.priority, first.tokens_max) == ("ada", "high", 4096)
    assert (first.share.weight, first.share.running_max) == (2.0, 3)
    assert (second.priority, second.tokens_max, second.deadline_us) == ("low", 8192, 5_000_000)


async def test_a_chat_is_streamed(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="small", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert texts == ["", "Hel", "lo", ".", None]
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 3


async def test_the_clients_own_helper_puts_a_stream_together(client: openai.AsyncOpenAI) -> None:
    async with client.chat.completions.stream(model="small", messages=HELLO) as stream:
        answer = await stream.get_final_completion()
    assert answer.choices[0].message.content == "Hello."


async def test_a_typed_answer_is_parsed_by_the_client(
    client: openai.AsyncOpenAI, models: Models
) -> None:
    class City(BaseModel):
        name: str
        people: int

    models.language.pieces = ['{"name": "Rome",', ' "people": 3}']
    answer = await client.chat.completions.parse(
        model="small", messages=HELLO, response_format=City
    )
    assert answer.choices[0].message.parsed == City(name="Rome", people=3)
    schema = models.language.asked[0].schema
    assert schema is not None and schema["required"] == ["name", "people"]


async def test_tools_are_called_and_their_results_told(
    client: openai.AsyncOpenAI, models: Models
) -> None:
    models.language.pieces = ['{"tool": "weather", ', '"arguments": {"city": "Rome"}}']
    answer = await client.chat.completions.create(model="small", messages=HELLO, tools=[WEATHER])
    (call,) = answer.choices[0].message.tool_calls or []
    assert answer.choices[0].finish_reason == "tool_calls"
    assert call.type == "function" and call.function.name == "weather"
    assert json.loads(call.function.arguments) == {"city": "Rome"}

    models.language.pieces = ['{"answer": "It is', ' sunny."}']
    followed: Any = [
        *HELLO,
        answer.choices[0].message,
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    answer = await client.chat.completions.create(model="small", messages=followed, tools=[WEATHER])
    assert answer.choices[0].message.content == "It is sunny."
    *_, called, result = models.language.asked[1].messages
    assert called.content == '{"tool": "weather", "arguments": {"city": "Rome"}}'
    assert result == ChatMessage(role="user", content="Result of weather:\nsunny")


async def test_a_streamed_call_is_put_together(client: openai.AsyncOpenAI, models: Models) -> None:
    models.language.pieces = ['{"tool": "weather", ', '"arguments": {"city": "Rome"}}']
    async with client.chat.completions.stream(
        model="small", messages=HELLO, tools=[WEATHER], tool_choice="required"
    ) as stream:
        answer = await stream.get_final_completion()
    (call,) = answer.choices[0].message.tool_calls or []
    assert json.loads(call.function.arguments) == {"city": "Rome"}


async def test_logprobs_come_whole_and_streamed(client: openai.AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(
        model="small", messages=HELLO, logprobs=True, top_logprobs=0
    )
    assert whole.choices[0].logprobs is not None
    assert [one.token for one in whole.choices[0].logprobs.content or []] == ["Hel", "lo", "."]
    stream = await client.chat.completions.create(
        model="small", messages=HELLO, logprobs=True, stream=True
    )
    found = [
        one.token
        async for chunk in stream
        for choice in chunk.choices
        if choice.logprobs is not None
        for one in choice.logprobs.content or []
    ]
    assert found == ["Hel", "lo", "."]


@pytest.mark.parametrize("others", [0, 1, 20])
async def test_as_many_likelihoods_are_asked_for_as_fit_into_one_answer(
    client: openai.AsyncOpenAI, models: Models, others: int
) -> None:
    asking: Any = {"model": "large", "messages": HELLO, "logprobs": True, "top_logprobs": others}
    await client.chat.completions.create(**asking)
    (asked,) = models.language.asked
    tokens = asked.tokens_max
    assert tokens == (8192 if others < 20 else 2047)
    token = TokenLogprob(piece=b"x", logprob=-0.5, others=[(b"x", -0.5)] * others)
    spent = Usage(
        prompt_tokens=1,
        cached_tokens=1,
        generated_tokens=1,
        queue_us=1,
        first_token_us=1,
        total_us=1,
        forced_tokens=1,
        preemptions=1,
    )
    whole = Generated(text="x", finish="length", usage=spent, logprobs=[token] * tokens)
    assert encode(FrameType.RESULT, 1, whole)
    with pytest.raises(openai.BadRequestError, match="at most"):
        await client.chat.completions.create(**asking, max_tokens=100_000)


async def test_a_prompt_is_completed(client: openai.AsyncOpenAI, models: Models) -> None:
    answer = await client.completions.create(model="small", prompt="Say", logprobs=0)
    assert answer.choices[0].text == "Hello."
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.text_offset == [0, 3, 5]
    stream = await client.completions.create(model="small", prompt="Say", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "Hello."
    assert [asked.prompt for asked in models.language.asked] == ["Say", "Say"]
    assert models.language.asked[0].tokens_max == 16


async def test_texts_become_vectors_a_few_at_once(
    client: openai.AsyncOpenAI, models: Models
) -> None:
    texts = ["x" * length for length in range(1, 71)]
    answer = await client.embeddings.create(model="embed", input=texts)
    assert [one.embedding for one in answer.data] == [[length, 1.0] for length in range(1, 71)]
    assert models.embedding.batches == [32, 32, 6]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(range(1, 71))
    numbers = await client.embeddings.create(model="embed", input="abc", encoding_format="float")
    assert numbers.data[0].embedding == [3.0, 1.0]


async def test_an_embedding_engine_that_is_away_is_waited_for_by_all_for_so_long_only(
    client: openai.AsyncOpenAI, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.endpoint.EMBED_SECONDS_MAX", 0.1)
    models.embedding.held = asyncio.Event()
    async with asyncio.timeout(30):
        answers = await asyncio.gather(
            *(client.embeddings.create(model="embed", input="x") for _ in range(3)),
            return_exceptions=True,
        )
    for answer in answers:
        assert isinstance(answer, openai.InternalServerError)
        assert (answer.status_code, answer.code) == (503, "inference.unavailable")
    models.embedding.held = None
    assert (await client.embeddings.create(model="embed", input="x")).usage.total_tokens == 1


async def test_models_are_listed_and_found(client: openai.AsyncOpenAI) -> None:
    listed = await client.models.list()
    assert [model.id for model in listed.data] == ["small", "large", "embed"]
    assert (await client.models.retrieve("embed")).owned_by == "agentd"


async def test_a_client_sees_the_models_of_its_key_alone(tmp_path: Path, models: Models) -> None:
    path = tmp_path / "models"
    async with served(path, models), client_at(path, LIMITED_KEY) as client:
        assert [model.id for model in (await client.models.list()).data] == ["large"]
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("small")


def test_every_parameter_of_the_client_is_taken_ignored_or_refused_by_name() -> None:
    client = openai.OpenAI(api_key="none")
    for create, body in (
        (client.chat.completions.create, ChatBody),
        (client.completions.create, CompletionBody),
        (client.embeddings.create, EmbeddingBody),
    ):
        names = set(inspect.signature(create).parameters) - OF_THE_CLIENT
        assert names <= {*body.__struct_fields__, *IGNORED, *REFUSED}


async def test_the_response_of_a_parsed_answer_is_there_too(client: openai.AsyncOpenAI) -> None:
    raw = await client.chat.completions.with_raw_response.create(model="small", messages=HELLO)
    assert raw.headers["Content-Type"] == "application/json"
    assert raw.parse().choices[0].message.content == "Hello."
    async with client.chat.completions.with_streaming_response.create(
        model="small", messages=HELLO, stream=True
    ) as streamed:
        assert streamed.headers["Content-Type"] == "text/event-stream"
        lines = [line async for line in streamed.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"


@pytest.mark.parametrize(
    "said", ['{"answer": "It is sunny."}', '{"tool": "weather", "arguments": {}}']
)
async def test_a_stream_beside_tools_has_its_usage_too(
    client: openai.AsyncOpenAI, models: Models, said: str
) -> None:
    models.language.pieces = [said[:14], said[14:]]
    stream = await client.chat.completions.create(
        model="small",
        messages=HELLO,
        tools=[WEATHER],
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = [chunk async for chunk in stream]
    assert last.choices == [] and last.usage is not None and last.usage.total_tokens == 9
    assert all(chunk.usage is None for chunk in chunks)
    finish = chunks[-1].choices[0].finish_reason
    assert finish == ("tool_calls" if "tool" in said else "stop")


async def test_a_client_whose_time_is_over_withdraws_its_request(
    client: openai.AsyncOpenAI, models: Models
) -> None:
    models.language.held = asyncio.Event()
    with pytest.raises(openai.APITimeoutError):
        await client.with_options(timeout=0.2).chat.completions.create(
            model="small", messages=HELLO
        )
    async with asyncio.timeout(30):
        await models.language.withdrawn.wait()


# ---- What is refused -----------------------------------------------------------------------------


async def test_a_key_of_nobody_is_an_authentication_error(tmp_path: Path, models: Models) -> None:
    path = tmp_path / "models"
    async with served(path, models), client_at(path, "sk-eve") as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.models.list()
        assert caught.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            await client.chat.completions.create(model="small", messages=HELLO)
        with pytest.raises(openai.AuthenticationError):
            await client.embeddings.create(model="embed", input="x")
    assert models.language.asked == []


async def test_what_the_key_does_not_allow_is_a_permission_error(
    tmp_path: Path, models: Models
) -> None:
    path = tmp_path / "models"
    async with served(path, models), client_at(path, LIMITED_KEY) as client:
        with pytest.raises(openai.PermissionDeniedError, match="the model 'small'"):
            await client.chat.completions.create(model="small", messages=HELLO)
        with pytest.raises(openai.PermissionDeniedError, match="the class high"):
            await client.chat.completions.create(
                model="large", messages=HELLO, service_tier="priority"
            )
        with pytest.raises(openai.PermissionDeniedError):
            await client.embeddings.create(model="embed", input="x")


async def test_an_unknown_model_is_not_found(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model="gpt", messages=HELLO)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(model="embed", messages=HELLO)
    with pytest.raises(openai.NotFoundError):
        await client.embeddings.create(model="small", input="x")


async def test_a_mistyped_parameter_is_a_bad_request(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="did you mean 'temperature'") as caught:
        await client.chat.completions.create(
            model="small", messages=HELLO, extra_body={"temprature": 1}
        )
    assert caught.value.param == "temprature"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("inference.context", openai.BadRequestError),
        ("inference.schema", openai.BadRequestError),
        ("inference.budget", openai.UnprocessableEntityError),
        ("inference.busy", openai.RateLimitError),
        ("inference.deadline", openai.InternalServerError),
        ("inference.unavailable", openai.InternalServerError),
        ("inference.culprit", openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_engine_refuses_has_its_class(
    client: openai.AsyncOpenAI,
    models: Models,
    code: str,
    error: type[openai.APIStatusError],
    stream: bool,
) -> None:
    models.language.failure = Failure(code, "The engine says no.")
    with pytest.raises(error, match="The engine says no"):
        await client.chat.completions.create(model="small", messages=HELLO, stream=stream)


async def test_what_fails_within_a_stream_ends_it_with_an_error(
    client: openai.AsyncOpenAI, models: Models
) -> None:
    models.language.failure = Failure("inference.deadline", "The time is over.")
    models.language.fails_after = 2
    stream = await client.chat.completions.create(model="small", messages=HELLO, stream=True)
    texts = []
    with pytest.raises(openai.APIError, match="The time is over"):
        async for chunk in stream:
            texts.append(chunk.choices[0].delta.content)  # noqa: PERF401 - those before the error
    assert texts == ["", "Hel", "lo"]


async def test_an_answer_that_ignores_the_tools_is_an_error(
    client: openai.AsyncOpenAI, models: Models
) -> None:
    with pytest.raises(openai.InternalServerError, match="neither"):
        await client.chat.completions.create(model="small", messages=HELLO, tools=[WEATHER])
    stream = await client.chat.completions.create(
        model="small", messages=HELLO, tools=[WEATHER], stream=True
    )
    with pytest.raises(openai.APIError, match="neither"):
        async for _ in stream:
            pass
    assert models.language.asked[0].schema is not None


@pytest.mark.parametrize("stream", [False, True])
async def test_a_text_beside_tools_that_the_tokens_end_is_cut_short(
    client: openai.AsyncOpenAI, models: Models, stream: bool
) -> None:
    models.language.pieces = ['{"answer": "It', " is", ""]
    models.language.failure = Failure("inference.budget", "It is over.", generated_tokens=2)
    models.language.fails_after = 2
    asking: Any = {"model": "small", "messages": HELLO, "tools": [WEATHER], "stream": stream}
    answer: Any = await client.chat.completions.create(**asking)
    if stream:
        choices = [chunk.choices[0] async for chunk in answer]
        text = "".join(choice.delta.content or "" for choice in choices)
    else:
        choices = answer.choices
        text = choices[0].message.content
    assert (text, choices[-1].finish_reason) == ("It is", "length")


async def test_an_engine_that_needs_a_moment_is_asked_again_by_the_client(
    tmp_path: Path, models: Models
) -> None:
    path = tmp_path / "models"
    models.language.failure = Failure("inference.busy", "The queue is full.")
    async with served(path, models), client_at(path) as client:
        with pytest.raises(openai.RateLimitError):
            await client.with_options(max_retries=1).chat.completions.create(
                model="small", messages=HELLO
            )
        models.language.failure = Failure("inference.culprit", "Not again.")
        with pytest.raises(openai.InternalServerError):
            await client.with_options(max_retries=1).chat.completions.create(
                model="small", messages=HELLO
            )
    assert len(models.language.asked) == 3  # the culprit is not asked again


# ---- Who goes away -------------------------------------------------------------------------------


async def test_a_stream_that_is_closed_is_withdrawn(
    client: openai.AsyncOpenAI, models: Models
) -> None:
    models.language.held = asyncio.Event()
    stream = await client.chat.completions.create(model="small", messages=HELLO, stream=True)
    async for chunk in stream:
        if chunk.choices[0].delta.content == ".":
            break
    await stream.close()
    async with asyncio.timeout(30):
        await models.language.withdrawn.wait()


async def test_a_request_that_is_cancelled_is_withdrawn(
    client: openai.AsyncOpenAI, models: Models
) -> None:
    models.language.held = asyncio.Event()
    asking = asyncio.ensure_future(
        client.chat.completions.create(model="small", messages=HELLO, stream=False)
    )
    await models.language.arrived.wait()
    asking.cancel()
    async with asyncio.timeout(30):
        await models.language.withdrawn.wait()


# ---- The program ---------------------------------------------------------------------------------


async def test_the_program_answers_the_synchronous_client_on_both_kinds_of_sockets(
    tmp_path: Path, models: Models
) -> None:
    def ask(client: openai.OpenAI) -> list[str | None]:
        with client:
            answer = client.chat.completions.create(model="small", messages=HELLO)
            stream = client.chat.completions.create(model="small", messages=HELLO, stream=True)
            texts = [chunk.choices[0].delta.content for chunk in stream]
            return [answer.choices[0].message.content, *texts]

    path = tmp_path / "models"
    async with program(models, "--endpoint", f"unix:{path}"):
        transport = httpx2.HTTPTransport(uds=str(path))
        client = openai.OpenAI(
            base_url="http://agentd/v1",
            api_key="sk-ada",
            http_client=httpx2.Client(transport=transport),
        )
        assert await asyncio.to_thread(ask, client) == ["Hello.", "", "Hel", "lo", ".", None]
    port = unused_port()
    async with program(models, "--endpoint", f"127.0.0.1:{port}"):
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="sk-ada")
        assert await asyncio.to_thread(ask, client) == ["Hello.", "", "Hel", "lo", ".", None]
