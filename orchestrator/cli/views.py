"""Tables of what the daemon answers. Each view takes an answer and returns something to print."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from ipc_protocol.control import (
    AgentAdded,
    AgentRetired,
    Agents,
    AgentStatus,
    AgentUpgraded,
    AgentVersion,
    AgentVersions,
    AttentionRequests,
    EngineSummary,
    Memories,
    OnProbation,
    Published,
    Status,
    Tasks,
)
from ipc_protocol.values import LayerReport, Receipt
from orchestrator.cli import output

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.text import Text

STATE_STYLES: Final = {
    "ready": "green",
    "idle": "green",
    "busy": "cyan",
    "starting": "yellow",
    "backoff": "yellow",
    "quarantined": "bold red",
    "stopped": "dim",
    "open": "yellow",
    "doing": "cyan",
    "done": "green",
    "dropped": "dim",
    "decode": "cyan",
    "prefill": "blue",
    "free": "dim",
    "left-out": "yellow",
    "swapped": "yellow",
    "preempted": "yellow",
    "unloaded": "dim",
    "active": "green",
    "candidate": "yellow",
    "retired": "dim",
    "rolled-back": "red",
    "refused": "red",
}

HASH_DIGITS: Final = 12
"""Of the SHA-256 of a component, for people: as many as tell a million of them apart."""


def status(answer: Status) -> "Group":
    """One screen, the most important first."""
    state = ("healthy", "bold green") if answer.healthy else ("unhealthy", "bold red")
    up = output.span(answer.now_us - answer.started_us)
    head = output.words(
        (f"agentd {answer.version}", "bold"),
        state,
        (f"up {up}, since {output.local_time(answer.started_us)}", ""),
        (f"pid {answer.pid}", "dim"),
        (f"sandbox {answer.sandbox}", "" if answer.sandbox == "strict" else "bold yellow"),
    )
    return stack(
        head,
        *_needs(answer),
        output.words(("conversations", "bold"), (_counts(answer.conversations), "")),
        output.words(("deliveries", "bold"), (_counts(answer.deliveries), "")),
        output.text(""),
        _engine_table(answer.engines),
        output.text(""),
        agents(Agents(agents=answer.agents, retired=answer.retired)),
    )


def _needs(answer: Status) -> "Iterable[Text]":
    if answer.attention_open:
        yield output.words(
            (f"{answer.attention_open} waiting for a person", "bold yellow"),
            ("agentd ctl attention list", "dim"),
        )
    if answer.dead_letters:
        yield output.words((f"{answer.dead_letters} dead letters", "bold red"))


def agents(answer: Agents) -> "RenderableType":
    if not answer.agents:
        return stack(output.text("There are no agents."), *_retired(answer))
    made = output.table(
        "AGENT", "STATE", "DOING", "CLASS", "PENDING", "PARKED", "DONE", "MEMORIES", "RESTARTS",
        "SANDBOX", numbers=("PENDING", "PARKED", "DONE", "MEMORIES", "RESTARTS"),
    )  # fmt: skip
    for agent in answer.agents:
        made.add_row(
            output.text(agent.name, "bold"),
            state_text(agent.state),
            output.text(output.one_line(_doing(agent))),
            agent.priority,
            *(str(n) for n in (agent.pending, agent.parked, agent.done, agent.memories)),
            output.text(agent.restarts, "yellow" if agent.restarts else ""),
            _sandbox(agent.sandbox),
        )
    return stack(made, *_retired(answer))


def _retired(answer: Agents) -> "Iterable[Text]":
    if answer.retired:
        yield output.words(
            (f"configured, and retired: {', '.join(answer.retired)}", "yellow"),
            ("agentd ctl agents add FILE brings one back", "dim"),
        )


def _doing(agent: AgentStatus) -> str:
    delivery = f"delivery {agent.delivery}" if agent.delivery is not None else ""
    return ", ".join(filter(None, (agent.phase, delivery, _running(agent), agent.detail)))


def _running(agent: AgentStatus) -> str:
    """The version of its component, where there is something to say about it."""
    component = agent.component
    if component is None or component.probation is None:
        return ""
    return f"version {component.number} {_on_probation(component.probation)}"


def _sandbox(layers: Sequence[LayerReport]) -> "Text":
    """How many layers stand, and by name those that are missing."""
    missing = [layer.layer for layer in layers if layer.state == "missing"]
    if missing:
        return output.text(f"without {', '.join(missing)}", "bold yellow")
    enforced = sum(layer.state == "enforced" for layer in layers)
    return output.text(f"{enforced} layers" if enforced else "", "green")


def versions(answer: AgentVersions) -> "RenderableType":
    if not answer.versions:
        return output.text(f"No version of the component of {answer.agent} has run yet.")
    made = output.table(
        "VERSION", "STATE", "COMPONENT", "WORLD", "FROM", "BY", "SINCE", "UNTIL", "WHY",
        numbers=("VERSION",),
    )  # fmt: skip
    for version in answer.versions:
        until = "" if version.ended_us is None else output.local_time(version.ended_us)
        made.add_row(
            str(version.number),
            state_text(version.state),
            output.text(version.sha256[:HASH_DIGITS]),
            output.text(version.world),
            version.source,
            output.text(version.installed_by),
            output.local_time(version.activated_us or version.installed_us),
            until,
            output.text(output.one_line(version.reason or _probation(answer.probation, version))),
        )
    return made


def upgraded(answer: AgentUpgraded) -> "Text":
    version, before = answer.version, answer.before
    head = f"{answer.agent}: version {version.number} ({_component(version)}) has taken over"
    if before is not None:
        head += f" from version {before.number} ({_component(before)})"
    if answer.probation is None:
        return output.text(f"{head}.")
    terms = f"{answer.probation.messages} messages and {output.span(answer.probation.us)}"
    return output.text(
        f"{head}.\nIt is on probation for {terms}.\n"
        f"agentd ctl agents history {answer.agent}  shows what becomes of it"
    )


def added(answer: AgentAdded) -> "Text":
    warnings = "".join(f"warning  {warning}\n" for warning in answer.warnings)
    return output.text(f"{warnings}{answer.agent} was added; {answer.file} keeps it.")


def retired(answer: AgentRetired) -> "Text":
    head = f"{answer.agent} is retired"
    if not answer.parked:
        return output.text(f"{head}, and has finished.")
    return output.text(f"{head}; {answer.parked} of its deliveries wait for somebody else.")


def _component(version: AgentVersion) -> str:
    return f"{version.sha256[:HASH_DIGITS]}, {version.world}"


def _probation(probation: OnProbation | None, version: AgentVersion) -> str:
    if probation is None or version.state != "active":
        return ""
    return _on_probation(probation)


def _on_probation(probation: OnProbation) -> str:
    return f"on probation, {probation.handled} of {probation.messages} messages"


def _engine_table(engines: Sequence[EngineSummary]) -> "RenderableType":
    if not engines:
        return output.text("There are no engines.")
    made = output.table(
        "ENGINE", "STATE", "MODEL", "BUSY", "QUEUE", "RESTARTS", "",
        numbers=("BUSY", "QUEUE", "RESTARTS"),
    )  # fmt: skip
    for engine in engines:
        model, busy, queue = "", "", ""
        if engine.status is not None:
            model = engine.status.model.name
            queue = str(len(engine.status.queue))
            working = sum(slot.state != "free" for slot in engine.status.slots)
            busy = f"{working}/{len(engine.status.slots)}" if engine.status.slots else ""
        made.add_row(
            output.text(engine.name, "bold"),
            state_text(engine.state),
            output.text(model),
            busy,
            queue,
            output.text(engine.restarts, "yellow" if engine.restarts else ""),
            output.text(output.one_line(engine.detail), "yellow"),
        )
    return made


def memories(answer: Memories) -> "RenderableType":
    if not answer.memories:
        return output.text("Nothing is remembered.")
    made = output.table("AGENT", "WHEN", "OUTCOME", "IMPORTANCE", "MEMORY", numbers=("IMPORTANCE",))
    for owned in answer.memories:
        memory = owned.memory
        made.add_row(
            output.text(owned.agent, "bold"),
            output.local_time(memory.created_us),
            output.text(memory.outcome),
            f"{memory.importance:.2f}",
            output.text(output.one_line(memory.text)),
        )
    return made


def tasks(answer: Tasks) -> "RenderableType":
    if not answer.tasks:
        return output.text("There are no tasks.")
    made = output.table("ID", "AGENT", "STATE", "UPDATED", "TASK", "NOTE", numbers=("ID",))
    for task in answer.tasks:
        made.add_row(
            str(task.id),
            output.text(task.agent, "bold"),
            state_text(task.state),
            output.local_time(task.updated_us),
            output.text(output.one_line(task.title)),
            output.text(output.one_line(task.note)),
        )
    return made


def attention(answer: AttentionRequests) -> "RenderableType":
    if not answer.requests:
        return output.text("Nothing waits for a person.")
    made = output.table("ID", "AGENT", "RAISED", "QUESTION", "ANSWER", numbers=("ID",))
    for request in answer.requests:
        made.add_row(
            str(request.id),
            output.text(request.agent, "bold"),
            output.local_time(request.raised_us),
            output.text(output.one_line(request.question)),
            output.text(output.one_line(request.answer or ""), "green"),
        )
    return made


def asked(answer: Receipt) -> "Text":
    """Who will handle it, and how to come back to it."""
    return output.text(
        f"{sent(answer)}\nagentd ctl answer {answer.correlation}  waits for the reply"
    )


def sent(answer: Receipt, outcome: str = "accepted for") -> "Text":
    takers = ", ".join(answer.subscribers) or "nobody yet"
    return output.text(
        f"{answer.correlation}  {outcome} {takers}\n"
        f"agentd ctl trace {answer.correlation}  shows what becomes of it"
    )


def receipt(answer: Published) -> Receipt:
    """Of the one message that was published."""
    return Receipt(
        message=answer.messages[0],
        correlation=answer.correlations[0],
        subscribers=answer.subscribers,
    )


def published(answer: Published, *, handled: bool) -> "Text":
    """What became of one message; handled does not say how well."""
    outcome = "handled by" if handled else "accepted for"
    return sent(receipt(answer), f"was sent before, {outcome}" if answer.repeated else outcome)


def state_text(state: str) -> "Text":
    return output.text(state, STATE_STYLES.get(state, ""))


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"


def stack(*parts: "RenderableType") -> "Group":
    from rich.console import Group

    return Group(*parts)
