"""What an engine tells about itself: slots, the queue, and the tokens of each agent. Pure."""

from typing import Final

from inference_client.engine.planning.planner import Planner
from inference_client.engine.planning.slots import Slot
from inference_client.engine.telemetry import Telemetry
from ipc_protocol.inference import (
    AgentUsage,
    EngineCounters,
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


def status_of(
    info: ModelInfo,
    planner: Planner,
    accounts: Accounts,
    telemetry: Telemetry,
    *,
    threads: int,
    now_us: int,
) -> EngineStatus:
    """A snapshot of the pool between two steps."""
    queued = [
        Waiting(
            position=place.position,
            agent=place.request.agent,
            priority=place.request.priority,
            reason=place.reason,
            waited_us=now_us - place.request.arrived_us,
            state=place.state,
            estimate_us=place.estimate_us,
        )
        for place in planner.waiting(now_us)
    ]
    return EngineStatus(
        model=info,
        slots=[_slot_state(planner, slot, now_us) for slot in planner.slots.slots],
        queue=queued,
        usage=accounts.listed(),
        steps=planner.steps,
        working=not planner.idle,
        kv_cells_used=planner.slots.cells_used,
        kv_cells=planner.slots.cells,
        swap_bytes_used=planner.swap.bytes_used,
        swap_bytes=planner.swap.bytes_max,
        threads=threads,
        counters=_counters(planner, telemetry),
    )


def _counters(planner: Planner, telemetry: Telemetry) -> EngineCounters:
    counted = planner.counters
    return EngineCounters(
        preemptions={**counted.preemptions},
        swapped_out_bytes=counted.swapped_out_bytes,
        swapped_in_bytes=counted.swapped_in_bytes,
        prefix_queries=counted.prefix_queries,
        prefix_hits=counted.prefix_hits,
        recomputed_tokens=counted.recomputed_tokens,
        forced_tokens=telemetry.forced_tokens,
        prefill_tokens=counted.prefill_tokens,
        decode_tokens=counted.decode_tokens,
        step_seconds=telemetry.step_seconds.snapshot(),
        step_tokens=telemetry.step_tokens.snapshot(),
        inter_token_seconds={
            priority: histogram.snapshot()
            for priority, histogram in telemetry.inter_token_seconds.items()
        },
    )


def _slot_state(planner: Planner, slot: Slot, now_us: int) -> SlotState:
    request, shared = slot.request, planner.slots.shared_tokens(slot)
    if request is None:
        return SlotState(
            slot=slot.index,
            state="free",
            cached_tokens=len(slot.tokens),
            shared_tokens=shared,
            agent=slot.agent,
        )
    started_us = now_us if request.started_us is None else request.started_us
    return SlotState(
        slot=slot.index,
        state="left-out" if request.left_out else "decode" if request.ready else "prefill",
        cached_tokens=len(slot.tokens),
        shared_tokens=shared,
        agent=request.agent,
        priority=request.priority,
        prompt_tokens=request.prompt_tokens,
        generated_tokens=request.produced_tokens,
        age_us=now_us - started_us,
    )
