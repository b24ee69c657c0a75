"""`agentd doctor`: what this machine has, what it lacks, and how to get it."""

from typing import TYPE_CHECKING, Final

import click

from orchestrator.cli.exits import EPILOG, Exit
from orchestrator.cli.options import json_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from orchestrator.doctor.judging import Finding

_STYLES: Final = {"ok": "green", "warning": "yellow", "missing": "bold red"}


@click.command(epilog=EPILOG)
@json_option
def doctor(as_json: bool) -> None:
    """Check what this machine has of what agentd needs.

    Each check is ok, a warning, or missing, and says what to do. The status is 1 when something is
    missing. Devices are listed by the names that `devices` of a model takes.
    """
    from orchestrator.cli import output
    from orchestrator.doctor.judging import is_whole, judge
    from orchestrator.doctor.probing import probe

    findings = judge(probe())
    whole = is_whole(findings)
    if as_json:
        output.echo_json({"ok": whole, "checks": findings})
    else:
        output.echo(_table(findings))
    raise click.exceptions.Exit(Exit.OK if whole else Exit.FAILED)


def _table(findings: "Sequence[Finding]") -> "Table":
    from orchestrator.cli import output

    made = output.table("CHECK", "STATE", "FOUND", "WHAT TO DO")
    for finding in findings:
        made.add_row(
            output.text(finding.check, "bold"),
            output.text(finding.state, _STYLES[finding.state]),
            output.text(output.one_line(finding.found)),
            output.text(output.one_line(finding.cure)),
        )
    return made
