"""Messages counted by topic: in all, and over the last minute."""

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.bus.traffic import OTHERS, TOPICS_MAX, US, WINDOW_SECONDS, Traffic

NOW_US = 1_800_000_000 * US


def test_a_rate_is_taken_over_the_last_minute() -> None:
    traffic = Traffic(NOW_US - 3600 * US)
    traffic.count("a", 30, NOW_US)
    traffic.count("a", 30, NOW_US + 59 * US)
    assert traffic.rates(NOW_US + 59 * US) == {"a": 1.0}
    assert traffic.rates(NOW_US + 60 * US) == {"a": 0.5}
    assert traffic.rates(NOW_US + 600 * US) == {"a": 0.0}
    assert traffic.messages() == {"a": 60}


def test_in_the_first_minute_a_rate_is_taken_over_what_there_was_of_it() -> None:
    traffic = Traffic(NOW_US)
    traffic.count("a", 20, NOW_US)
    assert traffic.rates(NOW_US) == {"a": 20.0}
    assert traffic.rates(NOW_US + 10 * US) == {"a": 2.0}


def test_a_clock_that_goes_back_loses_nothing() -> None:
    traffic = Traffic(NOW_US - 3600 * US)
    traffic.count("a", 1, NOW_US)
    traffic.count("a", 1, NOW_US - 30 * US)
    assert traffic.rates(NOW_US) == {"a": 2 / WINDOW_SECONDS}


def test_topics_beyond_the_limit_are_counted_as_one() -> None:
    traffic = Traffic(NOW_US)
    for number in range(TOPICS_MAX + 2):
        traffic.count(f"t{number}", 1, NOW_US)
    counted = traffic.messages()
    assert (len(counted), counted[OTHERS]) == (TOPICS_MAX + 1, 2)


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(1, 5)), max_size=60))
def test_the_window_holds_what_came_in_the_last_minute(events: list[tuple[int, int]]) -> None:
    traffic = Traffic(0)
    last = 1000 + max((second for second, _ in events), default=0)
    for second, number in sorted(events):
        traffic.count("a", number, (1000 + second) * US)
    recent = sum(number for second, number in events if 1000 + second > last - WINDOW_SECONDS)
    rate = traffic.rates(last * US).get("a", 0.0)
    assert round(rate * WINDOW_SECONDS) == recent
