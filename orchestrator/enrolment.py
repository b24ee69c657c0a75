"""Agents that are added and retired while the daemon runs.

An agent that is added gets a file in `agents.d` of the state folder, which the daemon loads at each
start beside the configuration. Files there are the daemon's own: no other is ever written. An agent
that stands in a file of the configuration is added again with that very file, and no other, for two
files would contradict each other at the next start.

An agent that is retired receives nothing more from that moment. It finishes what it has, then its
worker is ended, and its own file put away; its memories, its state and all that it did stay. That
it is retired stands in the database, so it stays so, whatever the configuration says, until it is
added again. What waits for somebody else, such as a person's answer, may take longer than whoever
retires it wants to wait: the rest is done without him, and after a restart of the daemon too.

An agent that leaves can still be upgraded and rolled back, for one that does not work finishes
nothing; and to add it again calls it back.
"""

import asyncio
import contextlib
import logging
import tomllib
from collections.abc import Collection, Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from ipc_protocol import control
from ipc_protocol.errors import Failure
from orchestrator import assembly
from orchestrator.bus.attention import AnswerAttention, answer_attention
from orchestrator.bus.registration import AddAgent, RetireAgent, add_agent, retire_agent
from orchestrator.bus.routing import BUS, OPERATOR
from orchestrator.bus.versions import EndVersion, end_version
from orchestrator.components.compiling import Ready
from orchestrator.components.private import write_file
from orchestrator.components.upgrading import Report, Tell, compiling, telling
from orchestrator.components.versions import ComponentVersions, Keeping
from orchestrator.config.added import Added, read_added
from orchestrator.config.loader import agent_files
from orchestrator.config.own import AGENTS_FOLDER, OwnFiles
from orchestrator.config.problems import ConfigErrors
from orchestrator.config.types import Config
from orchestrator.control.views import NOTHING_UNDONE, Undone, Views
from orchestrator.metrics import Metrics
from orchestrator.roster import Roster
from orchestrator.store.reader import Reader
from orchestrator.store.store import Store

log = logging.getLogger(__name__)

T = TypeVar("T")

CHANGES_MAX: Final = 256
"""Ends of deliveries not yet looked at while an agent drains; more of them say the same."""

ENDS: Final = frozenset({"delivery.done", "delivery.parked", "deadletter"})
"""What makes the number of an agent's unfinished deliveries smaller, or of those it waits with."""

LOOK_SECONDS: Final = 1.0
"""Between two looks whether an agent that finishes nothing still works."""

