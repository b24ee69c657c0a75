"""The calls of the bus by which the planned load is put on a store: the only place that makes them.

What the load looks like is in `planned_load`; nothing here knows what is expected of it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

from ipc_protocol.errors import Failure
from ipc_protocol.work import (
    Completion,
    Finished,
    MemoryEntry,
    Note,
    Noted,
    Outgoing,
    Setting,
    StateChange,
)
from orchestrator.bus.completion import Complete, complete
from orchestrator.bus.completions import CompleteAll, complete_all
from orchestrator.bus.handing import Leased
from orchestrator.bus.journal import Append, append_journal
from orchestrator.bus.leasing import Grant, ReleaseLeases, grant, release_leases
from orchestrator.bus.opening import Publish
from orchestrator.bus.publishing import publish
from orchestrator.bus.registration import RegisterAgents, Registration, register_agents
from orchestrator.bus.routing import BUS, OPERATOR
from orchestrator.store.store import Store

INBOX: Final = 4096
STATE_BYTES_MAX: Final = 1024 * 1024
WINDOW: Final = 8
SETTING: Final = Setting(loop=1, prompts={"triage": "Is it yours?"})


class Agent(NamedTuple):
    name: str
    consumes: tuple[str, ...]
    publishes: tuple[str, ...]
    role: str = "agent"


class Held(NamedTuple):
    """A delivery that was leased, and the message that it is about."""

    delivery: int
    topic: str
    payload: bytes
    composing: bool


class Worker:
    """One incarnation of an agent's worker. What is leased to it comes into `held`."""

    def __init__(self, store: Store, agent: str, incarnation: str) -> None:
        self.agent = agent
        self.held: list[Held] = []
        self._store = store
        self._incarnation = f"{incarnation}.{agent}"

    @contextmanager
    def receiving(self) -> Iterator[None]:
        with self._store.receiving(self._incarnation, self._take):
            yield

    def _take(self, leased: Leased) -> None:
        delivery = leased.delivery
        self.held.append(
            Held(delivery.delivery, delivery.topic, delivery.payload, leased.composing)
        )

    async def begin(self) -> None:
        """Take what is queued, and what is published from now on."""
        wanted = Grant(
            agent=self.agent, incarnation=self._incarnation, window=WINDOW, setting=SETTING
        )
        await self._store.apply(grant, BUS, wanted)

    async def note(self, delivery: int, step: int, text: str) -> None:
        """Write an entry into the delivery's journal."""
        entry = Append(
            delivery=delivery,
            incarnation=self._incarnation,
            step=step,
            effect=Note(phase="act", summary=text),
            result=Noted(),
            started_us=1,
        )
        await self._store.apply(append_journal, self.agent, entry)

    async def complete(
        self,
        held: Held,
        outputs: Sequence[tuple[str, bytes]],
        memory: tuple[str, bytes] | None,
        state: tuple[str, bytes] | None,
    ) -> None:
        """`memory` is a text and its embedding, `state` a key and its value."""
        completion = Completion(
            outcome="composed" if held.composing else "acted",
            reason="as planned",
            outputs=[Outgoing(topic=topic, payload=payload) for topic, payload in outputs],
            memories=[]
            if memory is None
            else [MemoryEntry(text=memory[0], outcome="success", lesson="", importance=0.5)],
            state=[] if state is None else [StateChange(key=state[0], value=state[1])],
        )
        arguments = Complete(
            delivery=held.delivery,
            incarnation=self._incarnation,
            completion=completion,
            vectors=[] if memory is None else [memory[1]],
            screened=True,
        )
        await self._store.apply(complete, self.agent, arguments)

    async def complete_plainly(self, held: Sequence[Held]) -> None:
        """Complete deliveries from which nothing follows, all in one call."""
        completion = Completion(outcome="acted", reason="as planned")
        arguments = CompleteAll(
            incarnation=self._incarnation,
            finished=[Finished(each.delivery, completion) for each in held],
        )
        for answer in await self._store.apply(complete_all, self.agent, arguments):
            if isinstance(answer, Failure):
                raise answer


async def register(store: Store, agents: Sequence[Agent]) -> None:
    registrations = [
        Registration(
            name=agent.name,
            role=agent.role,
            consumes=list(agent.consumes),
            publishes=list(agent.publishes),
            inbox=INBOX,
            screened=False,
            state_max=STATE_BYTES_MAX,
        )
        for agent in agents
    ]
    await store.apply(register_agents, BUS, RegisterAgents(agents=registrations))


async def publish_all(
    store: Store, topic: str, payloads: Sequence[bytes], *, asked: bool
) -> list[int]:
    """Publish as the operator, all or nothing, each in a new conversation. Returns the messages."""
    message = Publish(topic=topic, payloads=payloads, screened=True, asked=asked)
    accepted = await store.apply(publish, OPERATOR, message)
    return accepted.messages


async def release(store: Store) -> int:
    """Give all leases back, as a daemon does when it starts."""
    return await store.apply(release_leases, BUS, ReleaseLeases())
