"""Which failure of a remote server is asked again, and when. Pure.

A server that is busy says so before it has begun, with 429 or 503, and often when to come again. A
connection that fails before anything was answered has cost nothing. Everything else may have: it is
an answer, and is not asked for twice.
"""

import re
from typing import Final

import msgspec

BUSY: Final = frozenset({429, 503})

PASSING: Final = frozenset({"unreachable", "broken", "busy"})
"""Reasons of `egress.failed` that may be gone a moment later."""

_SECONDS: Final = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")


class Backoff(msgspec.Struct, frozen=True):
    """How often, and how long to wait in between, in seconds."""

    attempts_max: int = 5
    """With the waits below some 15 s: a server that restarts is back."""
    first_seconds: float = 1.0
    longest_seconds: float = 8.0
    retry_after_seconds_max: float = 60.0
    """A server that wants more is not waited for: the caller may have another way by then."""


BACKOFF: Final = Backoff()


class Refusal(msgspec.Struct, frozen=True):
    """Why an attempt has failed before anything was answered: a status, or the reason of
    `egress.failed`. `retry_after` is the server's header, if there was one."""

    status: int = 0
    reason: str = ""
    retry_after: str = ""


def delay_seconds(
    refusal: Refusal, attempt: int, chance: float, backoff: Backoff = BACKOFF
) -> float | None:
    """How long to wait after attempt number `attempt`, from 1 on; None not to ask again.

    `chance` is drawn from 0 to 1, so that who was refused together comes back apart.
    """
    if attempt >= backoff.attempts_max:
        return None
    if refusal.status not in BUSY and refusal.reason not in PASSING:
        return None
    wait = min(backoff.longest_seconds, backoff.first_seconds * 2.0 ** (attempt - 1))
    wait *= 0.5 + chance / 2
    wanted = _wanted(refusal.retry_after)
    if wanted is None:
        return wait
    # Not all at the very moment that the server has named, either.
    return None if wanted > backoff.retry_after_seconds_max else wanted * (1 + chance / 10)


def _wanted(header: str) -> float | None:
    """Seconds of a Retry-After. A date is not read: it means a clock that both would agree on."""
    return float(header) if _SECONDS.fullmatch(header.strip()) else None
