"""The restart policy, the life of a child and the idea of a hang: all pure, so time is a number."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.supervision.child import (
    CHILD,
    EVENT_OF,
    ChildEvent,
    ChildState,
    ImpossibleTransition,
    advance,
)
from orchestrator.supervision.hang import Activity, heard, is_hung
from orchestrator.supervision.restart import (
    RELEASE_QUESTION,
    RELEASE_WORDS,
    Died,
    Finish,
    Quarantine,
    Ready,
    Released,
    Restart,
    RestartDecision,
    RestartPolicy,
    RestartState,
    RestartType,
    Run,
    decide,
    releases,
)

SECOND_US = 1_000_000
PATIENT = RestartPolicy(deaths_max=1000)
"""Never quarantines in these tests."""


def die_repeatedly(
    policy: RestartPolicy, times: int, *, lived_us: int = 0
) -> list[RestartDecision]:
    state, now_us, decisions = RestartState(), 0, list[RestartDecision]()
    for _ in range(times):
        state, _ = decide(policy, state, Ready(), now_us)
        now_us += lived_us
        state, decision = decide(policy, state, Died(), now_us)
        decisions.append(decision)
        if isinstance(decision, Restart):
            now_us += decision.delay_us
    return decisions


# ---- Backoff -------------------------------------------------------------------------------------


def test_the_wait_doubles_from_200_ms_to_30_s() -> None:
    delays = [d.delay_us for d in die_repeatedly(PATIENT, 10) if isinstance(d, Restart)]
    assert [delay / SECOND_US for delay in delays] == [
        0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30,
    ]  # fmt: skip


def test_a_stable_life_starts_the_waits_over() -> None:
    state = RestartState(streak=7, ready_us=0)
    _, decision = decide(PATIENT, state, Died(), PATIENT.stable_us)
    assert decision == Restart(PATIENT.backoff_us_min)


def test_a_life_just_short_of_stable_does_not() -> None:
    state = RestartState(streak=1, ready_us=0)
    _, decision = decide(PATIENT, state, Died(), PATIENT.stable_us - 1)
    assert decision == Restart(2 * PATIENT.backoff_us_min)


def test_time_spent_starting_is_no_life() -> None:
    state, _ = decide(PATIENT, RestartState(streak=1), Died(), 10 * PATIENT.stable_us)
    _, decision = decide(PATIENT, state, Died(), 20 * PATIENT.stable_us)
    assert decision == Restart(4 * PATIENT.backoff_us_min)


# ---- Intensity -----------------------------------------------------------------------------------


def test_one_death_over_the_intensity_quarantines() -> None:
    policy = RestartPolicy()
    decisions = die_repeatedly(policy, 6)
    assert [type(decision) for decision in decisions] == [Restart] * 5 + [Quarantine]
    assert decisions[-1] == Quarantine(deaths=6, window_us=policy.window_us)


def test_deaths_that_are_spread_out_never_quarantine() -> None:
    policy = RestartPolicy()
    decisions = die_repeatedly(policy, 50, lived_us=policy.window_us // policy.deaths_max)
    assert all(isinstance(decision, Restart) for decision in decisions)


def test_a_release_clears_the_slate() -> None:
    state = RestartState(deaths_us=(1, 2, 3, 4, 5), streak=5)
    assert decide(RestartPolicy(), state, Released(), 6) == (RestartState(), Restart(0))


# ---- Types ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_", "orderly", "restarts"),
    [
        (RestartType.PERMANENT, True, True),
        (RestartType.PERMANENT, False, True),
        (RestartType.TRANSIENT, True, False),
        (RestartType.TRANSIENT, False, True),
        (RestartType.TEMPORARY, True, False),
        (RestartType.TEMPORARY, False, False),
    ],
)
def test_the_type_says_which_death_is_answered(
    type_: RestartType, orderly: bool, restarts: bool
) -> None:
    _, decision = decide(RestartPolicy(type=type_), RestartState(), Died(orderly=orderly), 0)
    assert isinstance(decision, Restart if restarts else Finish)


@pytest.mark.parametrize("type_", RestartType)
def test_a_death_that_somebody_else_caused_is_not_held_against_it(type_: RestartType) -> None:
    policy = RestartPolicy(type=type_)
    before = RestartState(deaths_us=(1, 2, 3, 4, 5), streak=5, ready_us=6)
    after, decision = decide(policy, before, Died(own=False), 7)
    if type_ is RestartType.TEMPORARY:
        assert decision == Finish()
    else:
        assert decision == Restart(0)
        assert (after.deaths_us, after.streak) == (before.deaths_us, before.streak)


def test_readiness_needs_no_answer() -> None:
    assert decide(RestartPolicy(), RestartState(), Ready(), 7) == (RestartState(ready_us=7), Run())


@pytest.mark.parametrize(
    "values",
    [
        {"backoff_us_min": 0},
        {"backoff_us_min": 2, "backoff_us_max": 1},
        {"deaths_max": 0},
        {"window_us": 0},
        {"stable_us": 0},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        RestartPolicy(**values)  # type: ignore[arg-type]


# ---- Properties ----------------------------------------------------------------------------------

policies = st.builds(
    RestartPolicy,
    type=st.sampled_from(RestartType),
    backoff_us_min=st.integers(1, 10**6),
    backoff_us_max=st.integers(10**6, 10**9),
    stable_us=st.integers(1, 10**9),
    deaths_max=st.integers(1, 20),
    window_us=st.integers(1, 10**9),
)
histories = st.lists(
    st.tuples(
        st.integers(0, 10**8),
        st.one_of(
            st.just(Ready()), st.just(Released()), st.builds(Died, st.booleans(), st.booleans())
        ),
    ),
    max_size=60,
)


@given(policies, histories)
def test_whatever_happens_the_wait_and_the_memory_stay_within_bounds(
    policy: RestartPolicy, history: list[tuple[int, Ready | Died | Released]]
) -> None:
    state, now_us = RestartState(), 0
    for passed_us, event in history:
        now_us += passed_us
        state, decision = decide(policy, state, event, now_us)
        assert len(state.deaths_us) <= policy.deaths_max
        assert all(at <= now_us for at in state.deaths_us)
        if isinstance(decision, Restart):
            assert 0 <= decision.delay_us <= policy.backoff_us_max
        if isinstance(decision, Quarantine):
            assert decision.deaths == policy.deaths_max + 1


@given(policies, st.integers(1, 200))
def test_waits_never_shrink_while_a_child_keeps_dying(policy: RestartPolicy, times: int) -> None:
    delays = [d.delay_us for d in die_repeatedly(policy, times) if isinstance(d, Restart)]
    until_quarantine = delays[: policy.deaths_max]
    assert until_quarantine == sorted(until_quarantine)


# ---- The life of a child -------------------------------------------------------------------------


@pytest.mark.parametrize("state", ChildState)
@pytest.mark.parametrize("event", ChildEvent)
def test_a_pair_is_in_the_table_or_an_error(state: ChildState, event: ChildEvent) -> None:
    if (state, event) in CHILD:
        assert advance(state, event) is CHILD[state, event]
    else:
        with pytest.raises(ImpossibleTransition, match=state.value):
            advance(state, event)


def test_every_state_can_be_reached_and_left_again() -> None:
    assert set(CHILD.values()) == set(ChildState)
    assert {before for before, _ in CHILD} == set(ChildState)


def test_only_what_has_a_process_can_die() -> None:
    deaths = set(EVENT_OF.values())
    assert {state for state, event in CHILD if event in deaths} == {
        ChildState.STARTING,
        ChildState.RUNNING,
        ChildState.STOPPING,
    }


def test_every_child_can_be_stopped() -> None:
    stoppable = {state for state, event in CHILD if event is ChildEvent.STOP}
    assert stoppable == set(ChildState) - {ChildState.STOPPED, ChildState.STOPPING}


def test_every_answer_to_a_death_is_an_event_of_the_table() -> None:
    for event in EVENT_OF.values():
        advance(ChildState.RUNNING, event)


# ---- Hangs ---------------------------------------------------------------------------------------


@given(st.integers(0, 2**40), st.integers(0, 2**40))
def test_an_engine_is_hung_once_it_was_silent_for_longer_than_the_patience(
    heard_us: int, patience_us: int
) -> None:
    activity = heard(Activity(), 1, True, heard_us)
    assert not is_hung(activity, heard_us + patience_us, patience_us)
    assert is_hung(activity, heard_us + patience_us + 1, patience_us)


def test_an_answer_without_work_is_a_sign_of_life() -> None:
    assert heard(Activity(since_us=0, steps=7), 7, False, 100) == Activity(since_us=100, steps=7)


def test_an_answer_with_work_and_without_a_new_step_is_none() -> None:
    assert heard(Activity(since_us=0, steps=7), 7, True, 100) == Activity(since_us=0, steps=7)


def test_a_new_step_is_a_sign_of_life_and_one_slow_step_no_hang() -> None:
    activity = heard(Activity(since_us=0, steps=7), 8, True, 100)
    assert not is_hung(heard(activity, 8, True, 109), 110, patience_us=10)
    assert is_hung(heard(activity, 8, True, 110), 111, patience_us=10)


# ---- Answers about a quarantine ------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer", ["yes", "Yes, it was me.", "y", "OK", "ok!", " restart it", "Release", '"yes"']
)
def test_an_answer_that_begins_with_yes_releases(answer: str) -> None:
    assert releases(answer)


@pytest.mark.parametrize(
    "answer", ["no", "No, yes was a typo", "", "?", "yesterday it died too", "do not restart it"]
)
def test_any_other_answer_does_not(answer: str) -> None:
    assert not releases(answer)


def test_the_question_says_how_to_answer_it() -> None:
    assert all(word in RELEASE_QUESTION for word in RELEASE_WORDS)
