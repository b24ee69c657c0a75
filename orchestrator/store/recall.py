"""Which memories come to mind: the pure part of the hybrid search.

Two searches rank the candidates, by words and by meaning. Reciprocal rank fusion (Cormack, Clarke
and Büttcher, SIGIR 2009) adds 1 / (60 + rank) over both, because their scores cannot be compared;
then recency and importance weigh each sum. No clock, no database.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

RANK_CONSTANT: Final = 60
"""The paper's constant: the first place counts 15 % more than the tenth."""

WEIGHT_SPAN: Final = 0.2
"""Recency and importance each move a score by up to this share, about a dozen places of rank: they
decide among similar memories and never lift an irrelevant one over a relevant one."""

HALF_LIFE_US: Final = 14 * 24 * 3600 * 1_000_000
"""A memory loses half of its recency in two weeks: a habit of this week outweighs last month's."""

QUERY_WORDS_MAX: Final = 32
"""Words of a query that are searched: a sentence or two. More only dilute the ranking."""

_WORD = re.compile(r"\w+")


class Facts(msgspec.Struct, frozen=True):
    """What weighs a memory. `importance` is from 0 to 1."""

    importance: float
    created_us: int


def match_expression(text: str) -> str | None:
    """`text` as an FTS5 expression that matches any of its words; None if it has none.

    Each word is quoted, so nothing in it is an operator of the query language.
    """
    words = dict.fromkeys(word.lower() for word in _WORD.findall(text))
    return " OR ".join(f'"{word}"' for word in list(words)[:QUERY_WORDS_MAX]) or None


def fuse(
    rankings: Sequence[Sequence[int]], facts: Mapping[int, Facts], now_us: int, limit: int
) -> list[int]:
    """The ids of the best `limit` memories, best first; ties go to the newer id."""
    sums: dict[int, float] = {}
    for ranking in rankings:
        for place, memory in enumerate(ranking, start=1):
            sums[memory] = sums.get(memory, 0.0) + 1 / (RANK_CONSTANT + place)
    scores = {memory: total * weight(facts[memory], now_us) for memory, total in sums.items()}
    return sorted(scores, key=lambda memory: (-scores[memory], -memory))[:limit]


def weight(facts: Facts, now_us: int) -> float:
    """A factor around 1: the product of one for recency and one for importance."""
    age_us = max(0, now_us - facts.created_us)
    recency = math.pow(0.5, age_us / HALF_LIFE_US)
    lowest = 1 - WEIGHT_SPAN / 2
    return (lowest + WEIGHT_SPAN * recency) * (lowest + WEIGHT_SPAN * facts.importance)
