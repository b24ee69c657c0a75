"""Rings of agents that wait for each other, against an oracle that tries every set of them."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import combinations, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.bus.rings import (
    RING_STABLE_US,
    Attempt,
    Held,
    Ring,
    Watch,
    knot_in,
    ring_in,
    stuck_in,
)

Graph = dict[str, list[frozenset[str]]]

NAMES = "abcde"
GRAPHS = st.dictionaries(
    st.sampled_from(NAMES),
    st.lists(st.frozensets(st.sampled_from(NAMES), max_size=3), max_size=4),
    max_size=len(NAMES),
)
SECOND_US = 1_000_000


def subsets(names: Collection[str]) -> Iterator[frozenset[str]]:
    for size in range(1, len(names) + 1):
        yield from map(frozenset, combinations(sorted(names), size))


def holds_itself(graph: Graph, agents: Collection[str]) -> bool:
    """Every delivery of these agents waits for one of them, and each of them has some."""
    return all(
        graph.get(agent) and all(set(agents) & waited_for for waited_for in graph[agent])
        for agent in agents
    )


def edges(graph: Graph, among: Collection[str]) -> set[tuple[str, str]]:
    return {
        (agent, other)
        for agent in among
        for waited_for in graph[agent]
        for other in waited_for
        if other in among
    }


def is_ring(graph: Graph, agents: Sequence[str]) -> bool:
    steps = zip(agents, [*agents[1:], agents[0]], strict=True)
    return set(steps) <= edges(graph, agents)


# ---- What is stuck -------------------------------------------------------------------------------


@given(GRAPHS)
def test_what_is_stuck_is_every_set_that_holds_itself(graph: Graph) -> None:
    expected = set().union(*(each for each in subsets(NAMES) if holds_itself(graph, each)))
    assert stuck_in(graph) == expected


@given(GRAPHS)
def test_a_knot_is_stuck_and_no_part_of_it_leads_nowhere_else(graph: Graph) -> None:
    knot = knot_in(graph)
    assert bool(knot) == bool(stuck_in(graph))
    if not knot:
        return
    assert holds_itself(graph, knot)
    within = edges(graph, stuck_in(graph))
    assert all(other in knot for agent, other in within if agent in knot)
    for part in subsets(knot):
        leads_out = any(other not in part for agent, other in within if agent in part)
        assert leads_out == (part != knot)


@given(GRAPHS)
def test_the_ring_is_the_shortest_through_the_first_of_the_knot(graph: Graph) -> None:
    knot = knot_in(graph)
    if not knot:
        return
    found = ring_in(graph, knot)
    assert found[0] == min(knot)
    assert len(set(found)) == len(found)
    assert is_ring(graph, found)
    others = sorted(knot - {found[0]})
    for size in range(len(found) - 1):
        for way in permutations(others, size):
            assert not is_ring(graph, (found[0], *way))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_a_ring_of_so_many_is_named_in_order(size: int) -> None:
    names = NAMES[:size]
    graph = {name: [names[(place + 1) % size]] * 3 for place, name in enumerate(names)}
    assert stuck_in(graph) == set(names)
    assert ring_in(graph, knot_in(graph)) == tuple(names)


def test_one_delivery_that_can_go_on_frees_a_ring() -> None:
    assert stuck_in({"a": ["b", "b"], "b": ["a", ""]}) == set()


def test_an_agent_that_waits_for_a_ring_is_stuck_and_not_of_it() -> None:
    graph = {"a": ["b"], "b": ["a"], "c": ["a", "b"]}
    assert stuck_in(graph) == {"a", "b", "c"}
    assert knot_in(graph) == {"a", "b"}


def test_a_ring_that_waits_for_another_is_left_alone() -> None:
    graph = {"a": ["b", "c"], "b": ["a"], "c": ["d"], "d": ["c"]}
    assert knot_in(graph) == {"c", "d"}


def test_two_rings_with_an_agent_in_common_are_one_knot() -> None:
    graph = {"a": ["b", "c"], "b": ["a"], "c": ["a"]}
    assert knot_in(graph) == {"a", "b", "c"}
    assert ring_in(graph, knot_in(graph)) == ("a", "b")


def test_a_fan_out_waits_for_all_its_receivers() -> None:
    """The delivery of `a` needs room with `b` and `c`. That `c` gets some does not help it."""
    graph = {"a": ["bc"], "b": ["a"], "c": [""]}
    assert knot_in(graph) == {"a", "b"}


# ---- What is seen --------------------------------------------------------------------------------


def parked(delivery: int, agent: str, *full: str, at_us: int) -> Held:
    return Held(delivery=delivery, agent=agent, attempt=Attempt(at_us=at_us, full=full))


def ring_of_two(at_us: int) -> list[Held]:
    return [parked(1, "a", "b", at_us=at_us), parked(2, "b", "a", at_us=at_us)]


RING = Ring(agents=("a", "b"), inboxes={"a": (1,), "b": (2,)})


def test_a_ring_is_broken_when_it_was_seen_twice_after_everybody_tried_again() -> None:
    watch = Watch()
    assert watch.look(ring_of_two(at_us=90), 100) is None  # tried before anybody looked
    assert watch.look(ring_of_two(at_us=110), 120) is None  # seen once
    assert watch.look(ring_of_two(at_us=110), 120 + RING_STABLE_US - 1) is None
    assert watch.look(ring_of_two(at_us=110), 120 + RING_STABLE_US) == RING


def test_a_ring_is_seen_while_one_of_it_is_tried_again() -> None:
    watch = Watch()
    watch.look(ring_of_two(at_us=90), 100)
    watch.look(ring_of_two(at_us=110), 120)
    again = [Held(delivery=1, agent="a"), parked(2, "b", "a", at_us=110)]
    assert watch.agents == {"a", "b"}
    assert watch.look(again, 120 + RING_STABLE_US) == RING


def test_whoever_is_parked_for_another_reason_may_have_something_else_to_send() -> None:
    watch = Watch()
    watch.look(ring_of_two(at_us=90), 100)
    watch.look(ring_of_two(at_us=110), 120)
    resting = [Held(delivery=1, agent="a", resting=True), parked(2, "b", "a", at_us=110)]
    assert watch.look(resting, 120 + RING_STABLE_US) is None
    under_way = [Held(delivery=1, agent="a"), parked(2, "b", "a", at_us=110)]
    assert watch.look(under_way, 121 + RING_STABLE_US) is None


def test_when_somebody_has_left_an_inbox_everybody_has_to_try_it_again() -> None:
    watch = Watch()
    watch.look([*ring_of_two(at_us=90), parked(3, "b", "a", at_us=90)], 100)
    watch.look([*ring_of_two(at_us=110), parked(3, "b", "a", at_us=110)], 120)
    later_us = 120 + RING_STABLE_US
    assert watch.look(ring_of_two(at_us=110), later_us) is None  # 3 has left
    assert watch.look(ring_of_two(at_us=110), later_us + RING_STABLE_US) is None
    retried = [parked(1, "a", "b", at_us=later_us + 5), parked(2, "b", "a", at_us=110)]
    assert watch.look(retried, later_us + RING_STABLE_US + 1) is None
    assert watch.look(retried, later_us + 2 * RING_STABLE_US + 1) == RING


def test_somebody_new_in_an_inbox_may_get_on() -> None:
    watch = Watch()
    watch.look(ring_of_two(at_us=90), 100)
    watch.look(ring_of_two(at_us=110), 120)
    more = [*ring_of_two(at_us=110), Held(delivery=4, agent="a")]
    assert watch.look(more, 120 + RING_STABLE_US) is None


def test_an_inbox_that_was_not_looked_at_says_nothing() -> None:
    watch = Watch()
    for seen_us in (100, 200, 200 + RING_STABLE_US):
        assert watch.look([parked(1, "a", "gone", at_us=150)], seen_us) is None


def test_a_clock_that_is_set_back_begins_anew() -> None:
    watch = Watch()
    watch.look(ring_of_two(at_us=90), 100)
    watch.look(ring_of_two(at_us=110), 120)
    # What was tried at 110 may have been refused before the look at 115.
    for seen_us in (115, 116, 116 + RING_STABLE_US):
        assert watch.look(ring_of_two(at_us=110), seen_us) is None
    tried_us = 117 + RING_STABLE_US
    assert watch.look(ring_of_two(at_us=tried_us), tried_us) is None
    assert watch.look(ring_of_two(at_us=tried_us), tried_us + RING_STABLE_US) == RING


def test_what_is_said_to_have_been_tried_later_than_now_says_nothing() -> None:
    watch = Watch()
    for seen_us in (100, 120, 120 + RING_STABLE_US):
        assert watch.look(ring_of_two(at_us=seen_us + 1), seen_us) is None


# ---- The whole, against a bus of sets -----------------------------------------------------------


class Inboxes:
    """Agents with inboxes, whose deliveries each want room with some others, and then are gone."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.sizes = sizes
        self.held: dict[str, dict[int, Sequence[str]]] = {name: {} for name in sizes}
        self.attempts: dict[int, Attempt] = {}
        self.busy: set[int] = set()
        self.last = 0

    def add(self, agent: str, receivers: Sequence[str]) -> None:
        self.last += 1
        self.held[agent][self.last] = receivers

    def room(self, agent: str) -> int:
        return self.sizes[agent] - len(self.held[agent])

    def full_for(self, agent: str, delivery: int) -> tuple[str, ...]:
        """As a completion finds them: the place of the delivery itself becomes free."""
        receivers = self.held[agent][delivery]
        return tuple(
            sorted(
                {
                    name
                    for name in receivers
                    if self.room(name) + (name == agent) < receivers.count(name)
                }
            )
        )

    def try_one(self, agent: str, delivery: int, now_us: int) -> None:
        full = self.full_for(agent, delivery)
        if full:
            self.attempts[delivery] = Attempt(at_us=now_us, full=full)
            return
        receivers = self.held[agent].pop(delivery)
        for name in receivers:
            self.add(name, ())

    def look(self) -> list[Held]:
        return [
            Held(
                delivery=delivery,
                agent=agent,
                attempt=None if delivery in self.busy else self.attempts.get(delivery),
            )
            for agent, deliveries in self.held.items()
            for delivery in deliveries
        ]

    def all(self) -> list[tuple[str, int]]:
        return [(agent, each) for agent, deliveries in self.held.items() for each in deliveries]


