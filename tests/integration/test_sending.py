"""`agentd ctl send` with an id of one's own, and waiting until the message is handled."""

from collections.abc import Iterator

import pytest
from daemons import Installation, RunningDaemon, short_folder


@pytest.fixture(scope="module")
def daemon() -> Iterator[RunningDaemon]:
    """`first` passes on what it gets to `second`, and `third` hears of it too."""
    with short_folder() as folder:
        installation = Installation.bare(folder / "here")
        installation.add_agent("first", brain="echo", consumes=["work.in"], publishes=["work.out"])
        installation.add_agent("second", brain="echo", consumes=["work.out"])
        installation.add_agent("third", brain="echo", consumes=["work.in"])
        with installation.running() as running:
            yield running


def test_the_wait_ends_when_all_that_receive_it_are_done_with_it(daemon: RunningDaemon) -> None:
    sent = daemon.ctl("send", "work.in", "one", "--wait", "--timeout", "20s")
    assert sorted(sent["subscribers"]) == ["first", "third"]
    states = daemon.rows(f"SELECT agent, state FROM delivery WHERE message = {sent['message']}")
    assert sorted(states) == [("first", "done"), ("third", "done")]


def test_sent_again_under_its_id_it_is_the_same_message(daemon: RunningDaemon) -> None:
    first = daemon.ctl("send", "work.in", "two", "--id", "two")
    again = daemon.ctl("send", "work.in", "two", "--id", "two", "--wait", "--timeout", "20s")
    assert again == first
    assert daemon.rows("SELECT count(*) FROM message WHERE publisher_id = 'two'") == [(1,)]
    states = daemon.rows(f"SELECT state FROM delivery WHERE message = {first['message']}")
    assert states == [("done",), ("done",)]


def test_an_id_that_cannot_be_one_is_refused(daemon: RunningDaemon) -> None:
    done = daemon.run_ctl("send", "work.in", "three", "--id", "x" * 129)
    assert done.status == 1
    assert "1 to 128 characters" in done.errors
