"""What the model of the bus knows, and what can be asked of it."""

import re
from collections.abc import Sequence

from modelled_things import (
    Agent,
    Conversation,
    Delivery,
    Letter,
    Message,
    Question,
    Route,
    Worker,
    fits,
)

from ipc_protocol.limits import PAYLOAD_BYTES_MAX
from orchestrator.bus.limits import (
    HOPS_MAX,
)


class Refusal(Exception):
    """The bus must refuse it with this code, and change nothing."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class ModelledTables:
    def __init__(self, agents: Sequence[Agent]) -> None:
        self.agents = {agent.name: agent for agent in agents}
        self.now_us = 1_800_000_000_000_000
        self.step = 0
        self.conversations: list[Conversation] = []
        self.messages: list[Message] = []
        self.deliveries: list[Delivery] = []
        self.letters: list[Letter] = []
        self.questions: list[Question] = []
        self.memories: list[tuple[str, str, Delivery]] = []
        self.tasks: dict[int, tuple[str, str]] = {}
        self.state: dict[tuple[str, str], bytes] = {}
        self.workers: dict[str, Worker] = {}
        self.hands: dict[str, list[Delivery]] = {}
        """What each worker was handed and has not been taken from it, in order."""
        self.given_back: set[str] = set()
        """Workers that must be told in this step that nothing is leased to them any more."""
        self.accepted = 0
        self.cleaned = 0

    # ---- Questions ------------------------------------------------------------------------------

    @property
    def conductor(self) -> Agent | None:
        return next((each for each in self.agents.values() if each.conductor and each.active), None)

    def inbox(self, agent: str) -> list[Delivery]:
        return [
            each
            for each in self.deliveries
            if each.agent == agent and not each.finished and not each.composing
        ]

    def room(self, agent: str, sender: str, coming: Sequence[str] = ()) -> int:
        """Messages that fit, one by one: each as long as something is free, and the sender has no
        more in it than seven times what is free."""
        inbox = self.inbox(agent)
        free = self.agents[agent].inbox - len(inbox) - coming.count(agent)
        own = sum(each.message.sender == sender for each in inbox) + coming.count(agent)
        count = 0
        while free > 0 and own <= 7 * free:
            free, own, count = free - 1, own + 1, count + 1
        return count

    def leasable(self, delivery: Delivery) -> bool:
        in_time = delivery.message.expires_us > self.now_us or delivery.ever_begun
        return delivery.state == "queued" and delivery.screened and in_time

    def held(self, worker: str) -> list[Delivery]:
        return [
            each for each in self.deliveries if each.state == "leased" and each.holder == worker
        ]

    def numbered(self, number: int) -> Delivery | None:
        return next((each for each in self.deliveries if each.number == number), None)

    def under_way(self, conversation: Conversation) -> bool:
        return any(
            each.message.conversation is conversation and not each.finished and not each.composing
            for each in self.deliveries
        )

    def answers(self, conversation: Conversation, number: int) -> list[Message]:
        return [
            each
            for each in self.messages
            if each.conversation is conversation
            and each.round == number
            and each.topic == "user.reply"
            and not each.composed
        ]

    def route(
        self,
        sender: str,
        topic: str,
        *,
        size: int = 0,
        hops: int = 0,
        expires_us: int | None = None,
        count: int = 1,
        coming: Sequence[str] = (),
    ) -> Route:
        words = topic.split(".")
        if any(re.fullmatch("[a-z0-9_-]+", word) is None for word in words):
            return Route("bus.invalid-topic")
        if size > PAYLOAD_BYTES_MAX:
            return Route("bus.payload-too-large")
        if hops > HOPS_MAX or (expires_us is not None and expires_us <= self.now_us):
            return Route("bus.expired")
        addressed = topic.removeprefix("agent.") if topic.startswith("agent.") else None
        agent = self.agents.get(sender)
        if sender == "operator":
            allowed = topic != "user.reply"
        elif agent is None or not (agent.active or agent.retired):
            allowed = False
        elif addressed is not None:
            allowed = addressed in agent.delegates
        else:
            allowed = any(fits(pattern, topic) for pattern in agent.publishes)
        if not allowed:
            return Route("bus.not-permitted")
        if topic == "user.reply":
            return Route(sink=True)
        active = [each for each in self.agents.values() if each.active]
        if addressed is not None:
            names = [each.name for each in active if each.name == addressed]
        else:
            names = sorted(
                each.name
                for each in active
                if each.name != sender and any(fits(p, topic) for p in each.consumes)
            )
        if not names:
            return Route("bus.no-subscriber")
        full = tuple(name for name in names if self.room(name, sender, coming) < count)
        if full:
            return Route("bus.backpressure", full=full)
        return Route(receivers=tuple(names), direct=addressed is not None)
