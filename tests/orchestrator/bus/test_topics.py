"""Topics and the router, checked against a matcher that is too simple to be wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.bus.topics import (
    TOPICS_KEPT,
    Router,
    addressed_agent,
    agent_topic,
    fault_of_name,
    fault_of_pattern,
    fault_of_topic,
    matches,
)

WORDS = st.sampled_from(["a", "b", "c"])
TOPICS = st.lists(WORDS, min_size=1, max_size=5).map(".".join)
PATTERNS = st.builds(
    lambda words, rest: ".".join(words + rest),
    st.lists(WORDS | st.just("*"), min_size=1, max_size=4),
    st.sampled_from([[], [">"]]),
) | st.just(">")


def naive(pattern: list[str], topic: list[str]) -> bool:
    if not pattern or not topic:
        return not pattern and not topic
    if pattern[0] == ">":
        return True
    return pattern[0] in ("*", topic[0]) and naive(pattern[1:], topic[1:])


@given(PATTERNS, TOPICS)
def test_a_pattern_matches_what_the_naive_matcher_says(pattern: str, topic: str) -> None:
    assert fault_of_pattern(pattern) is None
    assert fault_of_topic(topic) is None
    assert matches(pattern, topic) == naive(pattern.split("."), topic.split("."))


@given(st.lists(st.tuples(st.sampled_from("xyz"), PATTERNS)), TOPICS)
def test_the_router_finds_whom_each_pattern_matches(
    subscriptions: list[tuple[str, str]], topic: str
) -> None:
    expected = sorted({name for name, pattern in subscriptions if matches(pattern, topic)})
    assert Router(subscriptions).subscribers(topic) == tuple(expected)


@given(st.text())
def test_a_valid_topic_is_made_of_words_and_dots(text: str) -> None:
    if fault_of_topic(text) is None:
        assert set(text) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-.")
        assert all(text.split("."))


@pytest.mark.parametrize(
    ("topic", "fault"),
    [
        ("", "empty word"),
        ("a..b", "empty word"),
        ("a.B", "'B'"),
        ("a.*", r"'\*'"),
        ("a\n", "not made of"),
        ("a" * 129, "longer than 128"),
        (".".join("a" * 9), "more than 8"),
    ],
)
def test_a_wrong_topic_is_told_its_fault(topic: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        raise ValueError(fault_of_topic(topic))


def test_the_rest_comes_last_in_a_pattern() -> None:
    assert "after `>`" in str(fault_of_pattern("a.>.b"))
    assert fault_of_pattern("a b.>") is not None
    assert fault_of_pattern("a..>") is not None
    assert fault_of_pattern("a" * 129) is not None


def test_an_agents_name_is_one_short_word() -> None:
    assert fault_of_name("ops-claw_2") is None
    assert fault_of_name("ops.claw") is not None
    assert fault_of_name("a" * 33) is not None


def test_an_agents_own_topic_addresses_it() -> None:
    assert addressed_agent(agent_topic("opsclaw")) == "opsclaw"
    assert addressed_agent("ops.report") is None


def test_looking_up_more_topics_than_are_kept_changes_no_answer() -> None:
    router = Router([("x", "a.>"), ("y", "a.1")])
    for number in range(TOPICS_KEPT + 2):
        expected = ("x", "y") if number == 1 else ("x",)
        assert router.subscribers(f"a.{number}") == expected
    assert router.subscribers("a.1") == ("x", "y")
