"""A pool in simulated steps: the real planner over a backend that is nothing but lists.

The backend keeps the tokens of each sequence by the semantics of llama.cpp: unified, in cells that
sequences share; or in streams, where a copy is put off until the next batch is decoded. Its "model"
is a function of the whole context, so an answer tells whether the context was exactly the request's
own, however often it was preempted, moved to the host and resumed.
"""

import zlib
from dataclasses import dataclass, field

from inference_client.engine.planning.pacing import Pacing
from inference_client.engine.planning.planner import Planner, Policy, Row, Step
from inference_client.engine.planning.queue import RequestQueue
from inference_client.engine.planning.request import Request
from inference_client.engine.planning.slots import (
    Copy,
    Forget,
    Keep,
    Operation,
    SlotTable,
    SwapIn,
    SwapOut,
)
from inference_client.engine.planning.swap import SwapArea
from ipc_protocol.inference import KvLayout, Share
from ipc_protocol.values import Priority

TOKEN_BYTES = 10
"""What a token takes in simulated host memory."""


def next_token(context: list[int]) -> int:
    """What the simulated model says after a context: any token from 0 to 6."""
    return zlib.crc32(bytes(context)) % 7


def answer(prompt: list[int], tokens: int, forced: int = 0) -> list[int]:
    """The answer of the simulated model to a prompt that it has for itself.

    Behind every sampled token `forced` copies of it are forced, as far as the answer reaches.
    """
    context = list(prompt)
    while len(context) - len(prompt) < tokens:
        context += [next_token(context)] * (1 + forced)
    return context[len(prompt) :][:tokens]


class Backend:
    """Sequences, cells and host memory. Asserts that nothing is asked of it that cannot be."""

    def __init__(self, slots: int, cells: int, layout: KvLayout, partial: bool) -> None:
        self.cells = cells
        self.layout = layout
        self.partial = partial
        self.swapped: dict[int, list[int]] = {}
        self._capacity = cells if layout == "unified" else cells // slots
        self._tokens: list[list[int]] = [[] for _ in range(slots)]
        self._cells: list[list[int]] = [[] for _ in range(slots)]
        self.lengths = [0] * slots
        self.copies: list[tuple[int, int]] = []
        self._next_cell = 0

    @property
    def cells_used(self) -> int:
        if self.layout == "unified":
            return len({cell for cells in self._cells for cell in cells})
        return sum(self.lengths)

    def context(self, slot: int) -> list[int]:
        return self._tokens[slot][: self.lengths[slot]]

    def keep(self, operation: Keep) -> None:
        assert self.partial or operation.length == 0
        assert operation.length <= self.lengths[operation.slot]
        self.lengths[operation.slot] = operation.length
        del self._cells[operation.slot][operation.length :]
        if self.layout == "unified":
            del self._tokens[operation.slot][operation.length :]

    def copy(self, operation: Copy) -> None:
        source, target = operation.source, operation.target
        assert not self.lengths[target], "a copy needs an empty target"
        assert self.lengths[source] >= operation.length
        assert self.partial or self.lengths[source] == operation.length
        self.lengths[target] = operation.length
        self._cells[target] = self._cells[source][: operation.length]
        if self.layout == "unified":
            self._tokens[target] = self._tokens[source][: operation.length]
        else:
            self.copies.append((source, target))

    def swap_out(self, operation: SwapOut) -> int:
        tokens = self.context(operation.slot)
        size = len(tokens) * TOKEN_BYTES
        assert operation.handle not in self.swapped
        if size > operation.bytes_max:
            return 0
        self.swapped[operation.handle] = tokens
        return size

    def swap_in(self, operation: SwapIn) -> int:
        tokens = self.swapped[operation.handle]
        assert not self.lengths[operation.slot], "a sequence is read into an empty slot"
        self._tokens[operation.slot] = list(tokens)
        self.lengths[operation.slot] = len(tokens)
        self._take_cells(operation.slot, len(tokens))
        assert self.cells_used <= self.cells, "what comes back finds its cells free"
        return len(tokens) * TOKEN_BYTES

    def decode(self, rows: list[Row]) -> None:
        for source, target in self.copies:
            self._tokens[target] = list(self._tokens[source])
        self.copies.clear()
        for row in rows:
            assert self.lengths[row.slot] == row.start, "a row continues its sequence"
            self._tokens[row.slot] = self.context(row.slot) + row.tokens
            self.lengths[row.slot] += len(row.tokens)
            self._take_cells(row.slot, len(row.tokens))
            assert self.lengths[row.slot] <= self._capacity, "a sequence overflows"
        assert self.cells_used <= self.cells, "the cache overflows"

    def _take_cells(self, slot: int, count: int) -> None:
        self._cells[slot] += range(self._next_cell, self._next_cell + count)
        self._next_cell += count


