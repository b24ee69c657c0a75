"""`agentd ctl bus`: what could not be delivered, who reaches whom, and what goes over the bus."""

import datetime
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ipc_protocol import bus as protocol
from ipc_protocol import methods
from ipc_protocol.errors import Failure
from ipc_protocol.inference import Nothing
from orchestrator.cli import bus_view, output
from orchestrator.cli.agents import ListByDefault
from orchestrator.cli.calls import call, print_answer, socket_path
from orchestrator.cli.exits import EPILOG, CommandError, Exit
from orchestrator.cli.options import Seconds, daemon_options

if TYPE_CHECKING:
    from ipc_protocol.aio import Connection

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


class Moment(click.ParamType[int]):
    """A moment in microseconds since the epoch: so long ago (`2h`), or a date with or without a
    time, which is local unless it says otherwise."""

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            when = datetime.datetime.fromisoformat(value)
        except ValueError:
            if not value[-1:].isalpha():
                self.fail(f"{value!r} is neither a duration such as 2h nor a date.", param, ctx)
            return time.time_ns() // 1000 - round(Seconds().convert(value, param, ctx) * 1e6)
        return max(0, round(when.timestamp() * 1e6))


def choosing(command: F) -> F:
    """Which dead letters are meant: `agent`, `topic`, `code`, `since`, `before`."""
    for option in (
        click.option("--before", type=Moment(), metavar="WHEN", help="Died before then."),
        click.option("--since", type=Moment(), metavar="WHEN", help="Died since then: 2h, a date."),
        click.option("--code", help="The error code, for instance work.deaths."),
        click.option("--topic", metavar="PATTERN", help="On this topic; * and > match as always."),
        click.option("--agent", help="Who should have received it, or wanted to send it."),
    ):
        command = option(command)
    return command


def _filter(
    agent: str | None, topic: str | None, code: str | None, since: int | None, before: int | None
) -> protocol.DeadLetterFilter:
    return protocol.DeadLetterFilter(
        agent=agent, topic=topic, code=code, since_us=since, before_us=before
    )


@click.group(epilog=EPILOG)
def bus() -> None:
    """Look at the bus: dead letters, topics, messages."""


# ---- Dead letters -------------------------------------------------------------------------------


@bus.group(cls=ListByDefault, epilog=EPILOG)
def dead() -> None:
    """What could not be delivered or handled.

    Without a command it is listed.
    """


