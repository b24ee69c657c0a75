"""The official `openai` package, a whole daemon, and the real model."""

import hashlib
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx2
import openai
import pytest
from daemons import Installation, RunningDaemon, short_folder
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

pytestmark = pytest.mark.model

KEY: Final = "agentd-for-this-test"
HELLO: Final[list[ChatCompletionMessageParam]] = [{"role": "user", "content": "Say hello."}]
WEATHER: Final[ChatCompletionToolParam] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/City"}},
            "required": ["city"],
            "additionalProperties": False,
            "$defs": {"City": {"enum": ["Paris", "Rome"]}},
        },
    },
}


def installed(folder: Path, model_path: Path) -> Installation:
    client = {"key_sha256": hashlib.sha256(KEY.encode()).hexdigest(), "priority": "high"}
    return Installation.bare(
        folder / "here",
        model={"default": {"file": str(model_path), "slots": 2, "context": 2048}},
        gateway={"listen": ""},
        endpoint={"listen": "unix:models.sock"},
        client={"ada": client},
    )


@pytest.fixture(scope="module")
def daemon(model_path: Path) -> Iterator[RunningDaemon]:
    with short_folder() as folder, installed(folder, model_path).running() as daemon:
        yield daemon


def connected(daemon: RunningDaemon, key: str) -> openai.OpenAI:
    path = daemon.seen(daemon.installation.state / "models.sock")
    transport = httpx2.HTTPTransport(uds=str(path))
    return openai.OpenAI(
        base_url="http://agentd/v1",
        api_key=key,
        max_retries=0,
        timeout=90,
        http_client=httpx2.Client(transport=transport),
    )


@pytest.fixture
def client(daemon: RunningDaemon) -> Iterator[openai.OpenAI]:
    with connected(daemon, KEY) as client:
        yield client


def engine_process(daemon: RunningDaemon) -> dict[str, Any]:
    engines: dict[str, Any] = {one["name"]: one for one in daemon.ctl("slots")["engines"]}
    found: dict[str, Any] = engines["default"]
    return found


def engine(daemon: RunningDaemon) -> dict[str, Any]:
    status: dict[str, Any] = engine_process(daemon)["status"]
    return status


def test_a_chat_is_answered_the_same_whole_and_streamed(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(
        model="default", messages=HELLO, temperature=0, max_tokens=6
    )
    assert whole.usage is not None and 1 <= whole.usage.completion_tokens <= 6
    chunks = list(
        client.chat.completions.create(
            model="default",
            messages=HELLO,
            temperature=0,
            max_tokens=6,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == whole.choices[0].message.content != ""
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_a_typed_answer_is_of_its_type(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"mood": {"enum": ["good", "bad"]}, "again": {"type": "boolean"}},
        "required": ["mood", "again"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model="default",
        messages=HELLO,
        max_tokens=40,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "mood", "strict": True, "schema": schema},
        },
    )
    found = json.loads(answer.choices[0].message.content or "")
    assert found["mood"] in ("good", "bad")
    assert found["again"] in (True, False)


def test_a_tool_is_called_with_arguments_of_its_schema(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="default", messages=HELLO, max_tokens=60, tools=[WEATHER], tool_choice="required"
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")


def test_a_prompt_is_completed_with_its_logprobs(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="default", prompt="One, two,", max_tokens=3, temperature=0, logprobs=2
    )
    (choice,) = answer.choices
    assert choice.text != ""
    assert choice.logprobs is not None and choice.logprobs.token_logprobs is not None
    assert all(logprob <= 0 for logprob in choice.logprobs.token_logprobs)
    assert choice.logprobs.top_logprobs is not None
    assert all(len(others) == 2 for others in choice.logprobs.top_logprobs)


def test_texts_become_vectors(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="embed", input=["a boiler", "a kettle"])
    assert [len(one.embedding) for one in answer.data] == [256, 256]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 2


def test_models_are_those_of_the_configuration(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list().data] == ["default", "embed"]


def test_what_cannot_be_answered_is_an_error_of_its_class(
    daemon: RunningDaemon, client: openai.OpenAI
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="default", prompt="word " * 4000)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="large", prompt="x")
    with pytest.raises(openai.PermissionDeniedError):
        client.chat.completions.create(
            model="default", messages=HELLO, extra_headers={"X-Agentd-Priority": "urgent"}
        )
    with connected(daemon, "another") as stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_an_answer_that_cannot_come_in_time_is_given_up(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        client.completions.create(
            model="default",
            prompt="One, two,",
            max_tokens=1500,
            extra_headers={"X-Agentd-Deadline-Seconds": "0.1"},
        )
    assert caught.value.code == "inference.deadline"


def test_an_answer_beside_tools_is_streamed_as_its_text(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="default", messages=HELLO, tools=[WEATHER], temperature=0, max_tokens=30, stream=True
    )
    chunks = [chunk.choices[0] for chunk in stream]
    assert chunks[-1].finish_reason in ("stop", "length", "tool_calls")
    assert all('{"answer"' not in (chunk.delta.content or "") for chunk in chunks)


def test_a_stream_that_is_closed_gives_its_slot_back(
    daemon: RunningDaemon, client: openai.OpenAI
) -> None:
    stream = client.completions.create(
        model="default", prompt="One, two,", max_tokens=2000, stream=True, seed=1
    )
    next(stream)
    stream.close()

    def idle() -> bool:
        status = engine(daemon)
        return not status["queue"] and {slot["state"] for slot in status["slots"]} == {"free"}

    daemon.wait(idle, "to have its slot back")


def test_what_was_spent_stands_under_the_name_of_the_client(
    daemon: RunningDaemon, client: openai.OpenAI
) -> None:
    client.completions.create(model="default", prompt="One, two,", max_tokens=1)
    spent = {one["agent"]: one for one in engine(daemon)["usage"]}
    assert spent["ada"]["requests"] >= 1
    assert spent["ada"]["generated_tokens"] >= 1


# ---- What dies, and what is stopped --------------------------------------------------------------


def test_a_stream_goes_on_behind_the_death_of_its_engine(
    daemon: RunningDaemon, client: openai.OpenAI
) -> None:
    asking: Any = {"model": "default", "prompt": "One, two,", "max_tokens": 60, "temperature": 0}
    pid = engine_process(daemon)["pid"]
    stream = client.completions.create(**asking, stream=True)
    texts = []
    for chunk in stream:
        texts.append(chunk.choices[0].text)
        if len(texts) == 5:
            os.kill(pid, signal.SIGKILL)
    assert engine_process(daemon)["pid"] not in (None, pid)
    assert "".join(texts) == client.completions.create(**asking).choices[0].text


def test_a_daemon_that_is_stopped_ends_what_is_under_way_with_an_error(model_path: Path) -> None:
    with short_folder() as folder:
        daemon = installed(folder, model_path).start()
        try:
            daemon.wait_healthy()
            with connected(daemon, KEY) as client, ThreadPoolExecutor(2) as threads:
                asking: Any = {"model": "default", "prompt": "One, two,", "max_tokens": 1900}
                stream = client.completions.create(**asking, stream=True)
                next(stream)
                whole = threads.submit(client.completions.create, **asking)

                def both() -> bool:
                    return all(slot["state"] != "free" for slot in engine(daemon)["slots"])

                daemon.wait(both, "to have both in slots")
                daemon.stop()
                with pytest.raises(openai.APIError):
                    list(stream)
                with pytest.raises(openai.APIError):
                    whole.result()
        finally:
            if daemon.process.poll() is None:
                daemon.kill()
