"""A line for each thing that happens."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import click

from ipc_protocol.control import Happening
from orchestrator.cli import output

if TYPE_CHECKING:
    from rich.text import Text

KIND_COLUMNS: Final = 22
AGENT_COLUMNS: Final = 10

STYLES: Final = {
    "attention": "bold yellow",
    "conversation": "green",
    "deadletter": "bold red",
    "delivery.failed": "red",
    "delivery.parked": "yellow",
    "delivery": "blue",
    "health": "yellow",
    "journal": "cyan",
    "memory": "magenta",
}
"""Colour of a kind, by the first of these that it begins with."""


PROGRESS: Final = (
    "attention.raised",
    "conversation.composing",
    "deadletter",
    "delivery.done",
    "delivery.failed",
    "delivery.parked",
    "journal.appended",
    "memory.written",
    "message.published",
    "message.screened",
    "task.changed",
)
"""What somebody who waits for a reply wants to see: who does what, and why."""


def line(happening: Happening, *, correlation: bool) -> "Text":
    """One happening; with its correlation where several conversations run through each other."""
    from rich.text import Text

    drawn = Text(overflow="fold")
    if happening.lost:
        drawn.append(f"… {happening.lost} happenings were missed", style="yellow")
        if not happening.summary:
            return drawn
        drawn.append("\n")
    kinds = (style for kind, style in STYLES.items() if happening.kind.startswith(kind))
    style = next(kinds, "")
    drawn.append(output.clock(happening.at_us), style="dim")
    drawn.append(f"  {output.one_line(happening.agent):<{AGENT_COLUMNS}}", style="bold")
    drawn.append(f"  {output.one_line(happening.kind):<{KIND_COLUMNS}}", style=style)
    drawn.append(f"  {output.one_line(happening.summary)}")
    if correlation and happening.correlation:
        drawn.append(f"  [{output.one_line(happening.correlation)}]", style="dim")
    return drawn


def printer(correlation: str | None) -> Callable[[Happening], None]:
    """Prints each on standard output, at once."""
    console = output.console()
    wrap = not output.is_terminal()

    def print_one(happening: Happening) -> None:
        console.print(line(happening, correlation=correlation is None), soft_wrap=wrap)

    return print_one


def progress(*, show: bool | None) -> Callable[[Happening], None] | None:
    """Prints each on standard error; `show` None: only while somebody looks at it."""
    console = output.console(stderr=True)
    if not (console.is_terminal if show is None else show):
        return None
    wrap = not console.is_terminal
    return lambda happening: console.print(line(happening, correlation=False), soft_wrap=wrap)


def print_json(happening: Happening) -> None:
    click.echo(output.json_line(happening))
