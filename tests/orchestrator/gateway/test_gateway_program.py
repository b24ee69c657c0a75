"""The gateway as the daemon runs it: a program with one line, and HTTP at the other end."""

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from ipc_protocol.aio import Call, Connection, Handlers
from ipc_protocol.control import Exposition, Health
from ipc_protocol.errors import Failure
from ipc_protocol.events import Hello
from ipc_protocol.inference import Nothing
from ipc_protocol.methods import HEALTH, METRICS
from orchestrator.gateway.__main__ import EXIT_ADDRESS, EXIT_LINE, EXIT_USAGE
from orchestrator.gateway.server import REQUESTS_MAX, Server, serving
from orchestrator.supervision.processes import ChildProcess

TEXT = "# HELP agentd_up Grüße.\n# TYPE agentd_up gauge\nagentd_up 1\n"


class Orchestrator:
    """The daemon's end of the line, as far as the gateway knows it."""

    def __init__(self) -> None:
        self.health = Health(healthy=True)
        self.failure: Failure | None = None
        self.held: asyncio.Event | None = None
        self.asked = 0
        self.crowded = asyncio.Event()

    def handlers(self) -> Handlers:
        return Handlers().add(METRICS, self._metrics).add(HEALTH, self._health)

    async def _metrics(self, _: Nothing, __: Call) -> Exposition:
        self.asked += 1
        if self.asked == REQUESTS_MAX:
            self.crowded.set()
        if self.held is not None:
            await self.held.wait()
        if self.failure is not None:
            raise self.failure
        return Exposition(text=TEXT)

    async def _health(self, _: Nothing, __: Call) -> Health:
        return self.health


@contextlib.asynccontextmanager
async def gateway(path: Path, orchestrator: Orchestrator) -> AsyncIterator[ChildProcess]:
    """The real program on a Unix socket."""
    command = (sys.executable, "-m", "orchestrator.gateway", "--listen", f"unix:{path}", "--fd")
    async with ChildProcess.spawn("gateway", lambda fd: (*command, str(fd))) as child:
        await child.wait_ready(60)
        async with Connection(
            child.line, Hello(name="orchestrator"), orchestrator.handlers(), initiator=False
        ):
            yield child


@contextlib.asynccontextmanager
async def served(
    path: Path, orchestrator: Orchestrator, *, answer_seconds_max: float = 60
) -> AsyncIterator[Connection]:
    """The server alone, in this process."""
    ours, theirs = socket.socketpair()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    daemon = Connection(theirs, Hello(name="daemon"), orchestrator.handlers(), initiator=False)
    line = Connection(ours, Hello(name="gateway"), Handlers(), initiator=True)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(daemon.__aenter__())
        async with line:
            server = Server(line, answer_seconds_max=answer_seconds_max)
            async with serving(server, listener):
                yield daemon
            await daemon.__aexit__()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "http"