UNABLE: Final = frozenset({"quarantined", "stopped"})
"""States of an agent that only somebody else ends."""


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
        self._own = OwnFiles(config.source, config.daemon.state)
        self._left: asyncio.Queue[str] = asyncio.Queue(maxsize=assembly.WORKERS_MAX)
        self._over: dict[str, asyncio.Event] = {}
        """Of those that leave: they are gone, or called back."""
        self._seen_off: dict[str, asyncio.Task[None]] = {}
        self.withheld: set[str] = set()
        """Agents that are configured and not there, because they were retired."""

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                name = await self._left.get()
                if name in self._over and name not in self._seen_off:
                    seeing_off = tasks.create_task(self._see_off(name), name=f"retiring {name}")
                    self._seen_off[name] = seeing_off

    async def resume(self, withheld: Collection[str]) -> None:
        """Before `run`: those that were retired and have not finished go on with it."""
        for name in withheld:
            undone = await self._views.undone(name)
            if undone.pending + undone.waiting:
                self._roster.add(self._config.agents[name])
                self._leave(name)
                continue
            await self._put_away(name)
            if name in self.withheld:
                log.warning(
                    "agent %s is configured, and stays away because it was retired; "
                    "`agentd ctl agents add` brings it back",
                    name,
                )

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
                file = await _whole(self._join(added, configured))
        log.info("agent %s was added", name)
        return control.AgentAdded(
            agent=name, file=str(file), warnings=[str(each) for each in added.warnings]
        )

    async def _join(self, added: Added, configured: Path | None) -> Path:
        """It is there from now on. Returns its file."""
        name = added.agent.name
        leaving = self._roster.is_leaving(name)
        file = configured
        if file is None:
            file = self._own.path(name)
            await asyncio.to_thread(_write, file, added.text)
        try:
            joining = AddAgent(agent=assembly.registration(added.agent), by=OPERATOR)
            await self._store.apply(add_agent, BUS, joining)
        except Failure:
            if configured is None and not leaving:
                await asyncio.to_thread(file.unlink, missing_ok=True)
            raise
        if leaving:
            await self._call_back(name)
        self._roster.add(added.agent)
        self.withheld.discard(name)
        await asyncio.to_thread(self._own.is_back, name)
        return file

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
        if name in self._roster and not self._roster.is_leaving(name):
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

    # -- going

    async def retire(self, name: str, report: Report) -> control.AgentRetired:
        """Let an agent finish and go. Returns when it is gone, or waits for somebody else.

        Who hangs up before that changes nothing any more. Raises `agent.unknown`, and
        `agent.unfinished` where it does not work, or is called back.
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
        own, over = self._own.find(name), self._over[name]
        async with telling(report) as tell:
            undone = await self._drained(name, tell)
            if not undone.waiting:
                await over.wait()
        if name in self._roster and not self._roster.is_leaving(name):
            raise Failure("agent.unfinished", f"{name} was added again before it had finished.")
        return control.AgentRetired(
            agent=name, parked=undone.waiting, removed_file=None if own is None else str(own)
        )

    def _leave(self, name: str) -> None:
        self._over[name] = asyncio.Event()
        self._roster.leave(name)
        self._left.put_nowait(name)

    async def _drained(self, name: str, tell: Tell) -> Undone:
        """Wait until an agent has nothing to do. Raises `agent.unfinished`."""
        over = self._over[name]
        with self._store.changes.subscribe(ENDS, CHANGES_MAX) as changes:
            await self._store.settle()
            while True:
                undone = await self._views.undone(name)
                if not undone.pending or over.is_set():
                    return undone
                tell(control.AgentChange(stage="drain", detail=f"{undone.pending} to finish"))
                try:
                    async with asyncio.timeout(LOOK_SECONDS):
                        await anext(changes)
                except TimeoutError:
                    await self._require_able(name, undone)

    async def _require_able(self, name: str, undone: Undone) -> None:
        driver = self._roster.get(name)
        if driver is None or driver.state not in UNABLE:
            return
        why = f"it is {driver.state}." if driver.problem is None else driver.problem.message
        question = await self._views.open_quarantine(name)
        repairs = [
            f"`agentd ctl attention answer {question} yes` starts it again" if question else "",
            f"`agentd ctl agents upgrade {name} FILE` repairs it" if driver.versions else "",
            "`agentd ctl agents add FILE` with its file calls it back",
        ]
        raise Failure(
            "agent.unfinished",
            f"{name} is retired, and cannot finish what it has ({undone.pending} deliveries): "
            f"{why}",
            f"{'; '.join(filter(None, repairs))}.",
            agent=name,
            pending=undone.pending,
            attention=question,
        )

    async def _nothing_left(self, name: str) -> None:
        """Wait until an agent has nothing to do, nor anything that may become work."""
        with self._store.changes.subscribe(ENDS, CHANGES_MAX) as changes:
            await self._store.settle()
            while (await self._views.undone(name)) != NOTHING_UNDONE:
                await anext(changes)

    async def _see_off(self, name: str) -> None:
        """From its last message to its end."""
        await self._nothing_left(name)
        await self._roster.wait_unchanged(name)
        with self._roster.changing(name):
            await self._roster.remove(name)
            await self._put_away(name)
        self._metrics.agent_gone(name)
        del self._seen_off[name]
        self._over.pop(name).set()
        log.info("agent %s has finished, and is retired", name)

    async def _call_back(self, name: str) -> None:
        """End its retirement. Whoever changes it sees to it that it is not gone meanwhile."""
        seeing_off = self._seen_off.pop(name, None)
        if seeing_off is not None:
            seeing_off.cancel()
            await asyncio.gather(seeing_off, return_exceptions=True)
        await self._roster.remove(name)
        await self._answer_quarantine(name, "Yes, for it was added again.")
        self._over.pop(name).set()

    async def _put_away(self, name: str) -> None:
        """What is left of an agent that has finished. As often as the daemon is killed over it."""
        await self._answer_quarantine(name, "No, for it was retired.")
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
        if self._own.find(name) is not None:
            await asyncio.to_thread(self._own.retire, name)
        elif name in self._config.agents or self._configured_in(name) is not None:
            self.withheld.add(name)

    async def _answer_quarantine(self, name: str, text: str) -> None:
        """Who was asked whether to start it again need not answer any more."""
        question = await self._views.open_quarantine(name)
        if question is not None:
            answer = AnswerAttention(attention=question, text=text)
            await self._store.apply_when_room(answer_attention, OPERATOR, answer)


async def _whole(doing: Coroutine[Any, Any, T]) -> T:
    """Do it to its end, even if whoever asked hangs up meanwhile."""
    task = asyncio.create_task(doing)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(mode=0o700, exist_ok=True)
    write_file(file, text.encode())


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
