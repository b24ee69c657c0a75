"""`agentd component`: from a new project to a component that has shown what it does.

None of these commands needs a daemon, but `run --trace`, which asks one for a delivery to repeat.
What is compiled or run is confined as in a daemon.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, get_args

import click
from click.core import ParameterSource

from orchestrator.cli.exits import EPILOG, CommandError, Exit
from orchestrator.cli.options import DIRECTORY, FILE, bytes_argument, json_option

if TYPE_CHECKING:
    from ipc_protocol.components import ComponentInfo
    from ipc_protocol.control import Trace
    from orchestrator.components.compiling import Progress
    from orchestrator.components.trying import Try
    from orchestrator.components.workbench import Workbench

    OnProgress = Callable[[Progress], None]

T = TypeVar("T")
Work = Callable[["Workbench", "OnProgress | None"], Awaitable[T]]

# The names of `components.projects` and `config.types`, which would take their time to import.
LANGUAGES: Final = ("python", "javascript")
WORLDS: Final = ("agent", "mind")
VERSIONS: Final = ("0.1.0", "0.2.0")
Sandbox = Literal["strict", "standard", "off"]

sandbox_option = click.option(
    "--sandbox",
    type=click.Choice(get_args(Sandbox)),
    default="strict",
    show_default=True,
    help="How the compiler and the worker are confined.",
)
grant_option = click.option(
    "--grant",
    "grants",
    multiple=True,
    metavar="INTERFACE",
    help="Grant this interface and no other; may be repeated.  [default: what it imports]",
)
agent_option = click.option(
    "--agent",
    "agent_file",
    type=FILE,
    help="The TOML file of an agent: its grants, limits and configuration count.",
)


@click.group(epilog=EPILOG)
def component() -> None:
    """Make, build, check and try components: agents that are WebAssembly.

    docs/components.md is their guide.
    """


# ---- Projects -----------------------------------------------------------------------------------


@component.command(epilog=EPILOG)
@click.argument("name")
@click.option("--lang", type=click.Choice(LANGUAGES), required=True, help="Its language.")
@click.option(
    "--world",
    type=click.Choice(WORLDS),
    default="agent",
    show_default=True,
    help="What it is: an agent acts, a mind may also triage and reflect.",
)
@click.option(
    "--version",
    type=click.Choice(VERSIONS),
    default="0.2.0",
    show_default=True,
    help="Of the contract, agent-net:core.",
)
@click.option(
    "--imports",
    default="",
    metavar="A,B",
    help="Interfaces that it is to be granted, such as state,logging.",
)
@click.option("--in", "parent", type=DIRECTORY, default=Path(), help="Make the folder NAME here.")
@json_option
def new(
    name: str,
    lang: str,
    world: str,
    version: str,
    imports: str,
    parent: Path,
    as_json: bool,
) -> None:
    """Write a project to the folder NAME, which builds and passes its own tests.

    Nothing is ever overwritten.
    """
    from orchestrator.cli import output
    from orchestrator.components import projects

    wanted = tuple(dict.fromkeys(one.strip() for one in imports.split(",") if one.strip()))
    template = projects.Template(
        name=name,
        language=lang,  # type: ignore[arg-type]  # click has checked these three
        world=world,  # type: ignore[arg-type]
        version=version,  # type: ignore[arg-type]
        imports=wanted,
    )
    folder = parent / name
    with _failures(folder):
        files = projects.create(folder, template)
    if as_json:
        output.echo_json({"folder": folder, "wrote": files})
        return
    for path in files:
        click.echo(f"wrote {path}")
    click.echo(f"\nNext:\n  agentd component build {click.format_filename(folder)}")


@component.command(epilog=EPILOG)
@click.argument("folder", metavar="[DIR]", type=DIRECTORY, default=Path())
@click.option("--output", type=FILE, help="Write the component here.  [default: DIR/DIR.wasm]")
@click.option(
    "--wasi/--no-wasi",
    default=None,
    help="Import clocks, random numbers and standard error of WASI.  [default: Python does, "
    "JavaScript does not]",
)
@click.option("--if-stale", is_flag=True, help="Only if a source is newer than the component.")
@json_option
def build(
    folder: Path, output: Path | None, wasi: bool | None, if_stale: bool, as_json: bool
) -> None:
    """Build the project in DIR into a component.

    Python is built by componentize-py, JavaScript by componentize-js, which npm installs into the
    project.
    """
    from orchestrator.cli import output as printing
    from orchestrator.components import building, projects

    with _failures(folder):
        project = projects.read(folder.resolve())
        built = output or project.component
        stale = not if_stale or building.is_stale(project, built)
        if stale:
            with _busy(f"Building {project.name} from {project.source} …"):
                building.build(project, built, wasi=wasi)
    if as_json:
        size_bytes = built.stat().st_size
        printing.echo_json({"component": built, "size_bytes": size_bytes, "built": stale})
    else:
        click.echo(f"{'built' if stale else 'up to date:'} {click.format_filename(built)}")


# ---- Components ---------------------------------------------------------------------------------


@component.command(epilog=EPILOG)
@click.argument("file", type=FILE)
@grant_option
@agent_option
@sandbox_option
@json_option
def check(
    file: Path, grants: tuple[str, ...], agent_file: Path | None, sandbox: Sandbox, as_json: bool
) -> None:
    """Compile the component FILE, and say what it is and what it needs.

    With --grant or --agent it is an error if that is not enough for it.
    """
    from orchestrator.cli import component_view, output
    from orchestrator.components import granting, trying

    with _failures(file):
        agent = trying.agent_of(agent_file) if agent_file else None
        info = _on_bench(sandbox, _info(file))
        if agent is not None:
            granting.require(
                info.shape,
                agent.name,
                agent.imports,
                strict_imports=agent.strict_imports,
                preopen_scratch=agent.preopen_scratch,
            )
        elif grants:
            granting.require(
                info.shape, "NAME", grants, strict_imports=False, preopen_scratch=False
            )
    if as_json:
        output.echo_json(component_view.component_document(file, info))
    else:
        output.echo(component_view.component(file, info))


@component.command(epilog=EPILOG)
@click.argument("file", type=FILE)
@sandbox_option
@json_option
def inspect(file: Path, sandbox: Sandbox, as_json: bool) -> None:
    """List what the component FILE imports and exports, with its functions."""
    from orchestrator.cli import component_view, output

    with _failures(file):
        info = _on_bench(sandbox, _info(file))
    if as_json:
        output.echo_json({"file": file, "shape": component_view.shape_document(info.shape)})
    else:
        click.echo(component_view.listing(info.shape))


@component.command(epilog=EPILOG)
@click.argument("file", type=FILE)
@click.option("--message", metavar="TEXT", help="What it is handed; - reads standard input.")
@click.option("--topic", default="user.request", show_default=True, help="On which topic.")
@click.option("--sender", default="operator", show_default=True, help="From whom.")
@click.option("--config", metavar="TEXT", help="What its `init` gets; - reads standard input.")
@click.option(
    "--state",
    "kept",
    multiple=True,
    metavar="KEY=VALUE",
    help="What its state holds before; may be repeated.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of its random numbers.")
@grant_option
@agent_option
@sandbox_option
@click.option("--trace", metavar="CORRELATION", help="Repeat a delivery of this conversation.")
@click.option("--delivery", type=click.IntRange(1), help="Which one, where there are several.")
@click.option(
    "--socket",
    type=FILE,
    envvar="AGENTD_SOCKET",
    show_envvar=True,
    help="The control socket of the daemon that has the trace.",
)
@json_option
@click.pass_context
def run(
    context: click.Context,
    /,
    file: Path,
    message: str | None,
    trace: str | None,
    delivery: int | None,
    socket: Path | None,
    sandbox: Sandbox,
    as_json: bool,
    **making_up: Any,
) -> None:
    """Hand the component FILE one message in isolation, and show what comes of it.

    Nothing that it does has an effect. It has a state and a bus, and neither model, memory nor
    tools. With --trace it repeats what an agent met: the message, the configuration, the time, the
    seed and every answer are those of the daemon's record.
    """
    from orchestrator.cli import component_view, output
    from orchestrator.components import trying

    if (message is None) == (trace is None):
        raise click.UsageError("Give a --message to hand over, or a --trace to repeat.")
    if trace is None:
        _require_not_said(context, ("delivery",), "without --trace there is no record to repeat")
    else:
        _require_not_said(context, making_up, "with --trace the record says that")
    with _failures(file):
        if trace is not None:
            what = _recorded(socket, trace, delivery)
        else:
            assert message is not None
            what = _made_up(bytes_argument(message), **making_up)
        tried = _on_bench(sandbox, lambda bench, tell: trying.attempt(bench, file, what, tell))
    if as_json:
        output.echo_json(component_view.tried_document(tried))
    else:
        output.echo(component_view.tried(tried))
    if tried.ran.problem is not None:
        raise click.exceptions.Exit(Exit.FAILED)


def _require_not_said(context: click.Context, names: Collection[str], why: str) -> None:
    """Options that would be ignored are a mistake of whoever gives them."""
    said = [
        option.opts[0]
        for option in context.command.params
        if option.name in names
        and context.get_parameter_source(option.name) is ParameterSource.COMMANDLINE
    ]
    if said:
        raise click.UsageError(f"{', '.join(said)} cannot be given: {why}.")


def _made_up(
    payload: bytes,
    *,
    topic: str,
    sender: str,
    config: str | None,
    kept: tuple[str, ...],
    seed: int,
    grants: tuple[str, ...],
    agent_file: Path | None,
) -> "Try":
    import msgspec

    from orchestrator.components import trying

    made = trying.made_up(
        trying.envelope(topic, sender, payload),
        agent=trying.agent_of(agent_file) if agent_file else None,
        config=None if config is None else bytes_argument(config),
        seed=seed,
        state={key: value.encode() for key, value in map(_key_and_value, kept)},
    )
    return msgspec.structs.replace(made, grants=list(grants)) if grants else made


def _key_and_value(given: str) -> tuple[str, str]:
    key, equals, value = given.partition("=")
    if not (key and equals):
        raise click.UsageError(f"--state {given!r} is not KEY=VALUE.")
    return key, value


def _recorded(socket: Path | None, correlation: str, delivery: int | None) -> "Try":
    """What the daemon has on record. Raises `CommandError`."""
    from ipc_protocol import control, methods
    from orchestrator.cli import client
    from orchestrator.cli.calls import socket_path
    from orchestrator.components import trying

    path = socket_path(socket, None)
    trace = client.call(path, methods.TRACE, control.OfConversation(correlation=correlation))
    if delivery is None:
        delivery = _to_repeat(trace)
    elif not trace.cut and delivery not in [one.delivery for one in trace.deliveries]:
        raise CommandError(
            Exit.USAGE,
            f"There is no delivery {delivery} in that conversation, which has {_listed(trace)}.",
            f"`agentd ctl trace {correlation} --json` shows them.",
            code="delivery.unknown",
        )
    record, effects = client.collect(path, methods.DELIVERY, control.OfDelivery(delivery=delivery))
    return trying.recorded(record, effects)


def _to_repeat(trace: "Trace") -> int:
    """The delivery that is meant: the one that trapped, or the only one there is."""
    for candidates in (
        [one for one in trace.deliveries if one.traps],
        [one for one in trace.deliveries if one.state == "dead"],
        trace.deliveries,
    ):
        if len(candidates) == 1:
            return candidates[0].delivery
    raise CommandError(
        Exit.USAGE,
        f"The conversation has several deliveries: {_listed(trace)}.",
        "Say which one with --delivery.",
        code="delivery.ambiguous",
    )


def _listed(trace: "Trace") -> str:
    deliveries = (f"{one.delivery} ({one.agent}, {one.state})" for one in trace.deliveries)
    return ", ".join(deliveries) or "none"


# ---- What they share ----------------------------------------------------------------------------


@contextlib.contextmanager
def _failures(about: Path) -> Iterator[None]:
    """Every failure is an error message with an exit status."""
    from ipc_protocol.errors import Failure
    from orchestrator.cli.service import wrong_config
    from orchestrator.components.projects import ProjectError
    from orchestrator.config import ConfigErrors

    try:
        yield
    except Failure as failure:
        raise CommandError.of(failure) from failure
    except ConfigErrors as errors:
        raise wrong_config(errors) from errors
    except ProjectError as error:
        message = f"{error}\n{error.output}" if error.output else str(error)
        raise CommandError(Exit.FAILED, message, error.cure, code="component.project") from error
    except OSError as error:
        raise CommandError(
            Exit.FAILED,
            f"{error.filename or about}: {error.strerror or error}.",
            "Check the path, and who may read and write there.",
        ) from error


def _info(file: Path) -> "Work[ComponentInfo]":
    async def compiled(bench: "Workbench", tell: "OnProgress | None") -> "ComponentInfo":
        ready = await bench.compiled(file, tell)
        ready.close()
        return ready.info

    return compiled


def _on_bench(sandbox: Sandbox, work: "Work[T]") -> T:
    """Do something with a zygote and a compiler at hand. A compilation shows how far it is."""
    from orchestrator.components.workbench import default_folder, workbench

    async def run() -> T:
        async with workbench(default_folder(), sandbox) as bench:
            with _progress() as tell:
                return await work(bench, tell)

    return asyncio.run(run())


@contextlib.contextmanager
def _progress() -> "Iterator[OnProgress | None]":
    """A bar on a terminal while something is compiled; in a pipe nothing."""
    from orchestrator.cli import output

    console = output.console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("Compiling"), BarColumn(), TimeElapsedColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None, visible=False)

        def tell(progress: "Progress") -> None:
            # It takes longer than expected now and then: a full bar would look like a hang.
            done = min(progress.elapsed_s, 0.99 * progress.expected_s)
            total = progress.expected_s or None
            bar.update(task, completed=done, total=total, visible=bool(total))

        yield tell


@contextlib.contextmanager
def _busy(doing: str) -> Iterator[None]:
    """A sign of life on a terminal; in a pipe nothing."""
    from orchestrator.cli import output

    console = output.console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(doing):
        yield
