"""Agents that are added and retired while the daemon runs.

An agent that is added gets a file in `agents.d` of the state folder, which the daemon loads at each
start beside the configuration. Files there are the daemon's own: no other is ever written. An agent
that stands in a file of the configuration is added again with that very file, and no other, for two
files would contradict each other at the next start.

An agent that is retired receives nothing more from that moment. It finishes what it has, then its
worker is ended, and its own file removed; its memories, its state and all that it did stay. That
it is retired stands in the database, so it stays so, whatever the configuration says, until it is
added again. What waits for somebody else, such as a person's answer, may take longer than whoever
retires it wants to wait: the rest is done without him, and after a restart of the daemon too.
"""

import asyncio
import contextlib
import logging
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Final

import msgspec

from ipc_protocol import control
from ipc_protocol.errors import Failure
from orchestrator import assembly
from orchestrator.bus.registration import AddAgent, RetireAgent, add_agent, retire_agent
from orchestrator.bus.routing import BUS, OPERATOR
from orchestrator.bus.versions import EndVersion, end_version
from orchestrator.components.compiling import Ready
from orchestrator.components.private import write_file
from orchestrator.components.upgrading import Report, Tell, compiling, telling
from orchestrator.components.versions import ComponentVersions, Keeping
from orchestrator.config.added import Added, read_added
from orchestrator.config.loader import AGENTS_FOLDER, agent_files
from orchestrator.config.problems import ConfigErrors
from orchestrator.config.types import Config
from orchestrator.control.views import Undone, Views
from orchestrator.metrics import Metrics
from orchestrator.roster import Roster
from orchestrator.store.reader import Reader
from orchestrator.store.store import Store

log = logging.getLogger(__name__)

CHANGES_MAX: Final = 256
"""Ends of deliveries not yet looked at while an agent drains; more of them say the same."""

ENDS: Final = frozenset({"delivery.done", "delivery.parked", "deadletter"})
"""What makes the number of an agent's unfinished deliveries smaller, or of those it waits with."""


