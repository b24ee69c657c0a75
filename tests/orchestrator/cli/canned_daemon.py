"""A daemon that gives canned answers over the real protocol, on a real socket, in a thread."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ipc_protocol import control, inference, methods, work
from ipc_protocol.aio import Call, Connection, Handlers
from ipc_protocol.errors import Failure
from ipc_protocol.events import Hello
from ipc_protocol.values import LayerReport, Receipt

NOW_US = 1_800_000_000_000_000
HOSTILE = "\x1b[2J\x1b]0;owned\x07[red]disk\u202e full"


class Daemon:
    """What it was asked, and what it answers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[Any] = []
        self.reply: str | None = "Free /var/log."
        self.failures: dict[str, Failure] = {}
        self.answers: dict[str, Any] = {}
        self.waited_for = threading.Event()
        self.uploaded = b""
        self.pieces: list[int] = []
        self.unfinished = False

    def handlers(self) -> Handlers:
        handlers = Handlers()
        for method, answer in ANSWERS:
            handlers.add(method, self._canned(method.name, answer))
        handlers.add(methods.ASK, self._ask)
        handlers.add(methods.ANSWER, self._answer)
        handlers.add(methods.PUBLISH, self._publish)
        handlers.add(methods.WATCH, self._watch)
        handlers.add(methods.COMPONENT_UPLOAD, self._upload)
        for method, answer in CHANGES:
            handlers.add(method, self._changed(method.name, answer))
        return handlers

    def _changed(self, name: str, answer: Any) -> Callable[[Any, Call], Any]:
        canned = self._canned(name, answer)

        async def handler(params: Any, call: Call) -> Any:
            await call.send_item(control.AgentChange(stage="check", detail="sensor"))
            await call.send_item(control.AgentChange(stage="compile", detail="1 s", done=0.5))
            if self.unfinished:
                await asyncio.Event().wait()
            return await canned(params, call)

        return handler

    async def _upload(self, piece: control.ComponentPiece, _: Call) -> control.ComponentReceived:
        """Keeps nothing of an upload but what came."""
        if piece.offset == len(self.uploaded):
            self.uploaded += piece.data
            self.pieces.append(len(piece.data))
        return control.ComponentReceived(
            received_bytes=len(self.uploaded), complete=len(self.uploaded) == piece.total_bytes
        )

    def _canned(self, name: str, answer: Any) -> Callable[[Any, Call], Any]:
        async def handler(params: Any, _: Call) -> Any:
            self.asked.append(params)
            if name in self.failures:
                raise self.failures[name]
            return self.answers.get(name, answer)

        return handler

    async def _ask(self, params: control.Ask, _: Call) -> Receipt:
        self.asked.append(params)
        if "ctl.ask" in self.failures:
            raise self.failures["ctl.ask"]
        return Receipt(message=1, correlation=params.correlation or "", subscribers=["opsclaw"])

    async def _answer(self, params: control.AwaitAnswer, _: Call) -> control.Conversation:
        self.waited_for.set()
        if "ctl.answer" in self.failures:
            raise self.failures["ctl.answer"]
        if self.reply is None:
            await asyncio.Event().wait()
        return conversation(params.correlation, self.reply)

    async def _publish(self, params: control.Publish, _: Call) -> control.Published:
        """Knows the messages named *known* already."""
        self.asked.append(params)
        if "ctl.publish" in self.failures:
            raise self.failures["ctl.publish"]
        if params.wait == "handled" and self.reply is None:
            await asyncio.Event().wait()
        return control.Published(
            messages=[9],
            correlations=["c9"],
            subscribers=["opsclaw", "secclaw"],
            repeated=params.message_ids.count("known"),
        )

    async def _watch(self, params: control.Watch, call: Call) -> inference.Nothing:
        self.asked.append(params)
        for happening in HAPPENINGS:
            await call.send_item(happening)
        return inference.Nothing()

    async def serve(self, started: threading.Event, stop: asyncio.Event) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self.path))
        listener.listen()
        listener.setblocking(False)
        loop = asyncio.get_running_loop()

        async def one(line: socket.socket) -> None:
            hello = Hello(name="agentd")
            with contextlib.suppress(Failure):
                async with Connection(line, hello, self.handlers(), initiator=False) as open_line:
                    await open_line.wait_closed()

        async def accept(tasks: asyncio.TaskGroup) -> None:
            while True:
                line, _ = await loop.sock_accept(listener)
                tasks.create_task(one(line))

        started.set()
        with listener:
            async with asyncio.TaskGroup() as tasks:
                accepting = tasks.create_task(accept(tasks))
                await stop.wait()
                accepting.cancel()


