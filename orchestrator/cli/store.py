"""`agentd store`: whether the database is in order, backups of it, and the way back.

None of these commands asks a daemon: they read the file. `check` and `backup` work beside one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from orchestrator.cli.exits import EPILOG, CommandError, Exit
from orchestrator.cli.options import DIRECTORY, FILE, config_option, json_option

if TYPE_CHECKING:
    from orchestrator.store.checking import Finding
    from orchestrator.store.copies import Told

F = TypeVar("F", bound=Callable[..., Any])

STYLES: Final = {"ok": "green", "failed": "bold red", "skipped": "yellow"}


def _folder_options(command: F) -> F:
    return click.option("--state", type=DIRECTORY, help="The state folder.")(
        config_option(json_option(command))
    )


def _database(state: Path | None, config: Path | None) -> Path:
    """The database of an installation: in the named state folder, or in the configured one."""
    from orchestrator.cli.service import load_daemon_config
    from orchestrator.store.database import DATABASE_FILE

    folder = state if state is not None else load_daemon_config(config).state
    # Where a link leads, since the log lies beside the file itself.
    return (folder.absolute() / DATABASE_FILE).resolve()


@contextmanager
def _failures() -> Iterator[None]:
    from ipc_protocol.errors import Failure

    try:
        yield
    except Failure as failure:
        raise CommandError.of(failure) from failure


@click.group(epilog=EPILOG)
def store() -> None:
    """Check, back up and restore the database.

    It is agentd.db in the state folder: that of --state, of the configuration, or /var/lib/agentd.
    docs/operations.md says when to use what.
    """


@store.command(epilog=EPILOG)
@_folder_options
def check(state: Path | None, config: Path | None, as_json: bool) -> None:
    """Check the file, the audit trail and what the bus promises; nothing is changed.

    It works beside a running daemon. The exit status is 1 if anything is wrong.
    """
    from orchestrator.cli import output
    from orchestrator.store import checking

    path = _database(state, config)
    with _told(path) as told:
        findings = list(checking.check(path, told))
    failed = [finding for finding in findings if finding.state == "failed"]
    if as_json:
        output.echo_json({"store": path, "ok": not failed, "checks": findings})
    else:
        _print(findings)
        click.echo(f"\n{path} is {'damaged' if failed else 'in order'}.")
    if failed:
        raise click.exceptions.Exit(Exit.FAILED)


def _print(findings: "list[Finding]") -> None:
    from orchestrator.cli import output

    made = output.table("CHECK", "STATE", "DETAIL")
    for one in findings:
        state = output.text(one.state, STYLES[one.state])
        made.add_row(output.text(one.check, "bold"), state, output.text(one.detail))
    output.echo(made)


@store.command(epilog=EPILOG)
@click.argument("file", type=FILE)
@click.option("--force", is_flag=True, help="Overwrite FILE.")
@_folder_options
def backup(file: Path, force: bool, state: Path | None, config: Path | None, as_json: bool) -> None:
    """Write a copy of the database to FILE, whether a daemon runs or not.

    FILE appears when it is complete, on disk and checked.
    """
    from orchestrator.cli import output
    from orchestrator.config.units import SIZE_UNITS_BYTES
    from orchestrator.store import copies

    path, file = _database(state, config), file.absolute()
    with _failures(), _progress("copying") as told:
        size = copies.back_up(path, file, force=force, told=told)
    if as_json:
        output.echo_json({"store": path, "backup": file, "bytes": size})
    else:
        size_mib = size / SIZE_UNITS_BYTES["MiB"]
        click.echo(f"{click.format_filename(file)} has all that was committed, {size_mib:.1f} MiB.")


@store.command(epilog=EPILOG)
@click.argument("file", type=FILE)
@_folder_options
def restore(file: Path, state: Path | None, config: Path | None, as_json: bool) -> None:
    """Put the backup FILE in the place of the database; no daemon may run.

    The present database is kept beside it, under a name with the date.
    """
    import datetime

    from orchestrator.cli import output
    from orchestrator.store import copies

    path, file = _database(state, config), file.absolute()
    now = datetime.datetime.now(datetime.UTC)
    with _failures(), _progress("restoring") as told:
        aside = copies.restore(path, file, now=now, told=told)
    kept = aside if aside.exists() else None
    if as_json:
        output.echo_json({"store": path, "backup": file, "former": kept})
        return
    click.echo(f"{click.format_filename(path)} is what {click.format_filename(file)} was.")
    if kept is not None:
        click.echo(f"What was there before is {click.format_filename(kept)}.")


@contextmanager
def _told(path: Path) -> "Iterator[Callable[[str], None]]":
    """On a terminal, the check that runs."""
    from orchestrator.cli import output

    console = output.console(stderr=True)
    if not console.is_terminal:
        yield lambda name: None
        return
    with console.status(output.text(path)) as status:
        yield lambda name: status.update(output.text(f"{path}: {name}"))


@contextmanager
def _progress(what: str) -> "Iterator[Told | None]":
    """A bar on a terminal; in a pipe nothing."""
    from orchestrator.cli import output

    console = output.console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
