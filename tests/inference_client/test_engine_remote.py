"""The remote engine, between a real server on loopback and a client: what its callers rely on."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest
from aiohttp import web
from remote_servers import RemoteServer, remote_server, streamed

from inference_client.client import EngineClient
from inference_client.engine.remote import exchange
from inference_client.engine.remote.engine import REQUEST_BYTES_MAX, RemoteEngine
from inference_client.engine.remote.retries import Backoff
from ipc_protocol.aio import Call, Connection, Handlers
from ipc_protocol.egress import Dial, Fetch, Fetched
from ipc_protocol.errors import Failure
from ipc_protocol.events import Hello
from ipc_protocol.inference import (
    ChatMessage,
    EngineStart,
    EngineStatus,
    Generate,
    Generated,
    GeneratedText,
    Sampling,
    Score,
    Share,
)
from ipc_protocol.methods import EGRESS_FETCH
from orchestrator.egress.dialler import Dialler

SECRET = "sk-secret-secret-42"
QUICK = Backoff(attempts_max=3, first_seconds=0.001, longest_seconds=0.001)

SCHEMA = {
    "type": "object",
    "properties": {"action": {"enum": ["act", "ignore"]}},
    "required": ["action"],
}


def event(text: str = "", finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish, **more}
    return b"data: " + msgspec.json.encode({"choices": [choice]}) + b"\n\n"


def usage(prompt: int, completion: int, cached: int = 0) -> bytes:
    counted = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    return b"data: " + msgspec.json.encode({"choices": [], "usage": counted}) + b"\n\n"


DONE = b"data: [DONE]\n\n"
HELLO = (event("Hel"), event("lo"), event(finish="stop"), usage(9, 2, 4), DONE)


async def hello(request: web.Request) -> web.StreamResponse:
    return await streamed(request, *HELLO)


def says(*pieces: bytes) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(request: web.Request) -> web.StreamResponse:
        return await streamed(request, *pieces)

    return answer


def ask(agent: str = "opsclaw", **changes: Any) -> Generate:
    values: dict[str, Any] = {
        "agent": agent,
        "priority": "normal",
        "messages": [ChatMessage(role="user", content="The disk is full.")],
        "tokens_max": 24,
    }
    return Generate(**{**values, **changes})


class Remote:
    """A client of an engine whose model is `server`."""

    def __init__(self, client: EngineClient, server: RemoteServer) -> None:
        self.client = client
        self.server = server

    @property
    def asked(self) -> list[dict[str, Any]]:
        return [json.loads(body) for body in self.server.bodies]

    async def until(self, condition: Callable[[EngineStatus], bool]) -> EngineStatus:
        async with asyncio.timeout(20):
            while not condition(status := await self.client.status()):
                pass
        return status

    async def refused(self, code: str, **changes: Any) -> Failure:
        with pytest.raises(Failure) as failure:
            await self.client.generate(ask(**changes))
        assert failure.value.code == code, failure.value
        return failure.value


@contextlib.asynccontextmanager
async def remote(
    answer: Callable[[web.Request], Awaitable[web.StreamResponse]],
    slots: int = 4,
    *,
    started: bool = True,
) -> AsyncIterator[Remote]:
    """The engine in this process, with egress in the place of the orchestrator."""
    ours, theirs = socket.socketpair()
    engine = RemoteEngine(QUICK, tick_seconds=0.01)
    async with (
        remote_server(answer) as server,
        Dialler.opened() as dialler,
        engine.serving() as handlers,
    ):
        dialler.grant({"big": Dial(url=server.url, secret=SECRET)})

        async def fetch(params: Fetch, call: Call) -> Fetched:
            return await dialler.fetch(params, call.send_item)

        dialling = Handlers().add(EGRESS_FETCH, fetch)
        serving = Connection(theirs, Hello(name="engine"), handlers, initiator=True)
        line = Connection(ours, Hello(name="tests"), dialling, initiator=False)
        opening = asyncio.ensure_future(serving.__aenter__())
        async with line:
            await opening
            try:
                client = EngineClient(line)
                if started:
                    start = EngineStart(name="big", slots=slots, remote_model="big-1")
                    await client.start(start)
                yield Remote(client, server)
            finally:
                await serving.__aexit__()


# ---- Answers -------------------------------------------------------------------------------------


async def test_an_answer_is_streamed_as_it_comes() -> None:
    async with remote(hello) as out:
        items: list[GeneratedText] = []

        async def keep(item: GeneratedText) -> None:
            items.append(item)

        answer = await out.client.generate(ask(stream=True), keep)
        assert items[0] == GeneratedText(), "the request has its slot"
        assert "".join(item.text for item in items) == answer.text == "Hello"
        assert all(not item.tokens for item in items), "nobody here knows the vocabulary"


async def test_the_server_counts_the_tokens() -> None:
    async with remote(hello) as out:
        answer = await out.client.generate(ask())
        counted = answer.usage
        assert (counted.prompt_tokens, counted.cached_tokens, counted.generated_tokens) == (9, 4, 2)
        assert 0 <= counted.queue_us <= counted.first_token_us <= counted.total_us
        (spent,) = (await out.client.status()).usage
        assert (spent.agent, spent.requests, spent.prompt_tokens) == ("opsclaw", 1, 9)


async def test_a_request_is_asked_as_openai_would_be() -> None:
    async with remote(hello) as out:
        sampling = Sampling(temperature=0.5, seed=7, stop=["END"], frequency_penalty=0.1)
        await out.client.generate(ask(sampling=sampling, logprobs=2))
        assert out.server.requests[0].path == "/v1/chat/completions"
        assert out.server.requests[0].headers["Authorization"] == f"Bearer {SECRET}"
        assert out.asked == [
            {
                "model": "big-1",
                "messages": [{"role": "user", "content": "The disk is full."}],
                "max_tokens": 24,
                "stream": True,
                "stream_options": {"include_usage": True},
                "temperature": 0.5,
                "top_p": 0.95,
                "seed": 7,
                "frequency_penalty": 0.1,
                "stop": ["END"],
                "logprobs": True,
                "top_logprobs": 2,
            }
        ]


async def test_a_bare_prompt_is_asked_as_one() -> None:
    def text(piece: str, finish: str | None) -> bytes:
        choice = {"index": 0, "text": piece, "finish_reason": finish}
        return b"data: " + msgspec.json.encode({"choices": [choice]}) + b"\n\n"

    async with remote(says(text("Paris", None), text(".", "length"))) as out:
        answer = await out.client.generate(ask(messages=[], prompt="The capital of France is"))
        assert (answer.text, answer.finish) == ("Paris.", "length")
        assert out.server.requests[0].path == "/v1/completions"
        assert out.asked[0]["prompt"] == "The capital of France is"


async def test_likelihoods_come_with_the_tokens() -> None:
    likely = {"token": "é", "logprob": -0.5, "bytes": [195, 169], "top_logprobs": []}
    pieces = (event("é", logprobs={"content": [likely]}), event(finish="stop"), DONE)
    async with remote(says(*pieces)) as out:
        answer = await out.client.generate(ask(logprobs=0))
        assert [(one.piece, one.logprob) for one in answer.logprobs] == [("é".encode(), -0.5)]


async def test_a_typed_answer_is_checked() -> None:
    answers = {
        "valid": '{"action": "act"}',
        "other": '{"action": "sleep"}',
        "prose": "I would act.",
    }

    async def answer(request: web.Request) -> web.StreamResponse:
        wanted = json.loads(out.server.bodies[-1])["messages"][0]["content"]
        return await streamed(request, event(answers[wanted]), event(finish="stop"), DONE)

    def typed(content: str, schema: dict[str, Any] = SCHEMA) -> Generate:
        return ask(messages=[ChatMessage(role="user", content=content)], schema=schema)

    async with remote(answer) as out:
        assert (await out.client.generate(typed("valid"))).text == '{"action": "act"}'
        sent = out.asked[0]["response_format"]
        assert sent == {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
        for content, fault in (("other", "does not fit"), ("prose", "is no JSON")):
            with pytest.raises(Failure, match=fault) as failure:
                await out.client.generate(typed(content))
            assert failure.value.code == "inference.schema"
        with pytest.raises(Failure, match="pattern"):
            await out.client.generate(typed("valid", {"type": "string", "pattern": "(a+)+$"}))
        assert len(out.asked) == 3, "what cannot be checked is not asked"


async def test_a_typed_answer_that_was_cut_is_a_matter_of_budget() -> None:
    async with remote(says(event('{"act'), event(finish="length"), usage(9, 24, 4), DONE)) as out:
        failure = await out.refused("inference.budget", schema=SCHEMA)
        assert failure.problem.details == {
            "prompt_tokens": 9,
            "cached_tokens": 4,
            "generated_tokens": 24,
        }


# ---- Servers that are busy, broken, or refuse ----------------------------------------------------


@pytest.mark.parametrize("status", [429, 503])
async def test_a_busy_server_is_asked_again(status: int) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if len(out.server.requests) == 1:
            return web.Response(status=status, headers={"Retry-After": "0"})
        return await hello(request)

    async with remote(answer) as out:
        assert (await out.client.generate(ask())).text == "Hello"
        assert len(out.server.requests) == 2


async def test_a_server_that_stays_busy_is_not_asked_for_ever() -> None:
    async def busy(_: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "Slow\ndown."}}, status=429)

    async with remote(busy) as out:
        failure = await out.refused("egress.refused")
        assert "429: Slow down." in str(failure)
        assert failure.problem.details["status"] == 429
        assert len(out.server.requests) == QUICK.attempts_max


async def test_a_server_that_wants_too_much_patience_is_asked_once() -> None:
    async def busy(_: web.Request) -> web.StreamResponse:
        return web.Response(status=429, headers={"Retry-After": "3600"})

    async with remote(busy) as out:
        await out.refused("egress.refused")
        assert len(out.server.requests) == 1


@pytest.mark.parametrize("status", [301, 400, 401, 404, 500])
async def test_a_refusal_is_final(status: int) -> None:
    async def refuse(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text="no", headers={"Location": "http://other.example"})

    async with remote(refuse) as out:
        failure = await out.refused("egress.refused")
        assert failure.problem.details == {"status": status}
        assert len(out.server.requests) == 1


async def test_a_server_that_insists_on_another_name_of_the_limit_gets_it() -> None:
    async def insist(request: web.Request) -> web.StreamResponse:
        if "max_tokens" in await request.json():
            fault = {"message": "Use 'max_completion_tokens' instead.", "param": "max_tokens"}
            return web.json_response({"error": fault}, status=400)
        return await hello(request)

    async with remote(insist) as out:
        for _ in range(2):
            assert (await out.client.generate(ask())).text == "Hello"
        names = [[key for key in asked if key.startswith("max")] for asked in out.asked]
        assert names == [["max_tokens"], ["max_completion_tokens"], ["max_completion_tokens"]]


async def test_a_server_that_insists_on_no_name_is_asked_twice_and_no_more() -> None:
    async def insist(_: web.Request) -> web.StreamResponse:
        return web.Response(status=400, text="max_completion_tokens, please")

    async with remote(insist) as out:
        await out.refused("egress.refused")
        assert len(out.server.requests) == 2


async def test_a_redirect_is_told_as_one() -> None:
    async def elsewhere(_: web.Request) -> web.StreamResponse:
        return web.Response(status=308, headers={"Location": "http://other.example"})

    async with remote(elsewhere) as out:
        failure = await out.refused("egress.refused")
        assert "redirect" in failure.problem.cure


async def test_a_prompt_that_is_too_long_for_the_server_is_named() -> None:
    async def refuse(_: web.Request) -> web.StreamResponse:
        error = {"message": "too many tokens", "code": "context_length_exceeded"}
        return web.json_response({"error": error}, status=400)

    async with remote(refuse) as out:
        await out.refused("inference.context")


async def test_a_long_page_of_an_error_is_not_read_to_its_end() -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        return await streamed(request, *(bytes(60_000) for _ in range(200)), status=500)

    async with remote(endless) as out:
        await out.refused("egress.refused")
        async with asyncio.timeout(20):
            await out.server.gone.wait()


async def test_a_connection_that_fails_before_an_answer_is_made_again() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if len(out.server.requests) < QUICK.attempts_max:
            assert request.transport is not None
            request.transport.abort()
        return await hello(request)

    async with remote(answer) as out:
        assert (await out.client.generate(ask())).text == "Hello"
        assert len(out.server.requests) == QUICK.attempts_max


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_that_breaks_off_is_an_error_and_is_not_asked_for_twice(
    stream: bool,
) -> None:
    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(event("Hel"))
        assert request.transport is not None
        request.transport.abort()
        return response

    async with remote(half) as out:
        failure = await out.refused("egress.failed", stream=stream)
        assert failure.problem.details["reason"] == "broken"
        assert len(out.server.requests) == 1
        status = await out.client.status()
        assert all(slot.state == "free" for slot in status.slots)


async def test_an_answer_without_an_end_is_not_taken_for_whole() -> None:
    async with remote(says(event("Hel"))) as out:
        assert "before it was whole" in str(await out.refused("egress.failed"))


async def test_an_error_in_the_middle_of_an_answer_is_one() -> None:
    async with remote(says(event("Hel"), b'data: {"error": {"message": "gone"}}\n\n')) as out:
        assert "gone" in str(await out.refused("egress.refused", stream=True))


async def test_what_is_no_stream_of_events_is_an_error() -> None:
    async with remote(says(b"data: <html>\n\n")) as out:
        assert "is not OpenAI's" in str(await out.refused("egress.failed"))
    async with remote(says(b"data: \xff\n\n")) as out:
        assert "UTF-8" in str(await out.refused("egress.failed"))


async def test_a_server_that_does_not_close_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exchange, "LINGER_SECONDS", 0.01)

    async def open_end(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for piece in HELLO:
            await response.write(piece)
        await asyncio.Event().wait()
        raise AssertionError

    async with remote(open_end) as out:
        assert (await out.client.generate(ask())).text == "Hello"


# ---- Waiting -------------------------------------------------------------------------------------


class Held:
    """A server whose answers wait until they are let go, one by one."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.gate = asyncio.Semaphore(0)

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        asked = json.loads(await request.read())
        self.order.append(asked["messages"][0]["content"])
        await self.gate.acquire()
        return await hello(request)


