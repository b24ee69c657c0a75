"""`agentd ctl agents`: who there is, what each runs, and how that is changed.

What a command names on this machine is read here and goes to the daemon over the socket: the daemon
may run as a user that cannot read it.
"""

import contextlib
import hashlib
import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
import msgspec

from ipc_protocol import control, methods
from ipc_protocol.errors import Failure
from ipc_protocol.inference import Nothing
from ipc_protocol.limits import FRAME_BODY_BYTES_MAX
from orchestrator.cli import output, views
from orchestrator.cli.calls import call, print_answer, socket_path
from orchestrator.cli.exits import EPILOG, CommandError, Exit
from orchestrator.cli.options import FILE, Seconds, daemon_options

if TYPE_CHECKING:
    from ipc_protocol.aio import Connection
    from ipc_protocol.methods import Method

P = TypeVar("P", bound=msgspec.Struct)
R = TypeVar("R")

PIECE_BYTES: Final = 1024 * 1024
"""As much as the daemon takes at once."""

NAMED_TEXTS: Final = ("identity_file", "config_file")
"""Keys of an agent that name a file beside its own."""

TEXT_BYTES_MAX: Final = FRAME_BODY_BYTES_MAX // 4
"""Of each of these files and of the agent's own: all three go in one frame. A component is handed
no larger configuration."""

STAGES: Final = {
    "check": "checking",
    "compile": "compiling",
    "start": "starting",
    "hand-over": "handing over",
    "drain": "finishing",
}

Show = Callable[[str, float | None], None]
"""What happens now, and how much of it is done, from 0 to 1, where that is known."""


class ListByDefault(click.Group):
    """A group that lists where it is not told what to do."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group(cls=ListByDefault, epilog=EPILOG)
def agents() -> None:
    """List the agents, and change them while they work.

    Without a command they are listed.
    """


@agents.command("list", epilog=EPILOG)
@daemon_options
def list_agents(socket: Path | None, config: Path | None, as_json: bool) -> None:
    """List the agents, their work and sandboxes."""
    answer = call(socket, config, methods.AGENTS, Nothing())
    print_answer(answer, views.agents, as_json=as_json)


@agents.command(epilog=EPILOG)
@click.argument("name")
@daemon_options
def history(name: str, socket: Path | None, config: Path | None, as_json: bool) -> None:
    """List the versions of the component of NAME."""
    answer = call(socket, config, methods.AGENTS_HISTORY, control.OfOneAgent(agent=name))
    print_answer(answer, views.versions, as_json=as_json)


# ---- Versions -----------------------------------------------------------------------------------


@agents.command(epilog=EPILOG)
@click.argument("name")
@click.argument("file", type=FILE)
@click.option(
    "--messages",
    type=click.IntRange(0, 1_000_000),
    default=20,
    show_default=True,
    help="Messages that the new version has to handle before it is trusted.",
)
@click.option(
    "--seconds",
    type=Seconds(),
    default=60,
    show_default=True,
    metavar="DURATION",
    help="How long it has to work before it is trusted, for instance 5min.",
)
@daemon_options
def upgrade(
    name: str,
    file: Path,
    messages: int,
    seconds: float,
    socket: Path | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Let the component in FILE take over from that of NAME.

    It is checked, compiled, and started beside the one that works; between two messages it takes
    over. If it traps, dies, goes over a budget or reports to be degraded before it is trusted, the
    version before it works again.
    """
    with _progress() as show:

        async def talk(connection: "Connection") -> control.AgentUpgraded:
            sha256 = await _upload(connection, file, show)
            asked = control.UpgradeAgent(
                agent=name, sha256=sha256, messages=messages, us=round(seconds * 1e6)
            )
            return await _change(connection, methods.AGENTS_UPGRADE, asked, show, name)

        answer = _converse(socket, config, talk)
    print_answer(answer, views.upgraded, as_json=as_json)


