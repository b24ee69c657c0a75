"""`agentd bench`: measurements, one table or one JSON list for all of them."""

import contextlib
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.exits import EPILOG, CommandError, Exit
from orchestrator.cli.options import (
    DIRECTORY,
    FILE,
    Seconds,
    json_option,
    required_config_option,
)

if TYPE_CHECKING:
    from rich.table import Table

    from orchestrator.cli.measure import Measure


@click.group(epilog=EPILOG)
def bench() -> None:
    """Measure, and compare with a peer and with what is promised.

    With --json: a list of objects with measure, value, unit, peer, peer_value, ratio, expected and
    met. The status is 1 when a promise is not met.
    """


@bench.command(epilog=EPILOG)
@click.argument("file", type=FILE)
@required_config_option
@json_option
def triage(file: Path, config: Path, as_json: bool) -> None:
    """How often do messages find their right owner?

    FILE has labelled messages as JSON lines: `text`, and `owner`, the name of an agent or `none`.
    """
    from ipc_protocol.errors import Failure
    from orchestrator.cli.service import load_config

    loaded = load_config(config)
    try:
        measures = importlib.import_module("orchestrator.bench.triage").run(file, loaded)
    except Failure as failure:
        raise CommandError.of(failure) from failure
    except OSError as error:
        message = f"{error.filename or file}: {error.strerror or error}."
        raise CommandError(Exit.FAILED, message) from error
    report(measures, as_json=as_json)


@bench.command(epilog=EPILOG)
@click.option(
    "--component",
    type=FILE,
    help="An echo to measure, instead of one that is built with componentize-py.",
)
@click.option(
    "--agents",
    type=click.IntRange(1, 2000),
    multiple=True,
    help="Size of a fleet; may be repeated. Else 1, 50 and 500.",
)
@json_option
def component(component: Path | None, agents: tuple[int, ...], as_json: bool) -> None:
    """What does a component cost?

    Microseconds for a message across the boundary, beside the library's own conversion; the time
    from an agent's fork to its first handled message, and its memory, in fleets of several sizes.
    """
    from ipc_protocol.errors import Failure
    from orchestrator.components.projects import ProjectError

    measuring = importlib.import_module("orchestrator.bench.component")
    try:
        with _telling() as tell:
            measures = measuring.run(component, agents or measuring.FLEETS, tell)
    except Failure as failure:
        raise CommandError.of(failure) from failure
    except ProjectError as error:
        raise CommandError(Exit.FAILED, str(error), error.cure) from error
    report(measures, as_json=as_json)


@bench.command(epilog=EPILOG)
@click.option("--duration", type=Seconds(), help="Of each run.  [default: 3s]")
@click.option("--quick", is_flag=True, help="See whether it works, in a minute; figures are rough.")
@click.option("--full", is_flag=True, help="Store a million messages, however long it takes.")
@click.option(
    "--folder", type=DIRECTORY, help="Measure on the disk of this folder.  [default: /var/tmp]"
)
@json_option
def bus(
    duration: float | None, quick: bool, full: bool, folder: Path | None, as_json: bool
) -> None:
    """How fast is the bus, beside the brokers that are installed?

    Starts a daemon of its own. Every message of 256 bytes is published, handled in a sandboxed
    worker and completed, each on disk before it is acknowledged. NATS JetStream and Redis Streams
    do the same work where nats-server, redis-server and `pip install 'agentd[bench]'` are there.
    """
    from ipc_protocol.errors import Failure

    measuring = importlib.import_module("orchestrator.bench.bus")
    settings = (measuring.QUICK if quick else measuring.Settings())._replace(full=full)
    if duration is not None:
        settings = settings._replace(seconds=duration)
    if folder is not None:
        settings = settings._replace(folder=folder)
    try:
        with _telling() as tell:
            measures, notes = measuring.run(settings, tell)
    except Failure as failure:
        raise CommandError.of(failure) from failure
    except OSError as error:
        message = f"{error.filename or settings.folder}: {error.strerror or error}."
        raise CommandError(Exit.FAILED, message) from error
    for note in notes:
        click.echo(note, err=True)
    report(measures, as_json=as_json)


@bench.command(epilog=EPILOG)
@click.option("--quick", is_flag=True, help="See whether it works; figures are rough.")
@click.option(
    "--only",
    multiple=True,
    metavar="SCENARIO",
    help="One of burst, preamble, identities, typed, urgent, long-prompt, neighbour, simulation; "
    "may be repeated.  [default: all]",
)
@click.option(
    "--device",
    "devices",
    type=click.Choice(["cpu", "gpu"]),
    multiple=True,
    help="May be repeated.  [default: cpu, and gpu where there is one]",
)
@click.option("--model", type=FILE, help="A GGUF file.  [default: SmolLM2]")
@click.option("--gpu-model", type=FILE, help="Another one for the GPU.")
@json_option
def inference(
    quick: bool,
    only: tuple[str, ...],
    devices: tuple[str, ...],
    model: Path | None,
    gpu_model: Path | None,
    as_json: bool,
) -> None:
    """How fast is the slot pool, beside llama-server from the same source?

    Starts a daemon of its own with its endpoint on, the engine alone, and where `make bench-peers`
    has built them llama-server, with the best of its settings, and llama-batched-bench as the
    ceiling. Takes about 40 minutes on two cores, with --quick eight.
    """
    from ipc_protocol.errors import Failure

    measuring = importlib.import_module("orchestrator.bench.inference")
    for name in set(only) - set(measuring.SCENARIOS):
        raise click.BadParameter(
            f"{name!r} is none of {', '.join(measuring.SCENARIOS)}.", param_hint="--only"
        )
    settings = measuring.Settings(
        quick=quick,
        only=only or measuring.SCENARIOS,
        devices=devices,
        model=model,
        gpu_model=gpu_model,
    )
    try:
        with _telling() as tell:
            measures, notes = measuring.run(settings, tell)
    except Failure as failure:
        raise CommandError.of(failure) from failure
    except OSError as error:
        raise CommandError(
            Exit.FAILED, f"{error.filename or 'A file'}: {error.strerror or error}."
        ) from error
    for note in notes:
        click.echo(note, err=True)
    report(measures, as_json=as_json)


@contextlib.contextmanager
def _telling() -> Iterator[Callable[[str], None]]:
    """What is measured now, on a terminal; in a pipe nothing."""
    from orchestrator.cli import output

    console = output.console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    with console.status("") as status:
        yield status.update


def report(measures: "list[Measure]", *, as_json: bool) -> None:
    """Print the measures. Ends with status 1 when a promise is not met."""
    from orchestrator.cli import output

    if as_json:
        output.echo_json(measures)
    else:
        output.echo(_table(measures))
    if any(measure.met is False for measure in measures):
        raise click.exceptions.Exit(Exit.FAILED)


def _table(measures: "list[Measure]") -> "Table":
    from orchestrator.cli import output

    made = output.table(
        "MEASURE", "VALUE", "UNIT", "PEER", "ITS VALUE", "RATIO", "EXPECTED", "MET",
        numbers=("VALUE", "ITS VALUE", "RATIO", "EXPECTED"),
    )  # fmt: skip
    for one in measures:
        met = {True: output.text("yes", "green"), False: output.text("no", "bold red")}
        made.add_row(
            output.text(one.measure, "bold"),
            _number(one.value),
            output.text(one.unit),
            output.text(one.peer or ""),
            _number(one.peer_value),
            _number(one.ratio),
            _number(one.expected),
            met[one.met] if one.met is not None else "",
        )
    return made


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
