"""Egress and a remote engine as the daemon runs them: programs, each with its one line."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator

import msgspec
import pytest
import trustme
from aiohttp import web
from remote_servers import Answer, RemoteServer, remote_server, streamed

from inference_client.client import EngineClient
from ipc_protocol.aio import Connection, Handlers
from ipc_protocol.egress import Dial, EgressStart, Fetch
from ipc_protocol.errors import Failure
from ipc_protocol.events import Hello
from ipc_protocol.inference import ChatMessage, EngineStart, Generate
from ipc_protocol.methods import EGRESS_FETCH, EGRESS_START
from orchestrator.config.types import ModelConfig
from orchestrator.egress.__main__ import EXIT_LINE, EXIT_USAGE
from orchestrator.egress_process import Egress, grants_of
from orchestrator.supervision.processes import ChildProcess

SECRET = "sk-secret-secret-42"
HELLO = b'data: {"choices": [{"delta": {"content": "Hello"}, "finish_reason": "stop"}]}\n\n'
ASKED = Generate(
    agent="opsclaw",
    priority="normal",
    messages=[ChatMessage(role="user", content="Hello?")],
    tokens_max=8,
)


async def hello(request: web.Request) -> web.StreamResponse:
    return await streamed(request, HELLO, b"data: [DONE]\n\n")


@contextlib.asynccontextmanager
async def supervised(
    grants: dict[str, Dial], environment: dict[str, str] | None = None
) -> AsyncIterator[tuple[Egress, list[str]]]:
    restarts: list[str] = []
    egress = Egress(grants, lambda: 0, restarts.append, environment)
    running = asyncio.ensure_future(egress.run())
    try:
        yield egress, restarts
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@contextlib.asynccontextmanager
async def engine(egress: Egress, name: str) -> AsyncIterator[EngineClient]:
    """A remote engine, which may dial under the grant of that name."""

    def command(fd: int) -> list[str]:
        program = [sys.executable, "-m", "inference_client.engine"]
        return [*program, "--kind", "remote", "--fd", str(fd), "--log-level", "DEBUG"]

    async with ChildProcess.spawn(f"engine/{name}", command) as child:
        await child.wait_ready(60)
        handlers = egress.dialling(name)
        async with Connection(
            child.line, Hello(name="orchestrator"), handlers, initiator=False
        ) as line:
            client = EngineClient(line)
            await client.start(EngineStart(name=name, slots=2))
            yield client


@contextlib.asynccontextmanager
async def asking(egress: Egress, grant: str) -> AsyncIterator[Connection]:
    """The program's end of a dialling line."""
    ours, theirs = socket.socketpair()
    serving = Connection(theirs, Hello(name="daemon"), egress.dialling(grant), initiator=False)
    opening = asyncio.ensure_future(serving.__aenter__())
    async with Connection(ours, Hello(name="program"), Handlers(), initiator=True) as line:
        await opening
        try:
            yield line
        finally:
            await serving.__aexit__()


@contextlib.asynccontextmanager
async def out_there(answer: Answer = hello) -> AsyncIterator[tuple[RemoteServer, dict[str, str]]]:
    """A server with TLS, and the environment in which its authority is trusted."""
    authority = trustme.CA()
    with authority.cert_pem.tempfile() as file:
        async with remote_server(answer, authority) as server:
            yield server, {"SSL_CERT_FILE": file}


async def test_a_remote_model_answers_over_tls_and_nobody_tells_the_key(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    async with out_there() as (server, environment):
        grants = {"big": Dial(url=server.url, secret=SECRET)}
        async with supervised(grants, environment) as (egress, _), engine(egress, "big") as client:
            answer = await client.generate(ASKED)
            assert answer.text == "Hello"
            assert server.requests[0].headers["Authorization"] == f"Bearer {SECRET}"
            status = await client.status()
            assert SECRET not in msgspec.json.encode(status).decode()
            server.answer = refuse_and_quote
            with pytest.raises(Failure) as failure:
                await client.generate(ASKED)
            assert "redacted" in str(failure.value)
            assert SECRET not in repr(failure.value.problem)
    assert SECRET not in caplog.text


async def refuse_and_quote(request: web.Request) -> web.StreamResponse:
    return web.Response(status=401, text=f"not {request.headers['Authorization']}")


async def test_a_server_that_nobody_vouches_for_is_not_asked() -> None:
    async with out_there() as (server, _):
        grants = {"big": Dial(url=server.url, secret=SECRET)}
        async with supervised(grants) as (egress, _), engine(egress, "big") as client:
            with pytest.raises(Failure) as failure:
                await client.generate(ASKED)
            assert failure.value.problem.details["reason"] == "tls"
            assert server.requests == []


async def test_a_program_asks_under_its_own_grant_whatever_it_says() -> None:
    async with remote_server(hello) as mine, remote_server(hello) as other:
        grants = {"mine": Dial(url=mine.url), "other": Dial(url=other.url, secret=SECRET)}
        async with supervised(grants) as (egress, _), asking(egress, "mine") as line:
            async with line.stream(EGRESS_FETCH, Fetch(grant="other", path="/chat")) as response:
                await response.result()
            assert (len(mine.requests), len(other.requests)) == (1, 0)
            assert "Authorization" not in mine.requests[0].headers
            with pytest.raises(Failure) as failure:
                await line.call(EGRESS_FETCH, Fetch(grant="mine", path="/../admin"))
            assert failure.value.code == "egress.not-permitted"


async def test_whoever_leaves_closes_the_connection_of_its_request() -> None:
    begun = asyncio.Event()

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"x")
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with (
        remote_server(endless) as server,
        supervised({"big": Dial(url=server.url)}) as (egress, _),
        asking(egress, "big") as line,
    ):
        fetch = Fetch(grant="big", path="/chat")
        asked = asyncio.ensure_future(line.call(EGRESS_FETCH, fetch))
        await begun.wait()
        asked.cancel()
        await asyncio.wait([asked])
        async with asyncio.timeout(20):
            await server.gone.wait()


