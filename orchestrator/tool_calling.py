"""Makes the tool calls of one agent: none is made twice by itself, and none is lost silently.

A tool with effects outside the database may be in flight when something dies. That it may run is on
disk before it does. So a retry asks the tool what came of it and does not run it again; where the
tool cannot tell, the agent is told that nobody knows, and decides.
"""

from ipc_protocol.work import ToolResult, UseTool
from orchestrator.bus.tool_calls import BeginToolCall, begin_tool_call, find_tool_call
from orchestrator.store.reader import Reader
from orchestrator.store.store import Store
from orchestrator.tools.catalogue import CATALOGUE
from orchestrator.tools.registry import in_doubt
from orchestrator.tools.tool import ToolContext, ToolOutcome


class ToolCaller:
    """The caller writes the journal; here is only what comes before an entry."""

    def __init__(self, agent: str, store: Store, reader: Reader, context: ToolContext) -> None:
        self._agent = agent
        self._store = store
        self._reader = reader
        self._context = context

    async def has_begun(self, delivery: int, step: int, effect: UseTool) -> bool:
        """May its tool have run already? Raises `journal.mismatch`."""
        return (await self._reader.view(find_tool_call, delivery, step, effect)).begun

    async def call(
        self, delivery: int, incarnation: str, step: int, effect: UseTool
    ) -> ToolOutcome:
        """What comes of a call that has no journal entry yet.

        Raises `journal.mismatch`, or `work.unknown-delivery` if `incarnation` does not hold it.
        """
        known = await self._reader.view(find_tool_call, delivery, step, effect)
        call = CATALOGUE.call(effect.name, effect.arguments, self._context)
        if isinstance(call, ToolResult):
            # It may have been granted when it began.
            return in_doubt(effect.name) if known.begun else call
        call = call.keyed(known.key)
        if known.begun:
            return await call.recover()
        if not call.acts_outside:
            return await call.run()
        refused = await call.prepare()
        if refused is not None:
            return refused
        begin = BeginToolCall(delivery=delivery, incarnation=incarnation, step=step, effect=effect)
        # It has to be on disk, however long that takes: else nobody knows of it after a crash.
        await self._store.apply_when_room(begin_tool_call, self._agent, begin)
        return await call.run()