@contextlib.contextmanager
def serving(made: Daemon) -> Iterator[Daemon]:
    """The daemon, answering in a thread of its own."""
    started = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(made.serve(started, stop),))
    thread.start()
    assert started.wait(10)
    try:
        yield made
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
    assert not thread.is_alive()
    loop.close()


def conversation(correlation: str, reply: str | None) -> control.Conversation:
    return control.Conversation(
        correlation=correlation,
        state="answered" if reply else "open",
        question="disk on /var is at 97 %",
        reply=reply,
        opened_us=NOW_US,
        answered_us=NOW_US + 4_200_000 if reply else None,
    )


AGENT = control.AgentStatus(
    name="opsclaw",
    role="agent",
    state="busy",
    priority="high",
    restarts=1,
    pending=2,
    parked=0,
    done=7,
    memories=3,
    delivery=12,
    phase="act",
    sandbox=[
        LayerReport(layer="seccomp", state="enforced"),
        LayerReport(layer="landlock", state="missing", cure="Use a newer kernel."),
    ],
)
ENGINE = control.EngineSummary(
    name="default",
    state="ready",
    restarts=0,
    status=inference.EngineStatus(
        model=inference.ModelInfo(
            name="smollm2",
            kind="language",
            architecture="llama",
            kv_layout="unified",
            devices=["CUDA0"],
            memory_bytes=3 * 2**29,
        ),
        slots=[
            inference.SlotState(
                slot=0,
                state="decode",
                agent="opsclaw",
                priority="high",
                cached_tokens=430,
                shared_tokens=256,
                prompt_tokens=413,
                generated_tokens=17,
                age_us=1_200_000,
            ),
            inference.SlotState(slot=1, state="free", agent="uxclaw", cached_tokens=82),
        ],
        queue=[
            inference.Waiting(
                position=1,
                agent="devclaw",
                priority="low",
                reason="all slots busy",
                waited_us=5000,
                state="swapped",
                estimate_us=2_500_000,
            ),
            inference.Waiting(
                position=2,
                agent="secclaw",
                priority="low",
                reason="its tokens of this minute are spent",
                waited_us=4000,
            ),
        ],
        steps=1204,
        kv_cells=8192,
        kv_cells_used=512,
        swap_bytes_used=2**20,
        swap_bytes=2**28,
        threads=2,
    ),
)
MEMORY = work.Memory(
    id=1, text="Rotate logs weekly.", outcome="success", importance=0.7, created_us=NOW_US
)
STATUS = control.Status(
    version="0.1.0",
    pid=4242,
    started_us=NOW_US - 3_600_000_000,
    now_us=NOW_US,
    healthy=True,
    sandbox="strict",
    agents=[AGENT],
    engines=[ENGINE],
    deliveries={"queued": 2, "done": 7},
    conversations={"open": 1},
    attention_open=1,
    dead_letters=0,
)
TRACE = control.Trace(
    conversation=conversation("c1", "Free /var/log."),
    messages=[
        control.TracedMessage(
            message=1, topic="user.request", sender="operator", text="disk full", sent_us=NOW_US
        ),
        control.TracedMessage(
            message=2,
            topic="agent.devclaw",
            sender="opsclaw",
            text="write a script",
            sent_us=NOW_US,
            cause=1,
        ),
    ],
    deliveries=[
        control.TracedDelivery(
            delivery=1,
            message=1,
            agent="opsclaw",
            topic="user.request",
            sender="operator",
            state="done",
            outcome="delegated",
            reason="needs a script",
            attempts=2,
            queued_us=NOW_US,
            done_us=NOW_US + 1_500_000,
            steps=[
                control.JournalStep(
                    step=1,
                    kind="tool",
                    phase="act",
                    summary="host.read @disk",
                    at_us=NOW_US,
                    took_us=12_300,
                    generated_tokens=31,
                )
            ],
            memories=[MEMORY],
        ),
        control.TracedDelivery(
            delivery=2,
            message=2,
            agent="devclaw",
            topic="agent.devclaw",
            sender="opsclaw",
            state="leased",
            outcome="",
            reason="",
            attempts=1,
            queued_us=NOW_US,
            done_us=None,
            steps=[],
            memories=[],
        ),
    ],
    dead_letters=[control.DeadLetter(message=2, agent="uxclaw", reason="expired", at_us=NOW_US)],
)
VERSION = control.AgentVersion(
    number=2,
    sha256="ab" * 32,
    size_bytes=1000,
    world="agent@0.2.0",
    source="upgrade",
    state="active",
    installed_by="operator",
    installed_us=NOW_US,
    activated_us=NOW_US,
)
BEFORE = control.AgentVersion(
    number=1,
    sha256="cd" * 32,
    size_bytes=1000,
    world="agent@0.1.0",
    source="configuration",
    state="retired",
    installed_by="bus",
    installed_us=NOW_US - 1_000_000,
    activated_us=NOW_US - 1_000_000,
    settled_us=NOW_US - 1_000_000,
    ended_us=NOW_US,
    reason="version 2 took its place",
)
PROBATION = control.OnProbation(since_us=NOW_US, handled=3, messages=20, us=60_000_000)
UPGRADED = control.AgentUpgraded(
    agent="sensor", version=VERSION, before=BEFORE, probation=PROBATION
)
CHANGES: list[tuple[methods.Method[Any, Any, Any], Any]] = [
    (methods.AGENTS_UPGRADE, UPGRADED),
    (methods.AGENTS_ROLLBACK, UPGRADED),
    (
        methods.AGENTS_ADD,
        control.AgentAdded(agent="gate", file="/state/gate.toml", warnings=["no duties"]),
    ),
    (methods.AGENTS_RETIRE, control.AgentRetired(agent="gate", parked=2)),
]
HAPPENINGS = [
    control.Happening(
        at_us=NOW_US,
        kind="journal.appended",
        agent="opsclaw",
        correlation="c1",
        summary="triage · note · act: my duty",
    ),
    control.Happening(at_us=NOW_US, kind="lagged", lost=3),
    control.Happening(
        at_us=NOW_US, kind="journal.appended", agent="opsclaw", summary=HOSTILE, data={"step": 2}
    ),
]
ANSWERS: list[tuple[methods.Method[Any, Any, Any], Any]] = [
    (methods.STATUS, STATUS),
    (methods.AGENTS, control.Agents(agents=[AGENT])),
    (methods.SLOTS, control.Engines(engines=[ENGINE])),
    (methods.TRACE, TRACE),
    (
        methods.MEMORY,
        control.Memories(memories=[control.OwnedMemory(agent="opsclaw", memory=MEMORY)]),
    ),
    (
        methods.TASKS,
        control.Tasks(
            tasks=[
                control.Task(
                    id=5,
                    agent="devclaw",
                    title="rotate logs",
                    state="doing",
                    note="half-way",
                    updated_us=NOW_US,
                )
            ]
        ),
    ),
    (
        methods.ATTENTION_LIST,
        control.AttentionRequests(
            requests=[
                control.AttentionRequest(
                    id=3, agent="opsclaw", question="May I restart nginx?", raised_us=NOW_US
                )
            ]
        ),
    ),
    (methods.ATTENTION_ANSWER, inference.Nothing()),
    (
        methods.AGENTS_HISTORY,
        control.AgentVersions(agent="sensor", versions=[VERSION, BEFORE], probation=PROBATION),
    ),
]
