"""The classes of urgency."""

from ipc_protocol.values import PRIORITIES, rank


def test_urgent_is_the_first_rank_and_background_the_last() -> None:
    assert [rank(priority) for priority in PRIORITIES] == [0, 1, 2, 3, 4]
