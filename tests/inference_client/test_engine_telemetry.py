"""Distributions as an engine counts them."""

from inference_client.engine.telemetry import Histogram, Telemetry


def test_a_value_is_counted_in_its_bucket_alone():
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 7.0):
        histogram.observe(value)
    found = histogram.snapshot()
    assert (found.bounds, found.counts, found.total) == ([1.0, 2.0], [2, 1, 1], 10.0)


def test_a_snapshot_does_not_change_any_more():
    histogram = Histogram((1.0,))
    before = histogram.snapshot()
    histogram.observe(1.0)
    assert before.counts == [0, 0]


def test_tokens_that_came_together_share_the_time():
    telemetry = Telemetry()
    telemetry.produced("high", 4, 40_000)
    found = telemetry.inter_token_seconds["high"].snapshot()
    assert sum(found.counts) == 4
    assert abs(found.total - 0.04) < 1e-9
    assert sum(telemetry.inter_token_seconds["low"].snapshot().counts) == 0


def test_a_step_counts_its_time_and_its_tokens():
    telemetry = Telemetry()
    telemetry.stepped(30_000, 9)
    assert telemetry.step_seconds.snapshot().total == 0.03
    assert telemetry.step_tokens.snapshot().total == 9
