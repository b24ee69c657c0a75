"""How much goes over each topic: all of it since counting began, and the rate of the last minute.

Pure: told what was published and when, it answers for a moment that it is given.
"""

from typing import Final

WINDOW_SECONDS: Final = 60
"""What a rate is taken over: long enough that a job every few seconds has one."""

TOPICS_MAX: Final = 4096
"""Topics that are counted one by one: with sixty numbers each that is 2 MB. An agent may publish on
endless many through a wildcard; what comes after the first of these is counted as one."""

OTHERS: Final = ">"
"""What the rest is counted as. It is no topic."""

US: Final = 1_000_000


class Traffic:
    """Counts by topic. `since_us` is when it began."""

    def __init__(self, since_us: int) -> None:
        self.since_us = since_us
        self._topics: dict[str, _Count] = {}

    def count(self, topic: str, number: int, at_us: int) -> None:
        """`number` messages were published on `topic`."""
        if topic not in self._topics and len(self._topics) >= TOPICS_MAX:
            topic = OTHERS
        self._topics.setdefault(topic, _Count()).add(number, at_us // US)

    def messages(self) -> dict[str, int]:
        """By topic, since counting began."""
        return {topic: count.total for topic, count in self._topics.items()}

    def rates(self, now_us: int) -> dict[str, float]:
        """Messages per second by topic, over the last minute or since counting began."""
        seconds = min(WINDOW_SECONDS, max(1.0, (now_us - self.since_us) / US))
        return {
            topic: count.recent(now_us // US) / seconds for topic, count in self._topics.items()
        }


class _Count:
    """One topic: a total, and a ring with a number for each of the last seconds."""

    __slots__ = ("_latest", "_ring", "total")

    def __init__(self) -> None:
        self.total = 0
        self._latest = 0
        self._ring = [0] * WINDOW_SECONDS

    def add(self, number: int, second: int) -> None:
        self._advance(second)
        self.total += number
        self._ring[self._latest % WINDOW_SECONDS] += number

    def recent(self, second: int) -> int:
        self._advance(second)
        return sum(self._ring)

    def _advance(self, second: int) -> None:
        """Clear the seconds in which nothing came. A clock that goes back counts for the latest."""
        for passed in range(max(self._latest + 1, second - WINDOW_SECONDS + 1), second + 1):
            self._ring[passed % WINDOW_SECONDS] = 0
        self._latest = max(self._latest, second)
