"""Asking a question and waiting for its reply, with what happens meanwhile.

The question is named before it is sent: so its happenings can be followed from the first, and a
caller who was cut off finds the reply again under the same name.
"""

import asyncio
from collections.abc import AsyncIterable, Callable
from pathlib import Path

from ipc_protocol.aio import Connection
from ipc_protocol.control import Ask, AwaitAnswer, Conversation, Happening, Watch
from ipc_protocol.methods import ANSWER, ASK, WATCH
from orchestrator.cli import client
from orchestrator.cli.exits import CommandError, Exit
from orchestrator.cli.watch_view import PROGRESS


def ask(
    socket: Path,
    question: Ask,
    *,
    timeout_s: float | None,
    on_happening: Callable[[Happening], None] | None,
) -> Conversation:
    """Ask, and wait for the reply. Raises `CommandError`."""
    assert question.correlation is not None
    correlation = question.correlation
    watch = Watch(correlation=correlation, kinds=list(PROGRESS))

    async def talk(connection: Connection) -> Conversation:
        if on_happening is None:
            await connection.call(ASK, question)
            return await connection.call(ANSWER, AwaitAnswer(correlation=correlation))
        async with connection.stream(WATCH, watch) as happenings:
            await connection.call(ASK, question)
            try:
                return await _answer_while_following(
                    connection, correlation, happenings, on_happening
                )
            except ExceptionGroup as group:  # of a task group; the first failure is the reason
                raise group.exceptions[0] from None

    return client.converse(
        socket, talk, timeout_s=timeout_s, on_timeout=_too_late(correlation, timeout_s)
    )


async def _answer_while_following(
    connection: Connection,
    correlation: str,
    happenings: AsyncIterable[Happening],
    on_happening: Callable[[Happening], None],
) -> Conversation:
    async def follow() -> None:
        async for happening in happenings:
            on_happening(happening)

    async with asyncio.TaskGroup() as tasks:
        following = tasks.create_task(follow())
        conversation = await connection.call(ANSWER, AwaitAnswer(correlation=correlation))
        await asyncio.sleep(0)  # what came before the answer is shown before it
        following.cancel()
    return conversation


def wait(socket: Path, correlation: str, *, timeout_s: float | None) -> Conversation:
    """Wait for the reply to a question that was asked before. Raises `CommandError`."""
    return client.converse(
        socket,
        lambda connection: connection.call(ANSWER, AwaitAnswer(correlation=correlation)),
        timeout_s=timeout_s,
        on_timeout=_too_late(correlation, timeout_s),
    )


def _too_late(correlation: str, timeout_s: float | None) -> CommandError:
    return CommandError(
        Exit.TIMEOUT,
        f"no reply came within {timeout_s or 0:g} s; the agents go on working on it.",
        f"`agentd ctl answer {correlation}` waits for it, "
        f"`agentd ctl trace {correlation}` shows how far it is.",
        code="conversation.unanswered",
        details={"correlation": correlation},
    )