SIZES = st.fixed_dictionaries({name: st.integers(1, 3) for name in "abcd"})


@settings(deadline=None, max_examples=150)
@given(SIZES, st.data())
def test_only_what_can_never_move_is_broken_and_then_everything_flows(
    sizes: dict[str, int], data: st.DataObject
) -> None:
    bus = Inboxes(sizes)
    for name, size in sizes.items():
        for _ in range(data.draw(st.integers(0, size))):
            wanted = st.lists(st.sampled_from("abcd"), max_size=3).filter(
                # More than an inbox can ever hold is refused as such, and waits for nobody.
                lambda receivers: all(receivers.count(each) <= sizes[each] for each in receivers)
            )
            bus.add(name, data.draw(wanted))
    watch, now_us = Watch(), 0
    for _ in range(200):
        waiting = bus.all()
        if not waiting:
            break
        for agent, delivery in data.draw(st.permutations(waiting)):
            now_us += SECOND_US // 50
            if delivery not in bus.held[agent]:
                continue
            bus.try_one(agent, delivery, now_us)
        # Some are just then tried again.
        bus.busy = set(data.draw(st.lists(st.sampled_from([each for _, each in waiting]))))
        now_us += SECOND_US
        ring = watch.look(bus.look(), now_us)
        if ring is None:
            continue
        for agent, deliveries in ring.inboxes.items():
            assert tuple(bus.held[agent]) == deliveries
            for delivery in deliveries:
                assert set(bus.full_for(agent, delivery)) & ring.inboxes.keys()
        given_up = max(each for agent in ring.agents for each in bus.held[agent])
        for agent in ring.agents:
            bus.held[agent].pop(given_up, None)
    assert not bus.all()


def test_the_shortest_ring_is_found_though_another_way_leads_there_too() -> None:
    waits: Graph = {
        "a": [frozenset({"b", "c"})],
        "b": [frozenset({"c"})],
        "c": [frozenset({"a"})],
    }
    assert ring_in(waits, "abc") == ("a", "c")
