"""A pool in simulated steps: the real planner over a backend that is nothing but lists.

The backend keeps the tokens of each sequence, and which cells they lie in, by the semantics of
llama.cpp's unified cache. Its "model" is a function of the whole context, so an answer tells
whether the context was exactly the request's own, however often it was preempted and resumed.
"""

import zlib
from dataclasses import dataclass, field

from inference_client.engine.planner import Planner, Policy, Row
from inference_client.engine.queue import Request, RequestQueue
from inference_client.engine.slots import Copy, SlotTable
from ipc_protocol.values import Priority


def next_token(context: list[int]) -> int:
    """What the simulated model says after a context: any token from 0 to 6."""
    return zlib.crc32(bytes(context)) % 7


def answer(prompt: list[int], tokens: int) -> list[int]:
    """The answer of the simulated model to a prompt that it has for itself."""
    context = list(prompt)
    for _ in range(tokens):
        context.append(next_token(context))
    return context[len(prompt) :]


@dataclass
class Simulation:
    """Steps are the clock. `finished` has the requests in the order of their completion."""

    slots: int = 2
    cells: int = 64
    partial: bool = True
    waiting_max: int = 1000
    policy: Policy | None = None
    planner: Planner = field(init=False)
    finished: list[Request] = field(default_factory=list)
    scores: dict[int, list[list[int]]] = field(default_factory=dict)
    rows: list[list[Row]] = field(default_factory=list)
    _next_id: int = 0
    _next_cell: int = 0

    def __post_init__(self) -> None:
        policy = self.policy or Policy(width=1, context=self.cells, quantum_tokens=2)
        table = SlotTable(self.slots, self.cells, partial=self.partial)
        self.planner = Planner(RequestQueue(self.waiting_max), table, policy)
        self._sequences: list[list[tuple[int, int]]] = [[] for _ in range(self.slots)]

    def submit(
        self,
        agent: str = "a",
        priority: Priority = "normal",
        prompt: list[int] | None = None,
        tokens: int = 4,
        tail: tuple[int, ...] = (),
    ) -> Request:
        self._next_id += 1
        request = Request(
            self._next_id,
            agent,
            priority,
            list(prompt if prompt is not None else [1, 2, 3]),
            0 if tail else tokens,
            self.planner.steps,
            tail,
        )
        self.planner.submit(request)
        return request

    def step(self) -> bool:
        """One step. Returns whether there was anything to decode."""
        step = self.planner.plan(now_us=self.planner.steps)
        for operation in step.operations:
            if isinstance(operation, Copy):
                assert not self._sequences[operation.target], "a copy needs an empty target"
                source = self._sequences[operation.source]
                assert len(source) >= operation.length
                self._sequences[operation.target] = source[: operation.length]
            else:
                assert self.partial or operation.length == 0
                del self._sequences[operation.slot][operation.length :]
        assert self.planner.slots.cells_used == self._cells_used(), "the table counts as the cache"
        for row in step.rows:
            self._decode(row)
        self.rows.append(step.rows)
        assert self._cells_used() <= self.cells, "the cache overflows"
        self.planner.commit(step)
        for row in step.rows:
            self._read(row)
        return bool(step.rows)

    def run(self, steps_max: int = 20_000) -> "Simulation":
        while not self.planner.idle:
            assert self.planner.steps < steps_max, "the pool makes no progress"
            assert self.step(), "there is work, and nothing is decoded"
        return self

    def _cells_used(self) -> int:
        return len({cell for sequence in self._sequences for _, cell in sequence})

    def _decode(self, row: Row) -> None:
        sequence = self._sequences[row.slot]
        assert len(sequence) == row.start, "a row continues its sequence"
        for token in row.tokens:
            sequence.append((token, self._next_cell))
            self._next_cell += 1

    def _read(self, row: Row) -> None:
        request = row.request
        context = [token for token, _ in self._sequences[row.slot]]
        if request.tail:
            self._score(row, context)
        elif row.outputs:
            self.planner.produce(request, next_token(context))
            if len(request.produced) >= request.tokens_max:
                self._finish(request)

    def _score(self, row: Row, context: list[int]) -> None:
        """For each output, remember what the context was from which the tail is judged."""
        end = row.start + len(row.tokens)
        self.scores.setdefault(row.request.id, []).extend(range(end - row.outputs, end))
        if row.request.scored:
            self._finish(row.request)

    def _finish(self, request: Request) -> None:
        self.planner.finish(request)
        self.finished.append(request)
