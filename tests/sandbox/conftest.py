"""Hosts for the tests: a real zygote as root, and the same as an ordinary user."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from hosts import HostMaker, HostProcess, options_of


@pytest.fixture(scope="session", params=["root", "ordinary user"])
def host(request: pytest.FixtureRequest) -> Iterator[HostProcess]:
    """Shared by all tests that leave it as they found it."""
    process = HostProcess(*options_of(request.param))
    yield process
    process.close()


@pytest.fixture(params=["root", "ordinary user"])
def make_host(request: pytest.FixtureRequest) -> Iterator[HostMaker]:
    """Hosts for one test alone."""
    with ExitStack() as hosts:

        def make(*options: str, wrapper: tuple[str, ...] = ()) -> HostProcess:
            process = HostProcess(*options_of(request.param), *options, wrapper=wrapper)
            hosts.callback(process.close)
            return process

        yield make
