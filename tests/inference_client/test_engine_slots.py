"""The slot table: longest prefix, identical tokens only, cells counted exactly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_client.engine.planning import slots
from inference_client.engine.planning.cells import Cells
from inference_client.engine.planning.prefixes import PrefixIndex, common_prefix, extend_hashes
from inference_client.engine.planning.request import Request
from inference_client.engine.planning.slots import (
    Choice,
    Copy,
    Forget,
    Keep,
    Slot,
    SlotTable,
    SwapIn,
)


def request(tokens: list[int], agent: str = "a", number: int = 1) -> Request:
    return Request(number, agent, "normal", list(tokens), 8, arrived_us=number)


def table_of(slots: int, cells: int = 64, **shape) -> SlotTable:
    return SlotTable(slots, cells, **{"block": 1, **shape})


def length_of(slot: Slot) -> float:
    """Longer residents are worth more, and of equal ones the one used last."""
    return len(slot.tokens) + slot.used_us / 1000


def occupy(table: SlotTable, tokens: list[int], agent: str = "a", now_us: int = 1) -> Request:
    """Let a request run to the point where all its tokens are in the cache."""
    one = request(tokens, agent)
    choice = table.choose(one, length_of)
    table.take(choice, one, now_us)
    slot = table.slots[choice.slot]
    table.extend(slot, tokens[len(slot.tokens) :])
    table.settled()
    return one


def leave(table: SlotTable, tokens: list[int], agent: str = "a", now_us: int = 1) -> int:
    one = occupy(table, tokens, agent, now_us)
    return table.release(one, now_us).index


# ---- Prefixes and cells


@given(st.lists(st.integers(0, 1), max_size=20), st.lists(st.integers(0, 1), max_size=20))
def test_the_common_prefix_is_the_longest_one(one, other):
    length = common_prefix(one, other)
    assert one[:length] == other[:length]
    assert one[length : length + 1] != other[length : length + 1] or length == min(
        len(one), len(other)
    )


@given(
    st.lists(st.lists(st.integers(0, 1), max_size=12), min_size=1, max_size=6),
    st.lists(st.integers(0, 1), max_size=12),
    st.integers(1, 3),
)
def test_the_index_finds_who_begins_with_the_most_blocks(owned, wanted, block):
    index = PrefixIndex()
    chains = []
    for owner, tokens in enumerate(owned):
        hashes: list[int] = []
        extend_hashes(hashes, tokens, block)
        index.add(owner, hashes)
        chains.append(hashes)
    hashes = []
    extend_hashes(hashes, wanted, block)
    blocks, owners = index.longest(hashes)
    shared = [common_prefix(tokens, wanted) // block for tokens in owned]
    assert blocks == max(shared)
    assert owners == ({n for n, count in enumerate(shared) if count == blocks} if blocks else set())
    others = [common_prefix(tokens, owned[0]) // block for tokens in owned[1:]]
    assert index.shared(chains[0]) == max(others, default=0)
    for owner, chain in enumerate(chains):
        index.remove(owner, chain)
    assert index.longest(hashes) == (0, set())


@given(
    st.lists(
        st.tuples(st.sampled_from(["extend", "share", "cut"]), *[st.integers(0, 3)] * 2),
        max_size=40,
    )
)
def test_cells_are_counted_as_if_each_were_named(events):
    cells = Cells(4)
    named: list[list[int]] = [[] for _ in range(4)]
    fresh = 0
    for kind, first, second in events:
        if kind == "extend":
            cells.extend(first, second + 1)
            named[first] += range(fresh, fresh + second + 1)
            fresh += second + 1
        elif kind == "cut":
            cells.cut(first, second)
            del named[first][second:]
        elif first != second and not named[second]:
            length = len(named[first]) // 2
            cells.share(first, second, length)
            named[second] = named[first][:length]
        assert cells.used == len({cell for one in named for cell in one})
        for sequence in range(4):
            others = {cell for n, one in enumerate(named) if n != sequence for cell in one}
            assert cells.own(sequence) == sum(cell not in others for cell in named[sequence])
            assert cells.shared(sequence) == sum(cell in others for cell in named[sequence])


# ---- Choosing


def test_the_agents_own_slot_is_reused_in_place():
    table = table_of(2)
    leave(table, [9, 9, 9, 9, 9], agent="b")
    own = leave(table, [1, 2, 3, 4])
    choice = table.choose(request([1, 2, 3, 5, 6]), length_of)
    assert choice == Choice(own, own, 3)
    assert table.take(choice, request([1, 2, 3, 5, 6]), 2) == [Keep(own, 3)]


def test_what_would_lose_its_end_is_copied_while_an_empty_slot_is_free():
    table = table_of(2)
    own = leave(table, [1, 2, 3, 4])
    assert table.choose(request([1, 2, 3, 5]), length_of) == Choice(1 - own, own, 3)


def test_the_last_token_is_always_decoded_anew():
    table = table_of(1)
    own = leave(table, [1, 2, 3])
    assert table.choose(request([1, 2, 3]), length_of) == Choice(own, own, 2)


def test_a_preamble_in_another_agents_slot_is_shared_and_that_slot_left_alone():
    table = table_of(2)
    others = leave(table, [1, 2, 3, 4], agent="b")
    one = request([1, 2, 3, 7], agent="a")
    choice = table.choose(one, length_of)
    assert (choice.source, choice.length) == (others, 3)
    assert choice.slot != others
    assert table.take(choice, one, 2) == [Copy(others, choice.slot, 3)]
    assert table.slots[others].tokens == [1, 2, 3, 4]
    assert table.cells_used == 4
    assert table.shared_tokens(table.slots[others]) == 3
    assert table.own_cells(table.slots[others]) == 1


def test_a_stream_has_cells_of_its_own():
    table = table_of(2, layout="streams")
    others = leave(table, [1, 2, 3, 4], agent="b")
    one = request([1, 2, 3, 7], agent="a")
    table.take(table.choose(one, length_of), one, 2)
    assert table.capacity == 32
    assert table.cells_used == 7
    assert table.shared_tokens(table.slots[others]) == 0
    assert table.own_cells(table.slots[others]) == 4


def test_of_two_that_fit_equally_the_agents_own_is_taken():
    table = table_of(3)
    leave(table, [1, 2, 8, 8], agent="b")
    own = leave(table, [1, 2, 9, 9], agent="a")
    leave(table, [5, 5, 5, 5, 5, 5, 5], agent="c")
    choice = table.choose(request([1, 2, 7, 7], agent="a"), length_of)
    assert choice == Choice(own, own, 2)


def test_a_preamble_of_a_running_request_is_shared():
    table = table_of(2)
    running = occupy(table, [1, 2, 3, 4], agent="b")
    choice = table.choose(request([1, 2, 3, 7]), length_of)
    assert (choice.source, choice.length) == (running.slot, 3)


def test_what_is_worth_least_makes_way():
    table = table_of(2)
    leave(table, [1, 1, 1], agent="b")
    least = leave(table, [2, 2], agent="c")
    assert table.choose(request([3, 3], agent="a"), length_of).slot == least


def test_what_a_preempted_request_left_is_not_taken_while_other_slots_are_cheaper():
    table = table_of(2)
    preempted = occupy(table, [1, 2, 3, 4])
    slot = table.release(preempted, 1, owned=True)
    assert slot.owner is preempted
    choice = table.choose(request([1, 2, 3, 4, 5], number=2), length_of)
    assert (choice.slot != slot.index, choice.source, choice.length) == (True, slot.index, 4)
    single = table_of(1)
    preempted = occupy(single, [1, 2, 3, 4])
    single.release(preempted, 1, owned=True)
    assert single.choose(request([1, 2, 3, 4, 5]), length_of) == Choice(0, 0, 4)
    assert single.choose(preempted, length_of) == Choice(0, 0, 3)


def test_tokens_are_compared_though_their_hashes_are_the_same(monkeypatch):
    table = table_of(2, block=2)
    leave(table, [1, 2, 3, 4])
    one = request([5, 6, 7, 8])
    one.hashes = list(table.slots[0].hashes)
    assert table.longest(one) == (0, [])


def by_number(hashes: list[int], tokens: list[int], block: int) -> None:
    """Hashes that are the same for all tokens."""
    hashes += range(len(hashes), len(tokens) // block)


def test_of_those_with_the_same_hashes_the_one_with_the_same_tokens_is_found(monkeypatch):
    monkeypatch.setattr(slots, "extend_hashes", by_number)
    table = table_of(3, block=2)
    leave(table, [5, 6, 7, 8], agent="b")
    same = leave(table, [1, 2, 3, 4], agent="c", now_us=2)
    one = request([1, 2, 3, 4, 9], agent="b")
    assert table.longest(one) == (4, [table.slots[same]])
    choice = table.choose(one, length_of)
    assert (choice.source, choice.length) == (same, 4)


def test_behind_a_longer_one_with_the_same_hash_the_same_tokens_are_found(monkeypatch):
    monkeypatch.setattr(slots, "extend_hashes", by_number)
    table = table_of(3, block=2, partial=False)
    leave(table, [5, 6, 7, 8], agent="b")
    same = leave(table, [1, 2], agent="c")
    assert table.longest(request([1, 2, 3, 4, 9])) == (2, [table.slots[same]])


def test_the_same_hash_twice_in_a_sequence_is_removed_once():
    index = PrefixIndex()
    index.add(1, [7, 7, 7])
    index.add(2, [7])
    index.remove(1, [7, 7, 7], 1)
    index.remove(1, [7])
    assert index.longest([7]) == (1, {2})
    index.remove(2, [7])
    assert index.longest([7]) == (0, set())
    index.add(1, [7, 7])
    index.remove(1, [7, 7])
    assert index.longest([7]) == (0, set())


def test_a_beginning_shorter_than_a_block_is_not_looked_for():
    table = table_of(2, block=4)
    leave(table, [1, 2, 3, 4, 5, 6])
    assert table.longest(request([1, 2, 3, 9, 9]))[0] == 0
    assert table.longest(request([1, 2, 3, 4, 5, 9]))[0] == 5


# ---- Changing


def test_shared_cells_are_freed_with_their_last_sequence():
    table = table_of(2)
    first = leave(table, [1, 2, 3, 4], agent="b")
    second = leave(table, [1, 2, 3, 7], agent="a")
    assert table.cells_used == 5
    assert table.keep(table.slots[first], 0) == [Keep(first, 0)]
    assert table.cells_used == 4
    table.keep(table.slots[second], 0)
    assert table.cells_used == 0
    assert table.keep(table.slots[second], 0) == []
    assert table.cells_free == 64
    assert table.residents() == []


def test_a_slot_is_full_of_requests_when_none_is_free():
    table = table_of(1)
    one = occupy(table, [1, 2, 3])
    assert table.full
    assert table.requests() == [one]
    table.release(one, 1)
    assert not table.full
    assert table.busy == 0


def test_running_requests_are_listed_by_urgency_and_age():
    table = table_of(2)
    low = Request(1, "a", "low", [1], 8, arrived_us=1)
    high = Request(2, "b", "high", [2], 8, arrived_us=2)
    for one in (low, high):
        table.take(table.choose(one, length_of), one, 1)
    assert table.running() == [high, low]


def test_until_a_batch_is_decoded_copies_are_not_disturbed():
    table = table_of(3)
    source = leave(table, [1, 2, 3, 4], agent="b")
    one = request([1, 2, 3, 7])
    target = table.choose(one, length_of).slot
    table.take(Choice(target, source, 3), one, 1)
    assert not table.may_swap_out(table.slots[target])
    assert not table.may_swap_in(table.slots[source])
    assert not table.may_swap_in(table.slots[target])
    table.settled()
    assert table.may_swap_out(table.slots[target])
    assert table.may_swap_in(table.slots[source])


def test_what_was_just_read_back_is_not_copied_from():
    table = table_of(2)
    operations = table.swap_in(table.slots[0], [1, 2, 3, 4], 7)
    assert operations == [SwapIn(7, 0), Forget(7)]
    owner = request([1, 2, 3, 4, 5])
    table.take(Choice(0, 0, 4), owner, 1)
    assert table.choose(request([1, 2, 3, 9]), length_of) == Choice(1, 1, 0)
    table.settled()
    assert table.choose(request([1, 2, 3, 9]), length_of) == Choice(1, 0, 3)


# ---- Sequences that cannot lose their end


def test_without_partial_removal_whole_residents_only_are_reused():
    table = table_of(2, partial=False, block=2)
    whole = leave(table, [1, 2, 3])
    assert table.choose(request([1, 2, 3, 4]), length_of) == Choice(whole, whole, 3)
    assert table.choose(request([1, 2, 4, 4]), length_of).length == 0
    assert table.choose(request([1, 4, 3, 4]), length_of).length == 0
    assert table.choose(request([1, 2, 3]), length_of).length == 0


def test_without_partial_removal_a_running_sequence_is_copied_whole():
    table = table_of(2, partial=False)
    running = occupy(table, [1, 2], agent="b")
    one = request([1, 2, 3], agent="a")
    choice = table.choose(one, length_of)
    assert choice == Choice(1 - (running.slot or 0), running.slot, 2)
    assert table.take(choice, one, 1) == [Copy(choice.source, choice.slot, 2)]


def test_without_partial_removal_the_whole_sequence_is_lost():
    table = table_of(2, partial=False)
    slot = table.slots[leave(table, [1, 2, 3])]
    assert table.keep(slot, 2) == [Keep(slot.index, 0)]
    assert slot.tokens == []


@pytest.mark.parametrize("tail", [(), (8, 9)])
def test_a_request_says_what_must_lie_in_the_cache(tail):
    one = Request(1, "a", "normal", [1, 2, 3], 0 if tail else 4, 0, tail)
    assert one.target == ([1, 2, 3, 8] if tail else [1, 2, 3])
    assert one.reusable_max == 2
    assert one.produced == []
