"""Serves the methods of the control socket that change who there is, and what each agent runs."""

from ipc_protocol import control
from ipc_protocol.aio import Call, Handlers
from ipc_protocol.methods import (
    AGENTS_ADD,
    AGENTS_HISTORY,
    AGENTS_RETIRE,
    AGENTS_ROLLBACK,
    AGENTS_UPGRADE,
    COMPONENT_UPLOAD,
)
from orchestrator.components.upgrading import Upgrading
from orchestrator.enrolment import Enrolment


class Changing:
    """Thin: whoever asks is told what happens meanwhile."""

    def __init__(self, upgrading: Upgrading, enrolment: Enrolment) -> None:
        self._upgrading = upgrading
        self._enrolment = enrolment

    def add_to(self, handlers: Handlers) -> Handlers:
        return (
            handlers.add(COMPONENT_UPLOAD, self._upload)
            .add(AGENTS_HISTORY, self._history)
            .add(AGENTS_UPGRADE, self._upgrade)
            .add(AGENTS_ROLLBACK, self._rollback)
            .add(AGENTS_ADD, self._add)
            .add(AGENTS_RETIRE, self._retire)
        )

    async def _upload(self, piece: control.ComponentPiece, _: Call) -> control.ComponentReceived:
        return await self._upgrading.receive(piece)

    async def _history(self, of: control.OfOneAgent, _: Call) -> control.AgentVersions:
        return await self._upgrading.history(of.agent)

    async def _upgrade(self, asked: control.UpgradeAgent, call: Call) -> control.AgentUpgraded:
        return await self._upgrading.upgrade(asked, call.send_item)

    async def _rollback(self, asked: control.RollBackAgent, call: Call) -> control.AgentUpgraded:
        return await self._upgrading.rollback(asked, call.send_item)

    async def _add(self, asked: control.AddAgent, call: Call) -> control.AgentAdded:
        return await self._enrolment.add(asked, call.send_item)

    async def _retire(self, of: control.OfOneAgent, call: Call) -> control.AgentRetired:
        return await self._enrolment.retire(of.agent, call.send_item)
