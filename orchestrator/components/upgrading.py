"""What operators do with the versions of an agent: upload one, let it take over, go back, look.

It checks and compiles before anything else, and what it tells is for people to watch. The handover
itself is the driver's, and so is the probation after it: whoever has asked for an upgrade may hang
up once it has taken over.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final

from ipc_protocol import control
from ipc_protocol.errors import Failure
from orchestrator.bus.attention import AnswerAttention, answer_attention
from orchestrator.bus.routing import OPERATOR
from orchestrator.bus.versions import Version
from orchestrator.components import limits
from orchestrator.components.compiling import Progress
from orchestrator.components.files import ComponentFiles
from orchestrator.components.probation import Terms
from orchestrator.components.versions import Change, ComponentVersions, active_of, last_good
from orchestrator.control.views import Views
from orchestrator.driver import Driver
from orchestrator.roster import Roster
from orchestrator.store.store import Store

Report = Callable[[control.AgentChange], Awaitable[None]]
Tell = Callable[[control.AgentChange], None]

ROLLED_BACK: Final = "It was rolled back by the operator."


class Upgrading:
    """Serves the changes of one daemon's agents."""

    def __init__(self, roster: Roster, files: ComponentFiles, store: Store, views: Views) -> None:
        self._roster = roster
        self._files = files
        self._store = store
        self._views = views

    async def receive(self, piece: control.ComponentPiece) -> control.ComponentReceived:
        """Take in a piece of a component. Raises what `ComponentFiles.append` raises."""
        if len(piece.data) > limits.PIECE_BYTES:
            raise Failure(
                "request.invalid",
                f"A piece of {len(piece.data)} bytes is over the limit of {limits.PIECE_BYTES}.",
                "Upload smaller pieces.",
            )
        uploaded = await asyncio.to_thread(
            self._files.append, piece.sha256, piece.offset, piece.data, piece.total_bytes
        )
        return control.ComponentReceived(
            received_bytes=uploaded.received_bytes, complete=uploaded.file is not None
        )

    async def history(self, name: str) -> control.AgentVersions:
        """All versions of an agent, also of one that is not there any more, the newest first.

        Raises `agent.unknown`, and `component.unknown` for one that never had a component.
        """
        driver = self._roster.get(name)
        history = await self._views.versions(name)
        if not history:
            self._component_of(name)
        return control.AgentVersions(
            agent=name,
            versions=[as_told(each) for each in reversed(history)],
            probation=None if driver is None else driver.probation,
        )

    async def upgrade(self, asked: control.UpgradeAgent, report: Report) -> control.AgentUpgraded:
        """Let an uploaded component take over. Returns when it has."""
        try:
            terms = Terms(messages=asked.messages, us=asked.us)
        except ValueError as error:
            raise Failure("request.invalid", f"{error}.".capitalize(), "Ask for less.") from error
        driver, versions = self._component_of(asked.agent)
        with self._roster.changing(asked.agent):
            _require_another(driver, asked.sha256, active_of(await versions.history()))
            change = Change(source="upgrade", by=OPERATOR, terms=terms)
            return await self._change(driver, versions, asked.sha256, change, report)

    async def rollback(self, asked: control.RollBackAgent, report: Report) -> control.AgentUpgraded:
        """Let the component of an earlier version take over again, without probation."""
        driver, versions = self._component_of(asked.agent)
        with self._roster.changing(asked.agent):
            history = await versions.history()
            active = active_of(history)
            target = _named(history, asked) if asked.to is not None else _before(history, active)
            if target is None:
                which = "before this one" if asked.to is None else str(asked.to)
                raise Failure(
                    "component.unknown",
                    f"{asked.agent} has no version {which}.",
                    f"`agentd ctl agents history {asked.agent}` lists those it has.",
                )
            _require_another(driver, target.sha256, active)
            change = Change(source="rollback", by=OPERATOR, ends="rolled-back", reason=ROLLED_BACK)
            return await self._change(driver, versions, target.sha256, change, report)

    # -- within

    async def _change(
        self,
        driver: Driver,
        versions: ComponentVersions,
        sha256: str,
        change: Change,
        report: Report,
    ) -> control.AgentUpgraded:
        async with telling(report) as tell:
            tell(control.AgentChange(stage="check", detail=sha256))
            ready = await versions.ready(sha256, lambda progress: tell(compiling(progress)))
            with contextlib.closing(ready):
                tell(control.AgentChange(stage="start", detail=ready.info.shape.world))
                version = await self._hand_over(driver, versions, sha256, change, tell)
        await self._answer_quarantine(driver.name, version)
        worked = [each for each in await versions.history() if each.activated_us is not None]
        told = [as_told(each) for each in worked if each.number <= version.number]
        return control.AgentUpgraded(
            agent=driver.name,
            version=told[-1],
            before=told[-2] if len(told) > 1 else None,
            probation=driver.probation if driver.version == version else None,
        )

    async def _hand_over(
        self,
        driver: Driver,
        versions: ComponentVersions,
        sha256: str,
        change: Change,
        tell: Tell,
    ) -> Version:
        waiting = control.AgentChange(stage="hand-over", detail="between two messages")
        try:
            return await driver.succeed(sha256, change, lambda: tell(waiting))
        except Failure as failure:
            await versions.refuse(sha256, change, failure.problem.message)
            raise

    async def _answer_quarantine(self, name: str, version: Version) -> None:
        """Who was asked whether to start it again need not answer any more."""
        question = await self._views.open_quarantine(name)
        if question is not None:
            answer = AnswerAttention(
                attention=question, text=f"Yes, with version {version.number}."
            )
            await self._store.apply(answer_attention, OPERATOR, answer)

    def _component_of(self, name: str) -> tuple[Driver, ComponentVersions]:
        driver = self._driver(name)
        if driver.versions is None:
            raise _without_component(name)
        return driver, driver.versions

    def _driver(self, name: str) -> Driver:
        if name not in self._roster:
            raise Failure(
                "agent.unknown",
                f"There is no agent {name!r}.",
                f"There are {', '.join(self._roster)}." if self._roster else "",
            )
        return self._roster[name]


