"""A load on the bus all of whose effects are known before it begins, and the promises it was given.

Every payload begins with a name that says where it came from, so that what has to follow from it,
and how often, can be told from the name and the topic alone.
"""

import asyncio
import hashlib
from array import array
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final, Literal, NamedTuple

import bus_load
from bus_load import Agent, Held, Worker

from orchestrator.store.store import Store

AGENTS: Final = (
    Agent("planner", ("job.start", "job.all"), ("job.next", "user.reply")),
    Agent("builder", ("job.next", "job.all"), ("user.reply",)),
    Agent("keeper", ("job.all", "job.note"), ()),
    Agent("conductor", (), ("user.reply",), role="conductor"),
)
RECEIVERS: Final = {
    "job.start": {"planner"},
    "job.next": {"builder"},
    "job.all": {"planner", "builder", "keeper"},
    "job.note": {"keeper"},
    "user.reply": set[str](),
}
CAUSES: Final = {
    ("planner", "job.start"): ("job.next", "user.reply"),
    ("planner", "job.all"): ("job.next",),
    ("builder", "job.next"): ("user.reply",),
    ("builder", "job.all"): ("user.reply",),
    ("keeper", "job.all"): (),
    ("keeper", "job.note"): (),
}
"""What an agent publishes when it has handled a message of a topic."""

NOTES: Final = 2
"""Journal entries of a delivery, where there are any."""

PLAIN: Final = "job.note"
"""From messages on this topic nothing follows, and nobody waits for a reply to them."""

REMEMBERING: Final = ("planner", "builder")
"""These write a memory for every delivery, and a key of their state."""

COMPOSED: Final = "all is done"
"""What the conductor composes."""

PADDING_BYTES_MAX: Final = 6000
"""Of a payload: some have to go beyond a page of the database, which is 4 KiB."""


def payload_of(name: str) -> bytes:
    """The name, and after a space so many dots that payloads of all sizes occur."""
    digest = hashlib.sha256(name.encode()).digest()
    dots = int.from_bytes(digest[:2], "big") % PADDING_BYTES_MAX if digest[2] < 64 else digest[3]
    return f"{name} {'.' * dots}".encode()


def name_of(payload: bytes) -> str:
    return payload.split(b" ", 1)[0].decode()


def outputs_of(agent: str, topic: str, name: str) -> list[tuple[str, str]]:
    """Topic and name of each message that `agent` publishes on having handled message `name`."""
    return [
        (output, f"{name}>{agent}.{number}") for number, output in enumerate(CAUSES[agent, topic])
    ]


def notes_of(topic: str, name: str, *, composing: bool) -> list[str]:
    """The journal of a delivery of message `name`."""
    return [] if composing or topic == PLAIN else [f"{name} at {step}" for step in range(NOTES)]


def batch_of(name: str) -> tuple[str, int] | None:
    """The batch that a message was published in, and how many are in it; None for a single one."""
    batch, _, rest = name.partition("/")
    count = rest.partition("-of-")[2]
    return (batch, int(count)) if count.isdigit() else None


def memory_of(agent: str, name: str) -> str | None:
    return f"what {agent} knows about {name}" if agent in REMEMBERING else None


def state_of(agent: str, name: str) -> tuple[str, bytes] | None:
    """The key and the value that `agent` keeps on having handled message `name`."""
    return (name, hashlib.sha256(name.encode()).digest()) if agent in REMEMBERING else None


def _embedding(text: str) -> bytes:
    return array("f", list(hashlib.sha256(text.encode()).digest()) * 8).tobytes()


Kind = Literal["registered", "published", "leased", "journaled", "completed"]


class Promise(NamedTuple):
    """Something that the caller was told is on disk, when `position` operations had been done."""

    position: int
    kind: Kind
    identity: int = 0
    """Of the message or the delivery."""
    name: str = ""
    """Of the message or the entry."""


class Load:
    """Puts load on one store. `position` says how far its disk is; the promises carry it."""

    def __init__(
        self, store: Store, incarnation: str, position: Callable[[], int] = lambda: 0
    ) -> None:
        self.store = store
        self.promises: list[Promise] = []
        self.workers = {agent.name: Worker(store, agent.name, incarnation) for agent in AGENTS}
        self._position = position
        self._receiving = ExitStack()

    def _promised(self, kind: Kind, identity: int = 0, name: str = "") -> None:
        self.promises.append(Promise(self._position(), kind, identity, name))

    async def register(self) -> None:
        """Begin as a daemon does: the agents, and what its predecessor had leased."""
        await bus_load.register(self.store, AGENTS)
        self._promised("registered")
        await bus_load.release(self.store)

    async def employ(self, *agents: str) -> None:
        """Let workers of these agents (all, if none is named) take what there is."""
        for name in agents or self.workers:
            self._receiving.enter_context(self.workers[name].receiving())
            await self.workers[name].begin()

    async def publish(self, topic: str, name: str) -> None:
        (message,) = await bus_load.publish_all(
            self.store, topic, [payload_of(name)], asked=topic != PLAIN
        )
        self._promised("published", message, name)

    async def publish_batch(self, topic: str, batch: str, count: int) -> None:
        names = [f"{batch}/{number}-of-{count}" for number in range(count)]
        messages = await bus_load.publish_all(
            self.store, topic, [payload_of(name) for name in names], asked=topic != PLAIN
        )
        for message, name in zip(messages, names, strict=True):
            self._promised("published", message, name)

    def take(self, agent: str) -> list[Held]:
        """What was leased to the agent's worker since this was asked last."""
        worker = self.workers[agent]
        held, worker.held = worker.held, []
        for each in held:
            self._promised("leased", each.delivery)
        return held

    async def journal(self, agent: str, held: Held) -> None:
        """Write the journal of a delivery."""
        notes = notes_of(held.topic, name_of(held.payload), composing=held.composing)
        for step, text in enumerate(notes):
            await self.workers[agent].note(held.delivery, step, text)
            self._promised("journaled", held.delivery, text)

    async def complete(self, agent: str, held: Held) -> None:
        """Complete a delivery whose journal is written, with everything that the plan says."""
        name = name_of(held.payload)
        outputs = [("user.reply", COMPOSED.encode())]
        memory = state = None
        if not held.composing:
            outputs = [
                (topic, payload_of(output)) for topic, output in outputs_of(agent, held.topic, name)
            ]
            memory, state = memory_of(agent, name), state_of(agent, name)
        await self.workers[agent].complete(
            held, outputs, None if memory is None else (memory, _embedding(memory)), state
        )
        self._promised("completed", held.delivery)

    async def handle_held(self, agent: str) -> bool:
        """Handle what the agent's worker holds. False if that is nothing."""
        held = self.take(agent)
        plain = [each for each in held if each.topic == PLAIN]
        if plain:
            await self.workers[agent].complete_plainly(plain)
            for each in plain:
                self._promised("completed", each.delivery)
        for each in held:
            if each.topic != PLAIN:
                await self.journal(agent, each)
                await self.complete(agent, each)
        return bool(held)

    async def handle_all(self) -> None:
        """All agents at once, until none has anything to do."""
        while any(await asyncio.gather(*(self.handle_held(agent.name) for agent in AGENTS))):
            pass
