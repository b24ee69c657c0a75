"""Screening: whose business is a message, judged by similarity across all agents at once.

Asked alone, each agent's small model says yes or no by temperament; compared with one another, the
duties of all agents decide well. So a message is embedded once, compared with every phrase of every
agent, and each delivery gets the result as `Evidence`.

This module is pure: vectors in, scores out. It embeds nothing and reads no clock. It is the only
place that knows the formula; `orchestrator.verdict` knows how the result is weighed.

The formula. Let `x` be the message and `d_1 ... d_n` the phrases of one owner, nobody's business
being an owner too, whose phrases are the common ignores.

1. *Centring.* The mean of the owners' mean phrases is taken from every vector, and the rest is
   normalised. What all phrases have in common (that they are short English requests) says nothing
   about whose they are, and without this it favours the owner with the plainest words.
2. *Soft best.* With `s_i` the cosine of `x` and `d_i`, over the `NEAREST_PHRASES` largest of them,

       score = log(mean(exp(CONCENTRATION * s_i))) / CONCENTRATION.

   It is the log-likelihood of the message under a mixture of von Mises-Fisher distributions, one
   around each phrase (Banerjee et al., "Clustering on the Unit Hypersphere using von Mises-Fisher
   Distributions", JMLR 2005), in units of similarity: between the mean and the maximum of `s_i`.
   Taking the nearest only keeps an owner from losing by having many different duties.
3. *Own ignores.* Where the nearest of an agent's own ignores is closer than its nearest duty, the
   difference is taken from its score.
4. *Past cases.* A confirmed case counts for (or against) its agent by what its similarity exceeds
   `CASE_SIMILARITY_MIN`: it settles a message that is nearly the same, and says nothing about
   others. Measured: with a lower threshold, or cases mixed with the duties, others got worse.

`benchmarks/triage` holds the labelled messages these choices were measured with.

Where screening leaves doubt a language model is asked how likely each owner's list of duties
(`list_prompt`) goes on with the message (`list_item`); `orchestrator.verdict` says why so.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ipc_protocol.work import Evidence

Vectors: TypeAlias = npt.NDArray[np.float32]
_Rows: TypeAlias = npt.NDArray[np.intp]

CONCENTRATION = 8.0
"""How peaked the distribution around a phrase is. From 6 to 12 it makes little difference."""

NEAREST_PHRASES = 8
"""Phrases of an owner that take part in its score."""

CASE_SIMILARITY_MIN = 0.4
"""Similarity (centred) above which a past case is the same case again."""

TAKE_MARGIN = 0.02
"""An agent whose score is this close to the best one may well share the message."""

DUTIES_LISTED_MAX = 16
"""Duties in a `list_prompt`: about 200 tokens, which stay in the KV cache. 24 help the model alone,
but no longer together with screening."""

ITEM_CHARACTERS_MAX = 240
"""What is read of a message in a `list_item`. Log-likelihoods grow with the length of a text: a
long message would drown what screening says, and cost seconds of a processor core."""

UNKNOWN_SCORE = -1.0
"""The score of an owner without phrases, the lowest similarity there is: it never wins."""


@dataclass(frozen=True, slots=True)
class Profile:
    """One agent as screening sees it. Vectors are one row each, of any length but one width."""

    agent: str
    duties: tuple[str, ...]
    duty_vectors: Vectors
    ignore_vectors: Vectors
    case_vectors: Vectors
    """Messages that were confirmed to be its business."""
    counter_case_vectors: Vectors
    """Messages that were confirmed not to be."""

    def __post_init__(self) -> None:
        if len(self.duties) != len(self.duty_vectors):
            raise ValueError(
                f"agent {self.agent}: {len(self.duties)} duties, "
                f"but {len(self.duty_vectors)} vectors; expected one vector per duty"
            )


@dataclass(frozen=True, slots=True)
class _Bank:
    """The phrases of one kind, of all owners: one matrix, so that a message costs one product.

    `rows[i]` are the matrix rows of owner `i`, padded to equal length with the last row, which
    `similarities` makes minus infinity.
    """

    matrix: Vectors
    rows: _Rows

    def similarities(self, unit: Vectors) -> Vectors:
        """Similarity of the message to each phrase: (owners, phrases), padded with -inf."""
        flat = np.append(self.matrix @ unit, np.float32(-np.inf))
        return flat[self.rows]


@dataclass(frozen=True, slots=True)
class Board:
    """All agents, centred and stacked, ready to be compared with. Made by `build`."""

    agents: tuple[str, ...]
    duties: tuple[tuple[str, ...], ...]
    centre: Vectors
    duty_bank: _Bank
    """One owner more than there are agents: the last one is nobody."""
    ignore_bank: _Bank
    case_bank: _Bank
    counter_case_bank: _Bank


@dataclass(frozen=True, slots=True)
class Score:
    """How one agent compares for one message."""

    score: float
    margin: float
    """To the best other agent that was compared, or to nobody's score if there is none."""
    rank: int
    """1 for the best."""
    nearest: str
    """Its duty that is most like the message; empty if it has none."""


@dataclass(frozen=True, slots=True)
class Screening:
    """What came out for one message."""

    scores: Mapping[str, Score]
    """All agents of the board, best first."""
    recipients: tuple[str, ...]
    nobody: float
    fallback: str | None
    """The recipient who takes the message if nobody does; None if it is nobody's business."""
    takers: tuple[str, ...]
    """Recipients within `TAKE_MARGIN` of the best agent and above nobody, best first."""

    def evidence(self, agent: str) -> Evidence:
        """What is attached to the delivery of `agent`."""
        own = self.scores[agent]
        return Evidence(
            agent=agent,
            score=own.score,
            margin=own.margin,
            scores={name: score.score for name, score in self.scores.items()},
            nobody=self.nobody,
            fallback=self.fallback,
            nearest=own.nearest,
            recipients=self.recipients,
            takers=self.takers,
        )