@dataclass
class Simulation:
    """A pool whose steps take simulated time. `finished` has the requests as they were completed.

    `swap_refusals` and `losses` count down the sequences that the host does not take, or not give
    back. Of `hidden` cells the table does not know that the backend cannot use them; `stuck` has
    the requests that could not go on for it.
    """

    slots: int = 2
    cells: int = 64
    partial: bool = True
    layout: KvLayout = "unified"
    swap_tokens: int = 0
    waiting_max: int = 1000
    policy: Policy | None = None
    block: int = 1
    step_us: int = 10
    token_us: int = 100
    swap_us: float = 0.01
    forced: int = 0
    swap_refusals: int = 0
    losses: int = 0
    hidden: int = 0
    pacing: Pacing = field(default_factory=Pacing)
    planner: Planner = field(init=False)
    backend: Backend = field(init=False)
    now_us: int = 0
    finished: list[Request] = field(default_factory=list)
    expired: list[Request] = field(default_factory=list)
    stuck: list[Request] = field(default_factory=list)
    scores: dict[int, list[int]] = field(default_factory=dict)
    rows: list[list[Row]] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    last: Step | None = None
    _next_id: int = 0

    def __post_init__(self) -> None:
        capacity = self.cells if self.layout == "unified" else self.cells // self.slots
        policy = self.policy or Policy(width=1, context=capacity, quantum_tokens=2)
        table = SlotTable(
            self.slots, self.cells, layout=self.layout, partial=self.partial, block=self.block
        )
        swap = SwapArea(self.swap_tokens * TOKEN_BYTES, TOKEN_BYTES)
        queue = RequestQueue(self.waiting_max)
        self.planner = Planner(queue, table, policy, swap, self.pacing)
        self.backend = Backend(self.slots, self.cells, self.layout, self.partial)

    def submit(
        self,
        agent: str = "a",
        priority: Priority = "normal",
        prompt: list[int] | None = None,
        tokens: int = 4,
        tail: tuple[int, ...] = (),
        share: Share | None = None,
        deadline_us: int | None = None,
        produced: list[int] | None = None,
    ) -> Request:
        self._next_id += 1
        prompt = list(prompt if prompt is not None else [1, 2, 3])
        request = Request(
            self._next_id,
            agent,
            priority,
            prompt + (produced or []),
            0 if tail else tokens,
            self.now_us,
            tail,
            share or Share(),
            deadline_us,
            len(prompt),
        )
        self.planner.submit(request)
        return request

    def step(self) -> bool:
        """One step. Returns whether there was anything to decode."""
        step = self.last = self.planner.plan(self.now_us)
        self.expired += step.expired
        if not self._apply(step.operations):
            return True
        self.rows.append(step.rows)
        if not step.rows:
            self.now_us += step.retry_us or 1
            return False
        self._check()
        if not self._has_room(step.rows):
            stuck = self.planner.refuse()
            if stuck is not None:
                self.planner.cancel(stuck)
                self.stuck.append(stuck)
            return True
        self.backend.decode(step.rows)
        elapsed_us = self.step_us + self.token_us * sum(len(row.tokens) for row in step.rows)
        self.now_us += elapsed_us
        self.planner.commit(step, elapsed_us)
        for row in step.rows:
            self._read(row)
        return True

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step()

    def run(self, steps_max: int = 20_000) -> "Simulation":
        while not self.planner.idle:
            assert self.planner.steps < steps_max, "the pool makes no progress"
            assert self.step() or self.last.retry_us or self.last.expired, "nothing is decoded"
        return self

    def served(self) -> list[str]:
        """Whose rows were in the last step."""
        return [row.request.agent for row in self.rows[-1]]

    def _apply(self, operations: list[Operation]) -> bool:
        """Whether everything was found that should be there."""
        lost = []
        self.operations += operations
        for operation in operations:
            if isinstance(operation, Keep):
                if self.backend.lengths[operation.slot] or not lost:
                    self.backend.keep(operation)
            elif isinstance(operation, Copy):
                self.backend.copy(operation)
            elif isinstance(operation, SwapOut):
                size = 0 if self._refuses() else self.backend.swap_out(operation)
                self.planner.swapped(operation, size, int(size * self.swap_us))
                self.now_us += int(size * self.swap_us)
            elif isinstance(operation, SwapIn):
                if self.losses:
                    self.losses -= 1
                    lost.append(self.planner.slots.slots[operation.slot].request)
                    continue
                size = self.backend.swap_in(operation)
                self.planner.swapped(operation, size, int(size * self.swap_us))
                self.now_us += int(size * self.swap_us)
            else:
                assert isinstance(operation, Forget)
                self.backend.swapped.pop(operation.handle, None)
            used = sum(map(len, self.backend.swapped.values())) * TOKEN_BYTES
            assert used <= self.planner.swap.bytes_max, "the host keeps more than it may"
        for request in lost:
            assert request is not None
            self.planner.lost(request)
        return not lost

    def _has_room(self, rows: list[Row]) -> bool:
        needed = self.backend.cells_used + sum(len(row.tokens) for row in rows)
        return needed <= self.cells - self.hidden

    def _refuses(self) -> bool:
        self.swap_refusals -= 1
        return self.swap_refusals >= 0

    def _check(self) -> None:
        table = self.planner.slots
        assert table.cells_used == self.backend.cells_used, "the table counts as the cache"
        for slot in table.slots:
            assert len(slot.tokens) == self.backend.lengths[slot.index], "the table knows the cache"
            tokens = self.backend.context(slot.index)
            settled = self.layout == "unified" or not self.backend.copies
            assert not settled or slot.tokens == tokens, "the table knows the tokens"

    def _read(self, row: Row) -> None:
        request = row.request
        if request.tail:
            self._score(row)
        elif row.outputs:
            token = next_token(self.backend.context(row.slot))
            room = request.tokens_max - request.produced_tokens
            self.planner.produce(request, [token] * min(1 + self.forced, room))
            if request.produced_tokens >= request.tokens_max:
                self._finish(request)

    def _score(self, row: Row) -> None:
        """For each output, remember the position from which the tail is judged."""
        end = row.start + len(row.tokens)
        self.scores.setdefault(row.request.id, []).extend(range(end - row.outputs, end))
        if row.request.scored:
            self._finish(row.request)

    def _finish(self, request: Request) -> None:
        self.planner.finish(request)
        self.finished.append(request)
