"""The daemon itself is killed in the middle of a conversation, and started again."""

import threading
from collections import Counter

import pytest
from daemons import Follower, Installation

from ipc_protocol.control import Happening

pytestmark = pytest.mark.model

REQUEST = "Write a small Python script that counts the lines of a text file."


@pytest.fixture
def interrupted(installation: Installation) -> list[Happening]:
    """SIGKILL right after the first tool call is on disk. What was committed before that."""
    daemon = installation.start()
    daemon.wait_healthy()
    has_acted = threading.Event()

    def see(_: Follower, told: Happening) -> None:
        if told.kind == "journal.appended" and told.data["kind"] == "tool":
            has_acted.set()

    with Follower(daemon, see) as follower:
        daemon.ask(REQUEST, "interrupted")
        daemon.wait(has_acted.is_set, "to use a tool")
        daemon.kill()
    return follower.happenings


def test_a_conversation_outlives_the_daemon(
    installation: Installation, interrupted: list[Happening]
) -> None:
    assert not [told for told in interrupted if told.kind == "conversation.answered"]
    after: list[Happening] = []
    with (
        installation.running() as daemon,
        Follower(daemon, lambda _, told: after.append(told)),
    ):
        trace = daemon.wait_answer("interrupted")
        status, samples = daemon.status(), daemon.metrics()

    assert trace["conversation"]["state"] == "answered"
    assert trace["conversation"]["reply"].strip()
    assert (status["dead_letters"], status["deliveries"]) == (
        0,
        {"done": len(trace["deliveries"])},
    )

    # Nothing is doubled: not a delivery, a step, a reply or a memory.
    delivered = Counter((one["agent"], one["message"]) for one in trace["deliveries"])
    assert set(delivered.values()) == {1}
    replies = Counter(one["sender"] for one in trace["messages"] if one["topic"] == "user.reply")
    assert replies == {"devclaw": 1, "conductor": 1}
    (devclaw,) = (one for one in trace["deliveries"] if one["agent"] == "devclaw")
    assert len(devclaw["memories"]) == 1
    assert devclaw["attempts"] == 1, "the daemon's death is not held against a delivery"

    # What was journaled before is not done again.
    tools_before = sum(
        told.kind == "journal.appended" and told.data["kind"] == "tool" for told in interrupted
    )
    tools = sum(step["kind"] == "tool" for one in trace["deliveries"] for step in one["steps"])
    assert samples.total("agentd_tool_calls_total") == tools - tools_before


def test_a_daemon_that_was_killed_leaves_no_process_and_no_socket_in_the_way(
    installation: Installation, interrupted: list[Happening]
) -> None:
    assert interrupted, "its processes were waited for"
    assert installation.socket.exists(), "nobody could remove it"
    with installation.running() as daemon:
        assert daemon.status()["healthy"]
    assert not installation.socket.exists()