def build(profiles: Sequence[Profile], common_ignores: Vectors) -> Board:
    """Centre and stack the profiles. Done once per configuration, and when a case is confirmed.

    Vectors need not be normalised. `common_ignores` may have no rows.
    """
    phrases = [profile.duty_vectors for profile in profiles] + [common_ignores]
    means = [_unit(vectors).mean(axis=0) for vectors in phrases if len(vectors)]
    width = common_ignores.shape[1]
    centre = np.stack(means).mean(axis=0) if means else np.zeros(width, np.float32)
    return Board(
        agents=tuple(profile.agent for profile in profiles),
        duties=tuple(profile.duties for profile in profiles),
        centre=centre,
        duty_bank=_bank(phrases, centre),
        ignore_bank=_bank([profile.ignore_vectors for profile in profiles], centre),
        case_bank=_bank([profile.case_vectors for profile in profiles], centre),
        counter_case_bank=_bank([profile.counter_case_vectors for profile in profiles], centre),
    )


def screen(vector: Vectors, board: Board, recipients: Collection[str] | None = None) -> Screening:
    """Compare one message with all agents. `recipients` are its subscribers, by default all agents.

    Agents that did not receive the message are scored too, so that a recipient can delegate to
    them, but only a recipient is a fallback or a taker.
    """
    unit = _unit(_unit(vector) - board.centre)
    similar = board.duty_bank.similarities(unit)
    soft = _soft_best(similar)
    scores = soft[:-1] - _own_ignores(similar[:-1], board.ignore_bank.similarities(unit))
    scores += _cases(board.case_bank.similarities(unit))
    scores -= _cases(board.counter_case_bank.similarities(unit))
    nobody = float(soft[-1])
    # Equal scores go by name, so that every run and every reader settles on the same order.
    order = sorted(range(len(board.agents)), key=lambda i: (-scores[i], board.agents[i]))
    ranked = {}
    for rank, index in enumerate(order, start=1):
        others = [float(scores[other]) for other in order[:2] if other != index] or [nobody]
        duties = board.duties[index]
        ranked[board.agents[index]] = Score(
            score=float(scores[index]),
            margin=float(scores[index]) - others[0],
            rank=rank,
            nearest=duties[int(similar[index].argmax())] if duties else "",
        )
    asked = board.agents if recipients is None else tuple(recipients)
    held = [name for name in ranked if name in asked]
    best = max((score.score for score in ranked.values()), default=UNKNOWN_SCORE)
    takers = tuple(
        name
        for name in held
        if ranked[name].score > nobody and ranked[name].score >= best - TAKE_MARGIN
    )
    return Screening(
        scores=ranked,
        recipients=tuple(sorted(held)),
        nobody=nobody,
        fallback=held[0] if held and best >= nobody else None,
        takers=takers,
    )


def list_prompt(duties: Sequence[str]) -> str:
    """What the model has read before it comes to the message; for nobody, of the common ignores.

    Plain text without a chat template or a beginning-of-text token. It does not depend on the
    message, so it is read once and kept.
    """
    return "\n".join(["Messages:", *(f"- {duty}" for duty in duties[:DUTIES_LISTED_MAX])]) + "\n- "


def list_item(message: str) -> str:
    """The message as one more line of that list. It is tokenised by itself, specials as plain text;
    the log-likelihoods of all its tokens, the line break included, are summed."""
    return " ".join(message.split())[:ITEM_CHARACTERS_MAX] + "\n"


def _soft_best(similar: Vectors) -> Vectors:
    """(owners, phrases) to (owners,): step 2 of the formula."""
    nearest = -np.sort(-similar, axis=1)[:, :NEAREST_PHRASES]
    counted = np.isfinite(nearest).sum(axis=1)
    mass = np.exp(CONCENTRATION * nearest).sum(axis=1)
    known = counted > 0
    mean = np.where(known, mass, 1.0) / np.maximum(counted, 1)
    soft = np.log(mean) / CONCENTRATION
    return _float32(np.where(known, soft, UNKNOWN_SCORE))


def _own_ignores(duties: Vectors, ignores: Vectors) -> Vectors:
    """What an agent loses because the message is more like its ignores than like its duties."""
    lead = np.fmax(_best(ignores), UNKNOWN_SCORE) - np.fmax(_best(duties), UNKNOWN_SCORE)
    return _float32(np.maximum(lead, 0.0))


def _cases(similar: Vectors) -> Vectors:
    """What the nearest past case of each agent is worth."""
    return _float32(np.maximum(_best(similar) - CASE_SIMILARITY_MIN, 0.0))


def _best(similar: Vectors) -> Vectors:
    return _float32(np.max(similar, axis=1, initial=UNKNOWN_SCORE))


def _bank(groups: Sequence[Vectors], centre: Vectors) -> _Bank:
    total = sum(len(vectors) for vectors in groups)
    longest = max((len(vectors) for vectors in groups), default=0)
    rows = np.full((len(groups), longest), total, dtype=np.intp)
    start = 0
    for owner, vectors in enumerate(groups):
        rows[owner, : len(vectors)] = np.arange(start, start + len(vectors))
        start += len(vectors)
    stacked = np.concatenate([np.empty((0, len(centre)), np.float32), *groups])
    return _Bank(matrix=_unit(_unit(stacked) - centre), rows=rows)


def _unit(vectors: Vectors) -> Vectors:
    """Rows of length one; a row of zeros (an empty message) stays zero and resembles nothing."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return _float32(np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 1e-9))


def _float32(values: npt.ArrayLike) -> Vectors:
    return np.asarray(values, np.float32)