def named(name: str, **changes: Any) -> Generate:
    return ask(name, messages=[ChatMessage(role="user", content=name)], **changes)


async def test_an_urgent_request_overtakes_those_that_wait() -> None:
    held = Held()
    async with remote(held, slots=1) as out, asyncio.TaskGroup() as tasks:
        for number in range(3):
            request = named(f"low-{number}", priority="low")
            tasks.create_task(out.client.generate(request))
            await out.until(lambda status, waiting=number: len(status.queue) == waiting)
        tasks.create_task(out.client.generate(named("urgent", priority="urgent")))
        status = await out.until(lambda status: len(status.queue) == 3)
        assert [(one.agent, one.reason) for one in status.queue] == [
            ("urgent", "the only slot is taken"),
            ("low-1", "1 request goes first"),
            ("low-2", "2 requests go first"),
        ]
        for _ in range(4):
            held.gate.release()
    assert held.order == ["low-0", "urgent", "low-1", "low-2"]


async def test_an_agent_keeps_to_its_share_and_delays_nobody() -> None:
    held = Held()
    async with remote(held, slots=4) as out, asyncio.TaskGroup() as tasks:
        for _ in range(3):
            request = named("greedy", share=Share(running_max=1))
            tasks.create_task(out.client.generate(request))
        tasks.create_task(out.client.generate(named("other")))
        status = await out.until(lambda status: len(status.queue) == 2)
        await out.until(lambda _: len(held.order) == 2)
        assert sorted(held.order) == ["greedy", "other"]
        assert {one.reason for one in status.queue} == {"its agent may have 1 running at once"}
        for _ in range(4):
            held.gate.release()


