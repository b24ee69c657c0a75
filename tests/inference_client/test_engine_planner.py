"""The policy of the pool, in simulated steps: one fact each. What always holds is in
`test_engine_policy_properties`."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import Simulation, answer

from inference_client.engine.planning import admission, planner
from inference_client.engine.planning.admission import FOLLOWS
from inference_client.engine.planning.agents import EXPECTED_TOKENS
from inference_client.engine.planning.forecast import PLACES_MAX
from inference_client.engine.planning.planner import Policy
from inference_client.engine.planning.policy import SCORED_OUTPUTS_MAX
from inference_client.engine.planning.request import Request
from inference_client.engine.planning.slots import Copy, SwapOut
from ipc_protocol.errors import Failure
from ipc_protocol.inference import Share


def names(pool: Simulation) -> list[str]:
    return [request.agent for request in pool.finished]


def reasons(pool: Simulation) -> dict[str, str]:
    return {place.request.agent: place.reason for place in pool.planner.waiting(pool.now_us)}


# ---- Classes and preemption


def test_an_agent_that_floods_its_class_does_not_starve_another():
    pool = Simulation(slots=1)
    for _ in range(20):
        pool.submit("flood", tokens=5)
    pool.step()
    pool.submit("other", tokens=5)
    pool.run()
    assert names(pool).index("other") <= 2


def test_an_agent_of_twice_the_weight_has_twice_the_tokens():
    pool = Simulation(slots=1, cells=256)
    for _ in range(30):
        pool.submit("heavy", prompt=[1], tokens=10, share=Share(weight=2.0))
        pool.submit("light", prompt=[2], tokens=10)
    while len(pool.finished) < 30:
        pool.step()
    assert names(pool).count("heavy") in (19, 20, 21)


def test_an_urgent_request_takes_the_slot_of_background_work_that_had_its_quantum():
    pool = Simulation(slots=1)
    background = pool.submit("slow", "background", tokens=30)
    pool.steps(4)
    pool.submit("fast", "urgent", tokens=2)
    pool.run()
    assert names(pool) == ["fast", "slow"]
    assert background.preemptions == 1
    assert background.produced == answer([1, 2, 3], 30)


def test_a_request_of_the_same_class_preempts_nobody():
    pool = Simulation(slots=1)
    first = pool.submit("first", tokens=20)
    pool.steps(4)
    pool.submit("second", tokens=1)
    pool.run()
    assert names(pool) == ["first", "second"]
    assert first.preemptions == 0


def test_a_request_is_not_preempted_before_its_quantum():
    pool = Simulation(slots=1, policy=Policy(width=1, context=64, quantum_tokens=10))
    pool.submit("slow", "background", tokens=20)
    pool.step()
    pool.submit("fast", "urgent", tokens=1)
    pool.step()
    assert pool.served() == ["slow"]
    assert "may not be preempted" in reasons(pool)["fast"]
    pool.run()
    assert names(pool) == ["fast", "slow"]


def test_after_its_last_preemption_a_request_stays():
    policy = Policy(width=1, context=64, quantum_tokens=1, preemptions_max=2)
    pool = Simulation(slots=1, policy=policy)
    slow = pool.submit("slow", "background", tokens=20)
    for number in range(4):
        pool.steps(6)
        pool.submit(f"fast-{number}", "urgent", tokens=1)
    pool.run()
    assert slow.preemptions == 2
    assert names(pool)[:3] == ["fast-0", "fast-1", "slow"]


def test_with_each_preemption_the_quantum_is_doubled():
    policy = Policy(width=1, context=900, quantum_tokens=2, quantum_doublings_max=3)
    pool = Simulation(slots=1, cells=900, policy=policy)
    slow = pool.submit("slow", "background", [1], tokens=200)
    quanta = []
    while slow not in pool.finished and len(quanta) < 6:
        pool.step()
        fast = pool.submit("fast", "urgent", [2], tokens=1)
        served = 0
        while fast.started_us is None:
            served = slow.served_tokens
            pool.step()
        quanta.append(served)
    # What was lost by making way has to be computed again, in one row.
    assert all(quantum < 2 ** (n + 1) + 40 for n, quantum in enumerate(quanta))
    assert slow.preemptions == 6


def test_regular_urgent_work_beside_long_answers_waits_for_a_quantum_and_a_step_at_most():
    policy = Policy(width=2, context=900, quantum_tokens=4)
    pool = Simulation(slots=2, cells=4000, layout="streams", swap_tokens=4000, policy=policy)
    slow = [pool.submit(str(n), "background", [n] * 4, tokens=400) for n in range(2)]
    waits = []
    while len(waits) < 12:
        fast = pool.submit("fast", "urgent", [5] * 4, tokens=3)
        before = pool.planner.steps
        while fast.started_us is None:
            pool.step()
        waits.append(pool.planner.steps - before)
        while fast not in pool.finished:
            pool.step()
        pool.steps(3)
    assert max(waits) <= 4 * 2**policy.quantum_doublings_max + 1
    assert max(one.preemptions for one in slow) - min(one.preemptions for one in slow) <= 1
    pool.run()
    for number, one in enumerate(slow):
        assert one.produced == answer([number] * 4, 400)


def test_the_least_urgent_and_youngest_makes_way():
    pool = Simulation(slots=3, cells=600, policy=Policy(width=3, context=600), step_us=9_000)
    for agent, priority in (("normal", "normal"), ("old", "low"), ("young", "low")):
        pool.submit(agent, priority, [len(agent)] * 16, tokens=60)
        pool.step()
    pool.steps(5)
    pool.submit("fast", "high", [4] * 4, tokens=2)
    pool.step()
    running = {one.agent for one in pool.planner.slots.requests()}
    assert running == {"normal", "old", "fast"}


def test_a_preempted_request_resumes_from_what_is_left_of_its_prefix():
    pool = Simulation(slots=2)
    slow = pool.submit("slow", "background", [1] * 10, tokens=10)
    pool.submit("other", "background", [2] * 10, tokens=30)
    pool.steps(6)
    pool.submit("fast", "urgent", [0, 0], tokens=3)
    pool.run()
    assert slow.produced == answer([1] * 10, 10)


# ---- Left out


def test_less_urgent_sequences_are_left_out_while_an_urgent_one_decodes():
    pool = Simulation(slots=2)
    low = pool.submit("slow", "low", tokens=30)
    pool.steps(2)
    pool.submit("fast", "urgent", tokens=6)
    for _ in range(5):
        pool.step()
        assert pool.served() == ["fast"]
        assert low.left_out
    pool.run()
    assert pool.planner.counters.preemptions["left-out"] == 1


def test_on_a_wide_device_nobody_is_left_out():
    pool = Simulation(slots=2, policy=Policy(width=2, context=64))
    pool.submit("slow", "low", tokens=30)
    pool.step()
    pool.submit("fast", "urgent", tokens=5)
    pool.step()
    assert sorted(pool.served()) == ["fast", "slow"]


def test_the_width_of_the_device_is_learned_from_its_steps():
    pool = Simulation(slots=2, step_us=10_000, token_us=1)
    pool.submit("warm", tokens=9)
    pool.steps(3)
    pool.submit("warmer", prompt=[3], tokens=4)
    pool.run()
    pool.submit("slow", "low", tokens=30)
    pool.step()
    pool.submit("fast", "urgent", tokens=5)
    pool.step()
    assert sorted(pool.served()) == ["fast", "slow"]


def test_who_was_left_out_for_too_long_takes_part_on_a_tenth_of_the_tokens():
    policy = Policy(width=1, context=500, starved_us=1_000)
    pool = Simulation(slots=2, cells=500, policy=policy)
    pool.submit("slow", "low", tokens=100)
    pool.steps(2)
    pool.submit("fast", "high", tokens=200)
    pool.steps(150)
    parts = sum(len(rows) == 2 for rows in pool.rows[2:])
    assert 8 <= parts <= 15


def test_beside_urgent_work_nobody_takes_part_however_long_it_was_left_out():
    policy = Policy(width=1, context=500, starved_us=1_000)
    pool = Simulation(slots=2, cells=500, policy=policy)
    pool.submit("slow", "low", tokens=100)
    pool.steps(2)
    pool.submit("fast", "urgent", tokens=100)
    for _ in range(99):
        pool.step()
        assert pool.served() == ["fast"]


def test_prefill_that_got_nothing_for_too_long_is_paid_for_as_well():
    policy = Policy(width=4, context=900, prefill_tokens=4, prefill_tokens_min=2, starved_us=1_000)
    pool = Simulation(slots=2, cells=900, policy=policy, token_us=1)
    pool.submit("fast", "high", [1] * 300, tokens=1)
    pool.step()
    low = pool.submit("slow", "low", [2] * 40, tokens=1)
    pool.now_us += 10_000
    pool.step()
    assert low.left_out
    pool.now_us += 10_000
    pool.steps(30)
    assert low.served_tokens >= 4


# ---- The starvation tier


def starved_pool(slots: int = 1, **shape) -> Simulation:
    policy = Policy(width=1, context=200, quantum_tokens=2, starved_us=2_000)
    return Simulation(slots=slots, cells=200, policy=policy, **shape)


def test_a_request_that_waits_too_long_gets_its_turn_though_more_urgent_work_never_ends():
    pool = starved_pool()
    low = pool.submit("slow", "background", [9] * 4, tokens=6)
    before = 0
    while low not in pool.finished:
        if len(pool.planner.waiting(pool.now_us)) < 3:
            pool.submit("flood", "high", [1] * 4, tokens=6)
        pool.step()
        before += pool.served() == ["flood"]
        assert before < 400
    assert low.promoted
    assert low.produced == answer([9] * 4, 6)
    assert before >= 80, "a tenth, not more"


def test_urgent_work_is_never_made_to_wait_for_the_tier():
    pool = starved_pool()
    pool.submit("slow", "background", [9] * 4, tokens=6)
    for _ in range(100):
        if len(pool.planner.waiting(pool.now_us)) < 2:
            pool.submit("flood", "urgent", [1] * 4, tokens=6)
        pool.step()
        assert "slow" not in pool.served()[1:]
        if pool.planner.steps > 8:
            assert pool.served() == ["flood"]


def test_who_was_promoted_makes_way_for_urgent_work_and_comes_first_afterwards():
    pool = starved_pool()
    pool.submit("flood", "high", [1] * 4, tokens=6)
    pool.step()
    low = pool.submit("slow", "background", [9] * 4, tokens=20)
    while not (low.promoted and low.served_tokens > 2):
        if len(pool.planner.waiting(pool.now_us)) < 3:
            pool.submit("flood", "high", [1] * 4, tokens=6)
        pool.step()
    waiting = pool.submit("next", "high", [2] * 4, tokens=6)
    urgent = pool.submit("now", "urgent", [3] * 4, tokens=4)
    pool.run()
    order = [one for one in pool.finished if one in (low, waiting, urgent)]
    assert order == [urgent, low, waiting]
    assert low.preemptions == 1


def test_a_promoted_request_that_is_cancelled_gives_back_what_was_paid_for_it():
    pool = starved_pool()
    low = pool.submit("slow", "background", [9] * 4, tokens=20)
    while not low.promoted:
        if len(pool.planner.waiting(pool.now_us)) < 3:
            pool.submit("flood", "high", [1] * 4, tokens=6)
        pool.step()
    paid = low.paid_tokens
    credit = pool.planner._admission.credit
    pool.planner.cancel(low)
    assert pool.planner._admission.credit == credit + paid
    assert paid > 0


def test_a_promoted_request_that_costs_more_than_expected_owes_it():
    pool = starved_pool()
    for _ in range(3):
        pool.submit("slow", "high", [8], tokens=1)
    pool.run()
    low = pool.submit("slow", "background", [9] * 4, tokens=60)
    while low not in pool.finished:
        if len(pool.planner.waiting(pool.now_us)) < 3:
            pool.submit("flood", "high", [1] * 4, tokens=6)
        pool.step()
    assert low.promoted
    assert low.paid_tokens < -40


def test_the_tier_pays_for_nobody_who_finds_no_slot():
    pool = starved_pool()
    policy_quantum = pool.planner._policy.quantum_tokens
    assert policy_quantum == 2
    pool.planner._admission.credit = 1000.0
    pool.submit("first", "high", [1] * 4, tokens=1)
    low = pool.submit("slow", "background", [9] * 4, tokens=6)
    pool.step()
    pool.submit("flood", "high", [1] * 4, tokens=60)
    pool.now_us += 10_000
    pool.planner._admission.credit = 1000.0
    pool.step()
    assert low.promoted != (low in list(pool.planner._queue.oldest()))


# ---- Prefill


@pytest.mark.parametrize(
    ("first", "second", "chunk"),
    [
        (None, "normal", 296),  # a step of 1.2 s; 4 ms a token, until it was measured
        ("normal", "normal", 128),  # whatever that takes
        ("high", "normal", 8),  # 50 ms
        ("normal", "high", 288),
    ],
)
def test_the_prefill_shrinks_beside_decodes_and_more_so_beneath_urgent_ones(first, second, chunk):
    pool = Simulation(
        slots=2,
        cells=2000,
        policy=Policy(width=2, context=2000),
        step_us=20_000,
        token_us=1,
        swap_tokens=0,
    )
    if first is not None:
        pool.submit("first", first, tokens=100)
        pool.steps(2)
    pool.submit("second", second, prompt=[2] * 400, tokens=1)
    pool.step()
    row = next(row for row in pool.rows[-1] if row.request.agent == "second")
    assert len(row.tokens) == chunk


def test_several_that_are_prefilled_beside_decodes_have_a_longer_step_together():
    policy = Policy(width=4, context=2000)
    pool = Simulation(slots=4, cells=8000, policy=policy, step_us=9_000, token_us=1_000)
    pool.submit("first", tokens=100)
    pool.steps(3)
    for number in range(3):
        pool.submit("second", prompt=[number] * 600, tokens=1)
    pool.steps(3)
    assert sum(len(row.tokens) for row in pool.rows[-1][1:]) > 400
    pool.run()
    pool.submit("first", tokens=100)
    pool.steps(3)
    pool.submit("second", prompt=[4] * 600, tokens=1)
    pool.step()
    assert len(pool.rows[-1][1].tokens) in range(350, 400)


def test_where_more_urgent_work_came_lately_prefill_goes_in_short_steps():
    pool = Simulation(slots=1, cells=2000, token_us=4_000)
    pool.submit("user", "urgent", tokens=1)
    pool.run()
    pool.submit("report", "low", prompt=[2] * 400, tokens=1)
    pool.step()
    assert len(pool.rows[-1][0].tokens) == 24
    pool.planner.cancel(pool.rows[-1][0].request)
    pool.now_us += 70_000_000
    pool.submit("report", "low", prompt=[3] * 400, tokens=1)
    pool.step()
    assert len(pool.rows[-1][0].tokens) > 200


def test_prefills_share_the_budget_of_a_step():
    policy = Policy(width=4, context=64, prefill_tokens=10)
    pool = Simulation(slots=3, cells=128, policy=policy)
    for number in range(3):
        pool.submit(prompt=[number] * 8, tokens=1)
    pool.step()
    assert [len(row.tokens) for row in pool.rows[-1]] == [8, 2]


def test_a_batch_holds_all_slots_and_the_largest_prefill():
    assert Policy(width=1, context=64, prefill_tokens=100).batch_tokens(4) == 104


def test_forced_text_is_decoded_as_one_row():
    pool = Simulation(forced=5)
    request = pool.submit(tokens=12)
    pool.steps(2)
    assert [len(row.tokens) for row in pool.rows[-1]] == [6]
    assert pool.rows[-1][0].outputs == 1
    pool.run()
    assert request.produced == answer([1, 2, 3], 12, forced=5)
    assert request.forced_tokens == 10


def test_forced_text_that_does_not_fit_into_a_step_goes_on_in_the_next():
    policy = Policy(width=2, context=64, prefill_tokens=4)
    pool = Simulation(forced=9, policy=policy)
    request = pool.submit(tokens=10)
    other = pool.submit("b", prompt=[5, 5, 5], tokens=10)
    pool.run()
    assert request.produced == answer([1, 2, 3], 10, forced=9)
    assert other.produced == answer([5, 5, 5], 10, forced=9)


def test_forced_text_of_several_does_not_add_up_beside_an_urgent_decode():
    policy = Policy(width=4, context=900, prefill_tokens_min=4, beneath_us=0)
    pool = Simulation(slots=4, cells=3600, policy=policy, layout="streams")
    pool.submit("fast", "urgent", [5] * 4, tokens=100)
    low = [pool.submit(str(number), "low", [number] * 4, tokens=200) for number in range(3)]
    while not all(one.ready for one in low):
        pool.step()
    pool.steps(2)
    for one in low:
        pool.planner.produce(one, [3] * 9)
    pool.step()
    assert sorted(len(row.tokens) for row in pool.rows[-1]) == [1, 4]


def test_the_outputs_of_a_step_are_bounded_over_all_that_is_scored():
    pool = Simulation(slots=3, cells=900, policy=Policy(width=3, context=300))
    requests = [
        pool.submit(str(n), prompt=[n] * 20, tail=tuple(i % 5 for i in range(70))) for n in (1, 2)
    ]
    pool.run()
    for rows in pool.rows:
        assert sum(row.outputs for row in rows) <= SCORED_OUTPUTS_MAX
    for request in requests:
        assert pool.scores[request.id] == list(range(19, 19 + 70))
    assert len(pool.rows) <= 2 * 3 + 1


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


# ---- The cache


def test_a_second_request_of_an_agent_finds_its_prefix_in_the_cache():
    pool = Simulation()
    pool.submit(prompt=[1, 2, 3, 4, 5])
    pool.run()
    second = pool.submit(prompt=[1, 2, 3, 4, 6])
    pool.run()
    assert second.cached_tokens == 4
    assert pool.planner.counters.prefix_hits == 4
    assert pool.planner.counters.prefix_queries == 10


@pytest.mark.parametrize("layout", ["unified", "streams"])
def test_a_preamble_in_common_is_computed_once(layout):
    pool = Simulation(slots=4, cells=800, layout=layout)
    preamble = [number % 5 for number in range(100)]
    for number in range(4):
        pool.submit(str(number), prompt=[*preamble, number, 6], tokens=2)
    pool.step()
    assert sorted(reasons(pool).values()) == ["its preamble is being read for another request"] * 3
    pool.run()
    assert pool.planner.counters.prefill_tokens == 100 + 4 * 2
    for request in pool.finished:
        assert request.produced == answer(request.tokens[: request.prompt_tokens], 2)


def test_a_preamble_is_shared_whole_where_a_sequence_cannot_lose_its_end():
    policy = Policy(width=1, context=200, prefill_tokens=16)
    pool = Simulation(slots=2, cells=400, layout="streams", partial=False, policy=policy)
    preamble = [number % 5 for number in range(100)]
    for number in range(2):
        pool.submit(str(number), prompt=[*preamble, number, 6], tokens=2)
    pool.run()
    assert pool.planner.counters.prefill_tokens == 100 + 2 * 2
    assert [one for one in pool.operations if isinstance(one, Copy)] == [Copy(0, 1, 100)]


def test_nobody_waits_for_the_preamble_of_less_urgent_work():
    pool = Simulation(slots=2, cells=600, policy=Policy(width=2, context=300, prefill_tokens=16))
    preamble = [number % 5 for number in range(100)]
    pool.submit("slow", "low", prompt=[*preamble, 5], tokens=2)
    pool.step()
    pool.submit("fast", "high", prompt=[*preamble, 6], tokens=2)
    pool.step()
    assert "fast" in pool.served()


def test_nobody_waits_for_a_preamble_that_does_not_get_on():
    pool = Simulation(slots=3, cells=900, policy=Policy(width=1, context=300, prefill_tokens=16))
    preamble = [number % 5 for number in range(100)]
    leader = pool.submit("leader", "low", prompt=[*preamble, 5], tokens=2)
    pool.step()
    pool.submit("fast", "high", tokens=30)
    pool.submit("follower", "low", prompt=[*preamble, 6], tokens=2)
    pool.steps(2)
    assert "preamble" in reasons(pool)["follower"]
    pool.steps(5)
    assert leader.left_out
    assert "follower" not in reasons(pool)


def test_when_the_leader_is_cancelled_its_followers_go_on_alone():
    pool = Simulation(slots=2, cells=600, policy=Policy(width=2, context=300, prefill_tokens=16))
    preamble = [number % 5 for number in range(100)]
    leader = pool.submit("leader", prompt=[*preamble, 5], tokens=2)
    follower = pool.submit("follower", prompt=[*preamble, 6], tokens=2)
    pool.steps(2)
    pool.planner.cancel(leader)
    pool.step()
    assert pool.served() == ["follower"]
    assert follower.cached_tokens == 32
    pool.run()
    assert follower.produced == answer([*preamble, 6], 2)


def test_a_preempted_request_resumes_from_host_memory():
    pool = Simulation(slots=1, swap_tokens=1000)
    slow = pool.submit("slow", "background", [1] * 10, tokens=10)
    pool.steps(5)
    pool.submit("fast", "urgent", [2] * 10, tokens=3)
    pool.step()
    (place,) = pool.planner.waiting(pool.now_us)
    assert place.state == "swapped"
    pool.run()
    assert pool.planner.counters.preemptions == {"left-out": 0, "swapped": 1, "dropped": 0}
    assert pool.planner.counters.recomputed_tokens == 0
    assert pool.planner.counters.swapped_in_bytes > 0
    assert slow.produced == answer([1] * 10, 10)


def test_without_host_memory_a_preempted_request_is_computed_again():
    pool = Simulation(slots=1)
    slow = pool.submit("slow", "background", [1] * 10, tokens=10)
    pool.steps(5)
    pool.submit("fast", "urgent", [2] * 10, tokens=3)
    pool.step()
    (place,) = pool.planner.waiting(pool.now_us)
    assert place.state == "preempted"
    pool.run()
    assert pool.planner.counters.preemptions == {"left-out": 0, "swapped": 0, "dropped": 1}
    assert pool.planner.counters.recomputed_tokens == 14
    assert slow.produced == answer([1] * 10, 10)


def test_an_urgent_request_does_not_wait_until_a_sequence_has_been_moved():
    pool = Simulation(slots=1, swap_tokens=1000, token_us=4_000_000)
    pool.pacing.observe_swap(10, 10_000)
    slow = pool.submit("slow", "background", [1] * 10, tokens=10)
    pool.steps(5)
    pool.submit("fast", "urgent", [2] * 10, tokens=3)
    pool.step()
    assert pool.planner.counters.preemptions["dropped"] == 1
    assert not any(isinstance(one, SwapOut) for one in pool.operations)
    pool.run()
    assert slow.produced == answer([1] * 10, 10)


def test_where_computing_is_cheaper_nothing_is_moved_to_the_host():
    pool = Simulation(slots=1, swap_tokens=1000, token_us=1)
    pool.pacing.observe_swap(10, 1_000_000)
    pool.pacing.observe(0, 100, 100)
    pool.submit("a", prompt=[1] * 10)
    pool.run()
    pool.submit("b", prompt=[2] * 10)
    pool.run()
    assert not any(isinstance(one, SwapOut) for one in pool.operations)


def test_an_agent_that_returns_finds_its_identity_in_host_memory():
    pool = Simulation(slots=2, cells=400, swap_tokens=4000)
    for _ in range(5):
        for agent in range(6):
            pool.submit(str(agent), prompt=[agent % 7] * 30 + [6], tokens=2)
            pool.run()
    assert pool.planner.counters.prefill_tokens <= 6 * 31 + 24 * 4


def test_what_an_agent_left_in_host_memory_is_not_another_agents():
    pool = Simulation(slots=1, swap_tokens=1000)
    pool.submit("a", prompt=[1] * 20, tokens=2)
    pool.run()
    pool.submit("b", prompt=[2] * 20, tokens=2)
    pool.run()
    assert pool.planner.swap.bytes_used > 0
    thief = pool.submit("c", prompt=[1] * 20, tokens=2)
    pool.run()
    assert thief.cached_tokens == 0
    owner = pool.submit("a", prompt=[1] * 20, tokens=2)
    pool.run()
    assert owner.cached_tokens == 19


def test_a_sequence_that_does_not_come_back_is_computed_again():
    pool = Simulation(slots=1, swap_tokens=1000, losses=1)
    pool.submit("a", prompt=[1] * 20, tokens=2)
    pool.run()
    pool.submit("b", prompt=[2] * 20, tokens=2)
    pool.run()
    again = pool.submit("a", prompt=[1] * 20, tokens=2)
    pool.run()
    assert again.produced == answer([1] * 20, 2)
    assert again.cached_tokens == 0


def test_a_preempted_request_whose_sequence_is_lost_is_computed_again():
    pool = Simulation(slots=1, swap_tokens=1000, losses=1)
    slow = pool.submit("slow", "background", [1] * 10, tokens=10)
    pool.steps(5)
    pool.submit("fast", "urgent", [2] * 10, tokens=3)
    pool.run()
    assert slow.produced == answer([1] * 10, 10)
    assert pool.planner.counters.recomputed_tokens > 0


def test_a_sequence_that_the_host_cannot_keep_is_computed_again():
    pool = Simulation(slots=1, swap_tokens=1000, swap_refusals=1)
    slow = pool.submit("slow", "background", [1] * 10, tokens=10)
    pool.steps(5)
    pool.submit("fast", "urgent", [2] * 10, tokens=3)
    pool.run()
    assert slow.produced == answer([1] * 10, 10)
    assert pool.planner.counters.swapped_in_bytes == 0


# ---- Cells


def test_running_out_of_cells_preempts_the_last_and_fails_nobody():
    pool = Simulation(slots=4, cells=40)
    for _ in range(8):
        for number in range(4):
            pool.submit(str(number), prompt=[number], tokens=1)
        pool.run()
    requests = [pool.submit(str(n), prompt=[n] * 4, tokens=30) for n in range(4)]
    pool.run()
    assert sum(request.squeezes for request in requests) > 0
    for number, request in enumerate(requests):
        assert request.produced == answer([number] * 4, 30)


def test_a_request_that_finds_no_cells_waits_and_says_so():
    pool = Simulation(slots=2, cells=40)
    pool.submit("a", prompt=[1] * 30, tokens=8)
    pool.step()
    for agent in ("b", "c", "d"):
        pool.submit(agent, prompt=[ord(agent) % 7] * 20, tokens=4)
    pool.step()
    assert reasons(pool) == {
        "b": "the KV cache is full",
        "c": "1 request goes first",
        "d": "2 requests go first",
    }
    pool.run()
    assert names(pool)[0] == "a"


def test_an_urgent_request_gets_the_cells_of_less_urgent_work():
    pool = Simulation(slots=2, cells=40)
    pool.submit("slow", "low", prompt=[1] * 30, tokens=8)
    pool.steps(3)
    pool.submit("fast", "urgent", prompt=[2] * 20, tokens=2)
    pool.run()
    assert names(pool) == ["fast", "slow"]


def test_nobody_is_taken_off_for_a_request_that_still_would_not_fit():
    pool = Simulation(slots=3, cells=60)
    pool.submit("other", "high", prompt=[1] * 30, tokens=20)
    pool.submit("slow", "low", prompt=[2] * 4, tokens=4)
    pool.step()
    low = pool.planner.slots.slots[1].request
    pool.steps(2)
    pool.submit("fast", "normal", prompt=[3] * 30, tokens=2)
    pool.step()
    assert low is None or low.preemptions == 0
    assert reasons(pool)["fast"] == "the KV cache is full"
    pool.run()


def test_a_prefix_is_taken_over_where_it_lies_when_there_is_no_room_for_a_copy():
    pool = Simulation(slots=2, cells=40)
    pool.submit("a", prompt=[1] * 10 + [2] * 20, tokens=1)
    pool.run()
    second = pool.submit("b", prompt=[1] * 10 + [0] * 20, tokens=4)
    pool.run()
    assert second.cached_tokens == 10
    assert second.produced == answer([1] * 10 + [0] * 20, 4)


def test_answers_are_expected_to_be_as_long_as_the_agents_answers_were():
    pool = Simulation(slots=4, cells=EXPECTED_TOKENS)
    for _ in range(3):
        pool.submit("brief", prompt=[1], tokens=2)
        pool.run()
    for number in range(4):
        pool.submit("brief", prompt=[number] * 10, tokens=100)
    pool.step()
    assert pool.planner.slots.busy == 4


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


def test_a_refused_step_evicts_then_takes_off_and_at_last_names_who_cannot_go_on():
    pool = Simulation(slots=3)
    pool.submit("idle", tokens=1)
    pool.run()
    first = pool.submit("first", prompt=[5, 5], tokens=9)
    second = pool.submit("second", prompt=[6, 6], tokens=9)
    pool.planner.plan(pool.now_us)
    assert pool.planner.refuse() is None
    assert second.preemptions == 0
    assert pool.planner.refuse() is None
    assert second.preemptions == 1
    while pool.planner.refuse() is None:
        pass
    assert pool.planner.refuse() is first


def test_a_request_that_may_not_make_way_any_more_is_given_the_cells_of_others():
    policy = Policy(width=1, context=40, quantum_tokens=1, preemptions_max=1)
    pool = Simulation(slots=2, cells=40, policy=policy)
    slow = pool.submit("slow", "low", [1] * 4, tokens=34)
    pool.steps(3)
    pool.submit("fast", "high", [2] * 20, tokens=18)
    pool.run()
    assert slow.preemptions == 1
    assert slow.produced == answer([1] * 4, 34)


# ---- Limits and deadlines


def test_an_agent_runs_as_many_requests_as_it_may_and_others_overtake():
    pool = Simulation(slots=3, cells=300)
    for number in range(3):
        pool.submit("much", prompt=[number], tokens=4, share=Share(running_max=2))
    pool.submit("other", prompt=[5], tokens=4)
    pool.step()
    assert sorted(one.agent for one in pool.planner.slots.requests()) == ["much", "much", "other"]
    pool.submit("another", "low", prompt=[6], tokens=4)
    pool.step()
    assert reasons(pool)["much"] == "its agent runs 2 requests already, as many as it may"
    pool.run()
    single = Simulation(slots=3, cells=300)
    for _ in range(2):
        single.submit("one", tokens=4, share=Share(running_max=1))
    single.step()
    assert reasons(single)["one"] == "its agent runs 1 request already, as many as it may"
    assert single.planner.waiting(0)[0].estimate_us is None


def test_an_agent_that_has_spent_its_minute_waits_for_the_next_tokens():
    pool = Simulation(slots=2)
    share = Share(tokens_per_minute=60)
    pool.submit("a", prompt=[1] * 30, tokens=33, share=share)
    pool.run()
    second = pool.submit("a", prompt=[1] * 30, tokens=2, share=share)
    assert not pool.step()
    (place,) = pool.planner.waiting(pool.last.now_us)
    assert place.reason == "its agent has spent its tokens of this minute"
    assert place.estimate_us is not None
    assert 2_000_000 < place.estimate_us < 5_000_000
    pool.run()
    assert second.started_us is not None
    assert second.started_us > 3_000_000


def test_an_answer_that_made_way_does_not_wait_for_its_agents_minute():
    policy = Policy(width=1, context=64, quantum_tokens=2)
    pool = Simulation(slots=1, policy=policy)
    share = Share(tokens_per_minute=5)
    begun = pool.submit("a", "low", tokens=20, share=share)
    fresh = pool.submit("a", "high", prompt=[6], tokens=2, share=share)
    pool.planner.cancel(fresh)
    pool.steps(5)
    pool.submit("a", "normal", prompt=[5], tokens=2, share=share)
    pool.submit("fast", "urgent", prompt=[4], tokens=2)
    pool.steps(2)
    assert begun.preemptions == 1
    while begun not in pool.finished:
        pool.step()
    assert names(pool) == ["fast", "a"]
    assert reasons(pool)["a"] == "its agent has spent its tokens of this minute"


def test_a_deadline_that_passes_ends_the_request():
    pool = Simulation(slots=1)
    running = pool.submit("a", tokens=30, deadline_us=1_000)
    waiting = pool.submit("b", tokens=1, deadline_us=1_000)
    pool.submit("c", tokens=1)
    pool.run()
    assert pool.expired == [running, waiting]
    assert names(pool) == ["c"]


def test_a_deadline_that_cannot_be_met_ends_the_request_at_once():
    pool = Simulation(slots=2, cells=400, policy=Policy(width=2, context=200))
    pool.submit("a", prompt=[1] * 9, tokens=10)
    pool.run()
    pool.submit("other", prompt=[4], tokens=60)
    pool.step()
    hopeless = pool.submit("a", prompt=[2] * 100, tokens=10, deadline_us=pool.now_us + 5_000)
    feasible = pool.submit("a", prompt=[3] * 100, tokens=10, deadline_us=pool.now_us + 40_000)
    pool.step()
    assert pool.expired == [hopeless]
    pool.run()
    assert feasible in pool.finished


@pytest.fixture
def stalled_pool(monkeypatch) -> Simulation:
    """A pool that has seen a machine a thousand times slower than it is now, and that asks in
    every step whether a deadline can be met."""
    monkeypatch.setattr(planner, "FORESEE_US", 0)
    pool = Simulation(slots=2, cells=400, policy=Policy(width=2, context=200))
    pool.pacing.observe(1, 0, 110_000)
    pool.pacing.observe(0, 100, 10_000_000)
    return pool


def test_a_deadline_alone_in_the_pool_is_tried_though_it_was_slow_before(stalled_pool):
    pool = stalled_pool
    assert pool.pacing.measured
    request = pool.submit("a", prompt=[2] * 10, tokens=10, deadline_us=4_000)
    pool.run()
    assert pool.finished == [request]


def test_of_two_whose_deadlines_seem_too_near_the_one_that_is_left_alone_goes_on(stalled_pool):
    pool = stalled_pool
    for prompt in ([2] * 10, [3] * 10):
        pool.submit("a", prompt=prompt, tokens=10, deadline_us=4_000)
    pool.run()
    assert len(pool.finished) == len(pool.expired) == 1


def test_deadlines_are_met_again_when_a_slow_hour_is_over(stalled_pool):
    pool = stalled_pool
    for _ in range(80):
        for prompt in ([2] * 10, [3] * 10):
            last = pool.submit("a", prompt=prompt, tokens=10, deadline_us=pool.now_us + 8_000)
        pool.run()
    assert {one.id for one in pool.finished[-6:]} == set(range(last.id - 5, last.id + 1))


def test_a_deadline_is_met_with_what_lies_in_the_cache():
    pool = Simulation(slots=1, cells=200)
    pool.submit("a", prompt=[2] * 100, tokens=2)
    pool.run()
    pool.submit("a", prompt=[2] * 100, tokens=2, deadline_us=pool.now_us + 4_000)
    pool.run()
    assert not pool.expired


def test_a_deadline_that_was_past_on_arrival_is_refused():
    pool = Simulation()
    pool.now_us = 100
    with pytest.raises(Failure) as failure:
        pool.submit(deadline_us=100)
    assert failure.value.code == "inference.deadline"
    assert pool.planner.idle


def test_nothing_to_do_says_when_a_deadline_comes():
    pool = Simulation(slots=1)
    share = Share(tokens_per_minute=1)
    pool.submit("a", tokens=30, share=share)
    pool.run()
    pool.submit("a", tokens=30, share=share, deadline_us=pool.now_us + 700)
    step = pool.planner.plan(pool.now_us)
    assert (step.rows, step.retry_us) == ([], 700)


# ---- Who waits


def test_the_head_of_the_queue_is_said_to_be_next():
    pool = Simulation(slots=1)
    pool.step()
    pool.submit("a")
    (place,) = pool.planner.waiting(0)
    assert (place.position, place.reason, place.estimate_us) == (
        1,
        "the next step takes it in",
        None,
    )


def test_waiting_requests_are_told_about_how_long_yet():
    pool = Simulation(slots=1, cells=300)
    pool.submit("warm", tokens=9)
    pool.run()
    pool.submit("run", prompt=[1] * 10, tokens=50)
    pool.steps(3)
    for agent in ("a", "b"):
        pool.submit(agent, prompt=[2] * 10, tokens=50)
    pool.submit("fast", "urgent", prompt=[3] * 10, tokens=5)
    pool.submit("limited", share=Share(running_max=1))
    estimates = {one.request.agent: one.estimate_us for one in pool.planner.waiting(pool.now_us)}
    assert estimates["fast"] < estimates["a"] < estimates["b"]
    assert estimates["a"] == pytest.approx(47 * 110, rel=0.5)


def test_who_waits_for_its_agents_other_request_is_told_when_that_ends():
    pool = Simulation(slots=2, cells=300)
    pool.submit("warm", prompt=[4] * 9, tokens=9)
    pool.run()
    for _ in range(2):
        pool.submit("a", tokens=9, share=Share(running_max=1))
    pool.steps(3)
    (place,) = pool.planner.waiting(pool.now_us)
    assert place.estimate_us is not None
    assert 0 < place.estimate_us < 3_000


def test_who_waits_for_a_preamble_keeps_nobody_else_waiting():
    pool = Simulation(slots=2, cells=600, policy=Policy(width=2, context=300, prefill_tokens=16))
    pool.submit("warm", tokens=9)
    pool.run()
    preamble = [number % 5 for number in range(100)]
    for agent in "abc":
        pool.submit(agent, prompt=[*preamble, 5], tokens=2)
    pool.steps(2)
    estimates = [one.estimate_us for one in pool.planner.waiting(pool.now_us)]
    assert estimates == [0, 0]


def test_of_a_long_queue_the_first_places_are_told():
    pool = Simulation(slots=1)
    for _ in range(PLACES_MAX + 5):
        pool.submit("a")
    assert [one.position for one in pool.planner.waiting(0)] == list(range(1, PLACES_MAX + 1))


def test_in_one_step_so_many_are_looked_at_that_wait_for_a_preamble(monkeypatch):
    monkeypatch.setattr(admission, "FOLLOWERS_MAX", 3)
    pool = Simulation(slots=4, cells=800, policy=Policy(width=2, context=300, prefill_tokens=16))
    preamble = [number % 5 for number in range(100)]
    for number in range(9):
        pool.submit(str(number), prompt=[*preamble, number % 7, 6], tokens=2)
    other = pool.submit("other", "low", prompt=[6] * 4, tokens=2)
    pool.step()
    assert len(pool.planner._admission.following) == 3
    assert pool.planner._admission.held == FOLLOWS
    assert other.slot is None
    pool.run()
    assert len(pool.finished) == 10


# ---- Coming and going


def test_a_cancelled_request_frees_its_slot_and_its_place():
    pool = Simulation(slots=1)
    running = pool.submit("a", tokens=30)
    waiting = pool.submit("b", tokens=30)
    pool.step()
    pool.planner.cancel(waiting)
    pool.planner.cancel(running)
    pool.planner.cancel(running)
    assert pool.planner.idle
    pool.submit("c", tokens=1)
    pool.run()
    assert names(pool) == ["c"]


def test_a_request_that_was_begun_elsewhere_goes_on_behind_what_was_produced():
    pool = Simulation()
    begun = answer([1, 2, 3], 4)
    request = pool.submit(prompt=[1, 2, 3], tokens=9, produced=begun)
    pool.run()
    assert request.produced == answer([1, 2, 3], 9)
    assert request.prompt_tokens == 3


def test_times_are_noted_as_a_request_gets_on():
    pool = Simulation(slots=1)
    pool.now_us = 50
    pool.submit("a", tokens=1)
    second = pool.submit("b", prompt=[4] * 4, tokens=2)
    pool.run()
    assert second.arrived_us == 50
    assert second.started_us == 360
    assert second.prefilled_us == second.first_us == 770


@pytest.mark.parametrize("end", ["cancel", "expire"])
def test_what_was_cut_short_does_not_teach_that_answers_are_short(end):
    pool = Simulation(slots=1, cells=400)
    for _ in range(10):
        limit = pool.now_us + 1_500 if end == "expire" else None
        request = pool.submit("a", tokens=100, deadline_us=limit)
        pool.steps(5)
        if end == "cancel":
            pool.planner.cancel(request)
        else:
            pool.run()
        pool.planner.finish(request)
    assert not pool.finished
    assert pool.planner._agents.expected_tokens(pool.submit("a", tokens=300)) == EXPECTED_TOKENS


def test_a_request_that_was_never_submitted_is_ignored():
    pool = Simulation()
    stranger = Request(99, "a", "normal", [1, 2], 9, 0)
    pool.planner.cancel(stranger)
    pool.planner.finish(stranger)
    assert pool.planner.idle
    assert len(pool.planner._agents) == 0


# ---- Rare turns


def test_what_is_being_read_back_is_shared_one_step_later():
    pool = Simulation(slots=2, cells=1000, swap_tokens=2000, policy=Policy(width=2, context=500))
    for agent in ("a", "b", "c"):
        pool.submit(agent, prompt=[ord(agent) % 7] * 100, tokens=2)
        pool.run()
    computed = pool.planner.counters.prefill_tokens
    for number in range(2):
        pool.submit("a", prompt=[ord("a") % 7] * 99 + [number], tokens=2)
    pool.step()
    assert len(pool.rows[-1]) == 1
    pool.run()
    assert pool.planner.counters.prefill_tokens <= computed + 4


def test_where_there_are_no_cells_for_what_lies_on_the_host_it_is_computed_in_pieces():
    pool = Simulation(slots=3, cells=60, swap_tokens=2000)
    for agent in ("a", "b"):
        pool.submit(agent, prompt=[ord(agent) % 7] * 5, tokens=1)
        pool.run()
    pool.submit("a", prompt=[1] * 5 + [2] * 40, tokens=2)
    pool.run()
    pool.submit("c", prompt=[3] * 50, tokens=2)
    pool.run()
    runs = pool.submit("b", prompt=[4] * 20, tokens=4)
    pool.step()
    again = pool.submit("a", prompt=[1] * 5 + [2] * 10 + [3], tokens=2)
    pool.run()
    assert runs.produced == answer([4] * 20, 4)
    assert again.produced == answer([1] * 5 + [2] * 10 + [3], 2)


def test_when_those_that_lead_find_no_cells_those_left_out_go_on():
    policy = Policy(width=1, context=40, quantum_tokens=1, preemptions_max=1)
    pool = Simulation(slots=2, cells=40, policy=policy)
    for _ in range(4):
        pool.submit("fast", "high", [6], tokens=1)
        pool.run()
    slow = pool.submit("slow", "low", [1] * 4, tokens=20)
    slow.preemptions = 1
    pool.steps(14)
    fast = pool.submit("fast", "high", [2] * 4, tokens=30)
    pool.run()
    assert fast.squeezes == 1
    assert slow.preemptions == 1
    assert slow.produced == answer([1] * 4, 20)
    assert fast.produced == answer([2] * 4, 30)


def test_the_tier_passes_over_those_that_wait_for_their_own_limits():
    pool = starved_pool(slots=2)
    share = Share(running_max=1)
    pool.submit("limited", "high", [1] * 4, tokens=150, share=share)
    pool.submit("other", "high", [2] * 4, tokens=30)
    pool.step()
    pool.submit("limited", "low", [1] * 4, tokens=5, share=share)
    low = pool.submit("slow", "low", [3] * 4, tokens=5)
    while low not in pool.finished:
        if len(pool.planner.waiting(pool.now_us)) < 4:
            pool.submit("flood", "high", [2] * 4, tokens=10)
        pool.step()
    assert low.promoted


@pytest.mark.parametrize("share", [Share(running_max=1), Share(tokens_per_minute=10)])
def test_who_waits_for_a_limit_of_its_own_earns_the_tier_no_credit(share):
    pool = starved_pool(slots=1)
    limited = pool.submit("limited", "high", [1] * 20, tokens=40, share=share)
    pool.steps(3)
    for _ in range(3):
        pool.submit("limited", "low", [1] * 4, tokens=5, share=share)
    pool.steps(30)
    assert pool.planner.steps < 60
    assert limited.slot is not None
    assert pool.now_us > 3_000
    assert pool.planner._admission.credit == 0.0
    waiting = list(pool.planner._queue.oldest())
    assert all(one.idle_since_us > 2_000 for one in waiting)


def test_the_credit_of_the_tier_is_what_one_request_can_cost():
    pool = starved_pool()
    pool.submit("slow", "background", [9] * 4, tokens=6)
    for _ in range(4_000):
        if len(pool.planner.waiting(pool.now_us)) < 2:
            pool.submit("flood", "urgent", [1] * 4, tokens=6)
        pool.step()
    assert 0 < pool.planner._admission.credit <= 200


def test_a_swapped_sequence_does_not_go_where_a_copy_is_still_to_be_made():
    pool = Simulation(slots=2, cells=400, swap_tokens=2000, policy=Policy(width=2, context=200))
    for agent in ("a", "b", "c"):
        pool.submit(agent, prompt=[ord(agent) % 7] * 20, tokens=2)
        pool.run()
    cache = pool.planner._cache
    pool.planner.slots._copied_from.update({0, 1})
    back = Request(99, "a", "normal", [ord("a") % 7] * 20, 1, pool.now_us)
    assert cache.choose(back).handle is None
    pool.planner.slots.settled()
    assert cache.choose(back).handle is not None


def test_who_counted_on_sharing_what_was_just_read_back_waits_for_a_step():
    policy = Policy(width=2, context=60, preamble_tokens_min=999)
    pool = Simulation(slots=2, cells=60, swap_tokens=2000, policy=policy)
    for agent in ("a", "b", "c"):
        pool.submit(agent, prompt=[ord(agent) % 7] * 40, tokens=1)
        pool.run()
    for number in range(2):
        pool.submit("a", prompt=[ord("a") % 7] * 40 + [number], tokens=4)
    pool.step()
    assert reasons(pool) == {"a": "the KV cache is full"}
    pool.run()
    assert len(pool.finished) == 5


def test_who_was_promoted_waits_for_its_agents_limit_after_it_made_way():
    pool = starved_pool(slots=2)
    share = Share(running_max=1)
    pool.submit("rest", "background", [5] * 4, tokens=150)
    pool.submit("flood", "high", [1] * 4, tokens=6)
    pool.step()
    low = pool.submit("slow", "low", [9] * 4, tokens=60, share=share)
    while not (low.promoted and low.served_tokens > 8):
        if len(pool.planner.waiting(pool.now_us)) < 3:
            pool.submit("flood", "high", [1] * 4, tokens=6)
        pool.step()
    for agent in ("now", "then"):
        pool.submit(agent, "urgent", [3] * 4, tokens=4)
    own = pool.submit("slow", "urgent", [3] * 4, tokens=20, share=share)
    while own.slot is None:
        pool.step()
        assert pool.planner._agents.runs("slow") <= 1
    pool.run()
    assert pool.finished.index(own) < pool.finished.index(low)


def test_what_a_cancelled_request_left_while_it_waited_is_its_agents():
    pool = Simulation(slots=2)
    pool.submit("first", prompt=[5, 5], tokens=9)
    second = pool.submit("second", prompt=[6, 6], tokens=9)
    pool.steps(3)
    pool.planner.refuse()
    (slot,) = pool.planner.slots.residents()
    assert slot.owner is second
    pool.planner.cancel(second)
    assert slot.owner is None
    assert slot.agent == "second"


def test_after_the_backend_had_no_room_no_more_run_at_once_until_one_has_ended():
    pool = Simulation(slots=3, cells=600)
    requests = [pool.submit(str(n), prompt=[n] * 4, tokens=9) for n in range(4)]
    pool.steps(2)
    assert pool.planner.refuse() is None
    assert pool.planner.refuse() is None
    pool.step()
    assert pool.planner.slots.busy == 2
    assert set(reasons(pool).values()) == {"the KV cache is full", "1 request goes first"}
    pool.run()
    for number, request in enumerate(requests):
        assert request.produced == answer([number] * 4, 9)
    assert all(request.preemptions <= 1 for request in requests)


def test_urgent_work_takes_its_place_though_the_backend_has_no_room_for_more():
    pool = Simulation(slots=3, cells=600)
    low = pool.submit("low", "low", prompt=[1] * 4, tokens=9)
    pool.submit("other", "low", prompt=[2] * 4, tokens=9)
    pool.steps(2)
    pool.planner.refuse()
    pool.submit("now", "urgent", prompt=[3] * 4, tokens=4)
    pool.step()
    assert pool.planner.slots.busy == 1
    assert pool.served() == ["now"]
    pool.run()
    assert low.produced == answer([1] * 4, 9)
