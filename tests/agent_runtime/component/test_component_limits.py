"""What a component is told at once has to be what the bus would say later."""

from agent_runtime.component import limits
from ipc_protocol.limits import FRAME_BODY_BYTES_MAX
from orchestrator.bus import limits as bus
from orchestrator.effects import EFFECT_BYTES_MAX, RECALLED_MAX
from orchestrator.tools import limits as tools


def test_the_bus_takes_what_a_component_may_stage() -> None:
    assert limits.OUTPUTS_SENT_MAX == bus.OUTPUTS_MAX
    assert limits.MEMORIES_NOTED_MAX + 1 == bus.MEMORIES_MAX
    assert limits.MEMORY_CHARS_MAX == bus.MEMORY_CHARS_MAX
    assert limits.TASK_CHANGES_MAX == bus.TASK_CHANGES_MAX
    assert limits.TASK_CHARS_MAX == bus.TASK_CHARS_MAX
    assert limits.STATE_CHANGES_MAX == bus.STATE_CHANGES_MAX
    assert limits.STATE_KEY_BYTES_MAX == bus.STATE_KEY_BYTES_MAX
    assert limits.STATE_VALUE_BYTES_MAX == bus.STATE_VALUE_BYTES_MAX
    assert limits.TOPIC_CHARS_MAX == bus.TOPIC_CHARS_MAX
    assert limits.DEFERRAL_SECONDS_MAX * 1_000_000 == bus.DEFERRAL_US_MAX
    assert bus.DEFERRAL_US_MIN <= 1_000_000


def test_the_orchestrator_takes_what_a_component_may_ask_for() -> None:
    assert limits.RECALLED_MAX == RECALLED_MAX
    assert limits.QUESTION_CHARS_MAX == tools.TEXT_CHARACTERS_MAX
    assert limits.HEALTH_DETAIL_CHARS_MAX <= bus.HEALTH_CHARS_MAX
    assert limits.JSON_BYTES_MAX + limits.PROMPT_BYTES_MAX <= EFFECT_BYTES_MAX


def test_a_completion_fits_into_a_frame() -> None:
    texts = limits.OUTPUTS_KEPT_MAX * limits.STAGED_OVERHEAD_BYTES
    assert limits.STAGED_BYTES_MAX + texts <= FRAME_BODY_BYTES_MAX