class Enrolment:
    """Lets agents come and go. `run` sees to those that leave."""

    def __init__(
        self,
        config: Config,
        roster: Roster,
        keeping: Keeping,
        *,
        store: Store,
        reader: Reader,
        views: Views,
        metrics: Metrics,
    ) -> None:
        self._config = config
        self._roster = roster
        self._keeping = keeping
        self._store = store
        self._reader = reader
        self._views = views
        self._metrics = metrics
        self._folder = config.daemon.state / AGENTS_FOLDER
        self._left: asyncio.Queue[str] = asyncio.Queue(maxsize=assembly.WORKERS_MAX)
        self._gone: dict[str, asyncio.Event] = {}
        """Of those that leave: they are not there any more."""

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                name = await self._left.get()
                tasks.create_task(self._see_off(name), name=f"retiring {name}")

    async def resume(self, withheld: Collection[str]) -> None:
        """Before `run`: those that were retired and have not finished go on with it."""
        for name in withheld:
            undone = await self._views.undone(name)
            if undone.pending + undone.waiting:
                self._roster.add(self._config.agents[name])
                self._leave(name)

    # -- coming

    async def add(self, asked: control.AddAgent, report: Report) -> control.AgentAdded:
        """Raises `request.invalid`, with all that is wrong with the file, and `component.*`."""
        components, hashes = await self._uploaded(asked)
        added = self._read(asked, components)
        name = added.agent.name
        with self._roster.changing(name), contextlib.ExitStack() as stack:
            self._require_new(name)
            configured = await asyncio.to_thread(self._configured_in, name)
            _require_same(name, configured, Path(asked.file))
            async with telling(report) as tell:
                tell(control.AgentChange(stage="check", detail=name))
                if added.agent.component is not None:
                    sha256 = hashes[added.agent.component]
                    stack.enter_context(contextlib.closing(await self._ready(added, sha256, tell)))
                    tell(control.AgentChange(stage="start", detail=name))
                    await self._roster.candidate(added.agent).rehearse(sha256)
                file = configured
                if file is None:
                    file = self._folder / f"{name}.toml"
                    await asyncio.to_thread(self._write, file, added.text)
                try:
                    joining = AddAgent(agent=assembly.registration(added.agent), by=OPERATOR)
                    await self._store.apply(add_agent, BUS, joining)
                except Failure:
                    if configured is None:
                        await asyncio.to_thread(file.unlink, missing_ok=True)
                    raise
                self._roster.add(added.agent)
        log.info("agent %s was added", name)
        return control.AgentAdded(
            agent=name, file=str(file), warnings=[str(each) for each in added.warnings]
        )

    async def _uploaded(self, asked: control.AddAgent) -> tuple[dict[str, Path], dict[Path, str]]:
        """Where the components lie that came along, by their names, and what they are."""
        paths, hashes = {}, {}
        for named, sha256 in asked.components.items():
            file = await asyncio.to_thread(self._keeping.files.find, sha256)
            if file is None:
                raise Failure(
                    "component.unknown",
                    f"The component {named} was not uploaded.",
                    "Upload it first, in pieces.",
                    sha256=sha256,
                )
            paths[named] = file.path
            hashes[file.path] = sha256
        return paths, hashes

    def _read(self, asked: control.AddAgent, components: dict[str, Path]) -> Added:
        agents = self._roster.agents
        conductor = next((name for name, each in agents.items() if each.role == "conductor"), None)
        conversation = msgspec.structs.replace(self._config.conversation, conductor=conductor)
        now = msgspec.structs.replace(self._config, agents=agents, conversation=conversation)
        try:
            added = read_added(now, Path(asked.file), asked.text, asked.contents, components)
        except ConfigErrors as errors:
            raise _wrong(errors) from errors
        return added

    def _require_new(self, name: str) -> None:
        if name in self._roster:
            raise Failure(
                "request.invalid",
                f"There is an agent {name} already.",
                f"`agentd ctl agents retire {name}` first, or choose another name.",
            )

    async def _ready(self, added: Added, sha256: str, tell: Tell) -> Ready:
        versions = ComponentVersions(added.agent, self._keeping, self._store, self._reader)
        return await versions.ready(sha256, lambda progress: tell(compiling(progress)))

    def _configured_in(self, name: str) -> Path | None:
        """The file of the configuration, which somebody else writes, that has an agent."""
        main = self._config.source
        for file in (main, *agent_files(main.parent / AGENTS_FOLDER)):
            try:
                agents = tomllib.loads(file.read_text("utf-8")).get("agent", {})
            except (OSError, ValueError):
                continue  # it was fine when the daemon started, and is not what is asked about
            if isinstance(agents, dict) and name in agents:
                return file
        return None

    def _write(self, file: Path, text: str) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        write_file(file, text.encode())

    # -- going

    async def retire(self, name: str, report: Report) -> control.AgentRetired:
        """Let an agent finish and go. Returns when it is gone, or waits for somebody else.

        Who hangs up before that changes nothing any more. Raises `agent.unknown`.
        """
        if name not in self._roster:
            raise Failure(
                "agent.unknown", f"There is no agent {name!r}.", "See `agentd ctl agents`."
            )
        if not self._roster.is_leaving(name):
            with self._roster.changing(name):
                retiring = RetireAgent(name=name, by=OPERATOR)
                await self._store.apply(retire_agent, BUS, retiring)
                self._leave(name)
        own = self._own_file(name)
        async with telling(report) as tell:
            undone = await self._drained(name, tell)
            if not undone.waiting and name in self._gone:
                await self._gone[name].wait()
        return control.AgentRetired(
            agent=name, parked=undone.waiting, removed_file=None if own is None else str(own)
        )

    def _leave(self, name: str) -> None:
        self._gone[name] = asyncio.Event()
        self._roster.leave(name)
        self._left.put_nowait(name)

    async def _drained(
        self, name: str, tell: Tell | None = None, *, wholly: bool = False
    ) -> Undone:
        """Wait until an agent has nothing to do; `wholly`: nor anything that may become work."""
        with self._store.changes.subscribe(ENDS, CHANGES_MAX) as changes:
            while True:
                undone = await self._views.undone(name)
                if not undone.pending and not (wholly and undone.waiting):
                    return undone
                if tell is not None:
                    left = f"{undone.pending} to finish"
                    tell(control.AgentChange(stage="drain", detail=left))
                await anext(changes)

    async def _see_off(self, name: str) -> None:
        """From its last message to its end."""
        await self._drained(name, wholly=True)
        await self._roster.remove(name)
        active = next(
            (each for each in await self._views.versions(name) if each.state == "active"), None
        )
        if active is not None:
            end = EndVersion(
                agent=name,
                number=active.number,
                state="retired",
                reason="The agent was retired.",
                by=OPERATOR,
            )
            await self._store.apply_when_room(end_version, BUS, end)
        own = self._own_file(name)
        if own is not None:
            await asyncio.to_thread(own.unlink, missing_ok=True)
        self._metrics.agent_gone(name)
        self._gone.pop(name).set()
        log.info("agent %s has finished, and is retired", name)

    def _own_file(self, name: str) -> Path | None:
        """The daemon's own file of an agent, if it has one."""
        file = self._folder / f"{name}.toml"
        return file if file.exists() else None


def _require_same(name: str, configured: Path | None, file: Path) -> None:
    if configured is not None and configured.absolute() != file.absolute():
        raise Failure(
            "request.invalid",
            f"{name} stands in {configured}, and would stand in two files.",
            f"Change it there, and `agentd ctl agents add {configured}`.",
        )


def _wrong(errors: ConfigErrors) -> Failure:
    count = len(errors.problems)
    head = "1 mistake" if count == 1 else f"{count} mistakes"
    listed = "\n".join(f"  {problem}" for problem in errors.problems)
    problems = [msgspec.to_builtins(problem, enc_hook=str) for problem in errors.problems]
    return Failure(
        "request.invalid",
        f"the file has {head}, and no agent was added.\n{listed}",
        problems=problems,
    )