@dead.command("list", epilog=EPILOG)
@choosing
@click.option("--limit", type=click.IntRange(1, 500), default=50, show_default=True)
@click.option("--below", type=click.IntRange(1), metavar="N", help="Only numbers below N: page on.")
@daemon_options
def list_dead(
    agent: str | None,
    topic: str | None,
    code: str | None,
    since: int | None,
    before: int | None,
    limit: int,
    below: int | None,
    socket: Path | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """List dead letters, the newest first."""
    chosen = protocol.DeadLetterFilter(
        agent=agent, topic=topic, code=code, since_us=since, before_us=before, below=below
    )
    params = protocol.ListDeadLetters(filter=chosen, limit=limit)
    answer = call(socket, config, methods.DEAD_LIST, params)
    print_answer(answer, bus_view.dead_letters, as_json=as_json)


@dead.command(epilog=EPILOG)
@click.argument("number", metavar="N", type=click.IntRange(1))
@daemon_options
def show(number: int, socket: Path | None, config: Path | None, as_json: bool) -> None:
    """Show all that is known of dead letter N."""
    answer = call(socket, config, methods.DEAD_SHOW, protocol.OfDeadLetter(number=number))
    print_answer(answer, bus_view.dead_letter, as_json=as_json)


@dead.command(epilog=EPILOG)
@click.argument("numbers", metavar="[N]...", type=click.IntRange(1), nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that the other options name.")
@choosing
@click.option("--again", is_flag=True, help="Those too that were sent again before.")
@daemon_options
def replay(
    numbers: tuple[int, ...],
    everything: bool,
    agent: str | None,
    topic: str | None,
    code: str | None,
    since: int | None,
    before: int | None,
    again: bool,
    socket: Path | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Send dead letters again, each in its conversation.

    A delivery that died is repeated for its receiver alone, an output that never became a message
    is published again in its sender's name. Hops and time to live begin anew.
    """
    chosen = _filter(agent, topic, code, since, before)
    if bool(numbers) == everything or (numbers and chosen != protocol.DeadLetterFilter()):
        raise click.UsageError("Give the numbers of dead letters, or --all with other options.")
    params = protocol.ReplayDeadLetters(
        numbers=list(numbers), filter=chosen if everything else None, again=again
    )
    letters: list[protocol.ReplayedLetter] = []

    async def talk(connection: "Connection") -> protocol.ReplayedLetters:
        async with connection.stream(methods.DEAD_REPLAY, params) as response:
            async for letter in response:
                letters.append(letter)
                if not as_json and (letter.problem is None or len(numbers) != 1):
                    output.echo(bus_view.replayed(letter))
            return await response.result()

    done = _without_deadline(socket, config, talk)
    if len(numbers) == 1 and letters[0].problem is not None:
        raise CommandError.of(Failure.of(letters[0].problem))
    if as_json:
        output.echo_json({"letters": letters, "replayed": done.replayed, "refused": done.refused})
    elif len(letters) != 1:
        output.echo(bus_view.replayed_all(done))
    if done.refused:
        raise click.exceptions.Exit(Exit.FAILED)


@dead.command(epilog=EPILOG)
@click.argument("numbers", metavar="[N]...", type=click.IntRange(1), nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that the other options name, or all.")
@choosing
@click.option("--yes", is_flag=True, help="Do not ask.")
@daemon_options
def purge(
    numbers: tuple[int, ...],
    everything: bool,
    agent: str | None,
    topic: str | None,
    code: str | None,
    since: int | None,
    before: int | None,
    yes: bool,
    socket: Path | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Remove dead letters for good."""
    chosen = _filter(agent, topic, code, since, before)
    narrowed = everything or chosen != protocol.DeadLetterFilter()
    if bool(numbers) == narrowed:
        raise click.UsageError("Give the numbers of dead letters, or options that say which.")
    count = len(set(numbers))
    if narrowed:
        # What dies while a person thinks about it is not among those that they were asked about.
        found = call(
            socket, config, methods.DEAD_LIST, protocol.ListDeadLetters(filter=chosen, limit=1)
        )
        count = found.matching
        below = found.letters[0].number + 1 if found.letters else 1
        chosen = protocol.DeadLetterFilter(
            agent=agent, topic=topic, code=code, since_us=since, before_us=before, below=below
        )
    if count and not yes:
        _confirm(count)
    params = protocol.PurgeDeadLetters(numbers=list(numbers), filter=chosen if narrowed else None)
    done = _without_deadline(
        socket, config, lambda connection: connection.call(methods.DEAD_PURGE, params)
    )
    print_answer(done, bus_view.purged, as_json=as_json)


def _confirm(count: int) -> None:
    """Nobody removes something by accident; who is not there to answer has to say it before."""
    what = "1 dead letter" if count == 1 else f"{count} dead letters"
    if not sys.stdin.isatty():
        raise CommandError(
            Exit.USAGE, f"This would remove {what} for good.", "Say --yes if that is meant."
        )
    if not click.confirm(f"Remove {what} for good?", err=True):
        raise CommandError(Exit.FAILED, "Nothing was removed.")


def _without_deadline(
    socket: Path | None, config: Path | None, talk: "Callable[[Connection], Awaitable[T]]"
) -> T:
    """For what takes as long as there is much of it."""
    from orchestrator.cli import client

    return client.converse(socket_path(socket, config), talk)


# ---- Topics and messages ------------------------------------------------------------------------


@bus.command(epilog=EPILOG)
@daemon_options
def topics(socket: Path | None, config: Path | None, as_json: bool) -> None:
    """Show who publishes and receives on which topic, how much, and what leads nowhere."""
    from orchestrator.cli import client

    path = socket_path(socket, config)
    counted, table = client.collect(path, methods.TOPICS, Nothing())
    if as_json:
        times = {"now_us": counted.now_us, "since_us": counted.since_us}
        output.echo_json({"topics": table, **times})
    else:
        output.echo(bus_view.topics(counted, table))


@bus.command(epilog=EPILOG)
@click.argument("topic")
@click.option(
    "--last",
    type=click.IntRange(0, 1000),
    default=0,
    metavar="N",
    help="Begin with the last N messages there.",
)
@click.option("--full", is_flag=True, help="The whole of each payload.")
@daemon_options
def tap(
    topic: str,
    last: int,
    full: bool,
    socket: Path | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Follow what is published on TOPIC, until interrupted.

    In TOPIC, * stands for a word and > for all the rest: quote them. With --json, each message is a
    line of JSON. Who reads too slowly is told how many messages were missed.
    """
    from orchestrator.cli import client

    print_one = bus_view.print_json if as_json else bus_view.printer()
    params = protocol.Tap(topic=topic, last=last, full=full)
    try:
        client.follow(socket_path(socket, config), methods.TAP, params, print_one)
    except KeyboardInterrupt:  # that is how it ends
        return
