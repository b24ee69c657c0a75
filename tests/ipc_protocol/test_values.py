"""The classes of urgency."""

from itertools import product

import pytest

from ipc_protocol.values import PRIORITIES, Priority, more_urgent, rank


def test_urgent_is_the_first_rank_and_background_the_last() -> None:
    assert [rank(priority) for priority in PRIORITIES] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("one", "other"), list(product(PRIORITIES, PRIORITIES)))
def test_the_more_urgent_of_two_is_the_one_of_the_lower_rank(
    one: Priority, other: Priority
) -> None:
    assert rank(more_urgent(one, other)) == min(rank(one), rank(other))
