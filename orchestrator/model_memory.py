"""The models' memory: which of them are loaded, by what `residency` decides.

The shell around `residency`. Every model has a `Residence`, by which its engine waits to be let in,
says what it took and that it has left, and by which requests say that they need the model. Whatever
changes, all is decided again, at once and in one place.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final, Literal

from inference_client.models import memory_available_bytes
from ipc_protocol.errors import Failure
from ipc_protocol.inference import ModelInfo
from orchestrator.residency import RANK_IDLE, Ask, Model, Plan, decide

log = logging.getLogger(__name__)

PART_OF_MEMORY: Final = 0.9
"""For all models together, where the configuration does not say: the rest is for what llama.cpp
computes in, for the display, and for other programs."""

DEVICE_NODES: Final = ("/dev/nvidiactl", "/dev/kfd", "/dev/dri")
"""What CUDA, ROCm and Vulkan open. Without any of them the models lie in the host's memory."""


def _now_us() -> int:
    return time.monotonic_ns() // 1000


def may_have_devices() -> bool:
    """Whether an engine could find a device. What memory it has, only the engine can say."""
    return any(Path(node).exists() for node in DEVICE_NODES)


class Residence:
    """One model's place in the memory. `leave` is set when its engine is to go."""

    def __init__(self, memory: "ModelMemory", name: str, *, pinned: bool, wished: bool) -> None:
        self.name = name
        self.leave = asyncio.Event()
        self._memory = memory
        self._pinned = pinned
        self._wished = wished
        self._place: Literal["out", "in", "leaving"] = "out"
        self._since_us = 0
        self._bytes: int | None = None
        """None before anybody has looked at its file."""
        self.waits = False
        """Its engine waits to be let in."""
        self._refused = False
        self._has_process = False
        self._asks: dict[int, Ask] = {}
        self._asked = 0
        self._used_us = 0
        self._rank = RANK_IDLE
        self._changed = asyncio.Event()

    @property
    def wanted(self) -> bool:
        """Somebody asks for it, or it is to be loaded anyway."""
        return bool(self._asks) or self._pinned or self._wished

    @property
    def inside(self) -> bool:
        return self._place == "in"

    @property
    def unloaded(self) -> bool:
        """There is no engine and none is about to start: nobody wants it, or there is no room."""
        return self._place == "out" and (self.waits or not self.wanted)

    # -- what its engine says

    async def enter(self, estimate: Callable[[], Awaitable[int]]) -> None:
        """Wait until the engine may start: it is wanted, and there is room for it.

        `estimate` says what it will take, in bytes, as long as that was never measured. Raises what
        `estimate` raises, and `inference.unavailable` for what can never fit.
        """
        await self._wait(lambda: self.wanted or self.inside)
        if self._bytes is None:
            self._bytes = await estimate()
        self.waits, self._refused = True, False
        try:
            self._memory.decide()
            await self._wait(lambda: self.inside or self._refused)
        finally:
            self.waits = False
        if not self.inside:
            raise self._memory.never_fits(self.name, self._bytes)
        self._has_process = True

    def measured(self, info: ModelInfo) -> None:
        """It is loaded, and this is what it took."""
        self._wished, self._since_us = False, _now_us()
        self._bytes = info.memory_bytes or self._bytes
        self._memory.measured(info)

    def left(self, *, restarts: bool) -> None:
        """Its process has ended. If it `restarts` it keeps its place, unless it was to go."""
        self._has_process = False
        if self._place == "leaving" or not restarts:
            self._go()
        self._memory.decide()

    # -- what requests say

    @contextlib.contextmanager
    def asking(self, rank: int) -> Iterator[None]:
        """A request of this rank needs the model for as long as the block lasts."""
        self._asked += 1
        number, now_us = self._asked, _now_us()
        self._asks[number] = Ask(rank, now_us)
        self._use(rank, now_us)
        try:
            yield
        finally:
            del self._asks[number]
            self._use(rank, _now_us())

    def _use(self, rank: int, now_us: int) -> None:
        self._used_us, self._rank = now_us, rank
        self._changed.set()
        self._memory.decide()

    # -- what is decided

    @property
    def model(self) -> Model | None:
        """As it stands; None where nothing can be decided, since it is out and no engine waits."""
        if self._bytes is None or (self._place == "out" and not self.waits):
            return None
        return Model(
            name=self.name,
            bytes=self._bytes,
            place=self._place,
            pinned=self._pinned,
            wished=self._wished,
            since_us=self._since_us,
            used_us=self._used_us,
            rank=self._rank,
            asks=tuple(self._asks.values()),
        )

    def let_in(self) -> None:
        self._place, self._since_us = "in", _now_us()
        self._changed.set()

    def send_away(self) -> None:
        log.info("engine/%s makes room", self.name)
        self._place = "leaving"
        if self._has_process:
            self.leave.set()
        else:
            self._go()

    def refuse(self) -> None:
        self._refused = True
        self._changed.set()

    def decline(self) -> None:
        log.info("engine/%s is not loaded before somebody asks: there is no room", self.name)
        self._wished = False

    def _go(self) -> None:
        self._place, self._since_us = "out", _now_us()
        self.leave.clear()

    async def _wait(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()


class ModelMemory:
    """All models of one daemon. `budget_bytes` of None is what the machine has."""

    def __init__(
        self,
        budget_bytes: int | None,
        *,
        devices: bool,
        available_bytes: Callable[[], int] = memory_available_bytes,
    ) -> None:
        """`devices`: there may be some, whose memory the first loaded engine reports."""
        self._configured = budget_bytes
        self._host_bytes = available_bytes() if budget_bytes is None else 0
        self._device_bytes = 0
        self._known = not devices
        self._residences: dict[str, Residence] = {}
        self._timer: asyncio.TimerHandle | None = None

    def residence(self, name: str, *, pinned: bool = False, wished: bool = False) -> Residence:
        """A place for a model: `pinned` for good, `wished` from the start if there is room."""
        assert name not in self._residences, name
        self._residences[name] = Residence(self, name, pinned=pinned, wished=wished)
        return self._residences[name]

    @property
    def budget_bytes(self) -> int | None:
        """None before it is known."""
        if self._configured is not None:
            return self._configured
        if not self._known:
            return None
        return int(PART_OF_MEMORY * (self._device_bytes or self._host_bytes))

    def measured(self, info: ModelInfo) -> None:
        self._known = True
        self._device_bytes = max(self._device_bytes, info.device_memory_bytes)
        self.decide()

    def never_fits(self, name: str, needed_bytes: int) -> Failure:
        return Failure(
            "inference.unavailable",
            f"The model {name} needs {needed_bytes} bytes, and all models together may take "
            f"{self.budget_bytes}, those included that are pinned.",
            "Give it a smaller `context` or a smaller file, or raise `[inference] memory`.",
            model=name,
            needed=needed_bytes,
            budget=self.budget_bytes,
        )

    def decide(self) -> None:
        """Let in, send away and refuse, until nothing changes any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while any(one.waits for one in self._residences.values()) and self._apply(self._plan()):
            pass

    def _plan(self) -> Plan:
        models = [one.model for one in self._residences.values()]
        now_us = _now_us()
        plan = decide([model for model in models if model], self.budget_bytes, now_us)
        if plan.again_us is not None:
            delay = (plan.again_us - now_us) / 1e6
            self._timer = asyncio.get_running_loop().call_later(delay, self.decide)
        return plan

    def _apply(self, plan: Plan) -> bool:
        """Whether something may follow from it at once."""
        for name in plan.load:
            self._residences[name].let_in()
        for name in plan.unload:
            self._residences[name].send_away()
        for name in plan.refuse:
            self._residences[name].refuse()
        for name in plan.decline:
            self._residences[name].decline()
        return bool(plan.unload)
