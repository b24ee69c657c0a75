"""What every command that talks to the daemon does: find it, ask, and print what it answers."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from ipc_protocol.methods import Method
from orchestrator.cli import output

if TYPE_CHECKING:
    from rich.console import RenderableType

P = TypeVar("P", bound=msgspec.Struct)
R = TypeVar("R")
T = TypeVar("T")


def socket_path(socket: Path | None, config: Path | None) -> Path:
    """Where the daemon listens: what was named, what the configuration says, or the usual place."""
    if socket is not None:
        return socket
    from orchestrator.cli.service import load_daemon_config

    return load_daemon_config(config).socket


def call(socket: Path | None, config: Path | None, method: Method[P, R, Any], params: P) -> R:
    """Raises `CommandError`."""
    from orchestrator.cli import client

    return client.call(socket_path(socket, config), method, params)


def print_answer(answer: T, draw: "Callable[[T], RenderableType]", *, as_json: bool) -> None:
    if as_json:
        output.echo_json(answer)
    else:
        output.echo(draw(answer))
