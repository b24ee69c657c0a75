"""The pure part of remembering: words of a query, and the fusion of two rankings."""

import random

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.store.recall import (
    HALF_LIFE_US,
    QUERY_WORDS_MAX,
    Facts,
    fuse,
    match_expression,
    weight,
)

NOW_US = 100 * HALF_LIFE_US
PLAIN = Facts(importance=0.5, created_us=NOW_US)


def test_every_word_is_quoted_once_and_lowered() -> None:
    assert match_expression('Disk "full" AND disk*') == '"disk" OR "full" OR "and"'


def test_a_text_without_words_asks_nothing() -> None:
    assert match_expression(" *-( ") is None


def test_a_long_query_is_cut() -> None:
    expression = match_expression(" ".join(f"w{number}" for number in range(100)))
    assert expression is not None
    assert expression.count('"') == 2 * QUERY_WORDS_MAX


def test_what_both_searches_find_comes_before_what_one_finds_first() -> None:
    facts = dict.fromkeys((1, 2, 3), PLAIN)
    assert fuse([[1, 2], [3, 2]], facts, NOW_US, limit=3)[0] == 2


def test_a_tie_goes_to_the_newer_memory() -> None:
    assert fuse([[1], [2]], dict.fromkeys((1, 2), PLAIN), NOW_US, limit=2) == [2, 1]


def test_importance_decides_among_neighbours() -> None:
    facts = {1: Facts(importance=0.0, created_us=NOW_US), 2: Facts(1.0, NOW_US)}
    assert fuse([[1, 2]], facts, NOW_US, limit=1) == [2]


def test_recency_decides_among_neighbours() -> None:
    facts = {1: Facts(importance=0.5, created_us=0), 2: PLAIN}
    assert fuse([[1, 2]], facts, NOW_US, limit=1) == [2]


def test_a_memory_from_the_future_is_as_recent_as_one_of_now() -> None:
    assert weight(Facts(0.5, NOW_US + 1), NOW_US) == weight(PLAIN, NOW_US)


def test_recency_halves_in_a_half_life() -> None:
    assert round(weight(Facts(0.5, NOW_US - HALF_LIFE_US), NOW_US), 9) == 1.0
    assert round(weight(PLAIN, NOW_US), 9) == 1.1


@given(st.lists(st.lists(st.integers(0, 30), unique=True), max_size=2), st.integers(0, 20))
def test_fusion_returns_each_candidate_once_and_no_more_than_asked(
    rankings: list[list[int]], limit: int
) -> None:
    candidates = {memory for ranking in rankings for memory in ranking}
    facts = {memory: Facts(random.Random(memory).random(), memory) for memory in candidates}
    best = fuse(rankings, facts, NOW_US, limit)
    assert len(best) == len(set(best)) == min(limit, len(candidates))
    assert set(best) <= candidates
