"""What a component imports against what the configuration of its agent grants. Pure.

A component was found to fit a world before; here is decided whether this agent may have what it
asks for. `bus` needs no grant. Of WASI everything that does nothing is allowed unless the agent is
strict about it; `preopen_scratch` makes the file system do something.
"""

from collections.abc import Collection
from typing import Final

from ipc_protocol.components import ComponentShape
from ipc_protocol.errors import Failure

_OURS: Final = "agent-net:core/"
_FILE_SYSTEM: Final = "wasi:filesystem/"

NAMED_MAX: Final = 3
"""Interfaces of WASI named in a sentence; an ordinary component has 25, and all are in the
details."""


def require(
    shape: ComponentShape,
    agent: str,
    imports: Collection[str],
    *,
    strict_imports: bool,
    preopen_scratch: bool,
) -> None:
    """Raise `component.grant` or `component.strict-imports` for what `agent` may not import.

    The other arguments are the keys of its configuration by these names.
    """
    missing = [grant for grant in shape.grants if grant not in imports]
    if missing:
        raise Failure(
            "component.grant",
            f"The component imports {_listed(_in_full(shape, missing))}, and agent {agent} is "
            f"granted {_listed(sorted(imports)) or 'no interface'}.",
            f"Write `{_line(sorted({*imports, *missing}))}` in `[agent.{agent}]`, or use a "
            "component that does without.",
            missing=missing,
            granted=sorted(imports),
        )
    if not strict_imports:
        return
    refused = [
        name for name in shape.inert if not (preopen_scratch and name.startswith(_FILE_SYSTEM))
    ]
    if refused:
        raise Failure(
            "component.strict-imports",
            f"The component imports of WASI what does nothing here: {_some(refused)}.",
            "Build it without them (componentize-py: `--stub-wasi`), or write "
            f"`strict_imports = false` in `[agent.{agent}]`.",
            refused=refused,
        )


def unused(shape: ComponentShape, imports: Collection[str], *, preopen_scratch: bool) -> list[str]:
    """What is granted for nothing, which somebody may have meant differently."""
    found = sorted({*imports} - {*shape.grants})
    if preopen_scratch and not any(name.startswith(_FILE_SYSTEM) for name in shape.imports):
        found.append("preopen_scratch")
    return found


def _in_full(shape: ComponentShape, grants: list[str]) -> list[str]:
    """With package and version, as the component names them."""
    ours = [name for name in shape.imports if name.startswith(_OURS)]
    return [name for name in ours if name.removeprefix(_OURS).partition("@")[0] in grants]


def _line(imports: list[str]) -> str:
    names = ", ".join(f'"{name}"' for name in imports)
    return f"imports = [{names}]"


def _listed(names: list[str]) -> str:
    *first, last = names or [""]
    return f"{', '.join(first)} and {last}" if first else last


def _some(names: list[str]) -> str:
    named = ", ".join(names[:NAMED_MAX])
    more = len(names) - NAMED_MAX
    return f"{named} and {more} more" if more > 0 else named
