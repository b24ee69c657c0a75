"""What the next step decodes, and for whom: the policy of the pool, as one pure state machine.

Each step the planner admits waiting requests to slots, preempts where a strictly more urgent class
needs it, and fills the batch in the order of urgency and age. What it decides comes back as a
`Step`; when the backend has carried it out, `commit` makes it so. The rules:

- A slot is given in the same step in which it is chosen.
- *Left out*: while a more urgent class is at work, sequences beyond `width` sit out, but no longer
  than `skipped_steps_max` steps in a row. Their KV stays.
- *Taken off*: with no slot free, the least urgent sequence that has had its quantum makes way for a
  strictly more urgent class. It keeps its tokens and its place, and resumes by prefix reuse. After
  `preemptions_max` times it stays.
- *No room in the KV cache* fails nobody: idle residents go first, then the sequence that is last in
  the order. The first in the order is never taken off, so there is always progress.

Pure: no clock, no socket, no model.
"""

from dataclasses import dataclass
from typing import Final

from inference_client.engine.queue import Request, RequestQueue
from inference_client.engine.slots import Choice, Operation, SlotTable
from ipc_protocol.errors import Failure
from ipc_protocol.values import rank

ROOM_AHEAD_TOKENS: Final = 16
"""Cells that must be free behind a prompt when it is admitted: one quantum of decoding, so that a
request is not admitted only to be taken off again in the next step."""


@dataclass(frozen=True)
class Policy:
    """The numbers of the planner. Tokens are per step unless the name says otherwise."""

    width: int
    """Sequences that one step decodes at about the speed of one: 1 on one processor core, as many
    as there are slots on a GPU."""
    context: int
    """The most tokens of one sequence: what the model was made for, and no more than the cells."""
    prefill_tokens: int = 256
    """Prefill while nothing decodes: 1.4 s on one core, and the fastest way through a prompt."""
    prefill_tokens_beside: int = 64
    """Prefill beside decodes of the same class, which wait for it."""
    prefill_tokens_beneath: int = 16
    """Prefill beside decodes of a more urgent class."""
    skipped_steps_max: int = 8
    quantum_tokens: int = ROOM_AHEAD_TOKENS
    preemptions_max: int = 4

    def batch_tokens(self, slots: int) -> int:
        """The most tokens that one step can hold."""
        return slots + self.prefill_tokens


@dataclass(frozen=True)
class Row:
    """Consecutive tokens of one sequence; logits are wanted for the last `outputs` of them."""

    request: Request
    slot: int
    start: int
    tokens: list[int]
    outputs: int


@dataclass(frozen=True)
class Step:
    """First the operations on the cache, in their order, then one batch of all rows."""

    operations: list[Operation]
    rows: list[Row]


@dataclass(frozen=True)
class Place:
    """Where a waiting request stands. `position` 1 is the next to be admitted."""

    request: Request
    position: int
    reason: str


