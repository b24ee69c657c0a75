"""A worker in a process of its own, for the tests that talk to one."""

from collections.abc import Iterator

import pytest
from worker_peer import Orchestrator


@pytest.fixture
def orchestrator() -> Iterator[Orchestrator]:
    end = Orchestrator()
    yield end
    end.close()
