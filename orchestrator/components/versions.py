"""The component of one agent: which version is its own, and all that it takes to run it.

Which one it is at the start: that of the configured file, if its content is not that of the last
version which came from the configuration, for then somebody has changed the file; else the version
that was active when the daemon stopped, so that an upgrade outlives a restart. If that one was on
probation, its probation begins anew with the usual terms: the version before it stays at hand for
as long as the new one has not shown that it works.

A configured file that is gone, or that cannot be run, takes nothing away that works: the active
version goes on, and whoever operates the daemon hears why. Such a file is written down as refused,
and tried again at the next start, since what it lacked may stand in the configuration around it;
but not over a version that was chosen after it.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Final, Literal

import msgspec

from ipc_protocol.components import ComponentInfo
from ipc_protocol.errors import Failure
from ipc_protocol.work import ComponentStart
from orchestrator.bus.observations import HealthEvent, report_health
from orchestrator.bus.routing import BUS
from orchestrator.bus.versions import (
    ActivateVersion,
    EndVersion,
    InstallVersion,
    SettleVersion,
    Source,
    Version,
    activate_version,
    active_version,
    end_version,
    install_version,
    settle_version,
    versions_of,
)
from orchestrator.components import granting
from orchestrator.components.cache import NativeCache
from orchestrator.components.compiling import Compiler, Progress, Ready
from orchestrator.components.files import SHA256, ComponentFile, ComponentFiles
from orchestrator.components.probation import Terms
from orchestrator.components.starting import component_start
from orchestrator.config.types import AgentConfig
from orchestrator.store.reader import Reader
from orchestrator.store.store import Store
from orchestrator.store.transaction import Transaction

log = logging.getLogger(__name__)

COMPONENTS_KEPT_MAX: Final = 10
"""Of each agent, the newest that it ran: to them it can be rolled back. With a whole Python in each
that is 180 MB."""

UNUSABLE: Final = frozenset(
    {
        "component.malformed",
        "component.feature",
        "component.world",
        "component.version",
        "component.import",
        "component.grant",
        "component.strict-imports",
        "component.compile",
        "component.unknown",
    }
)
"""What is wrong with a component itself. To try it again would find the same."""

OnProgress = Callable[[Progress], None]


class Keeping(msgspec.Struct, frozen=True):
    """Where the components of all agents are kept, and compiled."""

    files: ComponentFiles
    cache: NativeCache
    compiler: Compiler


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """Why and how a version takes over, and what that says of the one before it."""

    source: Source
    by: str
    terms: Terms | None = None
    """Of its probation; without them it is trusted."""
    ends: Literal["retired", "rolled-back"] = "retired"
    reason: str = ""


class _TakeOver(msgspec.Struct, frozen=True):
    install: InstallVersion
    probation: bool
    change: Change


class _Refuse(msgspec.Struct, frozen=True):
    install: InstallVersion
    reason: str


class ComponentVersions:
    """The versions of one agent's component."""

    def __init__(self, agent: AgentConfig, keeping: Keeping, store: Store, reader: Reader) -> None:
        assert agent.component is not None
        self._agent = agent
        self._path = agent.component
        self._files = keeping.files
        self._compiler = keeping.compiler
        self._store = store
        self._reader = reader
        self._known: dict[str, ComponentInfo] = {}
        """What is known of the components that were made ready."""

    async def history(self) -> list[Version]:
        """All versions, the oldest first."""
        return await self._reader.view(versions_of, self._agent.name)

    # -- making ready

    async def ready(self, sha256: str, on_progress: OnProgress | None = None) -> Ready:
        """Hold the native code of a component that this agent may run. Raises `component.*`."""
        return await self._ready(await self._file(sha256), on_progress)

    def start(self, sha256: str) -> ComponentStart:
        """How it is run."""
        known = self._known.get(sha256)
        return component_start(self._agent, sha256, b"" if known is None else known.shape.types)

    async def _file(self, sha256: str) -> ComponentFile:
        file = await asyncio.to_thread(self._files.find, sha256)
        if file is None:
            raise Failure(
                "component.unknown",
                f"The component {sha256} of {self._agent.name} is not kept here any more.",
                f"Upload it with `agentd ctl agents upgrade {self._agent.name} FILE`.",
                sha256=sha256,
            )
        return file

    async def _ready(self, file: ComponentFile, on_progress: OnProgress | None) -> Ready:
        agent = self._agent
        ready = await self._compiler.ensure(file, on_progress)
        with contextlib.ExitStack() as unless_allowed:
            unless_allowed.callback(ready.close)
            granting.require(
                ready.info.shape,
                agent.name,
                agent.imports,
                strict_imports=agent.strict_imports,
                preopen_scratch=agent.preopen_scratch,
            )
            self._known[file.sha256] = ready.info
            unless_allowed.pop_all()
        return ready

    # -- which version it is

    async def opening(self, on_progress: OnProgress) -> tuple[Version, Version | None]:
        """The version to begin with, and while it is on probation the one before it.

        Raises `component.*`.
        """
        history, file = await self.history(), None
        active = active_of(history)
        try:
            file = await asyncio.to_thread(self._configured)
            if active is None or _is_changed(file.sha256, history, active):
                ready = await self._ready(file, on_progress)
                ready.close()
                return await self.take_over(file.sha256, Change(source="configuration", by=BUS))
        except Failure as failure:
            if active is None or failure.code not in UNUSABLE:
                raise
            await self._go_on_without(file, failure, history, active)
        if not active.on_probation:
            return active, None
        before = last_good(history, active.number)
        if before is None:
            await self.settle(active)
        return active, before

    def _configured(self) -> ComponentFile:
        """The file that the configuration names, kept. Blocks. Raises `component.*`.

        One of the daemon's own, of an agent that was added, is named by its content, and has to
        have it: a damaged one is no other version, but missing.
        """
        name = self._path.stem
        kept = self._files.find(name) if SHA256.fullmatch(name) else None
        if kept is None or kept.path.resolve() != self._path.resolve():
            return self._files.add(self._path)
        self._files.open(name).close()
        return kept

    async def _go_on_without(
        self,
        file: ComponentFile | None,
        failure: Failure,
        history: Sequence[Version],
        active: Version,
    ) -> None:
        """Say that the configured file cannot be had, and keep it in mind."""
        agent = self._agent.name
        detail = f"{agent} goes on with version {active.number}. What its file is now: {failure}"
        log.warning("%s", detail)
        known = _configured_of(history)[-1:]
        if file is not None and [each.sha256 for each in known] != [file.sha256]:
            change = Change(source="configuration", by=BUS)
            await self.refuse(file.sha256, change, failure.problem.message)
        event = HealthEvent(
            kind="component", detail=detail, agent=agent, data={"code": failure.code}
        )
        await self._store.apply_when_room(report_health, BUS, event)

    # -- writing it down

    async def take_over(self, sha256: str, change: Change) -> tuple[Version, Version | None]:
        """Write down a new version, which has the messages from then on; and while it is on
        probation the one before it."""
        before = None if change.terms is None else last_good(await self.history())
        arguments = _TakeOver(
            install=await self._install(sha256, change),
            probation=before is not None,
            change=change,
        )
        return await self._store.apply_when_room(_take_over, BUS, arguments), before

    async def refuse(self, sha256: str, change: Change, reason: str) -> None:
        """Write down a version that could not take over."""
        arguments = _Refuse(install=await self._install(sha256, change), reason=reason)
        await self._store.apply_when_room(_refuse, BUS, arguments)

    async def settle(self, version: Version) -> None:
        """It is not on probation any more."""
        settled = SettleVersion(agent=version.agent, number=version.number)
        await self._store.apply_when_room(settle_version, BUS, settled)

    async def _install(self, sha256: str, change: Change) -> InstallVersion:
        info = self._known.get(sha256)
        if info is not None:
            size_bytes, world = info.size_bytes, info.shape.world
        else:  # it was known before this daemon was started, or is nothing that could be known
            known = [each for each in await self.history() if each.sha256 == sha256]
            world = known[-1].world if known else ""
            size_bytes = known[-1].size_bytes if known else (await self._file(sha256)).size_bytes
        return InstallVersion(
            agent=self._agent.name,
            sha256=sha256,
            size_bytes=size_bytes,
            world=world,
            source=change.source,
            by=change.by,
        )


