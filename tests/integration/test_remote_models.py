"""A whole daemon before a remote server: the endpoint, the queue, egress, and the key."""

import contextlib
import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx2
import openai
import pytest
from aiohttp import web
from anyio.from_thread import start_blocking_portal
from daemons import Installation, RunningDaemon, descendants, short_folder
from remote_servers import RemoteServer, remote_server, streamed

KEY: Final = "agentd-for-this-test"
SECRET: Final = "sk-of-the-remote-server-42"

HELLO: Final = (
    b'data: {"choices": [{"delta": {"content": "Hel"}}]}\n\n',
    b'data: {"choices": [{"delta": {"content": "lo"}, "finish_reason": "stop"}]}\n\n',
    b'data: {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}\n\n',
    b"data: [DONE]\n\n",
)


async def hello(request: web.Request) -> web.StreamResponse:
    return await streamed(request, *HELLO)


async def refuse_and_quote(request: web.Request) -> web.StreamResponse:
    return web.Response(status=401, text=f"not {request.headers['Authorization']}")


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(remote_server(hello)) as server,
    ):
        yield server


@pytest.fixture
def daemon(server: RemoteServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningDaemon]:
    monkeypatch.setenv("BIG_KEY", SECRET)
    client = {"key_sha256": hashlib.sha256(KEY.encode()).hexdigest()}
    big = {"url": server.url, "key": "env:BIG_KEY", "remote_model": "big-70b", "slots": 2}
    with short_folder() as folder:
        installation = Installation.bare(
            folder / "here",
            model={"default": big},
            gateway={"listen": ""},
            endpoint={"listen": "unix:models.sock"},
            client={"ada": client},
        )
        with installation.running() as daemon:
            yield daemon


def ask(daemon: RunningDaemon) -> str | None:
    path = daemon.seen(daemon.installation.state / "models.sock")
    transport = httpx2.HTTPTransport(uds=str(path))
    with openai.OpenAI(
        base_url="http://agentd/v1",
        api_key=KEY,
        max_retries=0,
        timeout=90,
        http_client=httpx2.Client(transport=transport),
    ) as client:
        answer = client.chat.completions.create(
            model="default", messages=[{"role": "user", "content": "Say hello."}], max_tokens=8
        )
    return answer.choices[0].message.content


def programs(daemon: RunningDaemon) -> dict[int, str]:
    """The command lines of all that the daemon has started."""
    found = {}
    for process in descendants(daemon.process.pid):
        with contextlib.suppress(FileNotFoundError):
            found[process.pid] = Path(f"/proc/{process.pid}/cmdline").read_text()
    return found


def test_a_remote_model_answers_and_its_key_is_nowhere_else(
    daemon: RunningDaemon, server: RemoteServer
) -> None:
    assert ask(daemon) == "Hello"
    assert server.requests[0].headers["Authorization"] == f"Bearer {SECRET}"
    assert b'"model":"big-70b"' in server.bodies[0]
    server.answer = refuse_and_quote
    with pytest.raises(openai.InternalServerError) as failure:
        ask(daemon)
    assert failure.value.code == "egress.refused"
    told = [str(failure.value), daemon.installation.log.read_text()]
    told += [daemon.run_ctl(command, "--json").output for command in ("status", "slots")]
    told += programs(daemon).values()
    for pid in programs(daemon):
        with contextlib.suppress(OSError):  # it is gone, or lets nobody look
            told.append(Path(f"/proc/{pid}/environ").read_text())
    assert not [text for text in told if SECRET in text]


def test_egress_is_started_again_and_nobody_notices(daemon: RunningDaemon) -> None:
    assert ask(daemon) == "Hello"
    (egress,) = (pid for pid, line in programs(daemon).items() if "orchestrator.egress" in line)
    os.kill(egress, signal.SIGKILL)
    assert ask(daemon) == "Hello"
