"""A daemon whose agents are all components, and what tests ask of it.

Components are made of WAT, so that each does exactly what its test is about. `echo` answers every
message on the topic that it is configured with, and `sink` takes those answers.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import tomli_w
import wasmtime
import wat_components as wat
from daemons import Command, Installation, RunningDaemon

from ipc_protocol.aio import Connection, connect
from ipc_protocol.control import Send
from ipc_protocol.errors import Failure
from ipc_protocol.events import Hello
from ipc_protocol.methods import SEND

ECHO_TOPIC: Final = "echo.in"
ECHOED_TOPIC: Final = "echo.out"
HEARD_TOPIC: Final = "sink.out"
INBOX: Final = 100_000
"""No publisher waits: what is tested is that nothing is lost."""


def write_component(folder: Path, name: str, text: str) -> Path:
    """The binary of a component's text."""
    path = folder / f"{name}.wasm"
    path.write_bytes(wasmtime.wat2wasm(text))
    return path


def write_agent(folder: Path, name: str, component: Path, **keys: Any) -> Path:
    """An agent's own file, as an operator would write it."""
    agent = {"component": str(component), "consumes": [f"{name}.in"], **keys}
    agent.setdefault("publishes", [f"{name}.out"])
    agent.setdefault("config", f"{name}.out")
    path = folder / f"{name}.toml"
    path.write_text(tomli_w.dumps({"agent": {name: agent}}))
    return path


@contextmanager
def component_daemon(folder: Path, compile_time: str = "5s") -> Iterator[RunningDaemon]:
    """A daemon with `echo` and `sink`, from healthy to stopped."""
    with component_installation(folder, compile_time).running() as daemon:
        yield daemon


def component_installation(folder: Path, compile_time: str = "5s") -> Installation:
    """The folder of one, with the files of its agents."""
    installation = Installation.bare(folder / "here", components={"compile_time": compile_time})
    agents = installation.folder / "agents.d"
    echo = write_component(folder, "echo", wat.agent())
    sink = write_component(
        folder, "sink", wat.agent(handle="(call $answers (i32.const 0) (i32.const 0))")
    )
    limits = {"inbox": INBOX}
    write_agent(agents, "echo", echo, limits=limits)
    write_agent(agents, "sink", sink, consumes=[ECHOED_TOPIC], publishes=[], limits=limits)
    return installation


def add(daemon: RunningDaemon, file: Path) -> Command:
    return daemon.run_ctl("agents", "add", str(file))


def send(daemon: RunningDaemon, topic: str, payload: str) -> str:
    """Send one message; the correlation of its conversation."""
    sent: dict[str, Any] = daemon.ctl("send", topic, payload)
    return str(sent["correlation"])


def wait_done(daemon: RunningDaemon, correlation: str, agent: str) -> None:
    """Until the agent's delivery in the conversation is done."""

    def done() -> bool:
        rows = daemon.rows(
            "SELECT d.state FROM delivery d JOIN conversation c ON c.id = d.conversation"
            f" WHERE c.correlation = '{correlation}' AND d.agent = '{agent}'"
        )
        return [state for (state,) in rows] == ["done"]

    daemon.wait(done, f"to have {agent} done with {correlation}")


def wait_dead_letter(daemon: RunningDaemon, correlation: str, seconds: float = 60.0) -> str:
    """The code and the reason of the first dead letter of a conversation, when there is one."""
    found: list[tuple[Any, ...]] = []

    def dead() -> bool:
        found[:] = daemon.rows(
            "SELECT l.code, l.reason FROM dead_letter l JOIN conversation c"
            f" ON c.id = l.conversation WHERE c.correlation = '{correlation}' ORDER BY l.id"
        )
        return bool(found)

    daemon.wait(dead, f"to give up {correlation}", seconds)
    return f"{found[0][0]}: {found[0][1]}"


def healthy_neighbour(daemon: RunningDaemon) -> None:
    """Echo answers, and the sink hears it."""
    correlation = send(daemon, ECHO_TOPIC, "still there?")
    wait_done(daemon, correlation, "echo")
    wait_done(daemon, correlation, "sink")


async def send_all(
    connection: Connection, topic: str, payloads: Sequence[bytes], per_second: float
) -> None:
    """Publish at a steady rate, each message once, whatever became of the one before it."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.TaskGroup() as group:
        for number, payload in enumerate(payloads):
            await asyncio.sleep(max(0.0, began + number / per_second - loop.time()))
            group.create_task(_send(connection, Send(topic=topic, payload=payload)))


async def _send(connection: Connection, message: Send) -> None:
    while True:
        try:
            await connection.call(SEND, message)
            return
        except Failure as failure:
            if failure.code != "bus.backpressure":
                raise
            await asyncio.sleep(0.05)


def connected(daemon: RunningDaemon) -> Any:
    return connect(daemon.socket, Hello(name="load"))


def echoed(daemon: RunningDaemon) -> Counter[str]:
    """How often each payload came out of echo."""
    rows = daemon.rows(f"SELECT CAST(payload AS TEXT) FROM message WHERE topic = '{ECHOED_TOPIC}'")
    return Counter(str(payload) for (payload,) in rows)


def unfinished(daemon: RunningDaemon) -> int:
    ((count,),) = daemon.rows(
        "SELECT count(*) FROM delivery WHERE state IN ('queued', 'leased', 'parked')"
    )
    return int(count)


def json_of(command: Command) -> Any:
    return json.loads(command.output)
