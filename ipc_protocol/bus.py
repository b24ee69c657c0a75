"""What operators ask about the bus itself: its dead letters, its topics, and what goes over it."""

from ipc_protocol.errors import Problem
from ipc_protocol.values import Count, Id, Message, Priority, TimeUs


class Payload(Message, frozen=True):
    """A payload for reading: `text` where it is UTF-8, else `data`. If it is `cut`, the first bytes
    of the `size_bytes` that it has."""

    size_bytes: Count
    text: str | None = None
    data: bytes | None = None
    cut: bool = False


# ---- Dead letters -------------------------------------------------------------------------------


class DeadLetterFilter(Message, frozen=True):
    """Which dead letters are meant: those for which all of this holds."""

    agent: str | None = None
    """Who should have received it, or sent it where it never became a message."""
    topic: str | None = None
    """A topic, or a pattern with `*` and `>`."""
    code: str | None = None
    since_us: TimeUs | None = None
    before_us: TimeUs | None = None
    below: Id | None = None
    """Only lower numbers: to page on from the last one that was listed."""
    replayed: bool | None = None


class ListDeadLetters(Message, frozen=True):
    filter: DeadLetterFilter = DeadLetterFilter()
    limit: Count = 50


class DeadLetterLine(Message, frozen=True):
    """A dead letter in a list. `receiver` is nil for an output that never became a message."""

    number: int
    died_us: int
    sender: str
    receiver: str | None
    topic: str
    priority: Priority
    code: str
    reason: str
    attempts: int
    correlation: str
    payload_bytes: int
    replayed_as: int | None = None
    replayed_us: int | None = None


class DeadLetters(Message, frozen=True):
    """The newest first, of `matching` in all. `below` pages on; it is nil on the last page."""

    letters: list[DeadLetterLine]
    matching: Count
    below: int | None = None


class OfDeadLetter(Message, frozen=True):
    number: Id


class CausingMessage(Message, frozen=True):
    message: int
    topic: str
    sender: str


class DeadLetterDetail(Message, frozen=True):
    """All that is known of one. `last_error` is what went wrong before it died, `causes` lead from
    the message that it is about, or that it was an answer to, back to the first."""

    letter: DeadLetterLine
    last_error: str
    message: int | None
    delivery: int | None
    causes: list[CausingMessage]
    payload: Payload


class ReplayDeadLetters(Message, frozen=True):
    """Send dead letters again: those of these `numbers`, or all of a filter, the oldest first.

    What was sent again before is refused, or with a filter passed over, unless `again`.
    """

    numbers: list[Id] = []
    filter: DeadLetterFilter | None = None
    again: bool = False


class ReplayedLetter(Message, frozen=True):
    """What came of one: the `message` that it is now, or the problem."""

    number: int
    message: int | None = None
    correlation: str = ""
    problem: Problem | None = None


class ReplayedLetters(Message, frozen=True):
    replayed: Count
    refused: Count


class PurgeDeadLetters(Message, frozen=True):
    """Remove dead letters for good: those of these `numbers`, all or none, or all of a filter."""

    numbers: list[Id] = []
    filter: DeadLetterFilter | None = None


class PurgedLetters(Message, frozen=True):
    purged: Count


# ---- Topics -------------------------------------------------------------------------------------


class TopicSubscriber(Message, frozen=True):
    """One who receives from a topic, and what of it has not been settled yet."""

    agent: str
    pending: Count = 0
    oldest_us: int | None = None
    """When the oldest of these was queued."""


class Topic(Message, frozen=True):
    """A topic or pattern that somebody has declared, or on which there is something.

    `publishers` are the agents that may reach it, `subscribers` those whose subscription meets it.
    The operator may publish everywhere.
    """

    name: str
    publishers: list[str]
    subscribers: list[TopicSubscriber]
    per_second: float = 0.0
    """Messages, over the last minute."""
    messages: Count = 0
    """Since the daemon started."""
    unused_by: list[str] = []
    """Who has declared it, to publish on or to receive from, and nothing was ever sent there."""
    leads_nowhere: list[str] = []
    """Who publishes there, so that nobody else receives it."""
    unfed: list[str] = []
    """Who subscribes to it, and no other agent publishes there."""
    near: str = ""
    """What may have been meant, where it leads nowhere or is unfed."""


class Topics(Message, frozen=True):
    """The routing table, of which each topic is an item. Counting began at `since_us`."""

    now_us: int
    since_us: int


# ---- Following ----------------------------------------------------------------------------------


class Tap(Message, frozen=True):
    """Follow what is published on `topic`, a topic or a pattern, after the `last` ones there."""

    topic: str
    last: Count = 0
    full: bool = False
    """The whole payload, however long it is."""


class Tapped(Message, frozen=True):
    """One message. Before it, `lost` others were missed by a slow reader, which at the end of a
    burst stands alone, with a `message` of 0."""

    message: int = 0
    sent_us: int = 0
    topic: str = ""
    sender: str = ""
    correlation: str = ""
    priority: Priority = "normal"
    receivers: list[str] = []
    payload: Payload = Payload(size_bytes=0)
    cause: int | None = None
    lost: Count = 0
