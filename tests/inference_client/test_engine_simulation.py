"""The pool beside first come, first served, over minutes of simulated time."""

import json

import pytest

from inference_client.engine.planning import simulation
from inference_client.engine.planning.simulation import (
    Arrival,
    Fifo,
    Pooled,
    StepCosts,
    compare,
    jain,
    load,
    measured,
    serve,
)
from ipc_protocol.values import PRIORITIES


def test_the_fairness_index_is_1_for_equals_and_1_of_n_where_one_has_everything():
    assert jain([0.5, 0.5, 0.5]) == pytest.approx(1.0)
    assert jain([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
    assert jain([0.0, 0.0]) == 0.0


def test_a_seed_is_a_load():
    first, again, other = load(1, 2), load(1, 2), load(2, 2)
    assert [one.prompt for one in first] == [one.prompt for one in again]
    assert [one.at_us for one in first] != [one.at_us for one in other]
    assert sum(simulation.AGENTS.values()) == 3 * simulation.SLOTS


@pytest.mark.parametrize("server", [Pooled, Fifo])
def test_every_arrival_is_answered(server):
    arrivals = load(3, 1)
    end_us = serve(server(StepCosts()), arrivals)
    assert all(one.at_us < (one.first_us or 0) <= (one.end_us or 0) <= end_us for one in arrivals)


def test_first_come_is_first_served():
    arrivals = [Arrival(n, n, "a", PRIORITIES[-n % 5], [n] * 100, 3) for n in range(1, 12)]
    serve(Fifo(StepCosts()), arrivals)
    firsts = [one.first_us for one in arrivals]
    assert firsts == sorted(firsts, key=lambda one: one or 0)


def test_under_the_same_load_the_pool_does_better_in_every_class():
    result = compare(seed=4, minutes=3)
    pool, fifo = result["pool"], result["fifo"]
    for priority in PRIORITIES:
        mine, theirs = pool["classes"][priority], fifo["classes"][priority]
        assert mine["goodput_tokens_per_second"] >= theirs["goodput_tokens_per_second"]
    assert pool["classes"]["urgent"]["longest_wait_seconds"] < 5
    assert pool["prefilled_tokens"] < fifo["prefilled_tokens"] / 2
    assert pool["seconds"] < fifo["seconds"]


def test_only_classes_that_came_are_measured():
    arrivals = [Arrival(1, 0, "a", "low", [1], 2, first_us=5, end_us=9)]
    assert list(measured(arrivals, 1)) == ["low"]


def test_the_comparison_is_printed_for_people_and_for_programs(capsys):
    assert simulation.main(["--minutes", "0.5"]) == 0
    assert "goodput" in capsys.readouterr().out
    assert simulation.main(["--minutes", "0.5", "--json", "--seed", "7"]) == 0
    assert json.loads(capsys.readouterr().out)["seed"] == 7
