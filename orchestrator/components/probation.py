"""The probation of a new version of an agent: what it has shown so far, and what follows. Pure.

From the handover on a version is *watched*: it has to handle so many messages, and to work for so
long; with both it is *kept*. Whatever happens before that which a good version does not do sends it
back: it is *reverted*, and the version before it works again.

A quiet agent stays on probation until its messages have come: time alone shows nothing. A message
that the version refused has not been handled, and may be the message's fault; a version that has
refused more than it has handled, and no fewer than it has to handle, is sent back for it.
"""

from typing import Final, Literal, TypeAlias

import msgspec

from orchestrator.bus.lifecycle import Lifecycle

MESSAGES: Final = 20
US: Final = 60_000_000
"""The terms where nobody says others: a minute under load, and enough messages that a version which
fails at every tenth is found out."""

MESSAGES_MAX: Final = 1_000_000
US_MAX: Final = 7 * 86_400_000_000
"""A week: a longer probation is an upgrade that nobody trusts."""

ProbationState = Literal["watched", "kept", "reverted"]
ProbationEvent = Literal["keep", "revert"]

PROBATION: Final = Lifecycle[ProbationState, ProbationEvent](
    "probation",
    {
        ("watched", "keep"): "kept",
        ("watched", "revert"): "reverted",
    },
)


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What a version has to show: messages handled, and time since the handover."""

    messages: int = MESSAGES
    us: int = US

    def __post_init__(self) -> None:
        if not (0 <= self.messages <= MESSAGES_MAX and 0 <= self.us <= US_MAX):
            raise ValueError(f"a probation has 0 to {MESSAGES_MAX} messages and 0 to {US_MAX} µs")


# ---- Events --------------------------------------------------------------------------------------


class Handled(msgspec.Struct, frozen=True):
    """A message came to its end in order."""


class Refused(msgspec.Struct, frozen=True):
    """It said itself that it cannot handle a message, or what it made of it could not be taken."""


class Failed(msgspec.Struct, frozen=True):
    """It did not start, it trapped, its worker died, or it used up a budget."""

    detail: str


class Degraded(msgspec.Struct, frozen=True):
    """It said itself that it does not work well."""

    condition: Literal["degraded", "overloaded"]
    detail: str


class TimePassed(msgspec.Struct, frozen=True):
    """Nothing happened."""


Event: TypeAlias = Handled | Refused | Failed | Degraded | TimePassed


# ---- The probation -------------------------------------------------------------------------------


class Probation(msgspec.Struct, frozen=True, kw_only=True):
    """One version's probation. Times are microseconds since the epoch."""

    terms: Terms
    since_us: int
    """When it was handed over."""
    state: ProbationState = "watched"
    handled: int = 0
    refused: int = 0
    reason: str = ""
    """Why it is over."""

    @property
    def over(self) -> bool:
        return self.state != "watched"

    @property
    def due_us(self) -> int | None:
        """When it is over if nothing happens; None where that would not end it."""
        if self.state != "watched" or self.handled < self.terms.messages:
            return None
        return self.since_us + self.terms.us


def observe(probation: Probation, event: Event, now_us: int) -> Probation:
    """What an event makes of a probation. Raises `IllegalTransitionError` once it is over."""
    match event:
        case Handled():
            handled = msgspec.structs.replace(probation, handled=probation.handled + 1)
            return _judged(handled, now_us)
        case Refused():
            refused = msgspec.structs.replace(probation, refused=probation.refused + 1)
            return _judged_by_refusals(refused, now_us)
        case Failed(detail=detail):
            return _after(probation, "revert", detail)
        case Degraded(condition=condition, detail=detail):
            return _after(probation, "revert", f"It reported to be {condition}: {detail}")
    return _judged(probation, now_us)


def _judged_by_refusals(probation: Probation, now_us: int) -> Probation:
    refused, handled = probation.refused, probation.handled
    if refused > handled and refused >= probation.terms.messages:
        reason = f"It has refused {refused} of {refused + handled} messages."
        return _after(probation, "revert", reason)
    return _judged(probation, now_us)


def _judged(probation: Probation, now_us: int) -> Probation:
    due_us = probation.due_us
    if due_us is None or now_us < due_us:
        return probation
    shown = f"{probation.handled} messages in {(now_us - probation.since_us) / 1e6:.0f} s"
    return _after(probation, "keep", f"It has handled {shown}.")


def _after(probation: Probation, event: ProbationEvent, reason: str) -> Probation:
    state = PROBATION.after(probation.state, event)
    return msgspec.structs.replace(probation, state=state, reason=reason)
