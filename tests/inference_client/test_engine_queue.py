"""The order of the queue: classes first, then fair shares, then an agent's own order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_client.engine.planning import queue
from inference_client.engine.planning.queue import RequestQueue
from inference_client.engine.planning.request import Request
from ipc_protocol.errors import Failure
from ipc_protocol.inference import Share
from ipc_protocol.values import PRIORITIES, Priority, rank


def request(
    number: int,
    agent: str = "a",
    priority: Priority = "normal",
    tokens: int = 10,
    weight: float = 1.0,
    deadline_us: int | None = None,
) -> Request:
    return Request(
        number,
        agent,
        priority,
        [1, 2, 3],
        tokens,
        arrived_us=number,
        share=Share(weight=weight),
        deadline_us=deadline_us,
    )


def head(waiting: RequestQueue, skipped: tuple[str, ...] = ()) -> Request | None:
    if waiting.rank is None:
        return None
    return next(waiting.offers(waiting.rank, skipped), None)


def drained(waiting: RequestQueue) -> list[int]:
    order = []
    while (first := head(waiting)) is not None:
        waiting.take(first)
        waiting.charge(first, len(first.tokens) + first.tokens_max)
        order.append(first.id)
    return order


def test_an_empty_queue_offers_nothing():
    waiting = RequestQueue(4)
    assert waiting.rank is None
    assert head(waiting) is None
    assert list(waiting.offers(0, ())) == []


def test_classes_are_strictly_ordered():
    waiting = RequestQueue(10)
    for number, priority in enumerate(reversed(PRIORITIES)):
        waiting.push(request(number, agent=priority, priority=priority))
    assert drained(waiting) == [4, 3, 2, 1, 0]


def test_requests_of_one_agent_keep_their_order():
    waiting = RequestQueue(10)
    for number in (1, 2, 3):
        waiting.push(request(number))
    assert drained(waiting) == [1, 2, 3]


def test_agents_of_one_class_take_turns():
    waiting = RequestQueue(10)
    for number, agent in enumerate("aaabbb"):
        waiting.push(request(number, agent))
    assert drained(waiting) == [0, 3, 1, 4, 2, 5]


def test_an_agent_of_twice_the_weight_has_two_turns():
    waiting = RequestQueue(10)
    for number, agent in enumerate("aaabbb"):
        waiting.push(request(number, agent, weight=2.0 if agent == "b" else 1.0))
    assert drained(waiting) == [0, 3, 4, 1, 5, 2]


def test_a_weight_of_nothing_is_served_all_the_same():
    waiting = RequestQueue(10)
    waiting.push(request(1, weight=0.0))
    assert drained(waiting) == [1]


def test_an_agent_with_long_requests_has_fewer_turns():
    waiting = RequestQueue(10)
    for number in (0, 1):
        waiting.push(request(number, "long", tokens=37))
    for number in (2, 3, 4, 5):
        waiting.push(request(number, "short", tokens=7))
    assert drained(waiting) == [0, 2, 3, 4, 5, 1]


def test_what_an_agent_spends_in_one_class_does_not_count_in_another():
    waiting = RequestQueue(10)
    waiting.push(request(1, "a", "urgent", tokens=1000))
    assert drained(waiting) == [1]
    waiting.push(request(2, "a", "low"))
    waiting.push(request(3, "b", "low"))
    assert drained(waiting) == [2, 3]


def test_absence_earns_no_credit():
    waiting = RequestQueue(10)
    waiting.push(request(1, "busy"))
    waiting.take(first := head(waiting))
    waiting.charge(first, 1000)
    waiting.push(second := request(2, "busy"))
    waiting.take(head(waiting))
    waiting.charge(second, 10)
    for number, agent in ((3, "late"), (4, "late"), (5, "busy"), (6, "late")):
        waiting.push(request(number, agent))
    assert drained(waiting) == [3, 5, 4, 6]


def test_an_earlier_deadline_goes_before_the_same_agents_other_requests_only():
    waiting = RequestQueue(10)
    waiting.push(request(1, "other"))
    waiting.push(request(2, "a"))
    waiting.push(request(3, "a", deadline_us=900))
    waiting.push(request(4, "a", deadline_us=800))
    assert drained(waiting) == [1, 4, 3, 2]


def test_the_listed_order_is_the_order_of_taking():
    waiting = RequestQueue(10)
    for number, agent in enumerate("aabab"):
        weight = 2.0 if agent == "a" else 1.0
        waiting.push(request(number, agent, "low" if number == 0 else "high", weight=weight))
    listed = [one.id for one in waiting.in_order()]
    assert listed == drained(waiting)


def test_what_is_not_taken_lets_the_next_of_its_agent_have_its_turn():
    waiting = RequestQueue(10)
    for number, agent in enumerate("aab"):
        waiting.push(request(number, agent))
    assert [one.id for one in waiting.offers(rank("normal"), ())] == [0, 1, 2]
    assert len(waiting) == 3


def test_an_agent_that_is_skipped_is_not_offered_again():
    waiting = RequestQueue(10)
    for number, agent in enumerate("aaab"):
        waiting.push(request(number, agent))
    skipped: set[str] = set()
    offered = []
    for one in waiting.offers(rank("normal"), skipped):
        offered.append(one.id)
        skipped.add(one.agent)
    assert offered == [0, 3]


def test_a_request_that_is_taken_changes_whose_turn_is_next():
    waiting = RequestQueue(10)
    for number, agent in enumerate("aaab"):
        waiting.push(request(number, agent))
    offered = []
    for one in waiting.offers(rank("normal"), ()):
        offered.append(one.id)
        waiting.take(one)
        waiting.charge(one, 10)
    assert offered == [0, 3, 1, 2]
    assert not waiting.waits(rank("normal"))


def test_a_request_that_leaves_while_others_are_offered_is_passed_over():
    waiting = RequestQueue(10)
    requests = [request(number, agent) for number, agent in enumerate("aabb")]
    for one in requests:
        waiting.push(one)
    offered = []
    for one in waiting.offers(rank("normal"), ()):
        offered.append(one.id)
        if one.id == 0:
            waiting.remove(requests[2])
            waiting.remove(requests[3])
            waiting.push(request(4, "a", deadline_us=5))
    assert offered == [0, 1]


def test_a_request_whose_wait_begins_anew_is_behind_all_others():
    waiting = RequestQueue(4)
    first, second = request(1), request(2)
    waiting.push(first)
    waiting.push(second)
    waiting.renew(first, 9)
    assert list(waiting.oldest()) == [second, first]
    assert waiting.idle_since(8) == [second]
    assert drained(waiting) == [1, 2]


def test_a_full_queue_says_that_it_is_busy():
    waiting = RequestQueue(1)
    waiting.push(request(1))
    with pytest.raises(Failure) as failure:
        waiting.push(request(2))
    assert failure.value.code == "inference.busy"
    assert len(waiting) == 1


def test_a_preempted_request_is_its_agents_next_even_in_a_full_queue():
    waiting = RequestQueue(2)
    first = request(1)
    waiting.push(first)
    waiting.push(request(2, deadline_us=5))
    waiting.take(first)
    waiting.push(request(3))
    first.preemptions = 1
    waiting.put_back(first)
    assert drained(waiting) == [1, 2, 3]


def test_the_oldest_is_who_got_nothing_for_the_longest_time():
    waiting = RequestQueue(4)
    first, second = request(1), request(2, priority="urgent")
    waiting.push(first)
    waiting.push(second)
    waiting.take(first)
    waiting.put_back(first)
    assert list(waiting.oldest()) == [second, first]


def test_a_removed_request_is_gone():
    waiting = RequestQueue(3)
    waiting.push(one := request(1))
    waiting.push(other := request(2))
    assert one in waiting
    assert waiting.remove(one)
    assert not waiting.remove(one)
    assert one not in waiting
    assert drained(waiting) == [other.id]
    assert len(waiting) == 0


def test_the_number_of_accounts_is_bounded(monkeypatch):
    monkeypatch.setattr(queue, "ACCOUNTS_MAX", 4)
    waiting = RequestQueue(100)
    for number in range(20):
        waiting.push(one := request(number, f"agent-{number}"))
        waiting.take(one)
        waiting.charge(one, number)
    assert len(waiting._accounts[rank("normal")]) <= 6


@given(
    st.lists(
        st.tuples(st.sampled_from(PRIORITIES), st.sampled_from("abc"), st.integers(1, 50)),
        max_size=30,
    )
)
def test_every_request_is_taken_once_and_no_class_before_a_more_urgent_one(given_requests):
    waiting = RequestQueue(100)
    requests = {}
    for number, (priority, agent, tokens) in enumerate(given_requests):
        requests[number] = request(number, agent, priority, tokens)
        waiting.push(requests[number])
    order = drained(waiting)
    assert sorted(order) == sorted(requests)
    ranks = [rank(requests[number].priority) for number in order]
    assert ranks == sorted(ranks)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 50)), min_size=1, max_size=60))
def test_agents_that_wait_are_served_in_proportion_to_their_weights(given_requests):
    waiting = RequestQueue(100)
    weights = {"a": 1.0, "b": 2.0, "c": 0.5, "d": 1.0}
    for number, (agent, tokens) in enumerate(given_requests):
        waiting.push(request(number, agent, tokens=tokens, weight=weights[agent]))
    left = {agent: sum(one == agent for one, _ in given_requests) for agent in "abcd"}
    spent = dict.fromkeys("abcd", 0.0)
    while (first := head(waiting)) is not None:
        contenders = [agent for agent in "abcd" if left[agent]]
        assert spent[first.agent] == min(spent[agent] for agent in contenders)
        cost = len(first.tokens) + first.tokens_max
        waiting.take(first)
        waiting.charge(first, cost)
        spent[first.agent] += cost / weights[first.agent]
        left[first.agent] -= 1
