"""Screens each message once, and lets its deliveries be leased with the evidence.

The shell around `screening`: it embeds the phrases of the configuration once, follows what is
published, and writes what the comparison found. A message whose screening was interrupted is taken
up at the next start; until then its deliveries wait.
"""

import logging
from collections.abc import Sequence

import msgspec
import numpy as np

from ipc_protocol.work import Evidence
from orchestrator import screening
from orchestrator.bus.publishing import (
    Screening,
    Unscreened,
    attach_screening,
    unscreened_messages,
)
from orchestrator.bus.routing import BUS
from orchestrator.config.types import AgentConfig
from orchestrator.engines import EmbeddingEngine
from orchestrator.screening import Board, Profile, Vectors
from orchestrator.store.database import VECTOR_BYTES
from orchestrator.store.reader import Reader
from orchestrator.store.store import Store
from orchestrator.verdict import decide

log = logging.getLogger(__name__)

VECTOR_DIMENSIONS = VECTOR_BYTES // 4

UNREAD_CHANGES_MAX = 1024
"""Published messages not yet screened before the store is asked instead: nothing is missed."""

TEXT_BYTES_MAX = 4096
"""What is compared of a message: two pages say whose it is."""


class Screener:
    """Compares messages with the duties of all agents. `run` follows what is published."""

    def __init__(
        self,
        agents: Sequence[AgentConfig],
        ignores: Sequence[str],
        store: Store,
        reader: Reader,
        embedding: EmbeddingEngine,
    ) -> None:
        self._agents = [agent for agent in agents if agent.role == "agent"]
        self._ignores = list(ignores)
        self._store = store
        self._reader = reader
        self._embedding = embedding

    async def run(self) -> None:
        """Screen until cancelled."""
        board = await build_board(self._agents, self._ignores, self._embedding)
        with self._store.changes.subscribe({"message.published"}, UNREAD_CHANGES_MAX) as changes:
            await self._screen_waiting(board)
            async for change in changes:
                if change.data.get("unscreened", True):
                    await self._screen_waiting(board)

    async def _screen_waiting(self, board: Board) -> None:
        for message in await self._reader.view(unscreened_messages):
            await self._screen(board, message)

    async def _screen(self, board: Board, message: Unscreened) -> None:
        text = message.payload[:TEXT_BYTES_MAX].decode("utf-8", "replace")
        (vector,) = _vectors(await self._embedding.embed([text]))
        known = [agent for agent in message.agents if agent in board.agents]
        found = screening.screen(vector, board, known)
        await self._store.apply_when_room(
            attach_screening,
            BUS,
            Screening(
                message=message.message,
                evidence={agent: _judged(found.evidence(agent)) for agent in known},
                fallback=found.fallback,
            ),
        )


def _judged(evidence: Evidence) -> Evidence:
    return msgspec.structs.replace(evidence, verdict=decide(evidence))


async def build_board(
    agents: Sequence[AgentConfig], ignores: Sequence[str], embedding: EmbeddingEngine
) -> Board:
    """The phrases of the configuration as vectors. One request for each list."""

    async def embed(phrases: Sequence[str]) -> Vectors:
        if not phrases:
            return np.zeros((0, VECTOR_DIMENSIONS), np.float32)
        return _vectors(await embedding.embed(list(phrases)))

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


def _vectors(packed: Sequence[bytes]) -> Vectors:
    return np.stack([np.frombuffer(vector, dtype="<f4") for vector in packed]).astype(np.float32)
