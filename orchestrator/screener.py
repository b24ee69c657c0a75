"""Screens each message once, and lets its deliveries be leased with the evidence.

The shell around `screening`: it embeds the phrases of the configuration once, follows what is
published, and writes what the comparison found. A message whose screening was interrupted is taken
up at the next start; until then its deliveries wait.

Screening helps, and nothing depends on it: a message that cannot be compared in time, because the
engine is away or because the message itself kills it, is let go with evidence that says nothing.
Its receivers then settle it by what the model prefers, and one of them has to take it.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np

from ipc_protocol.errors import Failure
from ipc_protocol.inference import Embedded
from ipc_protocol.work import Evidence
from orchestrator import screening
from orchestrator.bus.evidence import Screening, Unscreened, attach_screening, unscreened_messages
from orchestrator.bus.observations import HealthEvent, report_health
from orchestrator.bus.routing import BUS
from orchestrator.config.types import AgentConfig
from orchestrator.engines import VECTOR_DIMENSIONS, EmbeddingEngine
from orchestrator.screening import UNKNOWN_SCORE, Board, Profile, Vectors
from orchestrator.store.reader import Reader
from orchestrator.store.store import Store
from orchestrator.verdict import decide

log = logging.getLogger(__name__)

UNREAD_CHANGES_MAX: Final = 1024
"""Published messages not yet screened before the store is asked instead: nothing is missed."""

TEXT_BYTES_MAX: Final = 4096
"""What is compared of a message: two pages say whose it is."""

SCREENING_SECONDS_MAX: Final = 30.0
"""Until a message is let go unscreened: the longest backoff of an engine that keeps dying. Only
the first one waits for an engine that is away; those behind it have waited already."""

BOARD_RETRY_SECONDS: Final = 30.0
"""Until the phrases of the configuration are tried again where they killed the engine each time."""


class Screener:
    """Compares messages with the duties of all agents. `run` follows what is published."""

    def __init__(
        self,
        agents: Sequence[AgentConfig],
        ignores: Sequence[str],
        store: Store,
        reader: Reader,
        embedding: EmbeddingEngine,
        seconds_max: float = SCREENING_SECONDS_MAX,
    ) -> None:
        self._agents = _compared(agents)
        self._ignores = list(ignores)
        self._store = store
        self._reader = reader
        self._embedding = embedding
        self._seconds_max = seconds_max
        self._waited_in_vain = False
        self._board: asyncio.Future[Board] = asyncio.get_running_loop().create_future()
        self._changed = asyncio.Event()
        self._changed.set()

    def know(self, agents: Mapping[str, AgentConfig]) -> None:
        """These are the agents from now on. Until their duties are embedded, messages are compared
        with those before."""
        self._agents = _compared(agents.values())
        self._changed.set()

    async def run(self) -> None:
        """Screen until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            building = tasks.create_task(self._build_boards())
            await self._follow()
            building.cancel()

    async def _build_boards(self) -> None:
        """Whenever the agents are others, and as often as it takes: the engine may be late."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                board = await build_board(self._agents, self._ignores, self._embedding)
                if self._board.done():
                    self._board = asyncio.get_running_loop().create_future()
                self._board.set_result(board)
            except Failure as failure:
                self._changed.set()
                log.error("the duties cannot be embedded: %s", failure)
                await asyncio.sleep(BOARD_RETRY_SECONDS)

    async def _follow(self) -> None:
        with self._store.changes.subscribe({"messages.unscreened"}, UNREAD_CHANGES_MAX) as changes:
            await self._store.settle()
            await self._screen_waiting()
            async for _ in changes:
                await self._screen_waiting()

    async def _screen_waiting(self) -> None:
        for message in await self._waiting():
            try:
                await self._screen(message)
            except Exception:  # whatever is wrong with one, the others are screened
                log.exception("message %d is not screened", message.message)

    async def _waiting(self) -> list[Unscreened]:
        while True:
            try:
                return await self._reader.view(unscreened_messages)
            except Failure as failure:
                # Until the log is small again no read begins: this one then has time enough.
                if failure.code != "store.slow-reader":
                    raise

    async def _screen(self, message: Unscreened) -> None:
        found, problem = await self._compared(message)
        await self._store.apply_when_room(attach_screening, BUS, found)
        if problem:
            detail = f"Message {message.message} was let go unscreened: {problem}"
            log.warning("%s", detail)
            event = HealthEvent(kind="screening", detail=detail, data={"message": message.message})
            await self._store.apply_when_room(report_health, BUS, event)

    async def _compared(self, message: Unscreened) -> tuple[Screening, str]:
        """What is attached, and why it says nothing where it does."""
        try:
            async with asyncio.timeout(self._patience_seconds()):
                board = await asyncio.shield(self._board)
                text = message.payload[:TEXT_BYTES_MAX].decode("utf-8", "replace")
                (vector,) = _vectors(await self._embedding.embed([text], wait_seconds=None))
        except TimeoutError:
            self._waited_in_vain = True
            return (
                self._undecided(message),
                f"the embedding engine has not answered for {self._seconds_max:g} s.",
            )
        except Failure as failure:
            return self._undecided(message), str(failure)
        except Exception as error:  # a defect that this message has found
            log.exception("message %d cannot be screened", message.message)
            return self._undecided(message), f"{type(error).__name__}: {error}"
        self._waited_in_vain = False
        known = [agent for agent in message.agents if agent in board.agents]
        found = screening.screen(vector, board, known)
        return (
            Screening(
                message=message.message,
                evidence={agent: _judged(found.evidence(agent)) for agent in known},
                fallback=found.fallback,
            ),
            "",
        )

    def _patience_seconds(self) -> float:
        up = self._embedding.answers and self._board.done()
        return self._seconds_max if up or not self._waited_in_vain else 0.0

    def _undecided(self, message: Unscreened) -> Screening:
        """Evidence that prefers no receiver to another, and all of them to nobody."""
        known = [agent.name for agent in self._agents if agent.name in message.agents]
        fallback = known[0] if known else None
        alike = Evidence(
            agent="",
            score=0.0,
            margin=0.0,
            scores=dict.fromkeys(known, 0.0),
            nobody=UNKNOWN_SCORE,
            nearest="",
            fallback=fallback,
            recipients=tuple(sorted(known)),
        )
        evidence = {agent: _judged(msgspec.structs.replace(alike, agent=agent)) for agent in known}
        return Screening(message=message.message, evidence=evidence, fallback=fallback)


def _compared(agents: Iterable[AgentConfig]) -> list[AgentConfig]:
    """Those whose duties a message is held against."""
    return [agent for agent in agents if agent.role == "agent" and agent.screened]


def _judged(evidence: Evidence) -> Evidence:
    return msgspec.structs.replace(evidence, verdict=decide(evidence))


async def build_board(
    agents: Sequence[AgentConfig], ignores: Sequence[str], embedding: EmbeddingEngine
) -> Board:
    """The phrases of the configuration as vectors. One request for each list."""

    async def embed(phrases: Sequence[str]) -> Vectors:
        if not phrases:
            return np.zeros((0, VECTOR_DIMENSIONS), np.float32)
        return _vectors(await embedding.embed(list(phrases), wait_seconds=None))

    nothing = np.zeros((0, VECTOR_DIMENSIONS), np.float32)
    profiles = [
        Profile(
            agent=agent.name,
            duties=tuple(agent.duties),
            duty_vectors=await embed(agent.duties),
            ignore_vectors=await embed(agent.ignores),
            case_vectors=nothing,
            counter_case_vectors=nothing,
        )
        for agent in agents
    ]
    return screening.build(profiles, await embed(ignores))


def _vectors(embedded: Embedded) -> Vectors:
    rows = [np.frombuffer(vector, dtype="<f4") for vector in embedded.vectors]
    return np.stack(rows).astype(np.float32)
