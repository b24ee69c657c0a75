"""The deadline of a call: what it counts, and the thread that acts on it."""

import os
import threading
import time

import pytest

from agent_runtime.component.ticker import NEVER, Countdown, Ticker

SECONDS_MAX = 20
BRIEFLY = 0.02
LONG = 3600.0


# ---- What is counted -----------------------------------------------------------------------------


def test_nothing_is_due_before_a_call() -> None:
    assert Countdown().due_at == NEVER


def test_a_call_is_due_when_its_time_is_up() -> None:
    countdown = Countdown()
    countdown.arm(100.0, 10.0)
    assert countdown.due_at == 110.0


def test_a_pause_does_not_count() -> None:
    countdown = Countdown()
    countdown.arm(100.0, 10.0)
    countdown.pause(104.0)
    assert countdown.due_at == NEVER
    countdown.resume(500.0)
    assert countdown.due_at == 506.0


def test_a_pause_after_the_end_leaves_nothing() -> None:
    countdown = Countdown()
    countdown.arm(100.0, 10.0)
    countdown.pause(120.0)
    countdown.resume(500.0)
    assert countdown.due_at == 500.0


def test_a_call_that_ended_in_a_pause_is_not_taken_up_again() -> None:
    countdown = Countdown()
    countdown.arm(100.0, 10.0)
    countdown.pause(104.0)
    countdown.disarm()
    countdown.resume(500.0)
    assert countdown.due_at == NEVER


def test_a_pause_between_calls_is_none() -> None:
    countdown = Countdown()
    countdown.pause(100.0)
    countdown.resume(200.0)
    assert countdown.due_at == NEVER


# ---- The thread ----------------------------------------------------------------------------------


class Increments:
    """Counts them, and waits for them."""

    def __init__(self) -> None:
        self.count = 0
        self._more = threading.Condition()

    def __call__(self) -> None:
        with self._more:
            self.count += 1
            self._more.notify_all()

    def wait(self, count: int) -> None:
        with self._more:
            assert self._more.wait_for(lambda: self.count >= count, SECONDS_MAX)


@pytest.fixture
def increments() -> Increments:
    return Increments()


@pytest.fixture
def ticker(increments: Increments) -> Ticker:
    ticker = Ticker(increments)
    ticker.start()
    return ticker


def test_a_call_whose_time_is_up_is_ended(ticker: Ticker, increments: Increments) -> None:
    ticker.arm(BRIEFLY)
    increments.wait(1)


def test_a_call_that_goes_on_is_ended_again(ticker: Ticker, increments: Increments) -> None:
    ticker.arm(BRIEFLY)
    increments.wait(3)


def test_a_deadline_that_was_armed_before_the_start_holds(increments: Increments) -> None:
    ticker = Ticker(increments)
    ticker.arm(BRIEFLY)
    ticker.start()
    increments.wait(1)


def test_a_call_that_has_ended_is_left_alone(ticker: Ticker, increments: Increments) -> None:
    ticker.arm(BRIEFLY)
    ticker.disarm()
    ticker.arm(5 * BRIEFLY)  # the next one, which is ended instead
    increments.wait(1)
    ticker.disarm()
    assert increments.count == 1


def test_a_call_that_waits_is_left_alone_until_it_goes_on(
    ticker: Ticker, increments: Increments
) -> None:
    ticker.arm(BRIEFLY)
    ticker.pause()
    time.sleep(5 * BRIEFLY)
    assert increments.count == 0
    ticker.resume()
    increments.wait(1)


def test_a_short_deadline_after_a_long_one_is_kept(ticker: Ticker, increments: Increments) -> None:
    ticker.arm(LONG)
    ticker.disarm()
    ticker.arm(BRIEFLY)
    increments.wait(1)


def test_every_one_of_many_calls_that_do_not_end_is_ended(
    ticker: Ticker, increments: Increments
) -> None:
    for call in range(20):
        for _ in range(50):
            ticker.arm(LONG)
            ticker.disarm()
        before = increments.count
        ticker.arm(BRIEFLY / (1 + call))
        increments.wait(before + 1)
        ticker.disarm()


def test_no_increment_comes_once_a_call_is_disarmed(ticker: Ticker, increments: Increments) -> None:
    for microseconds in range(0, 400, 2):
        ticker.arm(microseconds / 1e6)
        ticker.disarm()
        count = increments.count
        os.sched_yield()
        assert increments.count == count


def test_an_idle_ticker_sleeps_for_good(ticker: Ticker, increments: Increments) -> None:
    ticker.arm(BRIEFLY)
    increments.wait(1)
    ticker.disarm()
    assert ticker._seconds_to_sleep() is None


def test_other_threads_have_the_stack_that_they_had_before() -> None:
    usual = threading.stack_size()
    Ticker(lambda: None).start()
    assert threading.stack_size() == usual
