"""What the loop may ask for at most, and what the orchestrator allows: two packages, one sum."""

import pytest
from msgspec.structs import replace

from agent_runtime.loop import effects_max
from ipc_protocol.work import AgentProfile
from orchestrator.budget import Allowance
from orchestrator.bus.limits import MEMORIES_MAX, OUTPUTS_MAX, STATE_CHANGES_MAX, TASK_CHANGES_MAX

PROFILE = AgentProfile(
    name="a",
    role="agent",
    identity="",
    duties=[],
    delegates={},
    tools=[],
    publishes=[],
    steps_max=1,
    tokens_max=1,
)


@pytest.mark.parametrize("steps", [1, 2, 8, 64])
def test_a_loop_that_ends_is_never_refused_for_the_number_of_its_effects(steps: int) -> None:
    allowed = Allowance(steps=steps, tokens=1, time_us=1).effects
    assert effects_max(replace(PROFILE, steps_max=steps)) <= allowed


@pytest.mark.parametrize("steps", [1, 64])
def test_a_component_can_use_all_that_one_completion_takes(steps: int) -> None:
    """Each key of its state read before it is changed, and each message offered before it is sent,
    besides what the loop around it asks for."""
    allowed = Allowance(steps=steps, tokens=1, time_us=1, component=True).effects
    asked = STATE_CHANGES_MAX + OUTPUTS_MAX + TASK_CHANGES_MAX + MEMORIES_MAX
    assert effects_max(replace(PROFILE, steps_max=steps)) + asked <= allowed
