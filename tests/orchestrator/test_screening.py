"""Screening and the weighing of its evidence: pure functions of vectors and numbers."""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc_protocol.work import Evidence, Verdict
from orchestrator.screening import (
    CASE_SIMILARITY_MIN,
    DUTIES_LISTED_MAX,
    ITEM_CHARACTERS_MAX,
    UNKNOWN_SCORE,
    Board,
    Profile,
    Vectors,
    build,
    list_item,
    list_prompt,
    screen,
)
from orchestrator.verdict import CERTAIN_MARGIN, NOBODY, OPTIONS_ASKED_MAX, decide, options

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 8
NO_VECTORS: Vectors = np.zeros((0, WIDTH), np.float32)


def axis(*weights: float) -> Vectors:
    """A vector with the given leading coordinates."""
    vector = np.zeros(WIDTH, np.float32)
    vector[: len(weights)] = weights
    return vector


def rows(*vectors: Vectors) -> Vectors:
    return np.stack(vectors)


def profile(
    agent: str,
    *duties: Vectors,
    ignores: Vectors = NO_VECTORS,
    cases: Vectors = NO_VECTORS,
    counter_cases: Vectors = NO_VECTORS,
) -> Profile:
    return Profile(
        agent=agent,
        duties=tuple(f"{agent} duty {number}" for number in range(len(duties))),
        duty_vectors=rows(*duties) if duties else NO_VECTORS,
        ignore_vectors=ignores,
        case_vectors=cases,
        counter_case_vectors=counter_cases,
    )


CODE, HOSTS, CHAT = axis(1), axis(0, 1), axis(0, 0, 1)
SMALL_TALK = rows(CHAT)


def two_agents(**changes: Vectors) -> Board:
    return build([profile("coder", CODE, **changes), profile("operator", HOSTS)], SMALL_TALK)


# --- screening ----------------------------------------------------------------------------------


def test_the_agent_whose_duty_is_nearest_scores_best_and_is_the_fallback() -> None:
    screening = screen(axis(0.2, 1), two_agents())
    assert screening.fallback == "operator"
    assert screening.takers == ("operator",)
    assert list(screening.scores) == ["operator", "coder"]
    assert screening.scores["operator"].rank == 1
    assert screening.scores["coder"].rank == 2


def test_the_margin_is_the_lead_over_the_best_other_agent() -> None:
    scores = screen(axis(0.2, 1), two_agents()).scores
    lead = scores["operator"].score - scores["coder"].score
    assert scores["operator"].margin == pytest.approx(lead)
    assert scores["coder"].margin == pytest.approx(-lead)


def test_the_only_agent_is_measured_against_nobody() -> None:
    screening = screen(axis(1), build([profile("coder", CODE)], SMALL_TALK))
    coder = screening.scores["coder"]
    assert coder.margin == pytest.approx(coder.score - screening.nobody)


def test_small_talk_has_no_fallback_and_no_takers() -> None:
    screening = screen(axis(0.1, 0, 1), two_agents())
    assert screening.fallback is None
    assert screening.takers == ()


def test_without_common_ignores_nothing_is_nobodys_business() -> None:
    board = build([profile("coder", CODE), profile("operator", HOSTS)], NO_VECTORS)
    screening = screen(axis(0, 0, 0, 1), board)
    assert screening.nobody == UNKNOWN_SCORE
    assert screening.fallback == "coder"


def test_equal_scores_go_by_name_and_both_agents_take_it() -> None:
    screening = screen(axis(1, 1), two_agents())
    assert screening.fallback == "coder"
    assert screening.takers == ("coder", "operator")


def test_an_agent_without_duties_never_wins() -> None:
    board = build([profile("coder", CODE), profile("newcomer")], SMALL_TALK)
    scores = screen(axis(1), board).scores
    assert scores["newcomer"].score == UNKNOWN_SCORE
    assert scores["newcomer"].nearest == ""


def test_the_nearest_duty_is_named() -> None:
    board = build(
        [profile("coder", CODE, axis(0, 0, 0, 1)), profile("operator", HOSTS)], SMALL_TALK
    )
    assert screen(axis(0, 0, 0, 1), board).scores["coder"].nearest == "coder duty 1"


def test_an_own_ignore_that_is_closer_than_every_duty_lowers_the_score() -> None:
    message = axis(0.6, 0, 0, 1)
    plain = screen(message, two_agents()).scores["coder"].score
    wary = screen(message, two_agents(ignores=rows(axis(0, 0, 0, 1)))).scores["coder"].score
    assert wary < plain


