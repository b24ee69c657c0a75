"""What clients of the endpoint may take, and what those get who take too much or go away."""

import asyncio
import contextlib
import json
import resource
import select
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from scripted_models import FOREVER, KEY, Models, client_at, program, served, unused_port

from ipc_protocol.aio import Call, Handlers
from ipc_protocol.control import Exposition
from ipc_protocol.errors import Failure
from ipc_protocol.inference import Nothing
from ipc_protocol.methods import METRICS
from orchestrator.gateway.__main__ import EXIT_USAGE
from orchestrator.gateway.endpoint import BOUNDS, Bounds
from orchestrator.gateway.streaming import Patience
from orchestrator.supervision.processes import ChildProcess

BODY: dict[str, Any] = {"model": "small", "messages": [{"role": "user", "content": "Hello."}]}
ENDLESS = [{"role": "user", "content": FOREVER}]
HEADERS = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture
def models() -> Models:
    return Models()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "models"


@contextlib.asynccontextmanager
async def session(path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.UnixConnector(str(path), limit=0)
    async with aiohttp.ClientSession(
        "http://agentd", connector=connector, headers=HEADERS
    ) as client:
        yield client


async def post(client: aiohttp.ClientSession, body: Any = BODY) -> tuple[int, Any]:
    async with client.post("/v1/chat/completions", json=body) as response:
        return response.status, await response.json()


def raw_request(body: bytes, *lines: str, resource: str = "/v1/chat/completions") -> bytes:
    head = [
        f"POST {resource} HTTP/1.1",
        "Host: agentd",
        f"Authorization: Bearer {KEY}",
        *lines,
    ]
    return "\r\n".join([*head, "", ""]).encode("utf-8", "surrogateescape") + body


def raw_get(resource: str) -> bytes:
    lines = (f"GET {resource} HTTP/1.1", "Host: agentd", f"Authorization: Bearer {KEY}", "", "")
    return "\r\n".join(lines).encode()


def raw_json(**fields: Any) -> bytes:
    body = json.dumps({**BODY, **fields}).encode()
    return raw_request(body, f"Content-Length: {len(body)}")


def is_there(path: Path) -> bool:
    return path.exists()


async def within_time(event: asyncio.Event) -> None:
    async with asyncio.timeout(60):
        await event.wait()


# ---- Addresses -----------------------------------------------------------------------------------


class Monitored(Models):
    """It has metrics as well."""

    def handlers(self) -> Handlers:
        async def metrics(_: Nothing, __: Call) -> Exposition:
            return Exposition(text="agentd_up 1\n")

        return super().handlers().add(METRICS, metrics)


async def test_metrics_and_models_are_not_found_on_each_others_address(tmp_path: Path) -> None:
    monitored, asked = tmp_path / "metrics", tmp_path / "models"
    arguments = ("--listen", f"unix:{monitored}", "--endpoint", f"unix:{asked}")
    async with program(Monitored(), *arguments):
        async with session(monitored) as client:
            async with client.get("/metrics") as response:
                assert response.status == 200
            async with client.get("/v1/models") as response:
                assert response.status == 404
        async with session(asked) as client:
            async with client.get("/v1/models") as response:
                assert response.status == 200
            for resource_ in ("/metrics", "/healthz"):
                async with client.get(resource_) as response:
                    assert response.status == 404
    assert not is_there(monitored)
    assert not is_there(asked)


async def test_the_program_leaves_on_sigterm_with_a_stream_under_way(
    path: Path, models: Models
) -> None:
    models.language.held = asyncio.Event()
    async with program(models, "--endpoint", f"unix:{path}") as child, client_at(path) as client:
        stream = await client.chat.completions.create(**BODY, stream=True)
        child._process.send_signal(signal.SIGTERM)
        assert (await child.wait_death()).orderly
        await stream.close()
    assert not is_there(path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Neither --listen nor --endpoint"),
        (["--endpoint", "0.0.0.0:80"], "reached by others"),
        (["--listen", "unix:/x", "--endpoint", "unix:/x"], "cannot both"),
    ],
)
async def test_addresses_that_cannot_be_served_end_the_program(
    arguments: list[str], words: str
) -> None:
    async def run() -> tuple[int | None, str]:
        command = ChildProcess.spawn("gateway", lambda fd: (*python, *arguments, f"--fd={fd}"))
        async with command as child:
            with pytest.raises(Failure, match="before it was ready"):
                await child.wait_ready(60)
            death = await child.wait_death()
        return death.exit_status, " ".join(death.last_lines)

    python = (sys.executable, "-m", "orchestrator.gateway")
    status, said = await run()
    assert status == EXIT_USAGE
    assert words in said


