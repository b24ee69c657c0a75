"""Printing: JSON for programs, tables for people, and nothing that a terminal would obey.

Text of agents is printed as `orchestrator.printable` leaves it.
"""

import datetime
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from orchestrator.printable import LINE_BREAKS, printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

PIPE_COLUMNS: Final = 4096
"""In a pipe nothing is cut or wrapped: a line is a row."""


def is_terminal() -> bool:
    return sys.stdout.isatty()


def echo_json(value: object) -> None:
    """One document: indented on a terminal, one line in a pipe."""
    text = json_line(value)
    click.echo(msgspec.json.format(text, indent=2) if is_terminal() else text)


def json_line(value: object) -> str:
    return msgspec.json.encode(complete(value)).decode()


def complete(value: object) -> Any:
    """With all fields, those at their defaults too: a program relies on the shape."""
    if isinstance(value, msgspec.Struct):
        return {name: complete(field) for name, field in msgspec.structs.asdict(value).items()}
    if isinstance(value, Mapping):
        return {name: complete(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [complete(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def console(*, stderr: bool = False) -> "Console":
    """Where tables and trees go. Colour follows the terminal and NO_COLOR."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPE_COLUMNS
    return Console(stderr=stderr, width=width, highlight=False)


def echo(drawing: "RenderableType") -> None:
    """Print a table, a tree or a text. In a pipe no line is wrapped."""
    console().print(drawing, soft_wrap=not is_terminal())


def table(*columns: str, numbers: Sequence[str] = ()) -> "Table":
    """An empty table. The columns in `numbers` are aligned to the right."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    return made


def text(value: object, style: str = "") -> "Text":
    """A cell: never markup, never a control character."""
    from rich.text import Text

    return Text(clean(str(value)), style=style)


def words(*parts: tuple[str, str]) -> "Text":
    """Values with their styles on one line, two spaces apart; empty ones are left out."""
    from rich.text import Text

    line = Text()
    for value, style in parts:
        if shown := one_line(value):
            line.append("  " if line else "").append(shown, style=style)
    return line


def clean(value: str) -> str:
    """A text of any number of lines, without what a terminal obeys."""
    return printable(value, keep=LINE_BREAKS)


def one_line(value: str) -> str:
    return " ".join(clean(value).split())


def local_time(us: int) -> str:
    """Local time with its offset, to the second, as ISO 8601 has it."""
    return datetime.datetime.fromtimestamp(us / 1e6).astimezone().isoformat(" ", "seconds")


def clock(us: int) -> str:
    """Local time of day, to the millisecond."""
    return datetime.datetime.fromtimestamp(us / 1e6).time().isoformat("milliseconds")


def span(us: int) -> str:
    """A duration as people read it: `850 µs`, `12.3 ms`, `4.2 s`, `3 min 20 s`, `2 d 3 h`."""
    if us < 1000:
        return f"{us} µs"
    if us < 1_000_000:
        return f"{us / 1000:.1f} ms"
    seconds = us // 1_000_000
    if seconds < 60:
        return f"{us / 1e6:.1f} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    if seconds < 86400:
        return f"{seconds // 3600} h {seconds % 3600 // 60} min"
    return f"{seconds // 86400} d {seconds % 86400 // 3600} h"
