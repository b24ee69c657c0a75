"""May an agent run a component? What that imports, against what the agent was granted. Pure."""

from typing import Final

from ipc_protocol.components import ComponentShape
from ipc_protocol.errors import Failure
from ipc_protocol.work import ComponentStart

AGENT_NET: Final = "agent-net:core/"
"""How the interfaces of the contract begin. `contract.fit` holds those to one world."""
FILES: Final = ("wasi:filesystem/types@", "wasi:filesystem/preopens@")
"""What `preopen_scratch` grants of WASI."""


def require(shape: ComponentShape, start: ComponentStart, agent: str) -> None:
    """Raises *component.grant*, *component.strict-imports*; both say what to configure."""
    _require_grants(shape, start, agent)
    if start.strict_imports:
        _require_no_inert(inert(shape, start), agent)


def inert(shape: ComponentShape, start: ComponentStart) -> list[str]:
    """What it imports that is linked to nothing, with what it is granted."""
    return [name for name in shape.inert if not (start.preopen_scratch and name.startswith(FILES))]


def _require_grants(shape: ComponentShape, start: ComponentStart, agent: str) -> None:
    missing = [name for name in shape.grants if name not in start.grants]
    if not missing:
        return
    full = [
        next(name for name in shape.imports if name.startswith(f"{AGENT_NET}{interface}@"))
        for interface in missing
    ]
    granted = ", ".join(f'"{name}"' for name in sorted({*start.grants, *missing}))
    raise Failure(
        "component.grant",
        f"The component imports {', '.join(full)}, which {agent} is not granted.",
        f"If it shall be, write `imports = [{granted}]` in [agent.{agent}].",
        interfaces=full,
    )


def _require_no_inert(names: list[str], agent: str) -> None:
    if names:
        raise Failure(
            "component.strict-imports",
            f"The component imports {', '.join(names)}, which would be linked to nothing.",
            "Build it without them (componentize-py: --stub-wasi), or take `strict_imports` out of "
            f"[agent.{agent}].",
            interfaces=names,
        )
