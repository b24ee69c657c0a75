"""A cure that names a command names one that exists."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from orchestrator.cli.main import COMMANDS, cli

ROOT = Path(__file__).parents[3]
PACKAGES = ("ipc_protocol", "inference_client", "agent_runtime", "orchestrator")

_MENTION = re.compile(r"`agentd ([a-z]+)(?: ([a-z]+))?")


def mentions() -> Iterator[tuple[str, str, str]]:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    for path in [*files, ROOT / "README.md"]:
        for first, second in _MENTION.findall(path.read_text()):
            yield str(path.relative_to(ROOT)), first, second


def exists(first: str, second: str) -> bool:
    if first not in COMMANDS:
        return False
    context = click.Context(cli)
    command = cli.get_command(context, first)
    if not second or not isinstance(command, click.Group):
        return True
    return second in command.list_commands(context)


def test_every_command_that_a_text_names_exists() -> None:
    found = set(mentions())
    assert len(found) > 10
    assert [one for one in sorted(found) if not exists(*one[1:])] == []


@pytest.mark.parametrize("mention", [("selftest", ""), ("ctl", "doctor"), ("models", "fetch")])
def test_one_that_does_not_is_found(mention: tuple[str, str]) -> None:
    assert not exists(*mention)
