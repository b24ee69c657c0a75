"""Options and values that several commands share."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

DIRECTORY: Final = click.Path(file_okay=False, path_type=Path)
FILE: Final = click.Path(dir_okay=False, path_type=Path)
EITHER: Final = click.Path(path_type=Path)


class Seconds(click.ParamType[float]):
    """A duration such as `30s` or `2min`, or a bare number of seconds."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        from orchestrator.config.units import parse_duration_us

        if isinstance(value, int | float):
            return float(value)
        try:
            return parse_duration_us(value if value[-1:].isalpha() else f"{value}s") / 1e6
        except ValueError as error:
            self.fail(f"{value!r} is not {error}.", param, ctx)


def json_option(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def config_option(command: F) -> F:
    """`config`, if the command line or the environment has one."""
    return _config(command, required=False)


def required_config_option(command: F) -> F:
    return _config(command, required=True)


def _config(command: F, *, required: bool) -> F:
    return click.option(
        "--config",
        type=EITHER,
        envvar="AGENTD_CONFIG",
        show_envvar=True,
        required=required,
        help="The configuration: agentd.toml, or its folder.",
    )(command)


def daemon_options(command: F) -> F:
    """How to find the daemon, and how to print: `socket`, `config`, `as_json`."""
    return click.option(
        "--socket",
        type=FILE,
        envvar="AGENTD_SOCKET",
        show_envvar=True,
        help="The control socket. It comes before --config.",
    )(config_option(json_option(command)))


def text_argument(value: str) -> str:
    """An argument, or the standard input for `-`."""
    return sys.stdin.read() if value == "-" else value


def bytes_argument(value: str) -> bytes:
    """The same for a payload, which may be any bytes when it comes from the standard input."""
    return sys.stdin.buffer.read() if value == "-" else value.encode()
