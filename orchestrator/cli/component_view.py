"""What `agentd component` shows of a component, and of what it did with a message."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrator.cli import output
from orchestrator.config.units import SIZE_UNITS_BYTES

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from ipc_protocol.components import ComponentInfo, ComponentShape
    from ipc_protocol.errors import Problem
    from ipc_protocol.work import Completion, Usage
    from orchestrator.components.running import Ran
    from orchestrator.components.trying import Tried


# ---- What a component is ------------------------------------------------------------------------


def configuration(grants: list[str]) -> str:
    """The line of an agent's table that grants these."""
    return f"imports = {json.dumps(grants)}"


def shape_document(shape: "ComponentShape") -> dict[str, Any]:
    """Without the types in their form for the host, which says nothing to anybody else."""
    complete: dict[str, Any] = output.complete(shape)
    return {name: value for name, value in complete.items() if name != "types"}


def component_document(file: Path, info: "ComponentInfo") -> dict[str, Any]:
    return {
        "file": file,
        **output.complete(info),
        "shape": shape_document(info.shape),
        "configuration": configuration(info.shape.grants),
    }


def component(file: Path, info: "ComponentInfo") -> "Table":
    shape = info.shape
    made = output.table("", "")
    made.show_header = False
    rows = [
        ("file", str(file)),
        ("world", shape.world),
        ("sha256", info.sha256),
        ("size", f"{_size(info.size_bytes)}, {_size(info.native_bytes)} of native code"),
        ("compiled", f"in {output.span(info.compile_us)}{_memory(info)}"),
        ("exports", "\n".join(shape.exports)),
        ("imports", "\n".join(name for name in shape.imports if name not in shape.inert)),
        ("inert", "\n".join(shape.inert)),
        ("needs", configuration(shape.grants) if shape.grants else "no grant"),
    ]
    for name, value in rows:
        if value:
            made.add_row(output.text(name, "bold"), output.text(value))
    return made


def _memory(info: "ComponentInfo") -> str:
    peak = info.details.get("memory_bytes_peak")
    return f", with {_size(peak)} of memory" if isinstance(peak, int) else ""


def listing(shape: "ComponentShape") -> str:
    """As WIT would have it, without the names of types."""
    return output.clean("\n".join(_world(shape)))


def _world(shape: "ComponentShape") -> Iterator[str]:
    yield f"// fits {shape.world}"
    yield "world component {"
    for way, names in (("import", shape.imports), ("export", shape.exports)):
        for name in names:
            functions = shape.functions.get(name, [])
            inert = "  // inert" if name in shape.inert else ""
            yield f"  {way} {name}{' {' if functions else ';'}{inert}"
            for function in functions:
                yield f"    {function};"
            if functions:
                yield "  }"
    yield "}"


# ---- What it did --------------------------------------------------------------------------------


def tried_document(tried: "Tried") -> dict[str, Any]:
    """What programs get. A payload or a value that is no text stands in base64."""
    ran, completion = tried.ran, tried.ran.completion
    return {
        "component": {"sha256": tried.info.sha256, "world": tried.info.shape.world},
        "outcome": "failed" if completion is None else completion.outcome,
        "reason": "" if completion is None else completion.reason,
        "outputs": [
            {"topic": one.topic, **_bytes("payload", one.payload)}
            for one in (completion.outputs if completion else [])
        ],
        "state": [
            {"key": one.key, **_bytes("value", one.value)}
            for one in (completion.state if completion else [])
        ],
        "memories": output.complete(completion.memories if completion else []),
        "tasks": output.complete(completion.tasks if completion else []),
        "usage": output.complete(_usage(completion)),
        "asked": [msgspec.to_builtins(effect) for effect in ran.asked],
        "log": ran.log,
        "problem": output.complete(ran.problem),
        "remarks": tried.remarks,
    }


def _bytes(name: str, value: bytes | None) -> dict[str, str | None]:
    if value is None:
        return {name: None}
    try:
        return {name: value.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(value).decode()}


def _usage(completion: "Completion | None") -> "Usage | None":
    return None if completion is None else completion.usage


def tried(tried: "Tried") -> "Group":
    from rich.console import Group

    ran, completion = tried.ran, tried.ran.completion
    parts: list[Any] = [output.text(f"note  {one}", "yellow") for one in tried.remarks]
    if completion is not None:
        made = output.table("", "", "")
        made.show_header = False
        for kind, name, value in _changes(completion):
            made.add_row(output.text(kind, "bold"), output.text(name), output.text(value))
        parts.append(made)
    parts += [output.text(f"log   {line}", "dim") for line in _log(ran)]
    if completion is not None:
        reason = f": {completion.reason}" if completion.reason else ""
        parts.append(output.text(f"{completion.outcome}{reason}", "green"))
    if ran.problem is not None:
        parts.append(_problem(ran.problem))
    if (usage := _usage(completion)) is not None:
        parts.append(
            output.text(
                f"{usage.fuel:,} fuel  {output.span(usage.call_us)}  "
                f"{_size(usage.memory_bytes_peak)} of memory"
            )
        )
    return Group(*parts)


def _log(ran: "Ran") -> list[str]:
    """Without the backtrace, which the host writes to the log too, and which is shown below."""
    shown = set() if ran.problem is None else set(_lines(ran.problem))
    return [line for line in ran.log if line.removeprefix("component: ").strip() not in shown]


def _changes(completion: "Completion") -> Iterator[tuple[str, str, str]]:
    for message in completion.outputs:
        yield "output", message.topic, _shown(message.payload)
    for change in completion.state:
        yield "state", change.key, "deleted" if change.value is None else _shown(change.value)
    for memory in completion.memories:
        yield "memory", memory.outcome, memory.text
    for task in completion.tasks:
        yield "task", task.state or "open", task.title or f"{task.id}"


def _lines(problem: "Problem") -> Iterator[str]:
    yield problem.message
    yield from str(problem.details.get("backtrace", "")).splitlines()


def _problem(problem: "Problem") -> "Text":
    message, *backtrace = _lines(problem)
    said = [f"{problem.code}: {message}", problem.cure]
    if fuel := problem.details.get("fuel"):
        said.append(f"It had used {fuel:,} fuel.")
    return output.text("\n".join(filter(None, [*said, *backtrace])), "red")


def _shown(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return f"{len(value)} bytes: {value[:32].hex()}{'…' if len(value) > 32 else ''}"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / SIZE_UNITS_BYTES['MiB']:.1f} MiB"