def test_an_own_ignore_that_is_farther_than_a_duty_changes_nothing() -> None:
    plain = screen(CODE, two_agents()).scores["coder"].score
    wary = screen(CODE, two_agents(ignores=rows(axis(0, 0, 0, 1)))).scores["coder"].score
    assert wary == plain


def test_a_confirmed_case_settles_the_same_message_again() -> None:
    message = axis(0, 0.2, 0, 1)
    assert screen(message, two_agents()).fallback == "operator"
    assert screen(message, two_agents(cases=rows(message))).fallback == "coder"


def test_a_confirmed_case_says_nothing_about_other_messages() -> None:
    far = axis(0, 0, 0, 0, 1)
    with_case = screen(HOSTS, two_agents(cases=rows(far)))
    assert with_case.scores["coder"].score == screen(HOSTS, two_agents()).scores["coder"].score


def test_a_counter_case_takes_the_same_message_away() -> None:
    message = axis(1, 0.8)
    assert screen(message, two_agents()).fallback == "coder"
    assert screen(message, two_agents(counter_cases=rows(message))).fallback == "operator"


def test_a_case_is_worth_at_most_what_exceeds_the_threshold() -> None:
    message = axis(0, 0.2, 0, 1)
    plain = screen(message, two_agents()).scores["coder"].score
    known = screen(message, two_agents(cases=rows(message))).scores["coder"].score
    assert known - plain == pytest.approx(1 - CASE_SIMILARITY_MIN, abs=1e-5)


def test_only_recipients_are_fallback_or_takers_but_all_agents_are_scored() -> None:
    screening = screen(axis(0.2, 1), two_agents(), recipients=["coder"])
    assert screening.recipients == ("coder",)
    assert screening.fallback == "coder"
    assert screening.takers == ()
    assert list(screening.scores) == ["operator", "coder"]


def test_a_recipient_that_is_not_on_the_board_is_left_out() -> None:
    screening = screen(HOSTS, two_agents(), recipients=["conductor"])
    assert screening.recipients == ()
    assert screening.fallback is None


def test_a_board_without_agents_gives_the_message_to_nobody() -> None:
    screening = screen(CHAT, build([], SMALL_TALK))
    assert dict(screening.scores) == {}
    assert screening.fallback is None


def test_an_empty_board_is_allowed() -> None:
    assert screen(CHAT, build([], NO_VECTORS)).nobody == UNKNOWN_SCORE


def test_a_profile_with_a_vector_too_few_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="agent coder: 2 duties, but 1 vectors"):
        Profile("coder", ("a", "b"), rows(CODE), NO_VECTORS, NO_VECTORS, NO_VECTORS)


def test_evidence_carries_what_one_agent_needs_to_know() -> None:
    screening = screen(axis(0.2, 1), two_agents())
    evidence = screening.evidence("coder")
    assert evidence.agent == "coder"
    assert evidence.score == screening.scores["coder"].score
    assert set(evidence.scores) == {"coder", "operator"}
    assert evidence.recipients == ("coder", "operator")
    assert evidence.fallback == "operator"
    assert evidence.nearest == "coder duty 0"


def test_evidence_survives_the_wire() -> None:
    evidence = screen(axis(0.2, 1), two_agents()).evidence("coder")
    wire = msgspec.msgpack.encode(evidence)
    assert msgspec.msgpack.decode(wire, type=Evidence) == evidence


components = st.floats(-1, 1, allow_nan=False, width=32)
vectors = st.lists(components, min_size=WIDTH, max_size=WIDTH).map(
    lambda values: np.array(values, np.float32)
)


@given(message=vectors)
def test_scores_are_similarities_and_ranks_follow_them(message: Vectors) -> None:
    screening = screen(message, two_agents())
    scores = [score.score for score in screening.scores.values()]
    assert all(-1.001 <= score <= 1.001 for score in [*scores, screening.nobody])
    assert scores == sorted(scores, reverse=True)
    assert [score.rank for score in screening.scores.values()] == [1, 2]


@given(message=vectors, factor=st.floats(0.5, 100))
def test_the_length_of_a_vector_does_not_matter(message: Vectors, factor: float) -> None:
    # A vector so short that it counts as empty may cease to be so when it is scaled.
    if np.linalg.norm(message) < 1e-3:
        return
    board = two_agents()
    once, scaled = screen(message, board), screen(message * np.float32(factor), board)
    for agent, score in once.scores.items():
        assert scaled.scores[agent].score == pytest.approx(score.score, abs=1e-3)


