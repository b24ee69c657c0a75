"""The policy of the pool, in simulated steps."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import Simulation, answer

from inference_client.engine.planner import Policy
from ipc_protocol.errors import Failure
from ipc_protocol.values import PRIORITIES, rank

REQUESTS = st.lists(
    st.tuples(
        st.integers(0, 30),  # the step in which it arrives
        st.sampled_from("abc"),
        st.sampled_from(PRIORITIES),
        st.lists(st.integers(0, 2), min_size=1, max_size=20),
        st.integers(1, 12),
    ),
    min_size=1,
    max_size=16,
)


def names(pool: Simulation) -> list[str]:
    return [request.agent for request in pool.finished]


@settings(deadline=None, max_examples=200)
@given(
    requests=REQUESTS,
    slots=st.integers(1, 4),
    cells=st.integers(32, 70),
    partial=st.booleans(),
    width=st.integers(1, 4),
)
def test_every_request_ends_with_the_answer_to_its_own_prompt(
    requests, slots, cells, partial, width
):
    policy = Policy(
        width=width,
        context=cells,
        prefill_tokens=8,
        prefill_tokens_beside=4,
        prefill_tokens_beneath=2,
        quantum_tokens=2,
    )
    pool = Simulation(slots=slots, cells=cells, partial=partial, policy=policy)
    expected = {}
    arrivals = sorted(requests, key=lambda one: one[0])
    while arrivals or not pool.planner.idle:
        while arrivals and arrivals[0][0] <= pool.planner.steps:
            _, agent, priority, prompt, tokens = arrivals.pop(0)
            request = pool.submit(agent, priority, prompt, tokens)
            expected[request.id] = answer(prompt, tokens)
        idle = pool.planner.idle
        assert pool.step() or idle
        assert pool.planner.steps < 20_000
    assert {request.id: request.produced for request in pool.finished} == expected


@settings(deadline=None)
@given(
    tail=st.lists(st.integers(0, 2), min_size=1, max_size=5),
    prompt=st.lists(st.integers(0, 2), min_size=1, max_size=12),
    partial=st.booleans(),
)
def test_every_token_of_a_continuation_is_scored_once(tail, prompt, partial):
    policy = Policy(width=1, context=64, prefill_tokens=3)
    pool = Simulation(partial=partial, policy=policy)
    request = pool.submit(prompt=prompt, tail=tuple(tail))
    pool.run()
    first = len(prompt) - 1
    assert pool.scores[request.id] == list(range(first, first + len(tail)))


@settings(deadline=None)
@given(REQUESTS)
def test_within_a_class_of_one_slot_nobody_waits_for_a_later_request_of_the_same_agent(requests):
    pool = Simulation(slots=1)
    submitted = [
        pool.submit(agent, priority, prompt, tokens)
        for _, agent, priority, prompt, tokens in requests
    ]
    pool.run()
    for agent in "abc":
        for priority in PRIORITIES:
            own = [r.id for r in submitted if (r.agent, r.priority) == (agent, priority)]
            assert [r.id for r in pool.finished if r.id in own] == own


@settings(deadline=None)
@given(REQUESTS)
def test_requests_that_wait_together_end_in_the_order_of_their_classes_on_one_slot(requests):
    pool = Simulation(slots=1)
    for _, agent, priority, prompt, tokens in requests:
        pool.submit(agent, priority, prompt, tokens)
    pool.run()
    ranks = [rank(request.priority) for request in pool.finished]
    assert ranks == sorted(ranks)


def test_an_agent_that_floods_its_class_does_not_starve_another():
    pool = Simulation(slots=1)
    for _ in range(20):
        pool.submit("flood", tokens=5)
    pool.step()
    pool.submit("other", tokens=5)
    pool.run()
    assert names(pool).index("other") <= 2


def test_an_urgent_request_takes_the_slot_of_background_work_that_had_its_quantum():
    pool = Simulation(slots=1)
    background = pool.submit("slow", "background", tokens=30)
    for _ in range(4):
        pool.step()
    pool.submit("fast", "urgent", tokens=2)
    pool.run()
    assert names(pool) == ["fast", "slow"]
    assert background.preemptions == 1
    assert background.produced == answer([1, 2, 3], 30)


def test_a_request_of_the_same_class_preempts_nobody():
    pool = Simulation(slots=1)
    pool.submit("first", tokens=20)
    for _ in range(4):
        pool.step()
    pool.submit("second", tokens=1)
    pool.run()
    assert names(pool) == ["first", "second"]
    assert pool.planner.preemptions == 0


def test_a_request_is_not_preempted_before_its_quantum():
    policy = Policy(width=1, context=64, quantum_tokens=10)
    pool = Simulation(slots=1, policy=policy)
    pool.submit("slow", "background", tokens=20)
    pool.step()
    pool.submit("fast", "urgent", tokens=1)
    pool.step()
    assert [row.request.agent for row in pool.rows[-1]] == ["slow"]
    place = pool.planner.waiting()[0]
    assert "may not be preempted" in place.reason
    pool.run()
    assert names(pool) == ["fast", "slow"]


def test_after_its_last_preemption_a_request_stays():
    policy = Policy(width=1, context=64, quantum_tokens=1, preemptions_max=2)
    pool = Simulation(slots=1, policy=policy)
    slow = pool.submit("slow", "background", tokens=20)
    for number in range(4):
        pool.step()
        pool.step()
        pool.submit(f"fast-{number}", "urgent", tokens=1)
    pool.run()
    assert slow.preemptions == 2
    assert names(pool)[:2] == ["fast-0", "fast-1"]
    assert names(pool)[2] == "slow"


def test_a_preempted_request_resumes_from_what_is_left_of_its_prefix():
    pool = Simulation(slots=2)
    slow = pool.submit("slow", "background", [1] * 10, tokens=10)
    pool.submit("other", "background", [2] * 10, tokens=30)
    for _ in range(6):
        pool.step()
    pool.submit("fast", "urgent", [0, 0], tokens=3)
    pool.run()
    assert slow.produced == answer([1] * 10, 10)


def test_less_urgent_sequences_are_left_out_while_an_urgent_one_decodes():
    pool = Simulation(slots=2)
    pool.submit("slow", "low", tokens=30)
    for _ in range(2):
        pool.step()
    pool.submit("fast", "urgent", tokens=6)
    for _ in range(5):
        pool.step()
        assert [row.request.agent for row in pool.rows[-1]] == ["fast"]


def test_a_sequence_that_was_left_out_long_enough_takes_part_once():
    policy = Policy(width=1, context=64, skipped_steps_max=3)
    pool = Simulation(slots=2, policy=policy)
    pool.submit("slow", "low", tokens=30)
    pool.step()
    pool.submit("fast", "urgent", tokens=12)
    for _ in range(8):
        pool.step()
    parts = [len(rows) for rows in pool.rows[1:9]]
    assert parts == [1, 1, 1, 2, 1, 1, 1, 2]


def test_on_a_wide_device_nobody_is_left_out():
    policy = Policy(width=2, context=64)
    pool = Simulation(slots=2, policy=policy)
    pool.submit("slow", "low", tokens=30)
    pool.step()
    pool.submit("fast", "urgent", tokens=5)
    pool.step()
    assert len(pool.rows[-1]) == 2


@pytest.mark.parametrize(
    ("first", "second", "chunk"),
    [(None, "normal", 32), ("normal", "normal", 8), ("high", "normal", 4)],
)
def test_the_prefill_shrinks_beside_decodes_and_more_so_beneath_urgent_ones(first, second, chunk):
    policy = Policy(
        width=2,
        context=64,
        prefill_tokens=32,
        prefill_tokens_beside=8,
        prefill_tokens_beneath=4,
    )
    pool = Simulation(slots=2, policy=policy)
    if first is not None:
        pool.submit("first", first, tokens=10)
        pool.step()
    pool.submit("second", second, prompt=[2] * 40, tokens=1)
    pool.step()
    assert len(pool.rows[-1][-1].tokens) == chunk


def test_prefills_share_the_budget_of_a_step():
    policy = Policy(width=4, context=64, prefill_tokens=10)
    pool = Simulation(slots=3, cells=128, policy=policy)
    for number in range(3):
        pool.submit(prompt=[number] * 8, tokens=1)
    pool.step()
    assert [len(row.tokens) for row in pool.rows[-1]] == [8, 2]


def test_a_second_request_of_an_agent_finds_its_prefix_in_the_cache():
    pool = Simulation()
    pool.submit(prompt=[1, 2, 3, 4, 5])
    pool.run()
    second = pool.submit(prompt=[1, 2, 3, 4, 6])
    pool.run()
    assert second.cached_tokens == 4


def test_running_out_of_cells_preempts_the_last_and_fails_nobody():
    pool = Simulation(slots=4, cells=40)
    requests = [pool.submit(str(n), prompt=[n] * 4, tokens=30) for n in range(4)]
    pool.run()
    assert pool.planner.preemptions > 0
    for number, request in enumerate(requests):
        assert request.produced == answer([number] * 4, 30)


def test_a_request_that_finds_no_cells_waits_and_says_so():
    pool = Simulation(slots=2, cells=40)
    pool.submit("a", prompt=[1] * 30, tokens=8)
    pool.step()
    pool.submit("b", prompt=[2] * 20, tokens=4)
    pool.submit("c", prompt=[3] * 20, tokens=4)
    pool.submit("d", prompt=[3] * 20, tokens=4)
    pool.step()
    assert [place.reason for place in pool.planner.waiting()] == [
        "the KV cache is full",
        "1 request goes first",
        "2 requests go first",
    ]
    pool.run()
    assert names(pool)[0] == "a"


def test_an_urgent_request_gets_the_cells_of_less_urgent_work():
    pool = Simulation(slots=2, cells=40)
    pool.submit("slow", "low", prompt=[1] * 30, tokens=8)
    for _ in range(3):
        pool.step()
    pool.submit("fast", "urgent", prompt=[2] * 20, tokens=2)
    pool.run()
    assert names(pool) == ["fast", "slow"]


def test_a_prefix_is_taken_over_where_it_lies_when_it_cannot_be_shared():
    pool = Simulation(slots=2, cells=40)
    pool.submit("a", prompt=[1] * 10 + [2] * 20, tokens=1)
    pool.run()
    second = pool.submit("b", prompt=[1] * 10 + [0] * 20, tokens=4)
    pool.run()
    assert second.cached_tokens == 10
    assert second.produced == answer([1] * 10 + [0] * 20, 4)


def test_a_prompt_that_fills_the_context_is_refused():
    pool = Simulation(cells=40)
    with pytest.raises(Failure) as failure:
        pool.submit(prompt=[1] * 40)
    assert failure.value.code == "inference.context"
    assert pool.planner.idle


def test_a_budget_over_the_context_is_cut_to_it():
    pool = Simulation(cells=40)
    request = pool.submit(prompt=[1] * 30, tokens=1000)
    assert request.tokens_max == 10
    pool.run()


def test_a_cancelled_request_frees_its_slot_and_its_place():
    pool = Simulation(slots=1)
    running = pool.submit("a", tokens=30)
    waiting = pool.submit("b", tokens=30)
    pool.step()
    pool.planner.cancel(waiting)
    pool.planner.cancel(running)
    assert pool.planner.idle
    pool.submit("c", tokens=1)
    pool.run()
    assert names(pool) == ["c"]


def test_a_refused_step_evicts_then_takes_off_and_at_last_names_who_cannot_go_on():
    pool = Simulation(slots=3)
    pool.submit("idle", tokens=1)
    pool.run()
    first = pool.submit("first", prompt=[5, 5], tokens=9)
    pool.submit("second", prompt=[6, 6], tokens=9)
    pool.step()
    assert pool.planner.refuse() is None
    assert pool.planner.preemptions == 0
    assert pool.planner.refuse() is None
    assert pool.planner.preemptions == 1
    while pool.planner.refuse() is None:
        pass
    assert pool.planner.refuse() is first


def test_the_head_of_the_queue_is_said_to_be_next():
    pool = Simulation(slots=1)
    pool.step()
    pool.submit("a")
    (place,) = pool.planner.waiting()
    assert (place.position, place.reason) == (1, "the next step takes it in")


def test_a_batch_holds_all_slots_and_the_largest_prefill():
    assert Policy(width=1, context=64, prefill_tokens=100).batch_tokens(4) == 104
