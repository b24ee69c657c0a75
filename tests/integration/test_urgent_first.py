"""An urgent message at an agent that is in the middle of a long job, with a real model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from daemons import Installation, RunningDaemon, short_folder

pytestmark = pytest.mark.model

AGENT: Final = "opsclaw"
LONG_JOB: Final = "The disk on /var is full. " * 40
URGENT: Final = "The backup service does not start."


@pytest.fixture(scope="module")
def daemon(model_path: Path) -> Iterator[RunningDaemon]:
    with short_folder() as folder, Installation.create(folder, model_path).running() as daemon:
        yield daemon


def test_what_is_urgent_is_handled_in_the_middle_of_a_long_job(daemon: RunningDaemon) -> None:
    daemon.ask(LONG_JOB, "long", "--to", AGENT, "--priority", "background")
    daemon.wait(lambda: daemon.agent(AGENT)["phase"] != "", "the long job to be with the model")
    daemon.ask(URGENT, "urgent", "--to", AGENT, "--priority", "urgent")
    daemon.wait_answer("urgent")
    daemon.wait_answer("long")

    ((urgent_done, long_done),) = daemon.rows(
        "SELECT (SELECT finished_us FROM delivery d JOIN conversation c ON c.id = d.conversation"
        "  WHERE c.correlation = 'urgent' AND d.agent = 'opsclaw'),"
        " (SELECT finished_us FROM delivery d JOIN conversation c ON c.id = d.conversation"
        "  WHERE c.correlation = 'long' AND d.agent = 'opsclaw')"
    )
    assert urgent_done < long_done

    ((steps,),) = daemon.rows(
        "SELECT count(*) FROM journal JOIN delivery l ON l.id = journal.delivery"
        " JOIN conversation c ON c.id = l.conversation, delivery d"
        " JOIN conversation u ON u.id = d.conversation"
        " WHERE c.correlation = 'long' AND u.correlation = 'urgent' AND d.agent = 'opsclaw'"
        "  AND journal.finished_us BETWEEN d.queued_us AND d.finished_us"
    )
    assert steps <= 1, "the long job went on for more than a step before it gave way"

    ((runs, deaths, outcome),) = daemon.rows(
        "SELECT run, deaths, outcome FROM delivery d JOIN conversation c ON c.id = d.conversation"
        " WHERE c.correlation = 'long' AND d.agent = 'opsclaw'"
    )
    assert (runs, deaths) == (0, 0), "it went on from its journal"
    assert outcome is not None