@given(message=vectors)
def test_the_order_of_the_configuration_does_not_matter(message: Vectors) -> None:
    forward = [profile("coder", CODE), profile("operator", HOSTS)]
    one = screen(message, build(forward, SMALL_TALK))
    other = screen(message, build(forward[::-1], SMALL_TALK))
    for agent, score in one.scores.items():
        assert other.scores[agent].score == pytest.approx(score.score, abs=1e-5)


def test_the_list_prompt_ends_where_the_message_begins() -> None:
    assert list_prompt(["fix a bug", "write a test"]) == (
        "Messages:\n- fix a bug\n- write a test\n- "
    )


def test_the_list_prompt_has_a_limit() -> None:
    assert list_prompt(["duty"] * 99).count("- duty") == DUTIES_LISTED_MAX


def test_a_list_item_is_one_line_of_limited_length() -> None:
    assert list_item("  disk full\n on /var ") == "disk full on /var\n"
    assert len(list_item("x" * 999)) == ITEM_CHARACTERS_MAX + 1


# --- weighing the evidence ----------------------------------------------------------------------


def evidence(
    agent: str = "coder",
    *,
    coder: float = 0.3,
    operator: float = 0.28,
    nobody: float = 0.0,
    fallback: str | None = "coder",
    recipients: tuple[str, ...] = ("coder", "operator"),
) -> Evidence:
    scores = {"coder": coder, "operator": operator}
    return Evidence(
        agent=agent,
        score=scores[agent],
        margin=2 * scores[agent] - coder - operator,
        scores=scores,
        nobody=nobody,
        fallback=fallback,
        nearest="fix a bug",
        recipients=recipients,
        takers=(),
    )


def test_a_wide_margin_is_settled_without_the_model() -> None:
    verdict = decide(evidence(operator=0.3 - 2 * CERTAIN_MARGIN))
    assert verdict.action == "act"
    assert verdict.certain


def test_a_certain_verdict_does_not_listen_to_the_model() -> None:
    clear = evidence(operator=0.3 - 2 * CERTAIN_MARGIN)
    assert decide(clear, {"coder": -90.0, "operator": 90.0}) == decide(clear)


def test_a_narrow_margin_is_uncertain_until_the_model_was_asked() -> None:
    assert decide(evidence()).action == "uncertain"
    assert not decide(evidence()).certain
    verdict = decide(evidence(), {"coder": 0.0, "operator": 0.0, NOBODY: 0.0})
    assert verdict.action == "act"
    assert not verdict.certain


def test_an_empty_preference_leaves_the_decision_to_screening() -> None:
    assert decide(evidence(), {}).action == "act"


def test_a_strong_preference_turns_a_narrow_margin() -> None:
    preference = {"coder": 0.0, "operator": 100.0}
    assert decide(evidence(), preference).action == "ignore"
    assert decide(evidence("operator"), preference).action == "act"


def test_without_weight_the_preference_is_mute() -> None:
    assert decide(evidence(), {"coder": 0.0, "operator": 100.0}, weight=0.0).action == "act"


def test_an_option_the_model_was_not_asked_about_is_out_of_the_running() -> None:
    verdict = decide(evidence(nobody=0.29), {"operator": -50.0, NOBODY: -50.0})
    assert verdict.action == "ignore"
    assert "nobody's business" in verdict.reason


def test_a_preference_among_strangers_leaves_the_decision_to_screening() -> None:
    assert decide(evidence(), {"stranger": 9.0}).action == "act"


def test_the_model_is_asked_about_the_best_options_only() -> None:
    many = {f"agent{number}": number / 100 for number in range(9)}
    crowded = msgspec.structs.replace(evidence(), scores=many, nobody=0.075)
    assert options(crowded) == ["agent8", NOBODY, "agent7", "agent6", "agent5"]
    assert len(options(crowded)) == OPTIONS_ASKED_MAX


def test_nobodys_business_is_ignored() -> None:
    verdict = decide(evidence(nobody=0.9))
    assert verdict.action == "ignore"
    assert "nobody's business" in verdict.reason


def test_an_owner_that_has_the_message_too_is_left_to_it() -> None:
    verdict = decide(evidence("operator", operator=0.0))
    assert verdict.action == "ignore"
    assert "coder" in verdict.reason


