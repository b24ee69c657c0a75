"""What a step costs, as it is learned from the steps; and what is learned of the agents."""

import random

import pytest

from inference_client.engine.planning import agents as agents_module
from inference_client.engine.planning.agents import EXPECTED_TOKENS, RETURN_US, Agents
from inference_client.engine.planning.pacing import (
    PRIOR_DECODE_US,
    PRIOR_PREFILL_US,
    PRIOR_SWAP_US,
    SURPRISE_MAX,
    WEIGHT,
    Pacing,
)
from inference_client.engine.planning.request import Request
from ipc_protocol.inference import Share


def paced(*decodes: tuple[int, int]) -> Pacing:
    pacing = Pacing()
    for sequences, elapsed_us in decodes:
        pacing.observe(sequences, 0, elapsed_us)
    return pacing


# ---- Steps


def test_before_anything_was_measured_there_are_guesses():
    pacing = Pacing()
    assert not pacing.measured
    assert pacing.decode_us(4) == PRIOR_DECODE_US
    assert pacing.prefill_us == PRIOR_PREFILL_US
    assert pacing.swap_us(1000) == 1000 * PRIOR_SWAP_US
    assert pacing.width(7) == 7


def test_the_first_measurement_replaces_the_guess():
    pacing = paced((1, 6_000))
    pacing.observe(0, 100, 430_000)
    pacing.observe_swap(1000, 50)
    assert pacing.measured
    assert pacing.decode_us(1) == 6_000
    assert pacing.prefill_us == 4_300
    assert pacing.swap_us(100) == 5


def test_prefill_beside_decodes_is_what_they_do_not_explain():
    pacing = paced((1, 6_000))
    pacing.observe(1, 10, 49_000)
    assert pacing.prefill_us == 4_300


def test_too_little_prefill_teaches_nothing_and_neither_does_an_empty_step():
    pacing = Pacing()
    pacing.observe(1, 3, 49_000)
    pacing.observe(0, 0, 49_000)
    assert not pacing.measured
    assert pacing.prefill_us == PRIOR_PREFILL_US


def test_a_little_prefill_says_what_it_costs_at_most():
    pacing = Pacing()
    pacing.observe(0, 100, 430_000)
    pacing.observe(1, 2, 49_000)
    assert pacing.prefill_us == 4_300
    pacing.observe(1, 2, 4_300)
    assert pacing.prefill_us == pytest.approx(4_300 - WEIGHT * 2_150)


def test_a_step_that_was_faster_than_its_decodes_does_not_make_prefill_free():
    pacing = paced((1, 6_000))
    pacing.observe(1, 10, 5_000)
    assert pacing.prefill_us > 0


def test_between_measured_numbers_of_sequences_the_time_is_interpolated():
    pacing = paced((2, 10_000), (8, 22_000))
    assert pacing.decode_us(1) == 10_000
    assert pacing.decode_us(4) == 14_000
    assert pacing.decode_us(3) == pacing.decode_us(4)
    assert pacing.decode_us(16) == 44_000


def test_a_step_is_never_slower_than_one_with_more_sequences():
    pacing = paced((1, 900_000), (4, 40_000), (8, 30_000))
    assert [pacing.decode_us(n) for n in (1, 2, 4, 8, 16)] == [30_000] * 4 + [60_000]


def test_one_stall_changes_little():
    pacing = paced((1, 6_000), (1, 6_000_000))
    assert pacing.decode_us(1) == pytest.approx(6_000 * (1 + WEIGHT * (SURPRISE_MAX - 1)))


def test_a_real_change_is_followed_within_some_steps():
    pacing = paced((1, 6_000), *[(1, 60_000)] * 12)
    assert pacing.decode_us(1) > 50_000


def test_noisy_times_settle_near_their_mean():
    chance = random.Random(5)
    pacing = paced(*[(4, int(30_000 * chance.uniform(0.8, 1.2))) for _ in range(200)])
    assert pacing.decode_us(4) == pytest.approx(30_000, rel=0.1)


def test_a_device_is_as_wide_as_its_steps_stay_fast():
    assert paced((1, 6_000), (4, 30_000)).width(4) == 1
    assert paced((1, 10_000), (4, 12_000), (16, 40_000)).width(1) == 4
    assert paced((1, 10_000), (32, 12_000)).width(8) == 32
    assert paced((1, 10_000), (4, 12_000)).width(8) == 8
    assert paced((4, 12_000)).width(3) == 3


