"""What egress answers on its line: it is told once what may be dialled, and dials then."""

from ipc_protocol.aio import Call, Handlers
from ipc_protocol.egress import EgressStart, Fetch, Fetched
from ipc_protocol.errors import Failure
from ipc_protocol.inference import Nothing
from ipc_protocol.methods import EGRESS_FETCH, EGRESS_START
from orchestrator.egress.dialler import Dialler


class Service:
    """Serves one orchestrator."""

    def __init__(self, dialler: Dialler) -> None:
        self._dialler = dialler
        self._started = False

    def handlers(self) -> Handlers:
        return Handlers().add(EGRESS_START, self._start).add(EGRESS_FETCH, self._fetch)

    async def _start(self, params: EgressStart, _: Call) -> Nothing:
        if self._started:
            raise Failure(
                "request.invalid", "Egress has its grants already.", "Start another egress."
            )
        self._dialler.grant(params.grants)
        self._started = True
        return Nothing()

    async def _fetch(self, params: Fetch, call: Call) -> Fetched:
        return await self._dialler.fetch(params, call.send_item)
