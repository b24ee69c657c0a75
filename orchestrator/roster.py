"""The agents there are, each with its driver, and the tasks that run them. They come and go.

A mapping from names to drivers, in the order in which they came. Whoever has to know who there is
(what messages are compared with, what a model is asked about) is told at each change.
"""

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from ipc_protocol.errors import Failure
from orchestrator.assembly import WORKERS_MAX
from orchestrator.config.types import AgentConfig
from orchestrator.driver import Driver

MakeDriver = Callable[[AgentConfig, int], Driver]
"""With a number that no other agent has meanwhile."""

Know = Callable[[Mapping[str, AgentConfig]], None]


class Roster(Mapping[str, Driver]):
    """Who there is. `run` runs them all."""

    def __init__(
        self, make: MakeDriver, know: Sequence[Know], agents: Iterable[AgentConfig]
    ) -> None:
        self._make = make
        self._know = know
        self._drivers: dict[str, Driver] = {}
        self._numbers: dict[str, int] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._leaving: set[str] = set()
        self._changing: dict[str, asyncio.Event] = {}
        """Set when the change is over."""
        self._tasks: asyncio.TaskGroup | None = None
        for agent in agents:
            self._place(agent)
        self._tell()

    def __getitem__(self, name: str) -> Driver:
        return self._drivers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._drivers))

    def __len__(self) -> int:
        return len(self._drivers)

    @property
    def agents(self) -> dict[str, AgentConfig]:
        """Those that take part: not those that only finish what they have."""
        return {
            name: driver.config
            for name, driver in self._drivers.items()
            if name not in self._leaving
        }

    async def run(self) -> None:
        """Run all of them until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            for name in self:
                self._start(name)
            await asyncio.Event().wait()

    @contextlib.contextmanager
    def changing(self, name: str) -> Iterator[None]:
        """One change of an agent at a time. Raises `component.busy`."""
        if name in self._changing:
            raise Failure(
                "component.busy",
                f"{name} is being changed already.",
                "Try again when that is over.",
                agent=name,
            )
        over = self._changing[name] = asyncio.Event()
        try:
            yield
        finally:
            del self._changing[name]
            over.set()

    async def wait_unchanged(self, name: str) -> None:
        """Until nobody changes it."""
        while name in self._changing:
            await self._changing[name].wait()

    def add(self, agent: AgentConfig) -> Driver:
        """One more, which is run as soon as the others are. Raises `request.invalid`."""
        driver = self._place(agent)
        self._tell()
        if self._tasks is not None:
            self._start(agent.name)
        return driver

    def candidate(self, agent: AgentConfig) -> Driver:
        """The driver of an agent that is not there yet, to find out whether it starts."""
        return self._make(agent, self._free_number())

    def _place(self, agent: AgentConfig) -> Driver:
        assert agent.name not in self._drivers
        number = self._free_number()
        driver = self._drivers[agent.name] = self._make(agent, number)
        self._numbers[agent.name] = number
        return driver

    def _free_number(self) -> int:
        taken = set(self._numbers.values())
        number = next(each for each in itertools.count() if each not in taken)
        if number >= WORKERS_MAX:
            raise Failure(
                "request.invalid",
                f"There are {WORKERS_MAX} agents, and no more than that.",
                "Retire some.",
            )
        return number

    def leave(self, name: str) -> None:
        """It only finishes what it has."""
        self._leaving.add(name)
        self._drivers[name].leaving = True
        self._tell()

    async def remove(self, name: str) -> None:
        """End its worker, and forget it."""
        running = self._running.pop(name, None)
        if running is not None:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        del self._drivers[name], self._numbers[name]
        self._leaving.discard(name)
        self._tell()

    def is_leaving(self, name: str) -> bool:
        return name in self._leaving

    def _start(self, name: str) -> None:
        assert self._tasks is not None
        running = self._tasks.create_task(self._drivers[name].run(), name=f"agent {name}")
        self._running[name] = running

    def _tell(self) -> None:
        agents = self.agents
        for know in self._know:
            know(agents)
