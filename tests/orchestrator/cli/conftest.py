"""The command line under test, and a daemon for it to talk to."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from canned_daemon import Daemon, serving
from click.testing import CliRunner, Result

from orchestrator.cli.main import cli


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with serving(Daemon(tmp_path / "d.sock")) as made:
        yield made


Agentd = Callable[..., Result]


@pytest.fixture
def agentd() -> Agentd:
    """Run the command line in this process; standard output and error are kept apart."""

    def run(*arguments: object, stdin: bytes | str | None = None, **environment: str) -> Result:
        env = {"AGENTD_SOCKET": None, "AGENTD_CONFIG": None, **environment}
        return CliRunner().invoke(cli, [str(one) for one in arguments], input=stdin, env=env)

    return run
