"""What `agentd ctl slots` shows of each engine: what it runs on, its slots, and who waits."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ipc_protocol.control import Engines, EngineSummary
from ipc_protocol.inference import REMOTE, EngineStatus, SlotState, Waiting
from orchestrator.cli import output
from orchestrator.cli.views import STATE_STYLES, stack, state_text

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text


def slots(answer: Engines) -> "RenderableType":
    if not answer.engines:
        return output.text("There are no engines.")
    parts: list[RenderableType] = []
    for engine in answer.engines:
        if parts:
            parts.append(output.text(""))
        parts.append(_head(engine))
        if engine.status is not None:
            parts += _details(engine.status)
    return stack(*parts)


def _head(engine: EngineSummary) -> "Text":
    words = [(engine.name, "bold"), (engine.state, STATE_STYLES[engine.state])]
    if engine.status is not None:
        model = engine.status.model
        words.append((f"{model.name} ({model.architecture})", ""))
    times = "restart" if engine.restarts == 1 else "restarts"
    restarts = f"{engine.restarts} {times}" if engine.restarts else ""
    return output.words(*words, (restarts, "yellow"), (engine.detail, "yellow"))


def _details(status: EngineStatus) -> "Iterable[RenderableType]":
    yield _resources(status)
    if status.slots:
        yield _slots(status.slots)
    if status.queue:
        yield _queue(status.queue)


def _resources(status: EngineStatus) -> "Text":
    """What it runs on, and how much of that is used."""
    from orchestrator.config.units import rounded_size

    model = status.model
    here = "its server" if model.architecture == REMOTE else "the processor"
    words = [(f"on {', '.join(model.devices) or here}", "")]
    if status.threads:
        words.append((f"{status.threads} threads", ""))
    if status.kv_cells:
        layout = f", {model.kv_layout}" if model.kv_layout else ""
        share = f"{status.kv_cells_used / status.kv_cells:.0%}"
        words.append((f"KV {status.kv_cells_used}/{status.kv_cells} ({share}{layout})", ""))
    if status.swap_bytes:
        used, whole = rounded_size(status.swap_bytes_used), rounded_size(status.swap_bytes)
        words.append((f"swap {used} of {whole}", ""))
    if model.memory_bytes:
        words.append((f"memory {rounded_size(model.memory_bytes)}", ""))
    words.append((f"{status.steps} steps", "dim"))
    line = output.words(*words)
    line.pad_left(2)
    return line


def _slots(slots: list[SlotState]) -> "RenderableType":
    made = output.table(
        "  SLOT", "AGENT", "CLASS", "STATE", "PREFIX", "SHARED", "PROMPT", "GENERATED", "AGE",
        numbers=("  SLOT", "PREFIX", "SHARED", "PROMPT", "GENERATED", "AGE"),
    )  # fmt: skip
    for slot in slots:
        taken = slot.state != "free"
        made.add_row(
            str(slot.slot),
            output.text(slot.agent, "" if taken else "dim"),
            slot.priority or "",
            state_text(slot.state),
            str(slot.cached_tokens),
            str(slot.shared_tokens or ""),
            *((str(slot.prompt_tokens), str(slot.generated_tokens)) if taken else ("", "")),
            output.span(slot.age_us) if slot.age_us else "",
        )
    return made


def _queue(queue: list[Waiting]) -> "RenderableType":
    made = output.table(
        "  PLACE", "AGENT", "CLASS", "STATE", "WAITED", "STILL ABOUT", "FOR WHAT",
        numbers=("  PLACE", "WAITED", "STILL ABOUT"),
    )  # fmt: skip
    for waiting in queue:
        still = waiting.estimate_us
        made.add_row(
            str(waiting.position),
            output.text(waiting.agent),
            waiting.priority,
            state_text(waiting.state),
            output.span(waiting.waited_us),
            "not known" if still is None else output.span(still),
            output.text(output.one_line(waiting.reason)),
        )
    return made
