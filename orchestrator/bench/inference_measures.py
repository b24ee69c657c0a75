"""From the answers of a run to its figures, and from those of repeats to one of each. Pure."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Final, Literal, NamedTuple

from orchestrator.bench.inference_load import Answer
from orchestrator.bench.inference_scenarios import DECODE, LOW, PREFILL, URGENT

SECOND_US: Final = 1_000_000
TELLING_SPREAD: Final = 0.1
"""Repeats that differ by more make a figure worth little."""

Better = Literal["higher", "lower"]


class Figure(NamedTuple):
    """One of those who are measured has this."""

    value: float
    unit: str
    better: Better


Figures = Mapping[str, Figure]
"""By what they are figures of."""

TOTAL: Final = "tokens in and out"
OUT: Final = "tokens out"
WALL: Final = "wall time"
AGAIN: Final = "prefix tokens computed again"
REQUESTS: Final = "requests"
DECODED: Final = "tokens decoded for a request"
VALID: Final = "valid answers"
GAP: Final = "longest gap between tokens of the decodes"
PREFILLED: Final = "first token of the long prompt"


def first_token(kind: str, percent: int) -> str:
    """The name of a figure: after how long the first token comes."""
    return f"first token of {kind} requests, p{percent}"


# ---- Of one run ---------------------------------------------------------------------------------


def wall_s(answers: Sequence[Answer]) -> float:
    """From the first request to the end of the last answer."""
    began = min(answer.asked_us for answer in answers)
    return max(1, max(answer.ended_us for answer in answers) - began) / SECOND_US


def throughput(answers: Sequence[Answer]) -> Figures:
    """Of a run in which everybody asks at once."""
    seconds = wall_s(answers)
    generated = sum(answer.said.generated_tokens for answer in answers)
    prompts = sum(answer.said.prompt_tokens for answer in answers)
    return {
        TOTAL: Figure((prompts + generated) / seconds, "tokens/s", "higher"),
        OUT: Figure(generated / seconds, "tokens/s", "higher"),
    }


def wall(answers: Sequence[Answer]) -> Figures:
    """Of a run whose work is the same for all."""
    return {WALL: Figure(wall_s(answers), "s", "lower")}


def returning(answers: Sequence[Answer], identity_tokens: int) -> Figures:
    """Of agents that come back with the same beginning: everybody reads it once, and the rest of
    the time it could have been in the cache."""
    seen: set[str] = set()
    again = 0
    for answer in sorted(answers, key=lambda one: one.asked_us):
        if answer.actor in seen:
            again += max(0, identity_tokens - answer.said.cached_tokens)
        seen.add(answer.actor)
    return {**wall(answers), AGAIN: Figure(float(again), "tokens", "lower")}


def decided(answers: Sequence[Answer], is_valid: Callable[[Answer], bool]) -> Figures:
    """Of typed decisions."""
    decoded = sum(answer.said.generated_tokens - answer.said.forced_tokens for answer in answers)
    valid = sum(is_valid(answer) for answer in answers)
    return {
        REQUESTS: Figure(len(answers) / wall_s(answers), "requests/s", "higher"),
        DECODED: Figure(decoded / len(answers), "tokens", "lower"),
        VALID: Figure(valid / len(answers), "share", "higher"),
    }


def waited(answers: Iterable[Answer], kind: str) -> Figures:
    """After how long the first token came, for one kind of requests. Those that were left before
    it are not in it: whoever is slow looks better for that."""
    waits = sorted(
        (answer.arrivals_us[0] - answer.asked_us) / 1000
        for answer in answers
        if answer.kind == kind and answer.arrivals_us
    )
    return {
        first_token(kind, percent): Figure(percentile(waits, percent / 100), "ms", "lower")
        for percent in (50, 99)
    }


def urgent_and_low(answers: Sequence[Answer], from_s: float, until_s: float) -> Figures:
    """Of a run of low work, with or without urgent requests among it."""
    urgent = any(answer.kind == URGENT for answer in answers)
    return {
        **(waited(answers, URGENT) if urgent else {}),
        **waited(answers, LOW),
        TOTAL: Figure(rate_within(answers, from_s, until_s), "tokens/s", "higher"),
    }


def rate_within(answers: Iterable[Answer], from_s: float, until_s: float) -> float:
    """Tokens a second between two times of a run that goes on before and after them.

    What was read of a prompt counts when the first token comes; the tokens of an answer are spread
    over the pieces in which it came.
    """
    from_us, until_us = from_s * SECOND_US, until_s * SECOND_US
    tokens = 0.0
    for answer in answers:
        if not answer.arrivals_us:
            continue
        said = answer.said
        if from_us <= answer.arrivals_us[0] < until_us:
            tokens += said.prompt_tokens
        within = sum(from_us <= at < until_us for at in answer.arrivals_us)
        tokens += said.generated_tokens * within / len(answer.arrivals_us)
    return tokens / (until_s - from_s)


def beside_prefill(answers: Sequence[Answer]) -> Figures:
    """How long those that decode are held up by a long prompt, and how long that takes."""
    gaps = [
        (after - before) / 1000
        for answer in answers
        if answer.kind == DECODE
        for before, after in pairwise(answer.arrivals_us)
    ]
    (long,) = (answer for answer in answers if answer.kind == PREFILL)
    first_us = long.arrivals_us[0] if long.arrivals_us else long.ended_us
    return {
        GAP: Figure(max(gaps, default=0.0), "ms", "lower"),
        PREFILLED: Figure((first_us - long.asked_us) / 1000, "ms", "lower"),
    }


def percentile(ordered: Sequence[float], share: float) -> float:
    """By the nearest rank, so it is one that was measured. Raises `ValueError` for none at all."""
    if not ordered:
        raise ValueError("no request was answered")
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


# ---- Of repeats ---------------------------------------------------------------------------------


def median(repeats: Sequence[Figures]) -> Figures:
    """Of each figure."""
    return {
        name: figure._replace(value=statistics.median(one[name].value for one in repeats))
        for name, figure in repeats[0].items()
    }


def spread(repeats: Sequence[Figures], name: str) -> float:
    """How far the repeats of a figure lie apart, as a share of their median."""
    values = [one[name].value for one in repeats]
    middle = statistics.median(values)
    return (max(values) - min(values)) / middle if middle else 0.0


def best(tried: Mapping[str, Figures], name: str) -> str:
    """Who has the best of a figure."""
    sign = 1 if next(iter(tried.values()))[name].better == "higher" else -1
    return max(tried, key=lambda who: sign * tried[who][name].value)
