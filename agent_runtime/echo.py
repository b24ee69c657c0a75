"""The built-in brain *echo*: it acts on every message, and says on each of its topics what it got.

It asks for nothing: what is measured with it is what a delivery costs beside its brain. Pure.
"""

from ipc_protocol.errors import Failure
from ipc_protocol.limits import ECHO_TOPICS_MAX
from ipc_protocol.work import Completion, Outgoing


class Echo:
    """Raises `Failure` where a completion could become too large to be sent."""

    def __init__(self, topics: list[str]) -> None:
        if len(topics) > ECHO_TOPICS_MAX:
            raise Failure(
                "request.invalid",
                f"An echo goes to {ECHO_TOPICS_MAX} topics at most; there are {len(topics)}.",
                "Let the agent publish on fewer.",
            )
        self._topics = tuple(topics)
        self._silent = None if topics else Completion(outcome="acted", reason="echo")

    def completion(self, payload: bytes) -> Completion:
        """What follows from a message."""
        return self._silent or Completion(
            outcome="acted",
            reason="echo",
            outputs=[Outgoing(topic=topic, payload=payload) for topic in self._topics],
        )