# ---- Requests of the wrong form ------------------------------------------------------------------


async def test_what_is_not_there_is_an_error_of_the_same_form(path: Path, models: Models) -> None:
    async with served(path, models), session(path) as client:
        for method, where, status in (
            ("GET", "/v1/nothing", 404),
            ("GET", "/v1/chat/completions", 405),
            ("DELETE", "/v1/models/small", 405),
            ("POST", "/", 404),
        ):
            async with client.request(method, where) as response:
                assert response.status == status
                assert response.headers["Server"] == "agentd"
                assert where in (await response.json())["error"]["message"]


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: a\r\n" + b"X: x\r\n" * 1000 + b"\r\n",
        b"this is not HTTP\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        raw_request(b"zz\r\n", "Transfer-Encoding: chunked"),
        raw_request(b"not gzip", "Content-Length: 8", "Content-Encoding: gzip"),
        raw_request(b"{", "Content-Length: 100"),
    ],
)
async def test_a_request_of_the_wrong_form_is_refused_and_the_next_one_served(
    path: Path, models: Models, head: bytes
) -> None:
    async with served(path, models):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(head)
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        assert not answer or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4"))
        async with session(path) as client:
            assert (await post(client))[0] == 200


async def test_a_request_of_the_wrong_form_is_not_worth_a_line_in_the_log(
    path: Path, models: Models, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(path, models):
        for lines in (("Content-Length: 1", "Content-Length: 2"), ("X-Agentd-Priority: \udcff",)):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(raw_request(b"", *lines))
            assert (await reader.readline()).split()[1] == b"400"
            writer.close()
    assert caplog.messages == []


async def test_a_key_of_bytes_that_are_no_text_is_nobodys(path: Path, models: Models) -> None:
    async with served(path, models):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(raw_get("/v1/models").replace(KEY.encode(), b"\xff\xfe"))
        assert (await reader.readline()).startswith(b"HTTP/1.1 401")
        writer.close()


async def test_a_connection_whose_request_comes_byte_by_byte_is_closed(
    path: Path, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.gateway.endpoint_server.IDLE_SECONDS_MAX", 0.2)
    async with served(path, models):
        reader, writer = await asyncio.open_unix_connection(path)
        async with asyncio.timeout(30):
            with contextlib.suppress(ConnectionError):
                for byte in b"GET /v1/models HTTP/1.1\r\nX: " + b"x" * 1000:
                    writer.write(bytes([byte]))
                    await writer.drain()
                    if reader.at_eof():
                        break
                    await asyncio.sleep(0.02)
                assert await reader.read() == b""
        writer.close()


async def test_a_body_without_an_end_is_refused(path: Path, models: Models) -> None:
    async with served(path, models, Bounds(body_bytes_max=10_000)):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(raw_request(b"", "Transfer-Encoding: chunked"))
        async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
            answer = tasks.create_task(reader.readline())
            with contextlib.suppress(ConnectionError):
                while not answer.done():
                    writer.write(b"400\r\n" + b" " * 0x400 + b"\r\n")
                    await asyncio.sleep(0)
        assert answer.result().startswith(b"HTTP/1.1 413")
        writer.close()


async def test_a_body_that_is_too_long_is_refused(path: Path, models: Models) -> None:
    bounds = Bounds(body_bytes_max=1000)
    async with served(path, models, bounds), session(path) as client:
        status, answer = await post(client, {**BODY, "user": "x" * 2000})
        assert status == 413
        assert "over 1000 bytes" in answer["error"]["message"]
        assert (await post(client))[0] == 200


async def test_a_body_that_does_not_come_is_given_up(path: Path, models: Models) -> None:
    async with served(path, models, Bounds(body_seconds_max=0.05)):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(raw_request(b"{", "Content-Length: 100"))
        assert (await reader.readline()).startswith(b"HTTP/1.1 408")
        writer.close()


async def test_large_requests_together_have_a_bound_that_is_free_again_after_them(
    path: Path, models: Models
) -> None:
    models.language.held = asyncio.Event()
    large = {**BODY, "user": "x" * 700}
    bounds = Bounds(bodies_bytes_max=1000)
    async with served(path, models, bounds), session(path) as client, asyncio.TaskGroup() as tasks:
        first = tasks.create_task(post(client, large))
        await within_time(models.language.arrived)
        assert (await post(client, large))[0] == 429
        models.language.held.set()
        assert (await first)[0] == 200
        assert (await post(client, large))[0] == 200


# ---- A crowd -------------------------------------------------------------------------------------


async def test_one_request_too_many_is_turned_away(path: Path, models: Models) -> None:
    models.language.held = asyncio.Event()
    bounds = Bounds(requests_max=1)
    async with served(path, models, bounds), session(path) as client, asyncio.TaskGroup() as tasks:
        first = tasks.create_task(post(client))
        await within_time(models.language.arrived)
        async with client.post("/v1/chat/completions", json=BODY) as response:
            assert (response.status, response.headers["Retry-After"]) == (429, "1")
        models.language.held.set()
        assert (await first)[0] == 200


async def test_one_key_has_not_all_the_places(path: Path, models: Models) -> None:
    models.language.held = asyncio.Event()
    bounds = Bounds(of_a_key_max=1)
    other = {"Authorization": "Bearer sk-other"}
    async with served(path, models, bounds), session(path) as client, asyncio.TaskGroup() as tasks:
        first = tasks.create_task(post(client))
        await within_time(models.language.arrived)
        assert (await post(client))[0] == 429
        async with client.get("/v1/models", headers=other) as response:
            assert response.status == 401, "it had its turn"
        models.language.held.set()
        assert (await first)[0] == 200
        assert (await post(client))[0] == 200


async def test_one_connection_too_many_is_told_so(path: Path, models: Models) -> None:
    async with served(path, models, connections_max=1):
        first = await asyncio.open_unix_connection(path)
        first[1].write(raw_json())
        assert (await first[0].readline()).startswith(b"HTTP/1.1 200")
        for request in (raw_json(), b""):  # one that asks, and one that is silent
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(request)
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 429")
            assert json.loads(body)["error"]["code"] == "rate_limit_exceeded"
            writer.close()
        first[1].close()


@pytest.fixture
def many_files() -> Iterator[None]:
    """A thousand clients in one process need more descriptors than it has by default."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
async def test_of_a_thousand_at_once_each_is_answered_or_turned_away(models: Models) -> None:
    models.language.held = asyncio.Event()
    address = f"127.0.0.1:{unused_port()}"

    async def ask() -> int:
        reader, writer = await asyncio.open_connection(*address.split(":"))
        with contextlib.closing(writer):
            writer.write(raw_json())
            status = int((await reader.readline()).split()[1])
            if status == 429:
                turned_away.append(None)
                if len(turned_away) == 1000 - BOUNDS.of_a_key_max:
                    held.set()
            return status

    turned_away: list[None] = []
    held = models.language.held
    async with program(models, "--endpoint", address), asyncio.timeout(120):
        async with asyncio.TaskGroup() as tasks:
            asking = [tasks.create_task(ask()) for _ in range(1000)]
        statuses = Counter(task.result() for task in asking)
        assert statuses == {200: BOUNDS.of_a_key_max, 429: 1000 - BOUNDS.of_a_key_max}
        assert await ask() == 200


# ---- Who does not read, and who goes away --------------------------------------------------------


async def ask_and_never_read(path: Path, messages: Any) -> socket.socket:
    """A client whose kernel takes what it takes, and who takes nothing."""
    client = socket.socket(socket.AF_UNIX)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, str(path))
    await loop.sock_sendall(client, raw_json(stream=True, messages=messages))
    return client


async def hung_up_on(client: socket.socket) -> None:
    """Until the other end has, although there is more to read."""
    hang_up = select.poll()
    hang_up.register(client, 0)
    while not hang_up.poll(0):  # noqa: ASYNC110 - the kernel has no event for it without reading
        await asyncio.sleep(0.01)


async def test_who_does_not_read_delays_nobody(path: Path, models: Models) -> None:
    patience = Patience(unread_bytes_max=10**9, unread_seconds_max=3600)
    async with served(path, models, Bounds(patience=patience)), client_at(path) as client:
        slow = await ask_and_never_read(path, ENDLESS)
        await within_time(models.language.arrived)
        answer = await client.chat.completions.create(**BODY, stream=True)
        texts = [chunk.choices[0].delta.content async for chunk in answer]
        assert texts == ["", "Hel", "lo", ".", None]
        assert not models.language.withdrawn.is_set()
        slow.close()
        await within_time(models.language.withdrawn)


async def test_a_stream_that_nobody_reads_is_withdrawn(path: Path, models: Models) -> None:
    patience = Patience(unread_bytes_max=10_000, unread_seconds_max=3600)
    async with served(path, models, Bounds(patience=patience)):
        slow = await ask_and_never_read(path, ENDLESS)
        await within_time(models.language.withdrawn)
        slow.close()


async def test_a_reader_that_stands_still_is_hung_up_on_after_a_while(
    path: Path, models: Models
) -> None:
    models.language.pieces = ["x" * 100_000] * 20
    models.language.held = asyncio.Event()  # what came does not fill the relay
    patience = Patience(unread_bytes_max=10**9, unread_seconds_max=0.1)
    async with served(path, models, Bounds(patience=patience)):
        slow = await ask_and_never_read(path, BODY["messages"])
        await within_time(models.language.withdrawn)
        slow.close()


@pytest.mark.parametrize("resource_", ["/v1/embeddings", "/v1/models"])
async def test_a_whole_answer_that_nobody_reads_is_held_for_a_while_only(
    path: Path, models: Models, resource_: str
) -> None:
    """Large ones, and a crowd of small ones, all asked for on one connection at once."""
    if resource_ == "/v1/models":
        requests = raw_get(resource_) * 5000
    else:
        body = json.dumps({"model": "embed", "input": ["x"] * 2048}).encode()
        requests = raw_request(body, f"Content-Length: {len(body)}", resource=resource_) * 20
    patience = Patience(unread_seconds_max=0.2)
    async with served(path, models, Bounds(patience=patience, requests_max=1)):
        slow = socket.socket(socket.AF_UNIX)
        slow.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(slow, str(path))
        async with asyncio.timeout(60):
            with contextlib.suppress(ConnectionError):
                await loop.sock_sendall(slow, requests)
            await hung_up_on(slow)
        slow.close()
        async with session(path) as client:
            assert (await post(client))[0] == 200


async def test_a_client_that_breaks_off_is_withdrawn_at_once(path: Path, models: Models) -> None:
    models.language.held = asyncio.Event()
    async with served(path, models):
        for stream in (True, False):
            models.language.arrived.clear()
            models.language.withdrawn.clear()
            _, writer = await asyncio.open_unix_connection(path)
            writer.write(raw_json(stream=stream))
            await within_time(models.language.arrived)
            writer.transport.abort()
            await within_time(models.language.withdrawn)


async def test_an_orchestrator_that_is_gone_is_503(path: Path, models: Models) -> None:
    async with served(path, models) as daemon, session(path) as client:
        await daemon.__aexit__()
        for fields in ({}, {"stream": True}):
            status, answer = await post(client, {**BODY, **fields})
            assert (status, answer["error"]["code"]) == (503, "protocol.closed")
