"""`agentd keys`: keys of the programs that use the endpoint."""

import hashlib
import secrets
from typing import Final

import click

from orchestrator.cli.exits import EPILOG
from orchestrator.cli.options import json_option

KEY_PREFIX: Final = "agentd-"
"""So that whoever finds one knows what it opens."""

KEY_BYTES: Final = 32
"""Nobody guesses so many, so their SHA-256 needs neither salt nor stretching."""


@click.group(epilog=EPILOG)
def keys() -> None:
    """Make keys for programs that use the endpoint."""


@keys.command(epilog=EPILOG)
@click.argument("name")
@json_option
def new(name: str, as_json: bool) -> None:
    """Make a key for the program NAME, and the table for the configuration.

    The key is shown this once: the configuration has its SHA-256 alone. Nothing is written.
    """
    from orchestrator.config.types import AGENT_NAME, AGENT_NAME_EXPECTED, AGENT_NAMES_RESERVED

    if AGENT_NAME.fullmatch(name) is None:
        raise click.UsageError(f"NAME is {AGENT_NAME_EXPECTED}.")
    if name in AGENT_NAMES_RESERVED:
        raise click.UsageError(f"The daemon uses the name {name} itself; choose another one.")
    key = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    digest = hashlib.sha256(key.encode()).hexdigest()
    table = f'[client.{name}]\nkey_sha256 = "{digest}"'
    if as_json:
        from orchestrator.cli.output import echo_json

        echo_json({"name": name, "key": key, "key_sha256": digest, "table": table})
        return
    click.echo(f"The key, which is shown this once:\n  {key}\n")
    click.echo(f"For agentd.toml:\n{table}")
