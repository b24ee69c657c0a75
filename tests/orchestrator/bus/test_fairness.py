"""Fair turns: nobody starves, each keeps its order, and the writer never waits for nothing."""

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ipc_protocol.errors import Failure
from ipc_protocol.limits import FRAME_BODY_BYTES_MAX
from orchestrator.bus.fairness import (
    COST_MAX,
    QUANTUM,
    SHARE_MAX,
    FairQueue,
    cost_of,
)
from orchestrator.bus.limits import PAYLOADS_MAX

Item = tuple[str, int, int]
"""Whose, the how manieth of theirs, and its cost."""

KEYS = st.sampled_from("abcd")
COSTS = st.integers(1, 20)


def test_writing_costs_a_row_for_each_message_and_for_each_page() -> None:
    assert cost_of(1, 256) == 1
    assert cost_of(64, 64 * 256) == 68
    assert cost_of(1, 256 * 1024) == 65
    assert cost_of(PAYLOADS_MAX, FRAME_BODY_BYTES_MAX) == COST_MAX <= SHARE_MAX


def test_whoever_floods_does_not_keep_another_waiting() -> None:
    queue = FairQueue[str, Item]()
    for number in range(SHARE_MAX):
        queue.push("flood", 1, ("flood", number, 1))
    queue.take(10)
    queue.push("small", 1, ("small", 0, 1))
    taken = queue.take(QUANTUM)
    assert ("small", 0, 1) in taken
    assert len(taken) == QUANTUM


def test_a_full_share_is_refused_and_hurts_nobody_else() -> None:
    queue = FairQueue[str, str](quantum=2, share_max=4)
    queue.push("a", 3, "first")
    with pytest.raises(Failure) as failure:
        queue.push("a", 2, "second")
    assert failure.value.code == "bus.busy"
    assert failure.value.problem.details == {"waiting": 3, "waiting_max": 4}
    queue.push("b", 4, "third")
    assert (queue.waiting("a"), queue.waiting("b"), queue.waiting("c")) == (3, 4, 0)
    assert len(queue) == 2
    assert sorted(queue.take(100)) == ["first", "third"]
    queue.push("a", 4, "fourth")
    assert queue.take(1) == ["fourth"]
    assert queue.take(1) == []


def test_nothing_is_free_and_nothing_dearer_than_a_share() -> None:
    queue = FairQueue[str, str](quantum=2, share_max=4)
    for cost in (0, 5):
        with pytest.raises(AssertionError):
            queue.push("a", cost, "x")
    with pytest.raises(AssertionError):
        FairQueue[str, str](quantum=0)
    with pytest.raises(AssertionError):
        FairQueue[str, str](quantum=5, share_max=4)


def test_turns_go_round_and_a_small_budget_does_not_skip_them() -> None:
    queue = FairQueue[str, str](quantum=2, share_max=10)
    for key in "abc":
        for number in range(4):
            queue.push(key, 1, f"{key}{number}")
    taken = [item for _ in range(12) for item in queue.take(1)]
    assert taken == ["a0", "a1", "b0", "b1", "c0", "c1", "a2", "a3", "b2", "b3", "c2", "c3"]


def test_who_comes_back_has_saved_nothing() -> None:
    queue = FairQueue[str, str](quantum=10, share_max=20)
    queue.push("a", 1, "a0")
    assert queue.take(1) == ["a0"]
    queue.push("a", 11, "a1")
    queue.push("b", 1, "b0")
    assert queue.take(100) == ["b0", "a1"]


class Model(RuleBasedStateMachine):
    """The queue against lists, one for each key."""

    QUANTUM = 5
    SHARE = 60

    def __init__(self) -> None:
        super().__init__()
        self.queue = FairQueue[str, Item](quantum=self.QUANTUM, share_max=self.SHARE)
        self.waiting: dict[str, list[Item]] = defaultdict(list)
        self.numbers: dict[str, int] = defaultdict(int)
        self.served: dict[str, dict[str, int]] = {}
        """For each key that waits: what the others were served since its head became that."""

    @rule(key=KEYS, cost=COSTS)
    def push(self, key: str, cost: int) -> None:
        item = (key, self.numbers[key], cost)
        held = sum(each[2] for each in self.waiting[key])
        if held + cost > self.SHARE:
            with pytest.raises(Failure):
                self.queue.push(key, cost, item)
            return
        self.queue.push(key, cost, item)
        self.numbers[key] += 1
        if not self.waiting[key]:
            self.served[key] = defaultdict(int)
        self.waiting[key].append(item)

    @rule(budget=st.integers(0, 50))
    def take(self, budget: int) -> None:
        left = sum(len(each) for each in self.waiting.values())
        taken = self.queue.take(budget)
        spent = [item[2] for item in taken]
        # Everything there is, or what was asked for, with not a single item more.
        assert len(taken) == left or sum(spent) >= budget
        assert sum(spent[:-1]) < budget or not taken
        for item in taken:
            key, _, cost = item
            assert self.waiting[key].pop(0) == item
            for other, served in self.served.items():
                if other != key:
                    served[key] += cost
            self.served.pop(key)
            if self.waiting[key]:
                self.served[key] = defaultdict(int)

    @invariant()
    def what_waits_is_what_was_pushed(self) -> None:
        assert len(self.queue) == sum(len(each) for each in self.waiting.values())
        for key in "abcd":
            assert self.queue.waiting(key) == sum(each[2] for each in self.waiting[key])

    @invariant()
    def nobody_waits_longer_than_the_turns_of_the_others(self) -> None:
        for key, others in self.served.items():
            turns = -(-self.waiting[key][0][2] // self.QUANTUM)
            for served in others.values():
                # A quantum for each turn, and once what another had saved up for a dear item.
                assert served <= turns * self.QUANTUM + max(20, self.QUANTUM)


TestModel = Model.TestCase


@given(st.lists(st.tuples(KEYS, COSTS), max_size=40), st.integers(1, 30))
def test_all_that_was_pushed_comes_out_in_the_order_of_its_publisher(
    pushed: list[tuple[str, int]], budget: int
) -> None:
    queue = FairQueue[str, Item](quantum=4, share_max=1000)
    for number, (key, cost) in enumerate(pushed):
        queue.push(key, cost, (key, number, cost))
    taken: list[Item] = []
    while batch := queue.take(budget):
        taken += batch
    assert len(queue) == 0
    for key in "abcd":
        numbers = [number for whose, number, _ in taken if whose == key]
        assert numbers == [number for number, (whose, _) in enumerate(pushed) if whose == key]


@given(st.lists(COSTS, min_size=2, max_size=6))
def test_who_always_has_something_waiting_is_served_as_much_as_the_others(costs: list[int]) -> None:
    """Whatever the requests of each cost."""
    queue = FairQueue[int, int](quantum=8, share_max=100)
    served = dict.fromkeys(range(len(costs)), 0)
    for _ in range(100):
        for key, cost in enumerate(costs):
            while queue.waiting(key) + cost <= 100:
                queue.push(key, cost, key)
        for key in queue.take(8 * len(costs)):
            served[key] += costs[key]
    assert max(served.values()) - min(served.values()) <= 2 * (8 + max(costs))