@agents.command(epilog=EPILOG)
@click.argument("name")
@click.option("--to", type=click.IntRange(1), metavar="NUMBER", help="Of `history`.")
@daemon_options
def rollback(
    name: str, to: int | None, socket: Path | None, config: Path | None, as_json: bool
) -> None:
    """Let the version of NAME before this one work again."""
    asked = control.RollBackAgent(agent=name, to=to)
    with _progress() as show:
        answer = _converse(
            socket, config, lambda line: _change(line, methods.AGENTS_ROLLBACK, asked, show, name)
        )
    print_answer(answer, views.upgraded, as_json=as_json)


# ---- Coming and going ---------------------------------------------------------------------------


@agents.command(epilog=EPILOG)
@click.argument("file", type=FILE)
@daemon_options
def add(file: Path, socket: Path | None, config: Path | None, as_json: bool) -> None:
    """Add the agent of FILE, a file as in `agents.d`.

    The daemon keeps a file of its own, so it is there after a restart too. The files that it names
    are uploaded.
    """
    file = file.absolute()
    text = _read(file, "The file of the agent").decode("utf-8", "surrogateescape")
    contents, components = _named(file, text)
    with _progress() as show:

        async def talk(connection: "Connection") -> control.AgentAdded:
            uploaded = {
                named: await _upload(connection, path, show) for named, path in components.items()
            }
            asked = control.AddAgent(
                file=str(file),
                text=text.encode("utf-8", "surrogateescape").decode("utf-8", "replace"),
                contents=contents,
                components=uploaded,
            )
            return await _change(connection, methods.AGENTS_ADD, asked, show)

        try:
            answer = _converse(socket, config, talk)
        except CommandError as error:
            raise _wrong_file(error) from error
    print_answer(answer, views.added, as_json=as_json)


