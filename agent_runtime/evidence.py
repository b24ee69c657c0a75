"""Who should take a message: what screening found, weighed against what the model prefers.

Screening compares a message once with every agent's duties, in the orchestrator, and attaches
`Evidence` to each delivery. The loop calls `decide` with it. Where the evidence leaves no doubt the
verdict is final; elsewhere it is `uncertain`, the model is asked for its preference, and `decide` is
called again with it.

This module runs in the sealed worker. It may import the standard library and msgspec, nothing else,
and it is pure: the same evidence and the same preference always give the same verdict, in every
worker, so the agents that share a message settle on one owner without talking to each other.

The maths. Each option `o` (an agent, or nobody) has a score `s(o)`, a similarity. The logit of an
option is

    logit(o) = s(o) / SCORE_TEMPERATURE + weight * preference(o)

and its probability the softmax of the logits. The first term is the log-likelihood of the message
under the option's duties, so the sum is a product of experts. `preference(o)` is the model's
pointwise mutual information between message and option,

    log p(o | message) - log p(o | empty message)  =  log p(message | o) - log p(message),

which takes away what the model says whatever it is asked. The two sides are the same quantity: a
model may be asked either way. Only differences between options count: a constant that is added to
all scores or to all preferences changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import msgspec

NOBODY = "none"
"""The option that a message concerns no agent. No agent may have this name."""

SCORE_TEMPERATURE = 0.04
"""Similarity that is worth one nat. The value that made the outcomes of the development set in
`benchmarks/triage` most likely."""

CERTAIN_MARGIN = 0.12
"""A lead in similarity, over the second-best option, that no preference of a small model should
overturn. On the development set screening alone was right in all messages with this lead."""

PREFERENCE_WEIGHT = 0.1
"""What one nat of a small model's preference is worth against one nat of screening."""

Action = Literal["act", "ignore", "delegate", "uncertain"]


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What screening found out about one delivery.

    Scores are similarities from -1 to 1. `scores` has every agent that was compared, also those that
    did not receive the message: to them it can be delegated.
    """

    agent: str
    score: float
    margin: float
    """`score` minus the best other agent's score, or minus nobody's where there is no other agent."""
    scores: dict[str, float]
    nobody: float
    fallback: str | None
    """Who takes it if nobody does; None where it is plainly nobody's business."""
    nearest: str
    """The duty of `agent` that the message resembles most; empty if it has none."""
    recipients: tuple[str, ...] = ()
    """The agents that hold a delivery of this message, `agent` among them."""
    takers: tuple[str, ...] = ()
    """The recipients whose business it may well be, best first."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent does with a message, and why."""

    action: Action
    reason: str
    certain: bool
    """The evidence alone left no doubt: the model was not needed."""
    probability: float
    """Of the option that won, among all options."""
    to: str | None = None
    """The agent to delegate to, for `delegate` only."""


def decide(
    evidence: Evidence,
    preference: Mapping[str, float] | None = None,
    weight: float = PREFERENCE_WEIGHT,
) -> Verdict:
    """Settle what `evidence.agent` does with the message.

    `preference` maps agent names and `NOBODY` to the model's calibrated log-likelihood in nats; an
    option that is missing from it is taken at the mean of those present. Without a preference the
    verdict is `uncertain` unless the best option leads by `CERTAIN_MARGIN`.

    Exactly one recipient acts or delegates unless nobody's business wins. An owner that did not
    receive the message gets it from the fallback owner.
    """
    scores = {**evidence.scores, NOBODY: evidence.nobody}
    ranked = _ranked(scores)
    lead = scores[ranked[0]] - scores[ranked[1]]
    certain = lead >= CERTAIN_MARGIN
    if certain:
        preference = None
    logits = {option: score / SCORE_TEMPERATURE for option, score in scores.items()}
    if preference:
        missing = math.fsum(preference.values()) / len(preference)
        for option in logits:
            logits[option] += weight * preference.get(option, missing)
    winner = _ranked(logits)[0]
    probability = _softmax(logits)[winner]
    action: Action = "uncertain"
    if certain or preference is not None:
        action = _action(evidence, winner)
    return Verdict(
        action=action,
        to=winner if action == "delegate" else None,
        reason=_reason(evidence, winner, probability, asked=preference is not None),
        certain=certain,
        probability=probability,
    )


def _action(evidence: Evidence, winner: str) -> Action:
    if winner == evidence.agent:
        return "act"
    if winner == NOBODY or winner in evidence.recipients:
        return "ignore"
    # The owner did not receive the message: one recipient, the fallback owner, passes it on.
    return "delegate" if evidence.agent == evidence.fallback else "ignore"


def _reason(evidence: Evidence, winner: str, probability: float, *, asked: bool) -> str:
    """One sentence for `ctl trace`: the nearest duty, the numbers, and whether the model spoke."""
    numbers = f"{evidence.score:.2f}, nobody {evidence.nobody:.2f}"
    if winner == NOBODY:
        head = f"it is nobody's business ({numbers})"
    elif winner == evidence.agent:
        head = f"it is like my duty {evidence.nearest!r} ({numbers}, margin {evidence.margin:+.2f})"
    else:
        head = f"it is rather {winner}'s ({evidence.scores[winner]:.2f} to my {numbers})"
    source = "with the model's preference" if asked else "by screening alone"
    return f"{head}, {probability:.0%} likely {source}"


def _ranked(values: Mapping[str, float]) -> list[str]:
    """Options from best to worst; ties go by name, so that every worker breaks them alike."""
    return sorted(values, key=lambda option: (-values[option], option))


def _softmax(logits: Mapping[str, float]) -> dict[str, float]:
    top = max(logits.values())
    masses = {option: math.exp(logit - top) for option, logit in logits.items()}
    total = math.fsum(masses.values())
    return {option: mass / total for option, mass in masses.items()}
