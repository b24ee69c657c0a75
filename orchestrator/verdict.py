"""Who should take a message: what screening found, weighed against what the model prefers.

Screening compares a message once with every agent's duties and attaches `Evidence` to each
delivery, with the verdict that follows from it. Where that leaves doubt the verdict is `uncertain`;
the agent's loop then asks to have the model's preference weighed, and `decide` is called again.

It is pure: the same evidence and the same preference always give the same verdict, so the agents
that share a message settle on one owner without talking to each other.

The maths. Each option `o` (an agent, or nobody) has a score `s(o)`, a similarity. The logit of an
option is

    logit(o) = s(o) / SCORE_TEMPERATURE + weight * preference(o)

and its probability the softmax of the logits. The first term is the log-likelihood of the message
under the option's duties as screening sees them, so the sum is a product of two experts. The
preference is the pointwise mutual information between message and option, as the model sees it,

    log p(option | message) - log p(option)  =  log p(message | option) - log p(message),

which takes away what the model says whatever it is asked. The two sides are the same quantity and
either may be given, but a small model knows the right one far better: how likely does a list of the
option's duties go on with this message (Min et al., "Noisy Channel Language Model Prompting", ACL
2022)? There `log p(message)` is the same for all options and need not be computed: only differences
between options count, so a constant added to all of them changes nothing.

The two constants and the weight were fitted on messages that neither duties nor prompts had been
written for; `benchmarks/triage/README.md` has the measurements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from ipc_protocol.work import Evidence, Verdict, VerdictAction

NOBODY = "none"
"""The option that a message concerns no agent. No agent may have this name."""

SCORE_TEMPERATURE = 0.05
"""Similarity that is worth one nat."""

PREFERENCE_WEIGHT = 0.4
"""What one nat of a small model's preference is worth against one nat of screening. Less than one,
because the tokens of a message are not independent of each other."""

CERTAIN_MARGIN = 0.1
"""A lead in similarity over the second-best option that no preference of the model has overturned
where it was measured."""

OPTIONS_ASKED_MAX = 5
"""Options the model is asked about. Its answer costs one reading of the message for each; among the
five that screening likes best the right one is hardly ever missing."""


def options(evidence: Evidence) -> list[str]:
    """What to ask the model about: agents and `NOBODY`, best first."""
    ranked = _ranked({**evidence.scores, NOBODY: evidence.nobody})
    return ranked[:OPTIONS_ASKED_MAX]


def decide(
    evidence: Evidence,
    preference: Mapping[str, float] | None = None,
    weight: float = PREFERENCE_WEIGHT,
) -> Verdict:
    """Settle what `evidence.agent` does with the message.

    `preference` maps the options that the model was asked about to nats; the others are out of the
    running. An empty mapping leaves the decision to screening, as when the model cannot be asked.
    Without a preference (None) the verdict is `uncertain` unless the best option leads by
    `CERTAIN_MARGIN`.

    Exactly one recipient acts or delegates unless nobody's business wins. An owner that did not
    receive the message gets it from the fallback owner.
    """
    scores = {**evidence.scores, NOBODY: evidence.nobody}
    ranked = _ranked(scores)
    lead = scores[ranked[0]] - scores[ranked[1]]
    certain = lead >= CERTAIN_MARGIN
    logits = {option: score / SCORE_TEMPERATURE for option, score in scores.items()}
    heard = {} if certain or preference is None else preference
    if heard.keys() & logits.keys():
        logits = {
            option: logit + weight * heard[option]
            for option, logit in logits.items()
            if option in heard
        }
    winner = _ranked(logits)[0]
    probability = _softmax(logits)[winner]
    action: VerdictAction = "uncertain"
    if certain or preference is not None:
        action = _action(evidence, winner)
    return Verdict(
        action=action,
        to=winner if action == "delegate" else None,
        reason=_reason(evidence, winner, probability, asked=bool(heard)),
        certain=certain,
        probability=probability,
    )


def _action(evidence: Evidence, winner: str) -> VerdictAction:
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