async def test_a_deadline_ends_what_waits_and_what_is_out() -> None:
    held = Held()
    async with remote(held, slots=1) as out:
        out_there = asyncio.ensure_future(out.client.generate(named("a", deadline_us=100_000)))
        await out.until(lambda _: held.order == ["a"])
        failure = await out.refused("inference.deadline", deadline_us=1)
        assert "big" in str(failure)
        await out.refused("inference.deadline", deadline_us=-5)
        with pytest.raises(Failure) as late:
            await out_there
        assert late.value.code == "inference.deadline"
        async with asyncio.timeout(20):
            await out.server.gone.wait()
        assert held.order == ["a"]


async def test_a_cancelled_request_closes_its_connection_and_frees_its_slot() -> None:
    held = Held()
    async with remote(held, slots=1) as out:
        asked = asyncio.ensure_future(out.client.generate(named("a")))
        waiting = asyncio.ensure_future(out.client.generate(named("b")))
        await out.until(lambda status: len(status.queue) == 1 and held.order == ["a"])
        asked.cancel()
        waiting.cancel()
        await asyncio.wait([asked, waiting])
        async with asyncio.timeout(20):
            await out.server.gone.wait()
        held.gate.release()
        assert (await out.client.generate(named("c"))).text == "Hello"
        assert held.order == ["a", "c"]


