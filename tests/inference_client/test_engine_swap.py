"""Host memory for sequences: its bound, whose text it is, and what leaves it first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_client.engine.planning.request import Request
from inference_client.engine.planning.swap import AGENT_RESIDENTS_MAX, SwapArea, Swapped


def request(tokens: list[int], agent: str = "a") -> Request:
    return Request(1, agent, "normal", list(tokens), 8, arrived_us=1)


def kept(area: SwapArea, tokens: list[int], agent: str = "a", owner=None, used_us=0) -> Swapped:
    entry = area.put(agent, 2, tokens, owner, used_us)
    area.settle(entry.handle, entry.size)
    return entry


def by_length(entry: Swapped) -> float:
    return len(entry.tokens)


def test_a_sequence_is_found_by_the_agent_that_left_it():
    area = SwapArea(1000, 10)
    entry = kept(area, [1, 2, 3, 4])
    assert area.longest(request([1, 2, 3, 9]), partial=True) == (3, entry)


def test_what_one_agent_left_is_not_found_by_another():
    area = SwapArea(1000, 10)
    kept(area, [1, 2, 3, 4])
    assert area.longest(request([1, 2, 3, 4, 5], "b"), partial=True) == (0, None)


def test_what_a_request_waits_for_is_left_to_it():
    area = SwapArea(1000, 10)
    owner = request([1, 2, 3, 4, 5])
    entry = kept(area, [1, 2, 3, 4], owner=owner)
    assert area.of(owner) is entry
    assert area.longest(request([1, 2, 3, 4, 5]), partial=True) == (0, None)
    assert area.longest(owner, partial=True) == (4, entry)
    area.disown(owner)
    assert area.of(owner) is None
    assert area.longest(request([1, 2, 3, 4, 5]), partial=True) == (4, entry)


def test_without_partial_removal_only_a_whole_beginning_is_of_use():
    area = SwapArea(1000, 10)
    entry = kept(area, [1, 2, 3])
    assert area.longest(request([1, 2, 9, 9]), partial=False) == (0, None)
    assert area.longest(request([1, 2, 3, 9]), partial=False) == (3, entry)


def test_the_longest_of_several_is_found():
    area = SwapArea(1000, 10)
    kept(area, [1, 2])
    longest = kept(area, [1, 2, 3, 4])
    kept(area, [1, 2, 3])
    assert area.longest(request([1, 2, 3, 4, 5]), partial=True) == (4, longest)


def test_what_the_shell_has_not_made_yet_is_not_read_back():
    area = SwapArea(1000, 10)
    entry = area.put("a", 2, [1, 2, 3], None, 0)
    assert area.longest(request([1, 2, 3, 4]), partial=True) == (0, None)
    assert area.make_room(990, by_length, 100.0) is None
    area.settle(entry.handle, entry.size)
    assert area.make_room(990, by_length, 100.0) == [entry]


def test_what_the_shell_reports_is_what_counts():
    area = SwapArea(1000, 10, fixed_bytes=5)
    entry = area.put("a", 2, [1, 2, 3], None, 0)
    assert area.bytes_used == area.size_of(3) == 35
    area.settle(entry.handle, 20)
    assert area.bytes_used == 20
    area.settle(99, 20)
    failed = area.put("a", 2, [1, 2, 3], None, 0)
    area.settle(failed.handle, 0)
    assert (area.bytes_used, len(area)) == (20, 1)


def test_what_is_worth_least_leaves_first():
    area = SwapArea(100, 10)
    short, middle = kept(area, [1, 2]), kept(area, [1, 2, 3])
    kept(area, [1, 2, 3, 4])
    assert area.make_room(10, by_length, 100.0) == []
    assert area.make_room(20, by_length, 100.0) == [short]
    assert area.make_room(60, by_length, 100.0) == [short, middle]


def test_nothing_leaves_for_what_is_worth_no_more_or_never_fits():
    area = SwapArea(50, 10)
    kept(area, [1, 2, 3])
    assert area.make_room(30, by_length, 3.0) is None
    assert area.make_room(60, by_length, 100.0) is None


def test_what_is_about_to_be_read_back_does_not_leave():
    area = SwapArea(50, 10)
    entry = kept(area, [1, 2, 3])
    area.hold(entry)
    assert area.make_room(30, by_length, 100.0) is None
    assert area.outdated("a", [1, 2, 3, 4]) == []
    area.hold(None)
    assert area.make_room(30, by_length, 100.0) == [entry]


def test_earlier_turns_are_outdated_and_so_is_the_oldest_of_too_many():
    area = SwapArea(10_000, 10)
    turn = kept(area, [1, 2])
    waiting = kept(area, [1], owner=request([1, 5]))
    others = [kept(area, [5, number], used_us=number) for number in range(AGENT_RESIDENTS_MAX + 1)]
    assert area.outdated("a", [1, 2, 3]) == [turn, *others[:2]]
    assert area.outdated("b", [1, 2, 3]) == []
    assert area.get(waiting.handle) is waiting


@given(st.lists(st.tuples(st.integers(1, 9), st.sampled_from("ab"), st.booleans()), max_size=40))
def test_the_bound_holds_whatever_comes_and_goes(events):
    area = SwapArea(200, 10)
    for length, agent, known in events:
        size = area.size_of(length)
        leaving = area.make_room(size, by_length, float(length))
        for entry in leaving or []:
            area.remove(entry.handle)
        if leaving is not None:
            entry = area.put(agent, 2, [1] * length, None, 0)
            if known:
                area.settle(entry.handle, size - 1)
        assert 0 <= area.bytes_used <= 200
        assert area.bytes_used == sum(one.size for one in area._entries.values())


def test_the_shell_may_not_keep_more_than_it_was_allowed():
    area = SwapArea(100, 10)
    entry = area.put("a", 2, [1], None, 0)
    with pytest.raises(AssertionError):
        area.settle(entry.handle, 11)
