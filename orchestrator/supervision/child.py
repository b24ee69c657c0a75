"""The life of a supervised child as a table. Pure.

`restart` decides what follows a death; `EVENT_OF` says which event of this table that decision is.
A pair that is not in `CHILD` is a defect of the supervisor, and raises.
"""

import enum
from typing import Final

from orchestrator.supervision.restart import Finish, Quarantine, Restart


class ChildState(enum.Enum):
    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    QUARANTINED = "quarantined"


class ChildEvent(enum.Enum):
    START = "start"
    """Somebody starts it: the daemon, the end of a backoff, or a person who releases it."""
    HOLD = "hold"
    """It was quarantined before the daemon was started, and nobody has released it."""
    READY = "ready"
    STOP = "stop"
    """It is asked to leave, or no longer wanted."""
    DIED_RESTART = "died: restart"
    DIED_QUARANTINE = "died: quarantine"
    DIED_FINISH = "died: finish"


CHILD: Final[dict[tuple[ChildState, ChildEvent], ChildState]] = {
    (ChildState.STOPPED, ChildEvent.START): ChildState.STARTING,
    (ChildState.STOPPED, ChildEvent.HOLD): ChildState.QUARANTINED,
    (ChildState.STARTING, ChildEvent.READY): ChildState.RUNNING,
    (ChildState.STARTING, ChildEvent.STOP): ChildState.STOPPING,
    (ChildState.STARTING, ChildEvent.DIED_RESTART): ChildState.BACKOFF,
    (ChildState.STARTING, ChildEvent.DIED_QUARANTINE): ChildState.QUARANTINED,
    (ChildState.STARTING, ChildEvent.DIED_FINISH): ChildState.STOPPED,
    (ChildState.RUNNING, ChildEvent.STOP): ChildState.STOPPING,
    (ChildState.RUNNING, ChildEvent.DIED_RESTART): ChildState.BACKOFF,
    (ChildState.RUNNING, ChildEvent.DIED_QUARANTINE): ChildState.QUARANTINED,
    (ChildState.RUNNING, ChildEvent.DIED_FINISH): ChildState.STOPPED,
    (ChildState.STOPPING, ChildEvent.DIED_FINISH): ChildState.STOPPED,
    (ChildState.BACKOFF, ChildEvent.START): ChildState.STARTING,
    (ChildState.BACKOFF, ChildEvent.STOP): ChildState.STOPPED,
    (ChildState.QUARANTINED, ChildEvent.START): ChildState.STARTING,
    (ChildState.QUARANTINED, ChildEvent.STOP): ChildState.STOPPED,
}
"""A child that is stopping dies of that, whatever its restart type would have said."""

EVENT_OF: Final[dict[type[Restart | Quarantine | Finish], ChildEvent]] = {
    Restart: ChildEvent.DIED_RESTART,
    Quarantine: ChildEvent.DIED_QUARANTINE,
    Finish: ChildEvent.DIED_FINISH,
}


class ImpossibleTransition(Exception):
    """The supervisor got something wrong; never the child's fault."""


def advance(state: ChildState, event: ChildEvent) -> ChildState:
    """Raises `ImpossibleTransition` for what the table does not have."""
    after = CHILD.get((state, event))
    if after is None:
        raise ImpossibleTransition(f"a child that is {state.value} cannot have {event.value!r}")
    return after
