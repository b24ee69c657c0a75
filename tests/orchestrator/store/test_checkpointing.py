"""When the log is copied, when it begins anew, and who is in the way."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.store.checkpointing import (
    ALARM_SECONDS,
    HARD_RESTART_MS_MAX,
    HELD_BACK_SECONDS,
    LOG_BYTES_HARD,
    LOG_BYTES_SOFT,
    PASS_BYTES,
    READER_SECONDS_MAX,
    READS_HELD_SECONDS_MAX,
    REFUSED_SECONDS,
    RESTART_MS_MAX,
    TAIL_BYTES_MAX,
    Log,
    after_pass,
    after_refused_pass,
    after_refused_restart,
    after_restart,
    asks,
    holds_reads,
    next_action,
    observed,
    overstays,
    patience_ms,
    pause,
)

NOW = 1000.0


def test_a_log_is_left_alone_until_a_pass_is_worth_its_while() -> None:
    assert next_action(Log(used=PASS_BYTES - 1), NOW) == "wait"
    assert next_action(Log(used=PASS_BYTES), NOW) == "pass"
    assert next_action(Log(used=2 * PASS_BYTES, copied=PASS_BYTES + 1), NOW) == "wait"


def test_a_commit_asks_for_a_look_when_there_is_something_to_do() -> None:
    log = Log(used=2 * PASS_BYTES, copied=PASS_BYTES)
    assert not asks(log, 2 * PASS_BYTES - 1)
    assert asks(log, 2 * PASS_BYTES)
    assert asks(log, PASS_BYTES - 1), "the log has begun anew"


def test_a_large_log_is_restarted_once_passes_have_left_little() -> None:
    behind = Log(used=LOG_BYTES_SOFT, copied=0)
    assert next_action(behind, NOW) == "pass"
    close = msgspec.structs.replace(behind, copied=LOG_BYTES_SOFT - TAIL_BYTES_MAX)
    assert next_action(close, NOW) == "restart"
    assert next_action(msgspec.structs.replace(close, used=LOG_BYTES_SOFT - 1), NOW) == "wait"


def test_beyond_the_hard_bound_commits_wait_only_if_passes_do_not_gain() -> None:
    left = 100 * TAIL_BYTES_MAX
    gaining = Log(used=LOG_BYTES_HARD, copied=LOG_BYTES_HARD - left, worked=2 * left)
    assert next_action(gaining, NOW) == "pass"
    losing = msgspec.structs.replace(gaining, worked=2 * left - 1)
    assert next_action(losing, NOW) == "restart"
    in_vain = msgspec.structs.replace(losing, held_back=True)
    assert next_action(in_vain, NOW) == "pass"


def test_a_reader_in_the_way_is_asked_again_and_not_at_once() -> None:
    held = after_pass(Log(used=LOG_BYTES_SOFT), LOG_BYTES_SOFT, PASS_BYTES, NOW)
    assert held.held_back
    assert next_action(held, NOW) == "wait"
    assert pause(held, NOW) == pytest.approx(HELD_BACK_SECONDS)
    assert next_action(held, NOW + HELD_BACK_SECONDS) == "pass"
    assert pause(held, NOW + HELD_BACK_SECONDS) == 0.0
    assert next_action(after_refused_pass(Log(used=PASS_BYTES), NOW), NOW) == "wait"


def test_a_refused_restart_does_not_keep_passes_away() -> None:
    refused = after_refused_restart(Log(used=LOG_BYTES_SOFT, copied=LOG_BYTES_SOFT), NOW)
    assert next_action(refused, NOW) == "wait"
    grown = observed(refused, LOG_BYTES_SOFT + PASS_BYTES, NOW)
    assert next_action(grown, NOW) == "pass"
    assert next_action(refused, NOW + REFUSED_SECONDS) == "restart"


def test_a_whole_pass_is_learned() -> None:
    passed = after_pass(Log(used=PASS_BYTES, copied=5), PASS_BYTES, PASS_BYTES, NOW)
    assert passed == Log(used=PASS_BYTES, copied=PASS_BYTES, worked=PASS_BYTES - 5)


def test_a_log_that_begins_anew_has_nothing_copied() -> None:
    assert observed(Log(used=9, copied=9, worked=9, held_back=True), 3, NOW) == Log(used=3)
    assert after_restart(Log(used=9, copied=9), NOW) == Log()


def test_an_alarm_begins_after_a_while_and_ends_with_a_small_log() -> None:
    log = observed(Log(), LOG_BYTES_HARD, NOW)
    assert not log.alarmed
    log = observed(log, LOG_BYTES_HARD, NOW + ALARM_SECONDS)
    assert log.alarmed
    log = observed(log, LOG_BYTES_SOFT, NOW + ALARM_SECONDS)
    assert log.alarmed and log.over_since is None
    assert not observed(log, LOG_BYTES_SOFT - 1, NOW + ALARM_SECONDS).alarmed


def test_only_a_long_read_with_a_large_log_is_ended() -> None:
    large, small = Log(used=LOG_BYTES_HARD), Log(used=LOG_BYTES_HARD - 1)
    assert overstays(large, READER_SECONDS_MAX)
    assert not overstays(large, READER_SECONDS_MAX - 0.1)
    assert not overstays(small, 1000 * READER_SECONDS_MAX)


def test_new_reads_wait_for_a_while_after_one_was_ended() -> None:
    large = Log(used=LOG_BYTES_HARD)
    assert holds_reads(large, NOW, NOW + READS_HELD_SECONDS_MAX - 0.1)
    assert not holds_reads(large, NOW, NOW + READS_HELD_SECONDS_MAX)
    assert not holds_reads(Log(), NOW, NOW)


def test_a_restart_waits_longer_where_it_matters_more() -> None:
    assert patience_ms(Log(used=LOG_BYTES_HARD - 1)) == RESTART_MS_MAX
    assert patience_ms(Log(used=LOG_BYTES_HARD)) == HARD_RESTART_MS_MAX


@given(
    writes=st.lists(st.integers(0, 8 * PASS_BYTES), min_size=1, max_size=300),
    share=st.floats(0.0, 1.5),
)
def test_without_readers_the_log_is_bounded_however_slow_passes_are(
    writes: list[int], share: float
) -> None:
    """While a pass copies, `share` of that is committed beside it."""
    log, now = Log(), NOW
    for written in writes:
        log = observed(log, log.used + written, now)
        while (action := next_action(log, now)) != "wait":
            if action == "restart":
                log = after_restart(log, now)
                break
            held = log.used
            left = held - log.copied
            log = after_pass(log, held, held, now)
            log = observed(log, held + int(left * share), now)
        now += 1.0
        assert log.used <= 2.5 * (LOG_BYTES_HARD + 8 * PASS_BYTES)
