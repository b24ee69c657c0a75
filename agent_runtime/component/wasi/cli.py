"""wasi:cli: no arguments, environment, terminal or input, and no way to just leave."""

from typing import Any

from agent_runtime.component.types import ERR, Case
from agent_runtime.component.wasi.streams import Discarded, NoInput, StandardError
from agent_runtime.component.wasi.surroundings import Functions, Surroundings
from agent_runtime.component.wasi.trap import HostTrap


def environment_functions() -> Functions:
    return {
        "get-environment": list,
        "get-arguments": list,
        "initial-cwd": lambda: None,
    }


def standard_functions(around: Surroundings) -> Functions:
    """Of the three interfaces that each have one of them."""
    return {
        "get-stdin": lambda: around.handles.add(NoInput()),
        "get-stdout": lambda: around.handles.add(Discarded()),
        "get-stderr": lambda: around.handles.add(StandardError(around)),
    }


def terminal_functions() -> Functions:
    return {
        "get-terminal-stdin": lambda: None,
        "get-terminal-stdout": lambda: None,
        "get-terminal-stderr": lambda: None,
    }


def exit_functions() -> Functions:
    def leave(status: Case) -> Any:
        raise _left("with an error" if status.name == ERR else "without an error")

    def leave_with_code(code: int) -> Any:
        raise _left(f"with status {code}")

    return {"exit": leave, "exit-with-code": leave_with_code}


def _left(how: str) -> HostTrap:
    return HostTrap(f"it called exit {how}; an agent goes on until it is stopped")
