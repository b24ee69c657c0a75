"""What a component is told of a delivery, and what it answers, in the loop's terms. Pure.

The types were checked when the component was linked. What is checked here is whether the values
make sense: a message that can be sent, a decision that can be followed. `Failure` is
*component.output*.
"""

import math
from collections.abc import Sequence
from typing import Any

from agent_runtime.component import limits
from agent_runtime.loop.consulting import Advice, Judgement
from ipc_protocol.errors import Failure
from ipc_protocol.values import Envelope
from ipc_protocol.work import AgentProfile, Evidence, Outgoing

# ---- What it is told ----------------------------------------------------------------------------


def told(envelope: Envelope) -> dict[str, Any]:
    return {
        "topic": envelope.topic,
        "sender": envelope.sender,
        "payload": envelope.payload,
        "correlation-id": envelope.correlation,
    }


def told_sent(
    sent: Sequence[Outgoing], sender: str, received: dict[str, Any]
) -> list[dict[str, Any]]:
    """What was sent upon `received`, which was told as `told` does."""
    return [
        {**received, "topic": output.topic, "sender": sender, "payload": output.payload}
        for output in sent
    ]


def told_screening(evidence: Evidence | None) -> dict[str, Any] | None:
    if evidence is None:
        return None
    return {
        "score": evidence.score,
        "margin": evidence.margin,
        "nearest": evidence.nearest,
        "scores": list(evidence.scores.items()),
    }


# ---- What it answers ----------------------------------------------------------------------------


def outgoing(envelopes: Sequence[dict[str, Any]], correlation: str) -> list[Outgoing]:
    """Messages of a delivery of the conversation `correlation`. Their sender is not asked for."""
    for envelope in envelopes:
        if envelope["correlation-id"] not in ("", correlation):
            raise _output(
                "returned a message for another conversation than that of the message in hand",
                "Leave `correlation-id` empty, or copy it from the message.",
            )
        if len(envelope["topic"]) > limits.TOPIC_CHARS_MAX:
            raise _output(
                f"returned a message on a topic of {len(envelope['topic'])} characters",
                f"A topic has at most {limits.TOPIC_CHARS_MAX}.",
            )
    return [Outgoing(topic=one["topic"], payload=one["payload"]) for one in envelopes]


def advice(decision: dict[str, Any], profile: AgentProfile) -> Advice:
    action, to, seconds = decision["action"], decision["to"], decision["seconds"]
    if action == "delegate" and to not in profile.delegates:
        known = ", ".join(profile.delegates) or "nobody"
        raise _output(
            f"decided to delegate to {str(to)[: limits.TOPIC_CHARS_MAX]!r}",
            f"This agent may delegate to: {known}. See `delegate` in its configuration.",
        )
    if action == "defer" and not 0 < (seconds or 0) <= limits.DEFERRAL_SECONDS_MAX:
        raise _output(
            f"decided to defer the message by {seconds} seconds",
            f"Set `seconds`, from 1 to {limits.DEFERRAL_SECONDS_MAX}.",
        )
    return Advice(
        action=action,
        reason=decision["reason"][: limits.REASON_CHARS_MAX],
        to=to if action == "delegate" else None,
        defer_us=seconds * 1_000_000 if action == "defer" else None,
    )


def judgement(reflection: dict[str, Any]) -> Judgement:
    importance = reflection["importance"]
    if not (math.isfinite(importance) and 0 <= importance <= 1):
        raise _output(f"gave an importance of {importance}", "It goes from 0 to 1.")
    return Judgement(
        lesson=reflection["lesson"][: limits.LESSON_CHARS_MAX],
        outcome=reflection["outcome"],
        importance=importance,
    )


def _output(what: str, cure: str) -> Failure:
    return Failure("component.output", f"The component {what}.", cure)
