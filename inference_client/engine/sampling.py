"""The next token of one answer, from its logits: penalties, truncation, temperature, the draw.

The order and the meaning of the parameters are llama.cpp's: repetition penalty (Keskar et al.,
2019) with presence and frequency penalties over the last tokens, then top-k, top-p (Holtzman et
al., 2020), min-p (Nguyen et al., 2024), temperature, and a draw. The draw depends on the seed and
the place of the token alone, so an answer that is resumed goes on as it would have.

Pure. Logits are float32 arrays over the vocabulary; none is written to.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from ipc_protocol.inference import Sampling

Logits = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]

PENALTY_TOKENS: Final = 64
"""The last tokens that count as repeated: llama.cpp's default."""

BLOCK: Final = 64
"""Logits whose highest stands for all of them when the highest of a vocabulary are looked for. That
takes 0.05 ms for 49,152; to sort them takes 3 ms."""


NUCLEUS: Final = 1024
"""Tokens that are looked at first where top-k leaves them all. Top-p or min-p nearly always leave
fewer; else all are sorted."""


def pick(
    logits: Logits,
    sampling: Sampling,
    place: int,
    recent: Sequence[int] = (),
    among: Ids | None = None,
) -> int:
    """The token at `place` of an answer, among all tokens or those of `among`.

    `recent` are the tokens before it; only the last `PENALTY_TOKENS` count.
    """
    if penalises(sampling) and recent:
        logits = _penalised(logits, sampling, recent[-PENALTY_TOKENS:])
    chosen = logits if among is None else logits[among]
    if sampling.temperature <= 0:
        index = int(np.argmax(chosen))
    else:
        index = _draw(chosen, sampling, uniform(sampling.seed, place))
    return index if among is None else int(among[index])


def penalises(sampling: Sampling) -> bool:
    """Whether the tokens before change the likelihood of the next one."""
    neutral = (1.0, 0.0, 0.0)
    given = (sampling.repeat_penalty, sampling.presence_penalty, sampling.frequency_penalty)
    return given != neutral


def log_softmax(logits: Logits) -> Logits:
    """The natural logarithms of the likelihoods of all tokens."""
    highest = float(logits.max())
    total = float(np.exp(logits - highest, dtype=np.float32).sum(dtype=np.float64))
    return logits - np.float32(highest + math.log(total))


def likeliest(logprobs: Logits, count: int) -> list[int]:
    """The `count` most likely tokens, the likeliest first."""
    count = min(count, len(logprobs))
    if not count:
        return []
    top = np.argpartition(logprobs, -count)[-count:]
    return [int(token) for token in top[np.argsort(-logprobs[top], kind="stable")]]


def uniform(seed: int, place: int) -> float:
    """A number from 0 to 1 that depends on the two alone: splitmix64 (Steele, Lea, Flood, 2014)."""
    mask = 2**64 - 1
    value = (seed * 0x9E3779B97F4A7C15 + (place + 1) * 0xD1342543DE82EF95) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return float((value ^ (value >> 31)) >> 11) / 2.0**53


def _penalised(logits: Logits, sampling: Sampling, recent: Sequence[int]) -> Logits:
    tokens, counts = np.unique(np.asarray(recent, np.int32), return_counts=True)
    changed = logits.copy()
    found = changed[tokens]
    found = np.where(found > 0, found / sampling.repeat_penalty, found * sampling.repeat_penalty)
    found -= sampling.presence_penalty + counts * np.float32(sampling.frequency_penalty)
    changed[tokens] = found
    return changed


def _draw(logits: Logits, sampling: Sampling, point: float) -> int:
    """The index at which the cumulative likelihood of the candidates passes `point`."""
    candidates, values, total = _candidates(logits, sampling)
    likelihoods = np.exp(values)
    if sampling.top_p < 1:
        kept = int(np.searchsorted(np.cumsum(likelihoods) / total, sampling.top_p)) + 1
        candidates, values, likelihoods = candidates[:kept], values[:kept], likelihoods[:kept]
    if sampling.min_p > 0:
        kept = max(1, int((likelihoods >= sampling.min_p).sum()))
        candidates, values = candidates[:kept], values[:kept]
    weights = np.cumsum(np.exp(values / sampling.temperature))
    index = int(np.searchsorted(weights, point * weights[-1], side="right"))
    return int(candidates[min(index, len(weights) - 1)])


def _candidates(
    logits: Logits, sampling: Sampling
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64], float]:
    """Those that top-k leaves, the likeliest first: their indices, their logits below the highest,
    and the sum of the likelihoods that top-p is a share of."""
    if sampling.top_k > 0:
        candidates = _top(logits, sampling.top_k)
        values = logits[candidates].astype(np.float64) - float(logits[candidates[0]])
        return candidates, values, float(np.exp(values).sum())
    candidates = _top(logits, NUCLEUS)
    highest = float(logits[candidates[0]])
    total = float(np.exp(logits - np.float32(highest)).sum(dtype=np.float64))
    values = logits[candidates].astype(np.float64) - highest
    share = float(np.exp(values).sum()) / total
    if share < sampling.top_p and math.exp(values[-1]) >= sampling.min_p:
        candidates = np.argsort(-logits, kind="stable")
        values = logits[candidates].astype(np.float64) - highest
    return candidates, values, total


def _top(logits: Logits, count: int) -> npt.NDArray[np.intp]:
    """The indices of the `count` highest logits, or of all for 0, the highest first.

    The highest of each block are compared first. As many of them as are wanted lie at or above the
    last of them that counts, so nothing below it can be among the highest of all.
    """
    if count <= 0 or count * BLOCK >= len(logits):
        return np.argsort(-logits, kind="stable")[: count or None]
    whole = len(logits) // BLOCK * BLOCK
    highest = logits[:whole].reshape(-1, BLOCK).max(axis=1)
    least = np.partition(highest, -count)[-count]
    near = np.flatnonzero(logits >= least)
    return near[np.argsort(-logits[near], kind="stable")][:count]
