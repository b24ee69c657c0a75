"""Who is to be killed, and where: a round of the kill loop, drawn from a seed.

A round is a number of lives of the daemon. In each some processes are wounded; then the daemon dies
at a fail point, alone or with all that it has started. The last life comes to rest.
"""

import random
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

Wound = Literal["worker", "zygote", "engine", "model"]

WOUNDS: Final[tuple[Wound, ...]] = ("worker", "worker", "worker", "zygote", "engine")
"""How often each is drawn. Zygote and engine are few: their waits double within a daemon's life."""

WOUNDS_OF_MODELS: Final[tuple[Wound, ...]] = (*WOUNDS, "model", "model", "model")
"""Where there is a model. All but the first of a life are passed over, so it is drawn often."""

WOUNDS_MAX: Final = 7
LAST_WOUNDS_MAX: Final = 10
"""The last life of a round has no death of its daemon, so that more of its others may die."""

WOUND_SECONDS_MAX: Final = 0.4
"""Between two wounds: less than most of what they cause takes, so that they meet."""

REST_SECONDS_MAX: Final = 0.6
"""Between the last wound and the death of the daemon, where that comes at random."""

FAIL_POINTS: Final = {
    "publish.decided": 25,
    "writer.before-commit": 60,
    "writer.after-commit": 60,
    "publish.committed": 25,
    "lease.handed": 40,
    "effect.performed": 12,
    "effect.journaled": 12,
    "completion.received": 40,
    "completion.committed": 40,
    "completion.parked": 2,
}
"""By its name, at which time of being reached a fail point kills at the latest: about as often as
the load comes by within a second."""

FAIL_POINT_SHARE: Final = 0.65
EVERYBODY_SHARE: Final = 0.15
"""Of the daemon's deaths; the rest are its own alone, at random."""

WHEN_UP_SHARE: Final = 0.5
"""Of the lives in which nobody is harmed before all are up."""


class Life(NamedTuple):
    """What happens to one life of the daemon. Times are in seconds."""

    when_up: bool
    """Nobody is harmed before all are up; else from the first moment."""
    wounds: tuple[tuple[float, Wound], ...]
    """After how long, and who."""
    fail_point: str = ""
    """`NAME:NTH`; empty where it dies at random."""
    everybody: bool = False
    rest: float = 0.0

    @property
    def place(self) -> str:
        """The name of its fail point."""
        return self.fail_point.partition(":")[0]


def plan(
    randomly: random.Random, lives: int, whom: Sequence[Wound] = WOUNDS
) -> tuple[list[Life], Life]:
    """The lives of a round that end by SIGKILL, and the one that comes to rest. `whom` the wounds
    are drawn from."""
    last = Life(when_up=True, wounds=_wounds(randomly, LAST_WOUNDS_MAX, whom))
    return [_life(randomly, whom) for _ in range(lives - 1)], last


def _life(randomly: random.Random, whom: Sequence[Wound]) -> Life:
    name = randomly.choice(list(FAIL_POINTS))
    fail_point = f"{name}:{randomly.randint(1, FAIL_POINTS[name])}"
    end = randomly.random()
    return Life(
        when_up=randomly.random() < WHEN_UP_SHARE,
        wounds=_wounds(randomly, WOUNDS_MAX, whom),
        fail_point=fail_point if end < FAIL_POINT_SHARE else "",
        everybody=end > 1 - EVERYBODY_SHARE,
        rest=randomly.uniform(0, REST_SECONDS_MAX),
    )


def _wounds(
    randomly: random.Random, count_max: int, whom: Sequence[Wound]
) -> tuple[tuple[float, Wound], ...]:
    count = randomly.randint(0, count_max)
    return tuple(
        (randomly.uniform(0, WOUND_SECONDS_MAX), randomly.choice(whom)) for _ in range(count)
    )
