"""`agentd models`: which models this installation has, and how it gets them."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from orchestrator.cli.exits import EPILOG, CommandError, Exit
from orchestrator.cli.options import DIRECTORY, FILE, config_option, json_option

if TYPE_CHECKING:
    from rich.table import Table

    from inference_client.fetch import Progress
    from inference_client.models import Entry, Registry

F = TypeVar("F", bound=Callable[..., Any])


def _registry(state: Path | None, config: Path | None) -> "Registry":
    """The models of an installation: of the named state folder, or of the configured one."""
    from inference_client.models import Registry
    from orchestrator.cli.service import load_daemon_config
    from orchestrator.config.types import MODELS_FOLDER

    folder = state if state is not None else load_daemon_config(config).state
    return Registry(folder.absolute() / MODELS_FOLDER)


@contextmanager
def _failures(registry: "Registry") -> Iterator[None]:
    from ipc_protocol.errors import Failure

    try:
        yield
    except Failure as failure:
        raise CommandError.of(failure) from failure
    except OSError as error:
        raise CommandError(
            Exit.FAILED,
            f"{error.filename or registry.folder}: {error.strerror or error}.",
            "Name the state folder with --state or --config, and check who may write to it.",
        ) from error


def _folder_options(command: F) -> F:
    return click.option("--state", type=DIRECTORY, help="The state folder.")(
        config_option(json_option(command))
    )


@click.group(epilog=EPILOG)
def models() -> None:
    """Fetch, add and list models.

    They belong to a state folder: that of --state, of the configuration, or /var/lib/agentd.
    """


@models.command(epilog=EPILOG)
@click.argument("name")
@_folder_options
def pull(name: str, state: Path | None, config: Path | None, as_json: bool) -> None:
    """Fetch the model NAME, and verify what came."""
    from inference_client.models import default_cache

    registry = _registry(state, config)
    with _failures(registry), _progress(name) as progress:
        entry = registry.pull(name, progress=progress, cache=default_cache())
    _print([entry], as_json=as_json)


@models.command(epilog=EPILOG)
@click.argument("path", type=FILE)
@click.option("--name", help="What to call it.  [default: from the file]")
@_folder_options
def add(
    path: Path, name: str | None, state: Path | None, config: Path | None, as_json: bool
) -> None:
    """Give a name to the GGUF file at PATH, which stays where it is."""
    registry = _registry(state, config)
    with _failures(registry):
        entry = registry.add(path, name or path.stem.lower())
    _print([entry], as_json=as_json)


@models.command("list", epilog=EPILOG)
@_folder_options
def list_models(state: Path | None, config: Path | None, as_json: bool) -> None:
    """List the models: what each is, and whether it fits into the memory that is free now."""
    registry = _registry(state, config)
    with _failures(registry):
        entries = registry.entries()
    if entries or as_json:
        _print(entries, as_json=as_json)
    else:
        click.echo(f"There are no models in {registry.folder}. `agentd models pull smollm2` helps.")


@contextmanager
def _progress(name: str) -> "Iterator[Progress | None]":
    """A bar on a terminal; in a pipe nothing."""
    from orchestrator.cli import output

    console = output.console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    with Progress(
        *columns, TransferSpeedColumn(), TimeRemainingColumn(), console=console, transient=True
    ) as bar:
        task = bar.add_task(name, total=None)

        def tell(what: str, done: int, total: int) -> None:
            bar.update(task, description=f"{what} {name}", completed=done, total=total)

        yield tell


def _print(entries: "list[Entry]", *, as_json: bool) -> None:
    from orchestrator.cli import output

    if as_json:
        output.echo_json([dataclasses.asdict(entry) for entry in entries])
    else:
        output.echo(_table(entries))


def _table(entries: "list[Entry]") -> "Table":
    from orchestrator.cli import output
    from orchestrator.config.units import SIZE_UNITS_BYTES

    made = output.table(
        "NAME", "ARCHITECTURE", "SIZE", "CONTEXT", "QUANTIZATION", "FITS", "PATH",
        numbers=("SIZE", "CONTEXT"),
    )  # fmt: skip
    for entry in entries:
        fits = output.text("yes", "green") if entry.fits else output.text("no", "bold red")
        made.add_row(
            output.text(entry.name, "bold"),
            output.text(entry.problem or entry.architecture, "red" if entry.problem else ""),
            f"{entry.size / SIZE_UNITS_BYTES['MiB']:.0f} MiB",
            str(entry.context),
            output.text(entry.quantization),
            fits,
            output.text(entry.path),
        )
    return made
