"""Where the command line starts. Commands are imported when they are called, not before."""

import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any, Final

import click

from orchestrator.cli.exits import EPILOG, Exit

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "init": ("orchestrator.cli.service:init", "Write a new, commented configuration."),
    "check": ("orchestrator.cli.service:check", "Check a configuration, and start nothing."),
    "run": ("orchestrator.cli.service:run", "Run the daemon in the foreground."),
    "doctor": ("orchestrator.cli.doctor:doctor", "Check what this machine has and lacks."),
    "models": ("orchestrator.cli.models:models", "Fetch, add and list models."),
    "keys": ("orchestrator.cli.keys:keys", "Make keys for programs that use the endpoint."),
    "store": ("orchestrator.cli.store:store", "Check, back up and restore the database."),
    "component": ("orchestrator.cli.component:component", "Make, build, check and try components."),
    "bench": ("orchestrator.cli.bench:bench", "Measure, and compare with what is promised."),
    "ctl": ("orchestrator.cli.ctl:ctl", "Talk to a running daemon."),
}
"""Name of each command: where it is, and what `agentd --help` says of it."""

COMPLETION: Final = """\b
Shell completion, for a shell's start-up file:
  bash  eval "$(_AGENTD_COMPLETE=bash_source agentd)"
  zsh   eval "$(_AGENTD_COMPLETE=zsh_source agentd)"
  fish  _AGENTD_COMPLETE=fish_source agentd | source"""


class LazyGroup(click.Group):
    """A group whose commands are imported one at a time."""

    def __init__(self, *, lazy: Mapping[str, tuple[str, str]], **options: Any) -> None:
        super().__init__(**options)
        self._lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._lazy:
            raise click.exceptions.NoSuchCommand(cmd_name, possibilities=self._lazy, ctx=ctx)
        module, _, name = self._lazy[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in self._lazy.items()])


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"agentd {version('agentd')}")
        ctx.exit()


@click.group(
    name="agentd",
    cls=LazyGroup,
    lazy=COMMANDS,
    epilog=f"{EPILOG}\n\n{COMPLETION}",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version.",
)
def cli() -> None:
    """Run sandboxed agents on this machine, sharing one database and one local model."""


def main() -> None:
    try:
        status = cli.main(prog_name="agentd", standalone_mode=False)
    except click.exceptions.Abort:
        raise SystemExit(Exit.INTERRUPTED) from None
    except BrokenPipeError:  # the reader of a pipe has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - nothing to flush at the end
        raise SystemExit(Exit.FAILED) from None
    except click.ClickException as error:
        error.show()
        raise SystemExit(error.exit_code) from None
    raise SystemExit(status or Exit.OK)


if __name__ == "__main__":
    main()