@contextlib.asynccontextmanager
async def telling(report: Report) -> AsyncIterator[Tell]:
    """Tell the newest of what happens to somebody who may be slow to listen."""
    told: asyncio.Queue[control.AgentChange] = asyncio.Queue(maxsize=1)

    def tell(change: control.AgentChange) -> None:
        if told.full():
            told.get_nowait()
        told.put_nowait(change)

    async def send() -> None:
        while True:
            await report(await told.get())

    sending = asyncio.create_task(send())
    try:
        yield tell
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


def as_told(version: Version) -> control.AgentVersion:
    return control.AgentVersion(
        number=version.number,
        sha256=version.sha256,
        size_bytes=version.size_bytes,
        world=version.world,
        source=version.source,
        state=version.state,
        installed_by=version.installed_by,
        installed_us=version.installed_us,
        activated_us=version.activated_us,
        settled_us=version.settled_us,
        ended_us=version.ended_us,
        reason=version.reason or "",
    )


def compiling(progress: Progress) -> control.AgentChange:
    if not progress.expected_s:
        return control.AgentChange(stage="compile", detail="waiting for a compiler", done=0.0)
    return control.AgentChange(
        stage="compile",
        detail=f"{progress.elapsed_s:.0f} s of about {progress.expected_s:.0f} s",
        done=min(0.99, progress.elapsed_s / progress.expected_s),
    )


def _before(history: Sequence[Version], active: Version | None) -> Version | None:
    """The newest good version with another component than the active one."""
    if active is None:
        return None
    others = [each for each in history if each.sha256 != active.sha256]
    return last_good(others, active.number)


def _named(history: Sequence[Version], asked: control.RollBackAgent) -> Version | None:
    return next((each for each in history if each.number == asked.to), None)


def _require_another(driver: Driver, sha256: str, active: Version | None) -> None:
    """A component that cannot be run as it is may well be the cure: uploaded anew, it is whole."""
    if active is not None and active.sha256 == sha256 and driver.problem is None:
        raise Failure(
            "request.invalid",
            f"{driver.name} runs that component already, as version {active.number}.",
            "Name another one.",
        )


def _without_component(name: str) -> Failure:
    return Failure(
        "component.unknown",
        f"{name} has no component: it thinks with its model.",
        f'Write `component = "FILE.wasm"` in `[agent.{name}]`, and start agentd again.',
    )