def test_a_chunk_fits_into_the_time_that_is_left_and_is_never_nothing():
    pacing = paced((4, 30_000))
    pacing.observe(0, 100, 400_000)
    assert pacing.chunk(250_000, 4, 8, 512) == 48
    assert pacing.chunk(1_000_000, 0, 8, 512) == 248
    assert pacing.chunk(10_000, 4, 8, 512) == 8
    assert pacing.chunk(60_000, 4, 1, 512) == 7
    assert pacing.chunk(9_000_000, 4, 8, 512) == 512


# ---- Agents


def request(agent="a", at_us=0, tokens_max=1000, produced=0, share=None, prompt=(1, 2)) -> Request:
    tokens = list(prompt) + [7] * produced
    return Request(
        1, agent, "normal", tokens, tokens_max, at_us, (), share or Share(), None, len(prompt)
    )


def test_an_agent_nobody_knows_is_expected_to_answer_briefly_and_to_return_in_a_minute():
    agents = Agents()
    assert agents.expected_tokens(request()) == EXPECTED_TOKENS
    assert agents.expected_tokens(request(tokens_max=5)) == 5
    assert agents.return_us("a", 0) == RETURN_US
    assert agents.reuse("a") == 1.0
    assert agents.runs("a") == 0
    assert not agents.has_returned("a")
    assert agents.allowed_in_us("a", 0) == 0


def test_the_length_of_answers_is_learned_with_a_margin():
    agents = Agents()
    agents.arrived(request())
    assert agents.expected_tokens(request()) == EXPECTED_TOKENS
    for _ in range(30):
        agents.answered(request(produced=40))
    assert 40 <= agents.expected_tokens(request()) <= 45
    assert agents.expected_tokens(request(produced=30)) in range(10, 16)
    assert agents.expected_tokens(request(produced=90)) == 1


def test_who_ran_out_of_cells_is_expected_to_need_twice_as_many():
    agents = Agents()
    one = request()
    one.squeezes = 2
    assert agents.expected_tokens(one) == 4 * EXPECTED_TOKENS
    one.squeezes = 5_000
    assert agents.expected_tokens(one) == 1000


def test_an_agent_is_expected_back_as_often_as_it_came():
    agents = Agents()
    for number in range(5):
        agents.arrived(request(at_us=number * 1_000))
    assert agents.has_returned("a")
    assert agents.return_us("a", 4_100) == 1_000
    assert agents.return_us("a", 14_000) == 10_000


def test_what_part_of_a_prompt_comes_again_is_learned():
    agents = Agents()
    for number in range(20):
        one = request()
        one.hashes = [1, 2, 3, 10 + number]
        agents.prompted(one)
    assert agents.reuse("a") == pytest.approx(0.75, abs=0.01)


def test_a_minute_of_tokens_fills_evenly_and_may_be_overdrawn():
    agents = Agents()
    share = Share(tokens_per_minute=60)
    agents.arrived(request(share=share))
    assert agents.allowed_in_us("a", 0) == 0
    agents.spend("a", 62, 0)
    assert agents.allowed_in_us("a", 0) == pytest.approx(3_000_000, rel=0.01)
    assert agents.allowed_in_us("a", 2_000_000) == pytest.approx(1_000_000, rel=0.01)
    assert agents.allowed_in_us("a", 3_100_000) == 0
    agents.spend("a", 60, 1_000_000_000)
    assert agents.allowed_in_us("a", 1_000_000_000) > 0, "no more than a minute is saved up"


def test_who_has_no_limit_spends_freely_and_a_new_limit_begins_full():
    agents = Agents()
    agents.arrived(request())
    agents.spend("a", 10_000, 0)
    assert agents.allowed_in_us("a", 0) == 0
    agents.arrived(request(share=Share(tokens_per_minute=10)))
    assert agents.allowed_in_us("a", 0) == 0


def test_the_agent_seen_longest_ago_is_forgotten_unless_it_runs(monkeypatch):
    monkeypatch.setattr(agents_module, "AGENTS_MAX", 2)
    agents = Agents()
    for number, name in enumerate("abc"):
        agents.arrived(request(name, at_us=number))
        if name != "b":
            agents.started(request(name))
    assert (agents.runs("a"), agents.runs("c"), len(agents)) == (1, 1, 2)
    agents.started(request("d"))
    agents.arrived(request("d", at_us=9))
    assert len(agents) == 3, "all of them run"
    agents.stopped(request("a"))
    agents.arrived(request("d", at_us=10))
    assert (agents.runs("d"), len(agents)) == (1, 2)
