"""Whether there is room for new work, and when the reserve is given up and made again. Pure.

The store keeps a *reserve*: bytes on its file system that nothing else can take. While it is there
and there is room beside it, the intake is open. When room gets scarce the intake closes, so that
what was begun can end; when a write finds no room at all, the reserve is given up, and what
completes, parks or cleans up writes into that. With room again the reserve comes first, then the
intake.

| state | intake | reserve |
|---|---|---|
| open | open | held |
| closed | refused | held |
| spent | refused | given up |
"""

from collections.abc import Mapping
from typing import Final, Literal

import msgspec

RESERVE_BYTES_MAX: Final = 32 * 1024 * 1024
"""What completes takes: a hundred completions with an output of the largest payload (256 KiB)."""

RESERVE_SHARE: Final = 16
"""Of a small file system the reserve takes one sixteenth."""

SpaceState = Literal["open", "closed", "spent"]
SpaceEvent = Literal["scarce", "room", "full"]

NEXT: Final[Mapping[tuple[SpaceState, SpaceEvent], SpaceState]] = {
    ("open", "scarce"): "closed",
    ("open", "full"): "spent",
    ("closed", "full"): "spent",
    ("closed", "room"): "open",
    ("spent", "room"): "open",
}
"""A pair that is not here changes nothing. Entering *spent* gives the reserve up, leaving it makes
the reserve again."""


class Marks(msgspec.Struct, frozen=True, kw_only=True):
    """In bytes: the size of the reserve, below how much free the intake closes, and from how much
    on it opens again. The reserve comes on top where it is not held."""

    reserve: int
    low: int
    high: int


def marks_for(total: int) -> Marks:
    """For a file system of `total` bytes. Between the two marks nothing changes, or the intake
    would open and close with every message."""
    reserve = min(RESERVE_BYTES_MAX, total // RESERVE_SHARE)
    return Marks(reserve=reserve, low=reserve, high=2 * reserve)


def seen(state: SpaceState, free: int, marks: Marks) -> SpaceEvent | None:
    """What `free` bytes mean in `state`."""
    wanted = marks.high + (marks.reserve if state == "spent" else 0)
    if free >= wanted:
        return "room"
    return "scarce" if free < marks.low else None


def after(state: SpaceState, event: SpaceEvent | None) -> SpaceState:
    return state if event is None else NEXT.get((state, event), state)


def at_start(held: bool, free: int, marks: Marks) -> SpaceState:
    """The state of a store that opens, whose reserve is `held` from before or has to be made. The
    low mark decides: an instance that had room when it stopped has it when it starts."""
    if held:
        return "open" if free >= marks.low else "closed"
    return "open" if free >= marks.low + marks.reserve else "spent"
