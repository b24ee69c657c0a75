"""`agentd init`, `check` and `run`: from nothing to a daemon in the foreground."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.exits import EPILOG, CommandError, Exit
from orchestrator.cli.options import DIRECTORY, FILE, json_option, required_config_option

if TYPE_CHECKING:
    from orchestrator.config import Config, ConfigErrors, ConfigProblem, DaemonConfig, Overrides


def load_config(path: Path, overrides: "Overrides | None" = None) -> "Config":
    """The configuration at `path`, which can run on this machine. Raises `CommandError` that lists
    all that is wrong with it."""
    from orchestrator.config import ConfigErrors, Overrides
    from orchestrator.config.installed import load_installed

    try:
        return load_installed(path, overrides or Overrides())
    except ConfigErrors as errors:
        raise wrong_config(errors) from errors


def load_daemon_config(path: Path | None) -> "DaemonConfig":
    """The `[daemon]` table of a configuration, or its defaults. Raises `CommandError`."""
    from orchestrator.config import ConfigErrors, DaemonConfig
    from orchestrator.config.loader import load_daemon

    if path is None:
        return DaemonConfig()
    try:
        return load_daemon(path)
    except ConfigErrors as errors:
        raise wrong_config(errors) from errors


def wrong_config(errors: "ConfigErrors") -> CommandError:
    import msgspec

    count = len(errors.problems)
    head = "1 mistake" if count == 1 else f"{count} mistakes"
    listed = "\n".join(f"  {problem}" for problem in errors.problems)
    details = [msgspec.to_builtins(problem, enc_hook=str) for problem in errors.problems]
    return CommandError(
        Exit.CONFIG,
        f"the configuration has {head}, and nothing was started.\n{listed}",
        code="config.wrong",
        details={"problems": details},
    )


@click.command(epilog=EPILOG)
@click.argument("folder", metavar="DIR", type=DIRECTORY)
@click.option("--state", type=DIRECTORY, help="The state folder.  [default: DIR/state]")
@click.option("--socket", type=FILE, help="The control socket.  [default: DIR/agentd.sock]")
@json_option
def init(folder: Path, state: Path | None, socket: Path | None, as_json: bool) -> None:
    """Write a new configuration with five agents to DIR.

    Every key is in it, commented out with its default. Existing files are never overwritten.
    """
    from orchestrator.config import render
    from orchestrator.config.value_checks import socket_path_fits
    from orchestrator.sockets import PATH_BYTES_MAX

    folder = folder.absolute()
    socket = socket.absolute() if socket else folder / render.SOCKET_FILE
    if not socket_path_fits(socket):
        raise CommandError(
            Exit.FAILED,
            f"The control socket {socket} would have a longer path than the "
            f"{PATH_BYTES_MAX} bytes that Unix sockets allow.",
            "Name a shorter one with --socket, for instance in /run or $XDG_RUNTIME_DIR.",
        )
    files = render.plan(folder, state, socket)
    try:
        render.write(files)
    except FileExistsError as error:
        raise CommandError(
            Exit.FAILED,
            f"{error} exists, and nothing was written.",
            "Choose another folder, or move the old configuration out of the way.",
        ) from error
    except OSError as error:
        raise CommandError(
            Exit.FAILED,
            f"{error.filename or folder} cannot be written: {error.strerror}.",
            "Choose a folder that this user may write to.",
        ) from error
    if as_json:
        from orchestrator.cli.output import echo_json

        echo_json({"config": next(iter(files)), "socket": socket, "wrote": list(files)})
        return
    for path in files:
        click.echo(f"wrote {path}")
    main_file = click.format_filename(next(iter(files)))
    click.echo(f"\nNext:\n  agentd models pull smollm2 --config {main_file}")
    click.echo(f"  agentd run --config {main_file}")


@click.command(epilog=EPILOG)
@required_config_option
@json_option
def check(config: Path, as_json: bool) -> None:
    """Check a configuration, and that its models are there.

    All mistakes are listed at once, each with its file and line.
    """
    from orchestrator.config import ConfigErrors
    from orchestrator.config.installed import load_installed

    try:
        loaded = load_installed(config)
    except ConfigErrors as errors:
        _report(errors.problems, errors.warnings, as_json=as_json)
        raise click.exceptions.Exit(Exit.CONFIG) from errors
    _report([], loaded.warnings, as_json=as_json)
    if not as_json:
        click.echo(f"{loaded.source} is in order: {len(loaded.agents)} agents.")


def _report(
    problems: "list[ConfigProblem]", warnings: "list[ConfigProblem]", *, as_json: bool
) -> None:
    if as_json:
        from orchestrator.cli.output import echo_json

        echo_json({"ok": not problems, "problems": problems, "warnings": warnings})
        return
    for problem in problems:
        click.echo(f"{click.style('error', fg='red', bold=True)}    {problem}")
    for warning in warnings:
        click.echo(f"{click.style('warning', fg='yellow')}  {warning}")


@click.command(epilog=EPILOG)
@required_config_option
@click.option("--state", type=DIRECTORY, help="Keep the state here instead.")
@click.option("--socket", type=FILE, help="Listen here instead.")
@click.option(
    "--sandbox-off",
    is_flag=True,
    help="Run workers unconfined: a hostile agent can then do what this user can.",
)
def run(config: Path, state: Path | None, socket: Path | None, sandbox_off: bool) -> None:
    """Run the daemon in the foreground until SIGTERM or SIGINT."""
    from orchestrator.config import Overrides

    overrides = Overrides(state=state, socket=socket, sandbox_off=sandbox_off)
    loaded = load_config(config, overrides)
    daemon = importlib.import_module("orchestrator.daemon")
    raise click.exceptions.Exit(daemon.run(loaded))