async def test_egress_is_started_again_and_a_request_that_it_lost_is_asked_again() -> None:
    begun = asyncio.Event()

    async def first_silent(request: web.Request) -> web.StreamResponse:
        if len(server.requests) == 1:
            begun.set()
            await asyncio.Event().wait()
        return await hello(request)

    async with (
        remote_server(first_silent) as server,
        supervised({"big": Dial(url=server.url)}) as (egress, restarts),
        engine(egress, "big") as client,
    ):
        asked = asyncio.ensure_future(client.generate(ASKED))
        await begun.wait()
        assert egress.pid is not None
        os.kill(egress.pid, signal.SIGKILL)
        assert (await asked).text == "Hello"
        assert restarts == ["egress"]


async def test_egress_takes_its_grants_once_and_serves_nothing_before() -> None:
    def command(fd: int) -> list[str]:
        return [sys.executable, "-m", "orchestrator.egress", "--fd", str(fd)]

    async with ChildProcess.spawn("egress", command) as child:
        await child.wait_ready(60)
        egress = Egress({}, lambda: 0, lambda _: None)
        with pytest.raises(AssertionError):
            egress.dialling("big")
        async with Connection(
            child.line, Hello(name="orchestrator"), Handlers(), initiator=False
        ) as line:
            with pytest.raises(Failure, match="no grant"):
                await line.call(EGRESS_FETCH, Fetch(grant="big", path="/chat"))
            with pytest.raises(Failure, match="cannot be granted"):
                await line.call(EGRESS_START, EgressStart(grants={"big": Dial(url="file:///etc")}))
            await line.call(EGRESS_START, EgressStart(grants={}))
            with pytest.raises(Failure, match="already"):
                await line.call(EGRESS_START, EgressStart(grants={}))
    assert (await child.wait_death()).orderly


def test_the_memory_with_the_keys_is_in_no_core_and_read_by_nobody() -> None:
    program = (
        "import ctypes; from orchestrator.egress.__main__ import conceal_memory; conceal_memory();"
        "print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"  # PR_GET_DUMPABLE
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert said.stdout.strip() == b"0"


async def test_the_program_leaves_on_sigterm_and_without_a_line() -> None:
    def command(fd: int) -> list[str]:
        return [sys.executable, "-m", "orchestrator.egress", "--fd", str(fd)]

    async with ChildProcess.spawn("egress", command) as child:
        await child.wait_ready(60)
        hello = Hello(name="orchestrator")
        async with Connection(child.line, hello, Handlers(), initiator=False):
            os.kill(child.pid, signal.SIGTERM)
            assert (await child.wait_death()).orderly
    async with ChildProcess.spawn("egress", command) as child:
        child.line.close()
        assert (await child.wait_death()).exit_status == EXIT_LINE
    async with ChildProcess.spawn("egress", lambda _: command(0)) as child:
        assert (await child.wait_death()).exit_status == EXIT_USAGE


# ---- What may be dialled -------------------------------------------------------------------------


def test_each_remote_model_is_a_grant_and_its_key_leaves_the_environment() -> None:
    environment = {"BIG_KEY": SECRET, "HOME": "/"}
    models = {
        "local": ModelConfig(),
        "big": ModelConfig(url="https://models.example/v1", key="env:BIG_KEY"),
        "same": ModelConfig(url="https://models.example/v1", key="env:BIG_KEY"),
        "open": ModelConfig(url="http://10.0.0.1:8080/v1"),
    }
    grants = grants_of(models, environment)
    assert sorted(grants) == ["big", "open", "same"]
    assert grants["big"].secret == grants["same"].secret == SECRET
    assert grants["open"].secret == ""
    assert environment == {"HOME": "/"}


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("https://models.example/v1", "env:NONE"),
        ("http://models.example/v1", "env:BIG_KEY"),
        ("https://models.example/v1?key=1", ""),
    ],
)
def test_what_cannot_be_dialled_is_named_before_anything_starts(url: str, key: str) -> None:
    with pytest.raises(Failure) as failure:
        grants_of({"big": ModelConfig(url=url, key=key)}, {"BIG_KEY": SECRET})
    assert failure.value.code == "model.unavailable"
    assert SECRET not in repr(failure.value.problem)