class Planner:
    """The only writer of queue, slot table and requests."""

    def __init__(self, queue: RequestQueue, slots: SlotTable, policy: Policy) -> None:
        self._queue = queue
        self._policy = policy
        self._operations: list[Operation] = []
        self._held = ""
        self.slots = slots
        self.steps = 0
        self.preemptions = 0

    @property
    def idle(self) -> bool:
        return not self._queue and not self.slots.running()

    def submit(self, request: Request) -> None:
        """Let a request wait. Raises `inference.busy`, or `inference.context` if it never fits.

        A budget that the context cannot hold is cut to what it can: the answer then ends there.
        """
        room = self._policy.context - len(request.target)
        if room < 1:
            raise Failure(
                "inference.context",
                f"The prompt has {request.prompt_tokens} tokens, and the context holds "
                f"{self._policy.context}.",
                "Send less, or give the engine a larger context.",
                prompt_tokens=request.prompt_tokens,
                context=self._policy.context,
            )
        request.tokens_max = min(request.tokens_max, room)
        self._queue.push(request)

    def cancel(self, request: Request) -> None:
        """Forget a request, wherever it is. Its slot is free for the next step."""
        self._queue.remove(request.id)
        if request.slot is not None:
            self.slots.release(request, self.steps)

    finish = cancel
    """A request that has its answer leaves in the same way."""

    def plan(self, now_us: int) -> Step:
        """Decide the next step. Without rows there is nothing to do until a request comes."""
        self.steps += 1
        self._admit(now_us)
        rows = self._fill()
        operations, self._operations = self._operations, []
        return Step(operations, rows)

    def commit(self, step: Step) -> None:
        """The step has been decoded."""
        for row in step.rows:
            slot = self.slots.slots[row.slot]
            self.slots.extend(slot, row.tokens)
            request = row.request
            request.served_tokens += len(row.tokens)
            if request.tail and len(slot.tokens) == len(request.target):
                request.scored = True
                self._operations += self.slots.keep(slot, request.prompt_tokens - 1)

    def produce(self, request: Request, token: int) -> None:
        """A token was sampled for the request; the next step decodes it."""
        request.tokens.append(token)
        self._queue.charge(request.agent, 1)

    def refuse(self) -> Request | None:
        """The backend found no room for the last step, which was not decoded.

        Makes room as far as it can. Returns the request that cannot go on when nothing is left to
        give way.
        """
        running = self.slots.running()
        if self._make_room(running[0]):
            return None
        return running[0]

    def waiting(self) -> list[Place]:
        """The queue in its order, and why each of them waits."""
        places = []
        for index, request in enumerate(self._queue.in_order()):
            ahead = f"{index} {'request goes' if index == 1 else 'requests go'} first"
            places.append(Place(request, index + 1, ahead if index else self._held))
        return places

    # -- admission

    def _admit(self, now_us: int) -> None:
        self._held = "the next step takes it in"
        while (head := self._queue.head()) is not None:
            choice = self._find_slot(head)
            if choice is None:
                self._held = "every slot is taken by work that may not be preempted"
                return
            choice = self._find_room(head, choice)
            if choice is None:
                self._held = "the KV cache is full"
                return
            self._start(head, choice, now_us)

    def _find_slot(self, request: Request) -> Choice | None:
        choice = self.slots.choose(request)
        if choice is None and self._preempt_for(request):
            return self.slots.choose(request)
        return choice

    def _find_room(self, request: Request, choice: Choice) -> Choice | None:
        """Free the cells that the request needs to begin, by eviction and then by preemption."""
        if choice.source == choice.slot:
            self._operations += self.slots.keep(self.slots.slots[choice.slot], choice.length)
        ahead = min(ROOM_AHEAD_TOKENS, request.tokens_max - len(request.produced))
        while len(request.target) - choice.length + ahead > self._cells_free():
            source = self.slots.slots[choice.source]
            if evicted := self.slots.evict(spared=choice.source):
                self._operations += evicted
            elif choice.source != choice.slot and source.request is None:
                choice = Choice(choice.source, choice.source, choice.length)
                self._operations += self.slots.keep(source, choice.length)
            elif not self._preempt_for(request):
                return None
        return choice

    def _cells_free(self) -> int:
        """Cells that are free and not yet promised to a prompt that is being prefilled."""
        promised = sum(
            len(slot.request.target) - len(slot.tokens)
            for slot in self.slots.slots
            if slot.request is not None
        )
        return self.slots.cells_free - promised

    def _start(self, request: Request, choice: Choice, now_us: int) -> None:
        self._queue.take(request)
        self._operations += self.slots.take(choice, request, self.steps)
        request.served_tokens = 0
        request.skipped_steps = 0
        if request.started_us is None:
            request.started_us = now_us
            request.cached_tokens = choice.length
            fresh = len(request.target) - choice.length
            self._queue.charge(request.agent, fresh)

    def _preempt_for(self, request: Request) -> bool:
        """Take off the least urgent sequence that a strictly more urgent class may displace."""
        victims = [
            other
            for other in self.slots.running()
            if rank(other.priority) > rank(request.priority)
            and other.served_tokens >= self._policy.quantum_tokens
            and other.preemptions < self._policy.preemptions_max
        ]
        if not victims:
            return False
        victims[-1].preemptions += 1
        self._take_off(victims[-1])
        return True

    def _take_off(self, request: Request) -> None:
        self.slots.release(request, self.steps)
        self._queue.put_back(request)
        self.preemptions += 1

    # -- the batch

    def _fill(self) -> list[Row]:
        rows: list[Row] = []
        running = self.slots.running()
        decoding = [request for request in running if self._decodes(request)]
        cells = prefill = 0
        for request in running:
            if request.slot is None or not self._joins(request, running[0], len(rows)):
                continue
            wanted = 1
            if request not in decoding:
                wanted = self._chunk(request, decoding) - prefill
            row = self._row(request, wanted, cells)
            if row is not None:
                rows.append(row)
                cells += len(row.tokens)
                prefill += len(row.tokens) if request not in decoding else 0
        return rows

    def _decodes(self, request: Request) -> bool:
        assert request.slot is not None
        left = len(request.tokens) - len(self.slots.slots[request.slot].tokens)
        return left == 1 and len(request.tokens) > request.prompt_tokens

    def _joins(self, request: Request, first: Request, joined: int) -> bool:
        """Whether the request is part of this step, or sits out for a more urgent class."""
        if (
            request.priority == first.priority
            or joined < self._policy.width
            or request.skipped_steps >= self._policy.skipped_steps_max
        ):
            request.skipped_steps = 0
            return True
        request.skipped_steps += 1
        return False

    def _chunk(self, request: Request, decoding: list[Request]) -> int:
        """How much prefill this step may hold, as far as this request is concerned."""
        if not decoding:
            return self._policy.prefill_tokens
        if rank(decoding[0].priority) < rank(request.priority):
            return self._policy.prefill_tokens_beneath
        return self._policy.prefill_tokens_beside

    def _row(self, request: Request, wanted: int, cells_planned: int) -> Row | None:
        """The next tokens of the request, as many as wanted and as the cache has room for."""
        assert request.slot is not None
        slot = self.slots.slots[request.slot]
        target = request.target
        start = len(slot.tokens)
        wanted = min(wanted, len(target) - start)
        while self.slots.cells_free - cells_planned < wanted and self._make_room(request):
            pass
        wanted = min(wanted, self.slots.cells_free - cells_planned)
        if wanted < 1:
            return None
        end = start + wanted
        first_output = request.prompt_tokens - 1 if request.tail else len(target) - 1
        outputs = max(0, end - max(start, first_output))
        return Row(request, slot.index, start, target[start:end], outputs)

    def _make_room(self, request: Request) -> bool:
        """Evict a resident, or take off the last sequence behind `request` in the order."""
        if evicted := self.slots.evict():
            self._operations += evicted
            return True
        last = self.slots.running()[-1]
        if last is request:
            return False
        self._take_off(last)
        return True
