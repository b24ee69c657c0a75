"""One call to the daemon, for programs that do nothing else meanwhile. Every failure is an error
message with an exit status."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from ipc_protocol.aio import Connection, connect
from ipc_protocol.errors import Failure
from ipc_protocol.events import Hello
from ipc_protocol.methods import Method
from orchestrator.cli.exits import CommandError, Exit

P = TypeVar("P", bound=msgspec.Struct)
R = TypeVar("R")
Item = TypeVar("Item")
T = TypeVar("T")

CALL_SECONDS_MAX: Final = 30.0
"""A daemon answers a question about itself in milliseconds; one that is swapping, in seconds."""

LINE_CODES: Final = "protocol."
"""Failures of the line itself: there is no daemon at the other end, or not one to talk to."""


def call(socket: Path, method: Method[P, R, Any], params: P) -> R:
    """Ask the daemon at `socket`. Raises `CommandError`."""
    return converse(
        socket, lambda connection: connection.call(method, params), timeout_s=CALL_SECONDS_MAX
    )


def follow(
    socket: Path, method: Method[P, Any, Item], params: P, on_item: Callable[[Item], None]
) -> None:
    """Hand each item of a streamed response to `on_item`, until the daemon or the user ends it."""

    async def read(connection: Connection) -> None:
        async with connection.stream(method, params) as response:
            async for item in response:
                on_item(item)

    converse(socket, read)


def collect(socket: Path, method: Method[P, R, Item], params: P) -> tuple[R, list[Item]]:
    """The result of a streamed response, and all its items. Raises `CommandError`."""

    async def read(connection: Connection) -> tuple[R, list[Item]]:
        async with connection.stream(method, params) as response:
            items = [item async for item in response]
            return await response.result(), items

    return converse(socket, read, timeout_s=CALL_SECONDS_MAX)


def converse(
    socket: Path,
    talk: Callable[[Connection], Awaitable[T]],
    *,
    timeout_s: float | None = None,
    on_timeout: CommandError | None = None,
) -> T:
    """Connect, `talk`, hang up. Raises `CommandError`, `on_timeout` when the time is over."""

    async def run() -> T:
        async with (
            asyncio.timeout(timeout_s),
            connect(socket, Hello(name="agentd ctl")) as connection,
        ):
            return await talk(connection)

    try:
        return asyncio.run(run())
    except TimeoutError as error:  # an OSError too, so it comes first
        raise (on_timeout or _silent(socket)) from error
    except OSError as error:
        raise _unreachable(socket, error) from error
    except Failure as failure:
        raise _reported(socket, failure) from failure


def _unreachable(socket: Path, error: OSError) -> CommandError:
    reason = "Nothing listens there."
    cure = (
        "Start it with `agentd run`, or name another socket with --socket, AGENTD_SOCKET or "
        "--config. Under systemd, `systemctl status agentd` says why it is down."
    )
    if isinstance(error, PermissionError):
        reason = "This user may not open it."
        cure = f"`ls -l {socket}` shows who may; run this as such a user."
    elif isinstance(error, FileNotFoundError):
        reason = "There is no such socket."
    elif not isinstance(error, ConnectionRefusedError):
        reason = f"{error.strerror or error}."
    return CommandError(
        Exit.UNREACHABLE,
        f"agentd cannot be reached at {socket}. {reason}",
        cure,
        code="daemon.unreachable",
    )


def _reported(socket: Path, failure: Failure) -> CommandError:
    problem = failure.problem
    if failure.code.startswith(LINE_CODES):
        message = f"The connection to {socket} failed: {problem.message}"
        cure = problem.cure or "Is it the control socket of this version of agentd?"
        return CommandError(Exit.UNREACHABLE, message, cure, code=problem.code)
    return CommandError.of(failure)


def _silent(socket: Path) -> CommandError:
    return CommandError(
        Exit.TIMEOUT,
        f"agentd at {socket} took the question and did not answer within {CALL_SECONDS_MAX:g} s.",
        "Its log says what it is busy with.",
        code="daemon.silent",
    )
