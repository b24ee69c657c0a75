"""The slot table: longest prefix, own slot, identical tokens only, cells counted exactly."""

from hypothesis import given
from hypothesis import strategies as st

from inference_client.engine.queue import Request
from inference_client.engine.slots import Choice, Copy, Keep, SlotTable, common_prefix


def request(tokens: list[int], agent: str = "a", number: int = 1) -> Request:
    return Request(number, agent, "normal", list(tokens), 8, arrived_us=number)


def occupy(table: SlotTable, tokens: list[int], agent: str = "a", step: int = 1) -> Request:
    """Let a request run to the point where all its tokens are in the cache."""
    one = request(tokens, agent)
    choice = table.choose(one)
    assert choice is not None
    table.take(choice, one, step)
    slot = table.slots[choice.slot]
    table.extend(slot, tokens[len(slot.tokens) :])
    return one


def leave(table: SlotTable, tokens: list[int], agent: str = "a", step: int = 1) -> int:
    one = occupy(table, tokens, agent, step)
    slot = one.slot
    assert slot is not None
    table.release(one, step)
    return slot


@given(st.lists(st.integers(0, 1), max_size=20), st.lists(st.integers(0, 1), max_size=20))
def test_the_common_prefix_is_the_longest_one(one, other):
    length = common_prefix(one, other)
    assert one[:length] == other[:length]
    assert one[length : length + 1] != other[length : length + 1] or length == min(
        len(one), len(other)
    )


def test_a_slot_that_is_taken_is_not_chosen_again():
    table = SlotTable(1, 64, partial=True)
    occupy(table, [1, 2, 3])
    assert table.choose(request([1, 2, 3])) is None


def test_the_agents_own_slot_is_reused_in_place():
    table = SlotTable(3, 64, partial=True)
    leave(table, [9, 9], agent="b")
    own = leave(table, [1, 2, 3, 4])
    choice = table.choose(request([1, 2, 3, 5, 6]))
    assert choice == Choice(own, own, 3)
    assert table.take(choice, request([1, 2, 3, 5, 6]), 2) == [Keep(own, 3)]


def test_the_last_token_is_always_decoded_anew():
    table = SlotTable(1, 64, partial=True)
    own = leave(table, [1, 2, 3])
    assert table.choose(request([1, 2, 3])) == Choice(own, own, 2)


def test_a_preamble_in_another_agents_slot_is_shared_and_that_slot_left_alone():
    table = SlotTable(2, 64, partial=True)
    others = leave(table, [1, 2, 3, 4], agent="b")
    one = request([1, 2, 3, 7], agent="a")
    choice = table.choose(one)
    assert choice is not None
    assert (choice.source, choice.length) == (others, 3)
    assert choice.slot != others
    assert table.take(choice, one, 2) == [Copy(others, choice.slot, 3)]
    assert table.slots[others].tokens == [1, 2, 3, 4]
    assert table.cells_used == 4


def test_a_preamble_of_a_running_request_is_shared():
    table = SlotTable(2, 64, partial=True)
    running = occupy(table, [1, 2, 3, 4], agent="b")
    choice = table.choose(request([1, 2, 3, 7]))
    assert choice is not None
    assert (choice.source, choice.length) == (running.slot, 3)


def test_the_slot_used_longest_ago_makes_way():
    table = SlotTable(2, 64, partial=True)
    first = leave(table, [1, 1], agent="b", step=1)
    leave(table, [2, 2], agent="c", step=2)
    choice = table.choose(request([3, 3], agent="a"))
    assert choice is not None
    assert choice.slot == first


def test_shared_cells_are_freed_with_their_last_sequence():
    table = SlotTable(2, 64, partial=True)
    leave(table, [1, 2, 3, 4], agent="b", step=1)
    leave(table, [1, 2, 3, 7], agent="a", step=2)
    assert table.cells_used == 5
    assert table.evict()
    assert table.cells_used == 4
    assert table.evict()
    assert table.cells_used == 0
    assert table.evict() == []
    assert table.cells_free == 64


def test_a_spared_slot_is_not_evicted():
    table = SlotTable(1, 64, partial=True)
    slot = leave(table, [1, 2])
    assert table.evict(spared=slot) == []


def test_a_model_without_partial_removal_reuses_whole_residents_only():
    table = SlotTable(2, 64, partial=False)
    whole = leave(table, [1, 2])
    assert table.choose(request([1, 2, 3])) == Choice(whole, whole, 2)
    other = table.choose(request([1, 3]))
    assert other is not None
    assert other.length == 0


def test_a_model_without_partial_removal_takes_over_anothers_identical_resident():
    table = SlotTable(2, 64, partial=False)
    whole = leave(table, [1, 2], agent="b")
    assert table.choose(request([1, 2, 3], agent="a")) == Choice(whole, whole, 2)


def test_a_model_without_partial_removal_loses_the_whole_sequence():
    table = SlotTable(1, 64, partial=False)
    slot = table.slots[leave(table, [1, 2, 3])]
    assert table.keep(slot, 2) == [Keep(slot.index, 0)]
    assert slot.tokens == []


def test_running_requests_are_listed_by_urgency_and_age():
    table = SlotTable(2, 64, partial=True)
    low = Request(1, "a", "low", [1], 8, arrived_us=1)
    high = Request(2, "b", "high", [2], 8, arrived_us=2)
    for one in (low, high):
        choice = table.choose(one)
        assert choice is not None
        table.take(choice, one, 1)
    assert table.running() == [high, low]
