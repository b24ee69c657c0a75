"""When a child that died is started again, and when that would help nobody. Pure.

The rules are those of Erlang's supervisor: a restart type says which deaths are answered by a
restart, and an intensity window bounds how many. Between restarts the wait doubles, and starts over
once a child has lived long enough to show that the last start was a good one. Over its intensity a
child is quarantined until a person releases it.

A death that somebody else caused (the zygote died under a worker) is answered at once and is not
held against the child.
"""

import enum
import re
from typing import Final, TypeAlias

import msgspec

from ipc_protocol.values import Message

BACKOFF_US_MIN: Final = 200_000
BACKOFF_US_MAX: Final = 30_000_000
STABLE_US: Final = 60_000_000
"""Twice the longest wait: a child that lives so long does not die of how it starts."""
WINDOW_US: Final = 60_000_000
DEATHS_MAX: Final = 5
"""With the shortest waits, 0.2 s to 3.2 s, five deaths take 3 s and the sixth comes after 6 s: a
child that cannot start is quarantined within seconds, one that dies twice a minute never."""

RELEASE_WORDS: Final = ("yes", "y", "ok", "restart", "release")
"""How an answer begins that lets a child out of quarantine. Any other leaves it there: taking a
"no" for a yes would start again what somebody wants to be left alone."""
RELEASE_QUESTION: Final = (
    f"Restart it? An answer that begins with {', '.join(RELEASE_WORDS[:-1])} or "
    f"{RELEASE_WORDS[-1]} does."
)

assert STABLE_US >= 2 * BACKOFF_US_MAX
assert BACKOFF_US_MIN * (2**DEATHS_MAX - 1) < WINDOW_US


class RestartType(enum.Enum):
    PERMANENT = "permanent"
    """Always restarted."""
    TRANSIENT = "transient"
    """Restarted unless it left in order."""
    TEMPORARY = "temporary"
    """Never restarted."""


class RestartPolicy(Message, frozen=True):
    """Durations in microseconds. Up to `deaths_max` deaths in `window_us` are tolerated."""

    type: RestartType = RestartType.PERMANENT
    backoff_us_min: int = BACKOFF_US_MIN
    backoff_us_max: int = BACKOFF_US_MAX
    stable_us: int = STABLE_US
    deaths_max: int = DEATHS_MAX
    window_us: int = WINDOW_US

    def __post_init__(self) -> None:
        if not 0 < self.backoff_us_min <= self.backoff_us_max:
            raise ValueError("the shortest backoff must be over 0, and not over the longest")
        if self.deaths_max < 1 or self.window_us < 1 or self.stable_us < 1:
            raise ValueError("deaths, window and stable period must be at least 1")


class RestartState(Message, frozen=True):
    """What is remembered of a child: its deaths within the window, how often in a row it was
    restarted, and since when it runs."""

    deaths_us: tuple[int, ...] = ()
    streak: int = 0
    ready_us: int | None = None


# ---- Events --------------------------------------------------------------------------------------


class Ready(msgspec.Struct, frozen=True):
    """The child has started and does its work."""


class Died(msgspec.Struct, frozen=True):
    """The child is gone. `orderly`: it left by itself with status 0. `own`: nobody else did it."""

    orderly: bool = False
    own: bool = True


class Released(msgspec.Struct, frozen=True):
    """A person says that the reason is removed: the slate is clean."""


RestartEvent: TypeAlias = Ready | Died | Released

# ---- Decisions -----------------------------------------------------------------------------------


class Run(msgspec.Struct, frozen=True):
    """Nothing to do."""


class Restart(msgspec.Struct, frozen=True):
    """Start it again after `delay_us`."""

    delay_us: int


class Quarantine(msgspec.Struct, frozen=True):
    """Leave it, and ask for a person. It died `deaths` times within `window_us`."""

    deaths: int
    window_us: int


class Finish(msgspec.Struct, frozen=True):
    """It has ended for good, as its type says."""


RestartDecision: TypeAlias = Run | Restart | Quarantine | Finish


def decide(
    policy: RestartPolicy, state: RestartState, event: RestartEvent, now_us: int
) -> tuple[RestartState, RestartDecision]:
    """The next state, and what to do about the event."""
    if isinstance(event, Ready):
        return msgspec.structs.replace(state, ready_us=now_us), Run()
    if isinstance(event, Released):
        return RestartState(), Restart(0)
    return _after_death(policy, state, event, now_us)


def _after_death(
    policy: RestartPolicy, state: RestartState, death: Died, now_us: int
) -> tuple[RestartState, RestartDecision]:
    if not death.own and policy.type is not RestartType.TEMPORARY:
        return msgspec.structs.replace(state, ready_us=None), Restart(0)
    if policy.type is RestartType.TEMPORARY or (
        policy.type is RestartType.TRANSIENT and death.orderly
    ):
        return RestartState(), Finish()
    recent = (*(at for at in state.deaths_us if now_us - at < policy.window_us), now_us)
    if len(recent) > policy.deaths_max:
        return RestartState(), Quarantine(len(recent), policy.window_us)
    lived_us = 0 if state.ready_us is None else now_us - state.ready_us
    streak = 0 if lived_us >= policy.stable_us else state.streak
    return RestartState(deaths_us=recent, streak=streak + 1), Restart(_backoff_us(policy, streak))


def _backoff_us(policy: RestartPolicy, streak: int) -> int:
    # Beyond the quotient's bits doubling only makes large numbers of what is capped anyway.
    doublings = min(streak, (policy.backoff_us_max // policy.backoff_us_min).bit_length())
    return min(policy.backoff_us_max, policy.backoff_us_min << doublings)


def releases(answer: str) -> bool:
    """Whether an answer to `RELEASE_QUESTION` says yes."""
    first = re.match(r"\W*(\w+)", answer)
    return first is not None and first[1].casefold() in RELEASE_WORDS
