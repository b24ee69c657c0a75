"""Everything that a component can do wrong: a typed error that helps, and a neighbour that is well.

One daemon sees all of it. After each case its process is the same, and so is the neighbour's.
"""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import wasmtime
import wat_components as wat
from component_daemons import (
    add,
    component_daemon,
    healthy_neighbour,
    send,
    wait_dead_letter,
    wait_done,
    write_agent,
    write_component,
)
from daemons import RunningDaemon, short_folder
from hostile_components import costly

from ipc_protocol.limits import PAYLOAD_BYTES_MAX

BEYOND_ANY_LOAD: Final = {"fuel": 200_000_000, "call": "3s"}
"""What the cases may use: a second of work, so that five attempts take seconds."""

SLOW_BLOCKS: Final = 1000
"""A few hundred kilobytes of Wasm that would take many minutes, or all memory there is."""


@pytest.fixture(scope="module")
def daemon() -> Iterator[RunningDaemon]:
    with short_folder() as folder, component_daemon(folder) as running:
        yield running


@pytest.fixture(autouse=True)
def nobody_else_is_harmed(daemon: RunningDaemon) -> Iterator[None]:
    neighbour = daemon.agent("echo")["pid"]
    yield
    healthy_neighbour(daemon)
    assert daemon.agent("echo")["pid"] == neighbour


# ---- Refused when the agent is added -------------------------------------------------------------


class Refused(NamedTuple):
    component: str
    code: str
    words: tuple[str, ...]
    """What the error has to say: what was wrong, and what to do about it."""
    keys: dict[str, Any] = {}


