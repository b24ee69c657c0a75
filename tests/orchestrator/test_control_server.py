"""The control socket serves so many connections, and tells the next one why it is not served."""

import asyncio
import contextlib
import socket
from pathlib import Path

import pytest

from ipc_protocol.aio import Handlers, connect
from ipc_protocol.errors import Failure
from ipc_protocol.events import Hello
from ipc_protocol.limits import HELLO_SECONDS_MAX
from orchestrator.control import server
from orchestrator.control.server import listening, serve_control

HELLO = Hello(name="test")


async def refusal(path: Path) -> Failure:
    with pytest.raises(Failure) as caught:
        async with connect(path, HELLO):
            pass
    return caught.value


async def test_one_connection_too_many_is_told_so_and_the_next_free_place_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CONNECTIONS_MAX", 2)
    path = tmp_path / "a.sock"
    with listening(path) as listener:
        serving = asyncio.create_task(serve_control(listener, Handlers()))
        async with connect(path, HELLO):
            async with connect(path, HELLO):
                problem = (await refusal(path)).problem
            assert problem.code == "protocol.too-many-connections"
            assert "connections are open" in problem.message and "agentd ctl watch" in problem.cure
            await wait_served(path)
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def wait_served(path: Path) -> None:
    """Until the server has noticed that somebody hung up."""
    while True:
        with contextlib.suppress(Failure):
            async with connect(path, HELLO):
                return


async def test_whoever_is_refused_and_says_nothing_holds_nobody_up_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CONNECTIONS_MAX", 0)
    monkeypatch.setattr(server, "REFUSALS_MAX", 1)
    monkeypatch.setattr(server.limits, "HELLO_SECONDS_MAX", 0.05)
    assert HELLO_SECONDS_MAX > 0.05
    path = tmp_path / "a.sock"
    with listening(path) as listener, socket.socket(socket.AF_UNIX) as mute:
        serving = asyncio.create_task(serve_control(listener, Handlers()))
        mute.connect(str(path))
        mute.setblocking(False)
        assert await asyncio.get_running_loop().sock_recv(mute, 100) == b""
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