def test_the_fallback_delegates_to_an_owner_that_did_not_get_the_message() -> None:
    verdict = decide(
        evidence("operator", operator=0.0, fallback="operator", recipients=("operator",))
    )
    assert verdict.action == "delegate"
    assert verdict.to == "coder"


def test_other_recipients_leave_the_delegation_to_the_fallback() -> None:
    verdict = decide(evidence("operator", operator=0.0, fallback=None, recipients=("operator",)))
    assert verdict.action == "ignore"


def test_the_reason_names_the_nearest_duty_and_the_numbers() -> None:
    reason = decide(evidence(), {"coder": 1.0, "operator": 0.0}).reason
    assert "'fix a bug'" in reason
    assert "0.30" in reason
    assert "with the model's preference" in reason
    assert "by screening alone" in decide(evidence()).reason


similarity = st.floats(-1, 1, allow_nan=False)
preferences = st.none() | st.dictionaries(
    st.sampled_from(["coder", "operator", NOBODY, "stranger"]),
    st.floats(-50, 50, allow_nan=False),
)


@given(similarity, similarity, similarity, preferences)
def test_exactly_one_recipient_acts_or_all_agree_that_none_does(
    coder: float, operator: float, nobody: float, preference: dict[str, float] | None
) -> None:
    verdicts = [
        decide(evidence(agent, coder=coder, operator=operator, nobody=nobody), preference)
        for agent in ("coder", "operator")
    ]
    actions = [verdict.action for verdict in verdicts]
    assert sorted(actions) in (["act", "ignore"], ["ignore", "ignore"], ["uncertain", "uncertain"])
    assert ("uncertain" in actions) == (preference is None and not verdicts[0].certain)


@given(similarity, similarity, similarity, preferences, st.floats(-5, 5))
def test_a_constant_added_to_every_preference_changes_nothing(
    coder: float,
    operator: float,
    nobody: float,
    preference: dict[str, float] | None,
    constant: float,
) -> None:
    given_evidence = evidence(coder=coder, operator=operator, nobody=nobody)
    moved = preference and {option: value + constant for option, value in preference.items()}
    assert decide(given_evidence, moved).probability == pytest.approx(
        decide(given_evidence, preference).probability
    )


@given(similarity, similarity, similarity, preferences)
def test_a_verdict_is_a_probability_and_a_sentence(
    coder: float, operator: float, nobody: float, preference: dict[str, float] | None
) -> None:
    verdict = decide(evidence(coder=coder, operator=operator, nobody=nobody), preference)
    assert 1 / 3 - 1e-9 <= verdict.probability <= 1 + 1e-9
    assert verdict.reason
    assert msgspec.json.decode(msgspec.json.encode(verdict), type=Verdict) == verdict


# --- what is shipped ----------------------------------------------------------------------------


def shipped_agents() -> dict[str, dict[str, object]]:
    agents: dict[str, dict[str, object]] = {}
    for path in sorted((ROOT / "deploy/agents").glob("*.toml")):
        agents |= tomllib.loads(path.read_text()).get("agent", {})
    return agents


def test_five_agents_are_shipped_and_delegate_only_to_each_other() -> None:
    agents = shipped_agents()
    assert sorted(agents) == ["conductor", "devclaw", "opsclaw", "secclaw", "uxclaw"]
    for name, agent in agents.items():
        assert set(agent["delegate"]) < set(agents) - {name}  # type: ignore[call-overload]


def read_stimuli(name: str) -> list[dict[str, str]]:
    lines = (ROOT / "benchmarks/triage" / name).read_text().splitlines()
    return [msgspec.json.decode(line) for line in lines]


@pytest.mark.parametrize("name", ["stimuli.jsonl", "development.jsonl"])
def test_labelled_messages_are_distinct_and_no_duty_is_among_them(name: str) -> None:
    texts = [stimulus["text"] for stimulus in read_stimuli(name)]
    duties = {duty for agent in shipped_agents().values() for duty in agent["duties"]}  # type: ignore[attr-defined]
    assert len(texts) >= 80
    assert len(set(texts)) == len(texts)
    assert not duties & set(texts)


def test_no_held_out_message_is_in_the_development_set() -> None:
    held_out = {stimulus["text"] for stimulus in read_stimuli("stimuli.jsonl")}
    assert not held_out & {stimulus["text"] for stimulus in read_stimuli("development.jsonl")}
