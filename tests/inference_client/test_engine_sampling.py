"""The next token from logits, held to straightforward definitions of the same thing."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_client.engine import sampling as module
from inference_client.engine.sampling import likeliest, log_softmax, penalises, pick, uniform
from ipc_protocol.inference import Sampling

LOGITS = np.array([0.0, 3.0, 1.0, 2.5, -40.0, 2.0], np.float32)

WARM = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)


def drawn(sampling: Sampling, draws: int = 4000, **others: object) -> dict[int, float]:
    counts = Counter(pick(LOGITS, sampling, place, **others) for place in range(draws))  # type: ignore[arg-type]
    return {token: count / draws for token, count in counts.items()}


def likelihoods(kept: list[int], temperature: float = 1.0) -> dict[int, float]:
    values = np.exp(LOGITS[kept].astype(float) / temperature)
    return dict(zip(kept, values / values.sum(), strict=True))


def close(found: dict[int, float], expected: dict[int, float]) -> bool:
    assert set(found) <= set(expected)
    return all(abs(found.get(token, 0) - share) < 0.03 for token, share in expected.items())


def test_greedy_is_the_likeliest_token() -> None:
    assert pick(LOGITS, Sampling(), 0) == 1


def test_greedy_among_some_is_the_likeliest_of_them() -> None:
    assert pick(LOGITS, Sampling(), 0, among=np.array([0, 2, 5], np.int32)) == 5


@pytest.mark.parametrize(
    ("sampling", "kept", "temperature"),
    [
        (WARM, [0, 1, 2, 3, 4, 5], 1.0),
        (Sampling(temperature=1.0, top_k=2, top_p=1.0, min_p=0.0), [1, 3], 1.0),
        (Sampling(temperature=1.0, top_k=5, top_p=1.0, min_p=0.0), [0, 1, 2, 3, 5], 1.0),
        (Sampling(temperature=0.5, top_k=3, top_p=1.0, min_p=0.0), [1, 3, 5], 0.5),
        (Sampling(temperature=1.0, top_k=0, top_p=0.7, min_p=0.0), [1, 3], 1.0),
        (Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.3), [1, 3, 5], 1.0),
        (Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=2.0), [1], 1.0),
    ],
)
def test_a_draw_follows_the_likelihoods_of_what_is_kept(
    sampling: Sampling, kept: list[int], temperature: float
) -> None:
    assert close(drawn(sampling), likelihoods(kept, temperature))


@given(st.integers(1, 60), st.integers(0, 2**32 - 1), st.integers(65, 5000))
def test_the_highest_of_a_vocabulary_are_those_that_sorting_finds(
    count: int, seed: int, size: int
) -> None:
    logits = np.random.default_rng(seed).normal(size=size).astype(np.float32).round(1)
    found = module._top(logits, count)
    assert list(found) == list(np.argsort(-logits, kind="stable")[:count])


@pytest.mark.parametrize(
    ("flat", "sampling"),
    [
        (True, Sampling(temperature=1.0, top_k=0, top_p=0.9, min_p=0.0)),
        (True, Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.5)),
        (False, Sampling(temperature=1.0, top_k=0, top_p=0.9, min_p=0.0)),
        (False, Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.5)),
    ],
)
def test_a_large_vocabulary_is_cut_as_if_all_of_it_were_sorted(
    monkeypatch: pytest.MonkeyPatch, flat: bool, sampling: Sampling
) -> None:
    spread = 0.01 if flat else 8.0
    logits = np.random.default_rng(3).normal(size=9000).astype(np.float32) * np.float32(spread)
    found = [pick(logits, sampling, place) for place in range(40)]
    monkeypatch.setattr(module, "NUCLEUS", len(logits))
    assert found == [pick(logits, sampling, place) for place in range(40)]


def test_a_draw_among_some_never_leaves_them() -> None:
    assert set(drawn(WARM, 200, among=np.array([0, 4], np.int32))) <= {0, 4}


def test_the_same_seed_and_place_draw_the_same_token() -> None:
    first = [pick(LOGITS, WARM, place) for place in range(50)]
    assert first == [pick(LOGITS, WARM, place) for place in range(50)]
    other = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=7)
    assert first != [pick(LOGITS, other, place) for place in range(50)]


@given(st.integers(0, 2**63), st.integers(0, 2**31))
def test_a_draw_lies_between_0_and_1(seed: int, place: int) -> None:
    assert 0 <= uniform(seed, place) < 1


def test_what_was_said_before_becomes_less_likely() -> None:
    assert pick(LOGITS, Sampling(repeat_penalty=2.0), 1, [1]) == 3
    assert pick(LOGITS, Sampling(presence_penalty=1.0), 1, [1]) == 3
    assert pick(LOGITS, Sampling(frequency_penalty=0.4), 1, [1]) == 1
    assert pick(LOGITS, Sampling(frequency_penalty=0.4), 1, [1, 1]) == 3


def test_a_penalty_makes_a_negative_logit_lower_still() -> None:
    logits = np.array([-1.0, -1.5], np.float32)
    assert pick(logits, Sampling(repeat_penalty=2.0), 1, [0]) == 1


def test_what_was_said_long_ago_is_forgotten() -> None:
    recent = [1, *[0] * module.PENALTY_TOKENS]
    assert pick(LOGITS, Sampling(repeat_penalty=2.0), 1, recent) == 1


def test_the_logits_are_not_written_to() -> None:
    before = LOGITS.copy()
    pick(LOGITS, Sampling(repeat_penalty=2.0), 1, [1])
    assert (before == LOGITS).all()


def test_only_penalties_need_the_tokens_before() -> None:
    assert not penalises(WARM)
    assert penalises(Sampling(frequency_penalty=0.1))


def test_logarithms_of_likelihoods_add_up_to_one() -> None:
    assert np.exp(log_softmax(LOGITS).astype(float)).sum() == pytest.approx(1, abs=1e-6)


def test_the_likeliest_come_first_and_no_more_than_there_are() -> None:
    assert likeliest(LOGITS, 3) == [1, 3, 5]
    assert likeliest(LOGITS, 0) == []
    assert likeliest(LOGITS, 100) == [1, 3, 5, 2, 0, 4]
