"""Publishing one message, and waiting until all that receive it are done with it."""

from pathlib import Path

from ipc_protocol.control import Publish, Published
from ipc_protocol.methods import PUBLISH
from orchestrator.cli import client
from orchestrator.cli.exits import CommandError, Exit


def send(socket: Path, message: Publish, *, timeout_s: float | None) -> Published:
    """Publish, and wait for what `message` waits for. Raises `CommandError`."""
    if message.wait == "accepted":
        return client.call(socket, PUBLISH, message)
    return client.converse(
        socket,
        lambda connection: connection.call(PUBLISH, message),
        timeout_s=timeout_s,
        on_timeout=_too_late(message, timeout_s),
    )


def _too_late(message: Publish, timeout_s: float | None) -> CommandError:
    correlation = message.correlation
    if message.message_ids:
        # Under its id it may have been published before, into another conversation.
        cure = "Send it again with the same --id and --wait: it goes on waiting for the same one."
    else:
        cure = f"`agentd ctl trace {correlation}` shows how far it is."
    return CommandError(
        Exit.TIMEOUT,
        f"it was not handled within {timeout_s or 0:g} s. What was accepted of it goes on.",
        cure,
        code="delivery.unfinished",
        details={"correlation": correlation, "message_ids": message.message_ids},
    )
