"""What a new version has to show before it is kept, and what sends it back."""

import pytest

from orchestrator.bus.lifecycle import IllegalTransitionError
from orchestrator.components.probation import (
    MESSAGES_MAX,
    PROBATION,
    US_MAX,
    Degraded,
    Event,
    Failed,
    Handled,
    Probation,
    Refused,
    Terms,
    TimePassed,
    observe,
)

START_US = 1_800_000_000_000_000
SECOND = 1_000_000
TERMS = Terms(messages=3, us=60 * SECOND)


def after(*events: tuple[Event, int], terms: Terms = TERMS) -> Probation:
    """The probation after events, each with its second since the handover."""
    probation = Probation(terms=terms, since_us=START_US)
    for event, second in events:
        probation = observe(probation, event, START_US + second * SECOND)
    return probation


def watched(handled: int = 0, *, second: int = 0) -> Probation:
    return after(*[(Handled(), second)] * handled)


def test_messages_alone_do_not_end_it() -> None:
    probation = watched(100, second=59)
    assert (probation.state, probation.handled) == ("watched", 100)
    assert probation.due_us == START_US + TERMS.us


def test_time_alone_does_not_end_it() -> None:
    probation = observe(watched(2), TimePassed(), START_US + 10**6 * SECOND)
    assert (probation.state, probation.due_us) == ("watched", None)


def test_the_last_message_after_its_time_ends_it() -> None:
    probation = observe(watched(2), Handled(), START_US + TERMS.us)
    assert probation.state == "kept" and probation.over
    assert probation.reason == "It has handled 3 messages in 60 s."


def test_the_time_after_its_last_message_ends_it() -> None:
    probation = watched(3)
    assert probation.due_us is not None
    assert observe(probation, TimePassed(), probation.due_us - 1).state == "watched"
    assert observe(probation, TimePassed(), probation.due_us).state == "kept"


def test_without_terms_it_is_over_with_the_handover() -> None:
    assert after((TimePassed(), 0), terms=Terms(messages=0, us=0)).state == "kept"


def refusing(refused: int, handled: int = 0) -> Probation:
    return after(*[(Handled(), 1)] * handled, *[(Refused(), 1)] * refused)


def test_what_it_refuses_it_has_not_handled() -> None:
    probation = refusing(2, handled=2)
    assert (probation.handled, probation.refused, probation.due_us) == (2, 2, None)


@pytest.mark.parametrize(("refused", "handled"), [(2, 0), (4, 4), (3, 3)])
def test_some_refusals_do_not_send_it_back(refused: int, handled: int) -> None:
    assert refusing(refused, handled).state == "watched"


@pytest.mark.parametrize(("refused", "handled"), [(3, 0), (3, 2), (5, 4)])
def test_more_refusals_than_messages_handled_do(refused: int, handled: int) -> None:
    probation = refusing(refused, handled)
    assert probation.state == "reverted"
    assert probation.reason == f"It has refused {refused} of {refused + handled} messages."


def test_a_refusal_can_be_what_shows_that_its_time_is_over() -> None:
    assert after(*[(Handled(), 1)] * 3, (Refused(), 60)).state == "kept"


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (Failed("It trapped."), "It trapped."),
        (Degraded("degraded", "no sensor"), "It reported to be degraded: no sensor"),
        (Degraded("overloaded", "late"), "It reported to be overloaded: late"),
    ],
)
def test_what_a_good_version_does_not_do_sends_it_back(event: Event, reason: str) -> None:
    probation = observe(watched(2), event, START_US + SECOND)
    assert (probation.state, probation.reason) == ("reverted", reason)
    assert probation.over and probation.due_us is None


@pytest.mark.parametrize("state", ["kept", "reverted"])
@pytest.mark.parametrize("event", [Failed("x"), Degraded("degraded", "x")])
def test_what_is_over_stays_so(state: str, event: Event) -> None:
    over = Probation(terms=TERMS, since_us=START_US, state=state)  # type: ignore[arg-type]
    with pytest.raises(IllegalTransitionError):
        observe(over, event, START_US)


def test_only_what_watches_can_be_kept() -> None:
    kept = [before for (before, event), state in PROBATION.table.items() if state == "kept"]
    assert kept == ["watched"]


@pytest.mark.parametrize(
    "terms", [(-1, 0), (0, -1), (MESSAGES_MAX + 1, 0), (0, US_MAX + 1)], ids=str
)
def test_terms_out_of_bounds_are_refused(terms: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="a probation has"):
        Terms(messages=terms[0], us=terms[1])
