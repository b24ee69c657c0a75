"""The batch of one step: who takes part in it, and with how many tokens.

- All of the most urgent class at work takes part, so a step is never empty while something could be
  decoded.
- *Left out*: what is less urgent sits out beyond the width of the device, where it would slow the
  more urgent down. Its cache stays. Once it has sat out for too long it takes part on the credit of
  the starvation tier; but never beside urgent work on a device that is too narrow for both.
- Prefill gets what the time of the step leaves: see `Policy`. Forced text comes as prefill of a
  sequence that decodes, so it goes before other prefill.
- *No room in the KV cache* fails nobody: residents go first, then the sequence that is last in the
  order. The first in the order is never taken off, so there is always progress; nor is one that was
  taken off often enough, for which cells are kept.

Pure: no clock, no socket, no model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from inference_client.engine.planning.admission import Admission
from inference_client.engine.planning.cache import Cache
from inference_client.engine.planning.pacing import Pacing
from inference_client.engine.planning.policy import SCORED_OUTPUTS_MAX, URGENT, Counters, Policy
from inference_client.engine.planning.queue import RequestQueue
from inference_client.engine.planning.request import Request


@dataclass(frozen=True)
class Row:
    """Consecutive tokens of one sequence; logits are wanted for the last `outputs` of them."""

    request: Request
    slot: int
    start: int
    tokens: list[int]
    outputs: int


@dataclass
class Room:
    """What is left of a step while its rows are chosen."""

    tokens: int
    """Of prefill and forced text."""
    outputs: int = SCORED_OUTPUTS_MAX
    """Of continuations that are scored."""
    granted: bool = False
    """A sequence with forced text has had its turn."""
    cells: int = 0
    """That the rows so far will take."""
    rank: int | None = None
    """The most urgent class that decodes in this step."""
    decodes: int = 0
    filling: list[int] = field(default_factory=list)
    """The classes of the requests that are prefilled."""
    budgets: dict[int, int] = field(default_factory=dict)
    """By class: the prefill that the time of the step allows it, with all that goes before."""


class Batching:
    """Fills one step. It takes requests off only for want of cells."""

    def __init__(
        self,
        queue: RequestQueue,
        cache: Cache,
        admission: Admission,
        pacing: Pacing,
        policy: Policy,
        counters: Counters,
    ) -> None:
        self._queue = queue
        self._cache = cache
        self._slots = cache.slots
        self._admission = admission
        self._pacing = pacing
        self._policy = policy
        self._counters = counters
        self._arrivals: dict[int, int] = {}
        self._on_credit: set[int] = set()

    def arrived(self, request: Request) -> None:
        """Remember that work of this class may come."""
        self._arrivals[request.rank] = request.arrived_us

    def fill(self, now_us: int) -> list[Row]:
        """The rows of the next step."""
        running = self._slots.requests()
        if not running:
            return []
        lead = min((one.rank for one in running if not one.promoted), default=URGENT + 1)
        joining = self._joining(self._in_order(running, lead), lead, now_us)
        rows = self._rows(joining, lead, now_us)
        if not rows:
            # The leaders have no cells, because those that were left out hold them for good.
            rows = self._rows(self._in_order(self._slots.requests(), lead), lead, now_us)
        self._note(rows, now_us)
        return rows

    def make_room(self, request: Request) -> bool:
        """Evict a resident, or take off the last sequence behind `request` in the order."""
        if self._cache.evict(hurried=request.rank == URGENT):
            return True
        pinned = self._admission.pinned(request)
        others = [
            other
            for other in self._slots.requests()
            if other is not request
            and not self._admission.pinned(other)
            and (pinned or other.order > request.order)
        ]
        if not others:
            return False
        self.squeeze(max(others, key=lambda other: other.order))
        return True

    def squeeze(self, request: Request) -> None:
        """Take a request off for want of cells; next time it is expected to need more of them."""
        request.squeezes += 1
        self._admission.take_off(request)

    # -- who takes part

    def _in_order(self, running: Sequence[Request], lead: int) -> list[Request]:
        """By class, by shares within it, and by age."""
        return sorted(
            running,
            key=lambda one: (
                _standing(one, lead),
                self._queue.account(one),
                one.arrived_us,
                one.id,
            ),
        )

    def _joining(self, running: list[Request], lead: int, now_us: int) -> list[Request]:
        width = self._pacing.width(self._policy.width)
        self._on_credit.clear()
        joining = []
        for request in running:
            leads = _standing(request, lead) == lead
            if self._has_credit(request, lead, now_us):
                self._on_credit.add(request.id)
                joining.append(request)
            elif leads or len(joining) < width:
                joining.append(request)
        return joining

    def _leave_out(self, request: Request, now_us: int) -> None:
        if not request.left_out:
            request.left_out = True
            request.idle_since_us = now_us
            self._counters.preemptions["left-out"] += 1

    def _has_credit(self, request: Request, lead: int, now_us: int) -> bool:
        """Whether the tier pays for a step of a request that has sat out for too long."""
        if not request.left_out or now_us - request.idle_since_us < self._policy.starved_us:
            return False
        tokens = 1 if self._decodes(request) else self._policy.prefill_tokens_min
        if lead == URGENT or self._admission.credit < tokens:
            return False
        self._admission.credit -= tokens
        return True

    def _note(self, rows: list[Row], now_us: int) -> None:
        """Who has no row is left out; so is one that has it only on credit."""
        served = {row.request.id for row in rows}
        for request in self._slots.requests():
            if request.id not in served:
                request.stalled_steps += 1
                self._leave_out(request, now_us)
                continue
            request.stalled_steps = 0
            if request.id not in self._on_credit:
                request.left_out = False

    # -- with how many tokens

    def _rows(self, joining: list[Request], lead: int, now_us: int) -> list[Row]:
        room = Room(self._policy.prefill_tokens)
        rows: list[Row | None] = []
        filling = []
        for request in joining:
            if self._decodes(request):
                room.decodes += 1
                rank = _standing(request, lead)
                room.rank = rank if room.rank is None else min(room.rank, rank)
                rows.append(self._row(request, 1, room))
            else:
                filling.append(request)
        room.filling = [_standing(request, lead) for request in filling]
        # First what the tier pays for, which is little, and forced text, for which a reader waits.
        for request in sorted(filling, key=lambda one: not self._goes_first(one)):
            chunk = self._chunk(request, lead, room, now_us)
            if chunk > 0 and (row := self._row(request, chunk, room)) is not None:
                rows.append(row)
                room.tokens -= len(row.tokens)
        return [row for row in rows if row is not None and row.request.slot == row.slot]

    def _goes_first(self, request: Request) -> bool:
        return request.ready or request.id in self._on_credit

    def _decodes(self, request: Request) -> bool:
        """Whether one token is left, which was sampled."""
        return (
            request.ready
            and request.slot is not None
            and len(request.target) - len(self._slots.slots[request.slot].tokens) == 1
        )

    def _chunk(self, request: Request, lead: int, room: Room, now_us: int) -> int:
        """How many tokens of the request fit into this step, beside what is in it already; 0 or
        less if none do."""
        rank = _standing(request, lead)
        if rank not in room.budgets:
            room.budgets[rank] = self._budget(rank, room, now_us)
        used = self._policy.prefill_tokens - room.tokens
        chunk = room.budgets[rank] - used
        if self._is_granted(request, room):
            chunk = max(chunk, self._policy.prefill_tokens_min)
        chunk = min(chunk, room.tokens)
        if not self._slots.partial and request.slot in self._admission.boundaries:
            start = len(self._slots.slots[request.slot].tokens)
            chunk = min(chunk, self._admission.boundaries[request.slot] - start)
        return chunk

    def _is_granted(self, request: Request, room: Room) -> bool:
        """Whether the request has the least prefill whatever time is left: it is paid for, or the
        first that has forced text. Others would add up beside a more urgent decode."""
        if request.id in self._on_credit:
            return True
        first = request.ready and not room.granted
        room.granted = room.granted or first
        return first

    def _budget(self, rank: int, room: Room, now_us: int) -> int:
        """Tokens of prefill that fit into this step for the sake of a class."""
        alone = self._pacing.decode_us(room.decodes)
        alert = self._is_alert(rank, now_us)
        limit_us: float = self._policy.step_alert_us if alert else self._policy.step_us
        least = self._policy.alert_tokens if alert else self._policy.gap_tokens
        if room.rank is not None and room.rank < rank:
            least = self._policy.prefill_tokens_min
            limit_us = max(self._policy.beneath_factor * alone, self._policy.beneath_us)
        elif room.rank == rank:
            gap_us = self._policy.gap_us * room.filling.count(rank)
            limit_us = min(limit_us, max(self._policy.gap_factor * alone, gap_us))
        most = self._policy.prefill_tokens
        return self._pacing.chunk(limit_us, room.decodes, min(least, most), most)

    def _is_alert(self, rank: int, now_us: int) -> bool:
        """Whether something more urgent came lately."""
        limit = now_us - self._policy.alert_us
        return any(other < rank and at > limit for other, at in self._arrivals.items())

    def _row(self, request: Request, wanted: int, room: Room) -> Row | None:
        """The next tokens of the request, as many as wanted and as the cache has room for."""
        if request.slot is None:
            return None
        slot = self._slots.slots[request.slot]
        start = len(slot.tokens)
        wanted = min(wanted, len(request.target) - start)
        if self._slots.layout == "unified":
            while self._slots.cells_free - room.cells < wanted and self.make_room(request):
                pass
            wanted = min(wanted, self._slots.cells_free - room.cells)
        first_output = len(request.target) - 1
        if request.tail:
            first_output = request.prompt_tokens - 1
            wanted = min(wanted, max(first_output - start, 0) + room.outputs)
        if wanted < 1:
            return None
        room.cells += wanted
        end = start + wanted
        outputs = max(0, end - max(start, first_output))
        if request.tail:
            room.outputs -= outputs
        return Row(request, slot.index, start, request.target[start:end], outputs)


def _standing(request: Request, lead: int) -> int:
    """The class with which a request goes: its own, or if the tier has paid for it, the most urgent
    at work; but always behind urgent work."""
    return max(lead, URGENT + 1) if request.promoted else request.rank
