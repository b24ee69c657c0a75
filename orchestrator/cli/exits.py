"""Exit statuses, and the errors that end a command with one."""

import enum
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from ipc_protocol.errors import Failure


class Exit(enum.IntEnum):
    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    TIMEOUT = 4
    CONFIG = 5
    INTERRUPTED = 130


MEANINGS: Final[dict[Exit, str]] = {
    Exit.OK: "it worked",
    Exit.FAILED: "it failed, or the daemon reported an error",
    Exit.USAGE: "the command line is wrong",
    Exit.UNREACHABLE: "no daemon answers on the socket",
    Exit.TIMEOUT: "the answer did not come in time",
    Exit.CONFIG: "the configuration is wrong",
    Exit.INTERRUPTED: "interrupted from the keyboard",
}

EPILOG: Final = "\b\nExit status:\n" + "\n".join(
    f"  {status.value:<4}{meaning}" for status, meaning in MEANINGS.items()
)


class CommandError(click.ClickException):
    """What went wrong, and what to do next. With --json it is one JSON document on stderr."""

    def __init__(
        self,
        status: Exit,
        message: str,
        cure: str = "",
        *,
        code: str = "",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.exit_code = status.value  # type: ignore[misc]  # click has one for each class
        self.cure = cure
        self.code = code
        self.details = dict(details or {})
        context = click.get_current_context(silent=True)
        self.as_json = context is not None and bool(context.params.get("as_json"))

    @classmethod
    def of(cls, failure: "Failure") -> "CommandError":
        """What the daemon, or a part of the program, reports."""
        problem = failure.problem
        return cls(
            Exit.FAILED, problem.message, problem.cure, code=problem.code, details=problem.details
        )

    def show(self, file: Any = None) -> None:
        if self.as_json:
            import json

            document = {
                "code": self.code,
                "message": self.message,
                "cure": self.cure,
                "details": self.details,
            }
            click.echo(json.dumps(document), err=True)
            return
        click.echo(f"{click.style('Error:', fg='red', bold=True)} {self.message}", err=True)
        if self.cure:
            click.echo(self.cure, err=True)