@agents.command(epilog=EPILOG)
@click.argument("name")
@click.option(
    "--timeout",
    type=Seconds(),
    metavar="DURATION",
    help="Do not wait longer than this, for instance 90s, until it has finished.",
)
@daemon_options
def retire(
    name: str,
    timeout: float | None,
    socket: Path | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Let NAME finish what it has, and go.

    It gets no more messages. Its memories, its state and all that it did are kept. If it does not
    work any more, that is said, and it goes when it has been repaired and has finished.
    """
    asked = control.OfOneAgent(agent=name)
    with _progress(sign_of_life=not as_json) as show:
        answer = _converse(
            socket,
            config,
            lambda line: _change(line, methods.AGENTS_RETIRE, asked, show, name),
            timeout_s=timeout,
            on_timeout=CommandError(
                Exit.TIMEOUT,
                f"{name} has not finished within {timeout or 0:g} s; it is retired all the same, "
                "and goes when it has.",
                "`agentd ctl agents` shows how much it has left.",
                code="agent.unfinished",
            ),
        )
    print_answer(answer, views.retired, as_json=as_json)


# ---- Within -------------------------------------------------------------------------------------


def _converse(
    socket: Path | None,
    config: Path | None,
    talk: "Callable[[Connection], Awaitable[R]]",
    *,
    timeout_s: float | None = None,
    on_timeout: CommandError | None = None,
) -> R:
    from orchestrator.cli import client

    path = socket_path(socket, config)
    return client.converse(path, talk, timeout_s=timeout_s, on_timeout=on_timeout)


async def _change(
    connection: "Connection",
    method: "Method[P, R, control.AgentChange]",
    params: P,
    show: Show,
    name: str = "",
) -> R:
    try:
        async with connection.stream(method, params) as response:
            async for change in response:
                show(f"{STAGES[change.stage]} {change.detail}".rstrip(), change.done)
            return await response.result()
    except Failure as failure:
        if failure.code != "protocol.closed":
            raise
        look = f"agentd ctl agents history {name}" if name else "agentd ctl agents"
        raise CommandError(
            Exit.UNREACHABLE,
            "The daemon ended before it said what has come of it.",
            f"When it runs again, `{look}` shows that.",
            code=failure.code,
        ) from failure


async def _upload(connection: "Connection", path: Path, show: Show) -> str:
    """Bring a component to the daemon, from where an earlier upload of it was given up. Returns its
    SHA-256."""
    show(f"reading {path.name}", None)
    try:
        with _open(path) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            total = file.tell()
            offset, data = 0, b""
            while True:
                piece = control.ComponentPiece(
                    sha256=sha256, offset=offset, data=data, total_bytes=total
                )
                received = await connection.call(methods.COMPONENT_UPLOAD, piece)
                if received.complete:
                    return sha256
                offset = received.received_bytes
                show(f"uploading {path.name}", offset / max(total, 1))
                file.seek(offset)
                data = file.read(PIECE_BYTES)
                if not data:
                    raise _unreadable(path, "The component", "it became shorter")
    except OSError as error:
        raise _unreadable(path, "The component", error.strerror or str(error)) from error


def _named(file: Path, text: str) -> tuple[dict[str, bytes], dict[str, Path]]:
    """What is in the files that an agent's file names, and where its component lies; by the names
    that stand in it. What is wrong with the file itself, the daemon says."""
    contents: dict[str, bytes] = {}
    components: dict[str, Path] = {}
    tables = _tables(text)
    for agent in tables if len(tables) == 1 else ():
        for key in NAMED_TEXTS:
            named = agent.get(key)
            if isinstance(named, str):
                contents[named] = _read(file.parent / named, f"The `{key}` of {file}")
        component = agent.get("component")
        if isinstance(component, str):
            components[component] = file.parent / component
    return contents, components


def _tables(text: str) -> list[dict[str, Any]]:
    import tomllib

    try:
        agents = tomllib.loads(text).get("agent")
    except ValueError:
        return []
    tables = agents.values() if isinstance(agents, dict) else ()
    return [table for table in tables if isinstance(table, dict)]


def _read(path: Path, what: str) -> bytes:
    try:
        with _open(path) as file:
            data = file.read(TEXT_BYTES_MAX + 1)
    except OSError as error:
        raise _unreadable(path, what, error.strerror or str(error)) from error
    if len(data) > TEXT_BYTES_MAX:
        raise CommandError(
            Exit.FAILED,
            f"{what}, {path}, is larger than {TEXT_BYTES_MAX} bytes.",
            "Put what is not configuration elsewhere, for instance into the component.",
            code="file.too-large",
        )
    return data


def _open(path: Path) -> BufferedReader:
    """A regular file. What is none might never end, and the other end of a FIFO never come."""
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError("It is not a regular file")
    return file


def _unreadable(path: Path, what: str, why: str) -> CommandError:
    return CommandError(
        Exit.FAILED,
        f"{what}, {path}, cannot be read: {why[:1].lower()}{why[1:]}.",
        "Check the path, and who may read it.",
        code="file.unreadable",
    )


def _wrong_file(error: CommandError) -> CommandError:
    """The status of a wrong configuration, for a file that is none."""
    if error.code != "request.invalid" or "problems" not in error.details:
        return error
    return CommandError(
        Exit.CONFIG, error.message, error.cure, code="config.wrong", details=error.details
    )


@contextlib.contextmanager
def _progress(*, sign_of_life: bool = False) -> Iterator[Show]:
    """A bar on a terminal; in a pipe nothing, or what happens first as a sign of life."""
    console = output.console(stderr=True)
    if not console.is_terminal:
        said: list[str] = []

        def say(what: str, _: float | None) -> None:
            if sign_of_life and not said:
                said.append(what)
                click.echo(output.one_line(what), err=True)

        yield say
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(what: str, done: float | None) -> None:
            bar.update(
                task,
                description=output.one_line(what),
                total=None if done is None else 1.0,
                completed=done or 0.0,
            )

        yield show