def _take_over(tx: Transaction, arguments: _TakeOver) -> Version:
    """Reducer: install and activate at once, so that no crash leaves a candidate behind."""
    change, agent = arguments.change, arguments.install.agent
    number = install_version(tx, arguments.install)
    activate_version(
        tx,
        ActivateVersion(
            agent=agent,
            number=number,
            by=change.by,
            probation=arguments.probation,
            ends=change.ends,
            reason=change.reason,
        ),
    )
    active = active_version(tx, agent)
    assert active is not None
    return active


def _refuse(tx: Transaction, arguments: _Refuse) -> None:
    """Reducer: write down what was tried."""
    install = arguments.install
    number = install_version(tx, install)
    end = EndVersion(
        agent=install.agent,
        number=number,
        state="refused",
        reason=arguments.reason,
        by=install.by,
    )
    end_version(tx, end)


def active_of(history: Sequence[Version]) -> Version | None:
    """The version that has the messages."""
    return next((each for each in history if each.state == "active"), None)


def _configured_of(history: Sequence[Version]) -> list[Version]:
    return [each for each in history if each.source == "configuration"]


def _is_changed(sha256: str, history: Sequence[Version], active: Version) -> bool:
    """Whether the configured file is neither the last that was taken, nor one that was refused
    since then and before the active version came."""
    configured = _configured_of(history)
    taken = max((each.number for each in configured if each.activated_us is not None), default=0)
    known = [each for each in configured if taken <= each.number <= active.number]
    return sha256 not in {each.sha256 for each in known}


def last_good(history: Sequence[Version], before: int | None = None) -> Version | None:
    """The newest version whose probation was over; if that is said, with a number below."""
    good = [
        each
        for each in history
        if each.settled_us is not None and (before is None or each.number < before)
    ]
    return good[-1] if good else None


def in_use(history: Sequence[Version]) -> set[str]:
    """The components, of all agents, that are run or can be gone back to.

    What was never run takes no place from what was.
    """
    worked: dict[str, list[Version]] = {}
    for version in history:
        if version.activated_us is not None:
            worked.setdefault(version.agent, []).append(version)
    return {sha256 for each in worked.values() for sha256 in _in_use_by_one(each)}


def _in_use_by_one(worked: Sequence[Version]) -> list[str]:
    """The active one is the newest that worked, or there is none. While it is on probation, the
    last good one may be older than all that are kept for their age."""
    newest = list(dict.fromkeys(each.sha256 for each in reversed(worked)))
    good = last_good(worked)
    return newest[:COMPONENTS_KEPT_MAX] + ([] if good is None else [good.sha256])