@contextlib.asynccontextmanager
async def session(path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.UnixConnector(str(path), limit=0)
    async with aiohttp.ClientSession("http://agentd", connector=connector) as client:
        yield client


def is_there(path: Path) -> bool:
    return path.exists()


async def fetch(path: Path, resource: str, method: str = "GET") -> tuple[int, str]:
    async with session(path) as client, client.request(method, resource) as response:
        return response.status, await response.text()


# ---- The program ---------------------------------------------------------------------------------


async def test_the_program_serves_metrics_and_health_and_leaves_with_its_line(path: Path) -> None:
    async with gateway(path, Orchestrator()) as child:
        assert await fetch(path, "/metrics") == (200, TEXT)
        assert await fetch(path, "/healthz") == (200, "healthy\n")
    assert (await child.wait_death()).orderly
    assert not is_there(path)


async def test_the_program_leaves_on_sigterm(path: Path) -> None:
    async with gateway(path, Orchestrator()) as child:
        child._process.send_signal(signal.SIGTERM)
        assert (await child.wait_death()).orderly
    assert not is_there(path)


async def test_the_program_says_on_which_free_port_it_listens() -> None:
    command = (sys.executable, "-m", "orchestrator.gateway", "--listen", "127.0.0.1:0", "--fd")
    async with ChildProcess.spawn("gateway", lambda fd: (*command, str(fd))) as child:
        await child.wait_ready(60)
        async with Connection(child.line, Hello(name="d"), Handlers(), initiator=False):
            pass
        death = await child.wait_death()
    assert death.last_lines[0].startswith("listening on 127.0.0.1:")
    assert not death.last_lines[0].endswith(":0")


async def exit_status(*arguments: str, fd: str | None = None) -> tuple[int | None, str]:
    command = (sys.executable, "-m", "orchestrator.gateway", *arguments, "--fd")
    async with ChildProcess.spawn("gateway", lambda line: (*command, fd or str(line))) as child:
        with pytest.raises(Failure, match="before it was ready"):
            await child.wait_ready(60)
        death = await child.wait_death()
    return death.exit_status, " ".join(death.last_lines)


async def test_an_address_in_use_ends_the_program_before_its_hello() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        status, words = await exit_status("--listen", f"127.0.0.1:{other.getsockname()[1]}")
    assert status == EXIT_ADDRESS
    assert "is in use" in words


async def test_an_address_that_others_reach_ends_the_program() -> None:
    status, words = await exit_status("--listen", "0.0.0.0:9464")
    assert status == EXIT_USAGE
    assert "reached by others" in words


async def test_a_descriptor_that_is_no_socket_ends_the_program() -> None:
    status, words = await exit_status("--listen", "127.0.0.1:0", fd="1")
    assert status == EXIT_USAGE
    assert "no socket" in words


async def test_a_daemon_that_speaks_something_else_ends_the_program() -> None:
    command = (sys.executable, "-m", "orchestrator.gateway", "--listen", "127.0.0.1:0", "--fd")
    async with ChildProcess.spawn("gateway", lambda fd: (*command, str(fd))) as child:
        await child.wait_ready(60)
        child.line.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        death = await child.wait_death()
    assert death.exit_status == EXIT_LINE
    assert death.last_lines


# ---- HTTP ----------------------------------------------------------------------------------------


async def test_metrics_have_the_type_that_prometheus_expects(path: Path) -> None:
    async with (
        served(path, Orchestrator()),
        session(path) as client,
        client.get("/metrics") as response,
    ):
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert response.headers["Server"] == "agentd"


async def test_bad_health_is_503_with_the_reason(path: Path) -> None:
    orchestrator = Orchestrator()
    orchestrator.health = Health(healthy=False, detail="the store is full")
    async with served(path, orchestrator):
        assert await fetch(path, "/healthz") == (503, "the store is full\n")


async def test_head_has_no_body(path: Path) -> None:
    async with served(path, Orchestrator()):
        assert await fetch(path, "/metrics", "HEAD") == (200, "")


async def test_other_methods_are_405_and_other_resources_404(path: Path) -> None:
    async with served(path, Orchestrator()):
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            assert (await fetch(path, "/metrics", method))[0] == 405
        for resource in ("/", "/metrics/", "/v1/models", "/healthz/../metrics/x"):
            assert (await fetch(path, resource))[0] == 404


async def test_a_slow_orchestrator_is_503(path: Path) -> None:
    orchestrator = Orchestrator()
    orchestrator.held = asyncio.Event()
    async with served(path, orchestrator, answer_seconds_max=0):
        assert await fetch(path, "/metrics") == (503, "The orchestrator is too slow.\n")


async def test_an_orchestrator_that_fails_is_503_with_its_words(path: Path) -> None:
    orchestrator = Orchestrator()
    orchestrator.failure = Failure("store.unavailable", "The store is away.")
    async with served(path, orchestrator):
        assert await fetch(path, "/metrics") == (503, "The store is away.\n")


async def test_an_orchestrator_that_is_gone_is_503(path: Path) -> None:
    async with served(path, Orchestrator()) as daemon:
        await daemon.__aexit__()
        assert (await fetch(path, "/healthz"))[0] == 503


async def test_a_crowd_is_turned_away_without_asking_the_orchestrator(path: Path) -> None:
    orchestrator = Orchestrator()
    orchestrator.held = asyncio.Event()
    async with served(path, orchestrator), asyncio.TaskGroup() as tasks:
        first = [tasks.create_task(fetch(path, "/metrics")) for _ in range(REQUESTS_MAX)]
        await orchestrator.crowded.wait()
        assert (await fetch(path, "/metrics"))[0] == 503
        orchestrator.held.set()
        assert {(await request)[0] for request in first} == {200}
        assert orchestrator.asked == REQUESTS_MAX


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 10_000 + b"\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: a\r\n" + b"X: x\r\n" * 100 + b"\r\n",
        b"this is not HTTP\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
    ],
)
async def test_a_request_of_the_wrong_form_is_refused_and_the_next_one_served(
    path: Path, head: bytes
) -> None:
    async with served(path, Orchestrator()):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(head)
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        assert not answer or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4"))
        assert (await fetch(path, "/healthz"))[0] == 200