REFUSED: Final = {
    "core module": Refused(wat.CORE_MODULE, "component.malformed", ("core module", "component")),
    "no component at all": Refused("", "component.malformed", ("WebAssembly",)),
    "another world": Refused(wat.EMPTY, "component.world", ("lifecycle", "agent@0.1.0")),
    "another type": Refused(wat.WRONG_RESULT, "component.world", ("handle", "list<record")),
    "a version that is not offered": Refused(
        wat.WRONG_VERSION, "component.version", ("0.9.0", "0.1.0", "0.2.0")
    ),
    "an import that is not granted": Refused(
        wat.agent("0.2.0", imports=(wat.STATE,)),
        "component.grant",
        ("agent-net:core/state@0.2.0", 'imports = ["state"]', "[agent.bad]"),
    ),
    "an unknown import": Refused(
        wat.agent(imports=(wat.UNKNOWN,)), "component.import", ("acme:widgets/gears@1.0.0",)
    ),
    "an import of a version that is not offered": Refused(
        wat.agent("0.2.0", imports=(wat.FOREIGN_VERSION,)),
        "component.version",
        ("agent-net:core/state@9.9.0", "0.2.0"),
    ),
    "an import of another type": Refused(
        wat.agent("0.2.0", imports=(wat.WRONG_LOGGING,)), "component.import", ("log",)
    ),
    "a WASI import under strict_imports": Refused(
        wat.agent(imports=(wat.SOCKETS,)),
        "component.strict-imports",
        ("wasi:sockets/instance-network@0.2.0", "strict_imports"),
        {"strict_imports": True},
    ),
    "a 64-bit memory": Refused(wat.MEMORY64, "component.feature", ("64",)),
    "a trap in init": Refused(wat.agent(init=wat.TRAP), "component.init", ("init",)),
    "an init that refuses": Refused(
        wat.agent(init=wat.refuse("no threshold is set")),
        "component.init",
        ("no threshold is set",),
    ),
    "an init that never ends": Refused(
        wat.agent(init=wat.LOOP), "component.init", ("fuel",), {"limits": BEYOND_ANY_LOAD}
    ),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_it_is_refused_when_it_is_added(
    daemon: RunningDaemon, tmp_path: Path, case: Refused
) -> None:
    if case.component:
        component = write_component(tmp_path, "bad", case.component)
    else:
        component = tmp_path / "bad.wasm"
        component.write_bytes(b"#!/bin/sh\n")
    done = add(daemon, write_agent(tmp_path, "bad", component, **case.keys))
    assert done.status != 0, done.output
    error = json.loads(done.errors)
    assert error["code"] == case.code, error
    for word in case.words:
        assert word in f"{error['message']} {error['cure']}", error
    assert "bad" not in {agent["name"] for agent in daemon.status()["agents"]}


def test_what_takes_gigabytes_or_minutes_to_compile_is_refused(
    daemon: RunningDaemon, tmp_path: Path
) -> None:
    component = tmp_path / "bad.wasm"
    component.write_bytes(wasmtime.wat2wasm(costly(SLOW_BLOCKS)))
    done = daemon.run_ctl(
        "agents", "add", str(write_agent(tmp_path, "bad", component)), seconds=400
    )
    assert done.status != 0
    assert "component.compile" in done.errors
    assert "bad" not in {agent["name"] for agent in daemon.status()["agents"]}


def test_the_neighbour_goes_on_while_something_is_compiled(
    daemon: RunningDaemon, tmp_path: Path
) -> None:
    component = tmp_path / "bad.wasm"
    component.write_bytes(wasmtime.wat2wasm(costly(SLOW_BLOCKS)))
    file = write_agent(tmp_path, "bad", component)

    async def both() -> None:
        adding = asyncio.create_task(
            asyncio.to_thread(daemon.run_ctl, "agents", "add", str(file), seconds=400)
        )
        await asyncio.sleep(1)
        for _ in range(5):
            await asyncio.to_thread(healthy_neighbour, daemon)
        assert not adding.done()
        assert (await adding).status != 0

    asyncio.run(both())


# ---- Misbehaving at work -------------------------------------------------------------------------


class Misbehaving(NamedTuple):
    component: str
    words: tuple[str, ...]
    """What the dead letter says."""
    code: str = ""
    """Of the trap that the trace shows, if it is one."""


MISBEHAVING: Final = {
    "a trap": Misbehaving(wat.agent(handle=wat.TRAP), ("unreachable",), "component.trapped"),
    "an endless loop": Misbehaving(wat.agent(handle=wat.LOOP), ("fuel",), "component.fuel"),
    "unbounded recursion": Misbehaving(
        wat.agent(handle=wat.RECURSE), ("stack",), "component.memory"
    ),
    "memory to the limit": Misbehaving(
        wat.agent(handle=wat.GROW_MEMORY), ("memory",), "component.memory"
    ),
    "tables to the limit": Misbehaving(
        wat.agent(handle=wat.GROW_TABLE), ("table",), "component.trapped"
    ),
    "invalid UTF-8": Misbehaving(
        wat.agent(handle=wat.INVALID_UTF8), ("utf-8",), "component.trapped"
    ),
    "a refusal": Misbehaving(wat.agent(handle=wat.refuse("not today")), ("not today",)),
    "a payload of one byte too many": Misbehaving(
        wat.agent(handle=wat.payload_of(PAYLOAD_BYTES_MAX + 1), pages=8),
        (str(PAYLOAD_BYTES_MAX + 1),),
    ),
}


@pytest.mark.parametrize("case", MISBEHAVING.values(), ids=MISBEHAVING)
def test_its_message_becomes_a_dead_letter_that_says_why(
    daemon: RunningDaemon, tmp_path: Path, case: Misbehaving
) -> None:
    with _Agent(daemon, tmp_path, case.component) as name:
        correlation = send(daemon, f"{name}.in", "go")
        reason = wait_dead_letter(daemon, correlation)
        for word in case.words:
            assert word.casefold() in reason.casefold(), reason
        traces = daemon.ctl("trace", correlation)["deliveries"]
        assert {trap["code"] for one in traces for trap in one["traps"]} == {case.code} - {""}


def test_memory_that_is_not_given_is_the_component_s_own_affair(
    daemon: RunningDaemon, tmp_path: Path
) -> None:
    with _Agent(daemon, tmp_path, wat.agent(handle=wat.GROW_MEMORY_POLITELY)) as name:
        wait_done(daemon, send(daemon, f"{name}.in", "go"), name)


def test_the_largest_payload_passes(daemon: RunningDaemon, tmp_path: Path) -> None:
    component = wat.agent(handle=wat.payload_of(PAYLOAD_BYTES_MAX), pages=8)
    with _Agent(daemon, tmp_path, component, publishes=["echo.out"], config="echo.out") as name:
        correlation = send(daemon, f"{name}.in", "go")
        wait_done(daemon, correlation, name)
        wait_done(daemon, correlation, "sink")


def test_of_ten_thousand_envelopes_those_beyond_the_cap_are_dead_letters(
    daemon: RunningDaemon, tmp_path: Path
) -> None:
    component = wat.agent(handle=wat.answers(10_000), pages=8)
    with _Agent(daemon, tmp_path, component, publishes=["echo.out"], config="echo.out") as name:
        correlation = send(daemon, f"{name}.in", "go")
        wait_done(daemon, correlation, name)
        ((sent,),) = daemon.rows(
            "SELECT count(*) FROM message m JOIN conversation c ON c.id = m.conversation"
            f" WHERE c.correlation = '{correlation}' AND m.sender = '{name}'"
        )
        assert sent == 64
        reasons = [
            reason
            for (reason,) in daemon.rows(
                "SELECT l.reason FROM dead_letter l JOIN conversation c ON c.id = l.conversation"
                f" WHERE c.correlation = '{correlation}' ORDER BY l.id"
            )
        ]
        # One for each that was passed on, and one for all the others.
        assert len(reasons) == 1024 - 64 + 1
        assert "made 10000, and the last 8976 were not kept" in reasons[-1]
        assert "10000" in daemon.installation.log.read_text()


def test_an_endless_loop_keeps_nobody_waiting(daemon: RunningDaemon, tmp_path: Path) -> None:
    limits = {"fuel": 1_000_000_000_000, "call": "5s"}
    with _Agent(daemon, tmp_path, wat.agent(handle=wat.LOOP), limits=limits) as name:
        correlation = send(daemon, f"{name}.in", "go")
        daemon.wait(lambda: bool(daemon.agent(name)["delivery"]), "to loop")
        for _ in range(3):
            healthy_neighbour(daemon)
        rows = daemon.rows(
            "SELECT d.state, d.deaths FROM delivery d JOIN conversation c ON c.id = d.conversation"
            f" WHERE c.correlation = '{correlation}'"
        )
        assert rows == [("leased", 0)], "the neighbour was only heard after the loop had ended"


def test_a_shutdown_that_never_returns_is_ended(daemon: RunningDaemon, tmp_path: Path) -> None:
    with _Agent(daemon, tmp_path, wat.agent(shutdown=wat.LOOP), limits=BEYOND_ANY_LOAD) as name:
        wait_done(daemon, send(daemon, f"{name}.in", "go"), name)
    said = f"worker/{name}: component: `shutdown` of the component used up its fuel"
    assert said in daemon.installation.log.read_text()


class _Agent:
    """An agent that is there for one case. Afterwards it is retired, whatever it has done."""

    def __init__(self, daemon: RunningDaemon, folder: Path, component: str, **keys: Any) -> None:
        self._daemon = daemon
        self._name = f"bad{next(_NUMBERS)}"
        keys.setdefault("limits", BEYOND_ANY_LOAD)
        path = write_component(folder, self._name, component)
        self._file = write_agent(folder, self._name, path, **keys)

    def __enter__(self) -> str:
        done = add(self._daemon, self._file)
        assert done.status == 0, done.errors
        return self._name

    def __exit__(self, *_: object) -> None:
        done = self._daemon.run_ctl("agents", "retire", self._name)
        assert done.status == 0, done.errors
        assert self._name not in {one["name"] for one in self._daemon.status()["agents"]}


_NUMBERS: Final = iter(range(1, 1000))
