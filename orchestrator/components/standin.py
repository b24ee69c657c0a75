"""The world around a component that runs in isolation: what it is answered, without a daemon. Pure.

What is on record is answered as it was; a request that differs from its record is a mismatch, as it
is in the daemon. Everything else gets the plainest true answer: there is a state, which was given;
the bus takes what its limits allow; and nobody is there to be asked, searched or called.
"""

from collections.abc import Mapping, Sequence

from ipc_protocol.control import JournaledEffect
from ipc_protocol.errors import Failure, Problem
from ipc_protocol.limits import PAYLOAD_BYTES_MAX
from ipc_protocol.work import (
    Effect,
    EffectRequest,
    EffectResult,
    EmitHealth,
    ListTasks,
    Note,
    Noted,
    Offer,
    Offered,
    ReadState,
    Refused,
    StateValue,
    TaskList,
    effect_key,
)
from orchestrator.bus import topics

NOT_HERE = Refused(
    code="inference.unavailable", message="There is neither model, memory nor tool in isolation."
)


class StandIn:
    """Answers the effects of one delivery. `asked` are those that were not on record.

    `publishes` are the topics that may be published on; None is all of them.
    """

    def __init__(
        self,
        state: Mapping[str, bytes],
        publishes: Sequence[str] | None = None,
        record: Sequence[JournaledEffect] = (),
    ) -> None:
        self.asked: list[Effect] = []
        self._state = state
        self._publishes = publishes
        self._record = {entry.step: entry for entry in record}

    def answer(self, request: EffectRequest) -> EffectResult:
        """Raises `journal.mismatch`."""
        entry = self._record.get(request.step)
        if entry is None:
            self.asked.append(request.effect)
            return self._made_up(request.effect)
        if effect_key(entry.effect) != effect_key(request.effect):
            raise Failure(
                "journal.mismatch",
                f"At step {request.step} the component asks something else than it did when this "
                "was recorded.",
                "Only the very component of the record, with the same configuration, can repeat "
                "it; to see what another one does with the message, hand it over by --message.",
                step=request.step,
                recorded=effect_key(entry.effect).decode(),
                asked=effect_key(request.effect).decode(),
            )
        return entry.result

    def _made_up(self, effect: Effect) -> EffectResult:
        match effect:
            case Offer():
                return Offered(problem=self._objection(effect))
            case ReadState():
                return StateValue(value=self._state.get(effect.key))
            case ListTasks():
                return TaskList(tasks=[])
            case Note() | EmitHealth():
                return Noted()
        return NOT_HERE

    def _objection(self, offer: Offer) -> Problem | None:
        """What the bus would say, as far as it depends on nobody else."""
        if offer.payload_bytes > PAYLOAD_BYTES_MAX:
            return Problem(
                code="bus.payload-too-large",
                message=f"{offer.payload_bytes} bytes are over the limit of {PAYLOAD_BYTES_MAX}.",
            )
        if self._publishes is None:
            return None
        if any(topics.matches(pattern, offer.topic) for pattern in self._publishes):
            return None
        return Problem(
            code="bus.not-permitted",
            message=f"The agent does not publish on {offer.topic!r}.",
            cure=f"Add it to `publishes`: {', '.join(self._publishes) or 'nothing'} so far.",
        )
