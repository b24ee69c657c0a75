"""The order of the queue: classes first, then fair shares, then arrival."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_client.engine import queue
from inference_client.engine.queue import Request, RequestQueue
from ipc_protocol.errors import Failure
from ipc_protocol.values import PRIORITIES, Priority, rank


def request(
    number: int, agent: str = "a", priority: Priority = "normal", tokens: int = 10
) -> Request:
    return Request(number, agent, priority, [1, 2, 3], tokens, arrived_us=number)


def drained(waiting: RequestQueue) -> list[int]:
    order = []
    while (head := waiting.head()) is not None:
        waiting.take(head)
        waiting.charge(head.agent, len(head.tokens) + head.tokens_max)
        order.append(head.id)
    return order


def test_an_empty_queue_has_no_head():
    assert RequestQueue(4).head() is None


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


def test_an_agent_with_long_requests_has_fewer_turns():
    waiting = RequestQueue(10)
    for number in (0, 1):
        waiting.push(request(number, "long", tokens=37))
    for number in (2, 3, 4, 5):
        waiting.push(request(number, "short", tokens=7))
    assert drained(waiting) == [0, 2, 3, 4, 5, 1]


def test_absence_earns_no_credit():
    waiting = RequestQueue(10)
    waiting.push(request(1, "busy"))
    waiting.take(request_ := waiting.head())
    waiting.charge(request_.agent, 1000)
    waiting.push(request(2, "busy"))
    waiting.take(waiting.head())
    waiting.charge("busy", 10)
    for number, agent in ((3, "late"), (4, "late"), (5, "busy"), (6, "late")):
        waiting.push(request(number, agent))
    assert drained(waiting) == [3, 5, 4, 6]


def test_the_listed_order_is_the_order_of_taking():
    waiting = RequestQueue(10)
    for number, agent in enumerate("aabab"):
        waiting.push(request(number, agent, priority="low" if number == 0 else "high"))
    listed = [one.id for one in waiting.in_order()]
    assert listed == drained(waiting)


def test_a_full_queue_says_that_it_is_busy():
    waiting = RequestQueue(1)
    waiting.push(request(1))
    with pytest.raises(Failure) as failure:
        waiting.push(request(2))
    assert failure.value.code == "inference.busy"
    assert len(waiting) == 1


def test_a_preempted_request_returns_to_its_place_even_in_a_full_queue():
    waiting = RequestQueue(2)
    first = request(1)
    waiting.push(first)
    waiting.push(request(2))
    waiting.take(first)
    waiting.push(request(3))
    waiting.put_back(first)
    assert drained(waiting) == [1, 2, 3]


def test_a_removed_request_is_gone():
    waiting = RequestQueue(2)
    waiting.push(one := request(1))
    assert waiting.remove(1) is one
    assert waiting.remove(1) is None
    assert len(waiting) == 0


def test_the_number_of_accounts_is_bounded(monkeypatch):
    monkeypatch.setattr(queue, "ACCOUNTS_MAX", 4)
    waiting = RequestQueue(100)
    for number in range(20):
        waiting.push(request(number, f"agent-{number}"))
        waiting.take(waiting.head())
        waiting.charge(f"agent-{number}", number)
    assert len(waiting._accounts) <= 6


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
def test_agents_that_wait_are_served_about_equally(given_requests):
    waiting = RequestQueue(100)
    for number, (agent, tokens) in enumerate(given_requests):
        waiting.push(request(number, agent, tokens=tokens))
    left = {agent: sum(one == agent for one, _ in given_requests) for agent in "abcd"}
    spent = dict.fromkeys("abcd", 0)
    while (head := waiting.head()) is not None:
        contenders = [agent for agent in "abcd" if left[agent]]
        assert spent[head.agent] == min(spent[agent] for agent in contenders)
        cost = len(head.tokens) + head.tokens_max
        waiting.take(head)
        waiting.charge(head.agent, cost)
        spent[head.agent] += cost
        left[head.agent] -= 1