async def test_waiting_for_a_slow_server_is_no_hanging() -> None:
    held = Held()
    async with remote(held, slots=1) as out:
        before = await out.client.status()
        assert not before.working
        asked = asyncio.ensure_future(out.client.generate(named("a")))
        first = await out.until(lambda status: status.working)
        assert (first.slots[0].state, first.slots[0].agent) == ("prefill", "a")
        await out.until(lambda status: status.steps > first.steps)
        held.gate.release()
        assert isinstance(await asked, Generated)


# ---- What cannot be asked ------------------------------------------------------------------------


async def test_what_a_remote_model_cannot_do_is_refused_without_asking() -> None:
    async with remote(hello) as out:
        for changes in (
            {"tokens_max": 0},
            {"messages": []},
            {"prompt": "and messages"},
            {"produced": [1, 2]},
            {"logprobs": 21},
            {"messages": [], "prompt": "x", "schema": SCHEMA},
        ):
            await out.refused("request.invalid", **changes)
        long = [ChatMessage(role="user", content="x" * REQUEST_BYTES_MAX)]
        await out.refused("inference.context", messages=long)
        with pytest.raises(Failure) as failure:
            await out.client.score(Score(agent="a", priority="low", prompt="x", continuation="y"))
        assert failure.value.code == "request.unknown-method"
        assert out.server.requests == []


async def test_an_engine_stands_in_front_of_one_model() -> None:
    async with remote(hello, started=False) as out:
        with pytest.raises(Failure, match="no model yet"):
            await out.client.generate(ask())
        with pytest.raises(Failure, match="at least 1"):
            await out.client.start(EngineStart(name="big", slots=0))
        info = await out.client.start(EngineStart(name="big", slots=3))
        assert (info.architecture, info.kind, info.slots) == ("remote", "language", 3)
        with pytest.raises(Failure, match="a model already"):
            await out.client.start(EngineStart(name="other"))
