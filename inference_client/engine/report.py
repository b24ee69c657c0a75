"""What an engine tells about itself: slots, the queue, and the tokens of each agent. Pure."""

from typing import Final

from inference_client.engine.planner import Planner
from inference_client.engine.slots import Slot
from ipc_protocol.inference import (
    AgentUsage,
    EngineStatus,
    ModelInfo,
    SlotState,
    Usage,
    Waiting,
)

AGENTS_MAX: Final = 1024
"""Agents whose tokens are counted by name; those that come later are counted together."""


class Accounts:
    """Tokens spent per agent since the engine started."""

    def __init__(self) -> None:
        self._spent: dict[str, AgentUsage] = {}

    def add(self, agent: str, usage: Usage) -> None:
        if agent not in self._spent and len(self._spent) >= AGENTS_MAX:
            agent = ""
        nothing = AgentUsage(
            agent=agent, requests=0, prompt_tokens=0, cached_tokens=0, generated_tokens=0
        )
        before = self._spent.get(agent, nothing)
        self._spent[agent] = AgentUsage(
            agent=agent,
            requests=before.requests + 1,
            prompt_tokens=before.prompt_tokens + usage.prompt_tokens,
            cached_tokens=before.cached_tokens + usage.cached_tokens,
            generated_tokens=before.generated_tokens + usage.generated_tokens,
        )

    def listed(self) -> list[AgentUsage]:
        return [self._spent[agent] for agent in sorted(self._spent)]


def status_of(info: ModelInfo, planner: Planner, accounts: Accounts, now_us: int) -> EngineStatus:
    """A snapshot of the pool between two steps."""
    queued = [
        Waiting(
            position=place.position,
            agent=place.request.agent,
            priority=place.request.priority,
            reason=place.reason,
            waited_us=now_us - place.request.arrived_us,
        )
        for place in planner.waiting()
    ]
    return EngineStatus(
        model=info,
        slots=[_slot_state(slot, now_us) for slot in planner.slots.slots],
        queue=queued,
        usage=accounts.listed(),
        steps=planner.steps,
        working=not planner.idle,
        kv_cells_used=planner.slots.cells_used,
        kv_cells=planner.slots.cells,
    )


def _slot_state(slot: Slot, now_us: int) -> SlotState:
    request = slot.request
    if request is None:
        return SlotState(
            slot=slot.index, state="free", cached_tokens=len(slot.tokens), agent=slot.agent
        )
    started_us = now_us if request.started_us is None else request.started_us
    return SlotState(
        slot=slot.index,
        state="decode" if request.produced else "prefill",
        cached_tokens=len(slot.tokens),
        agent=request.agent,
        priority=request.priority,
        prompt_tokens=request.prompt_tokens,
        generated_tokens=len(request.produced),
        age_us=now_us - started_us,
    )
