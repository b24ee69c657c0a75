"""The command line under test, and a daemon for it to talk to."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from canned_daemon import Daemon
from click.testing import CliRunner, Result

from orchestrator.cli.main import cli


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(tmp_path / "d.sock")
    started = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(made.serve(started, stop),))
    thread.start()
    assert started.wait(10)
    yield made
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    assert not thread.is_alive()
    loop.close()


Agentd = Callable[..., Result]


@pytest.fixture
def agentd() -> Agentd:
    """Run the command line in this process; standard output and error are kept apart."""

    def run(*arguments: object, stdin: bytes | str | None = None, **environment: str) -> Result:
        env = {"AGENTD_SOCKET": None, "AGENTD_CONFIG": None, **environment}
        return CliRunner().invoke(cli, [str(one) for one in arguments], input=stdin, env=env)

    return run
