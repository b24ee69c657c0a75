"""A real daemon for tests: its folder, its process, what it said, and its end.

Nothing here is simulated. An `Installation` is a folder as `agentd init` makes it, with the model
registered; `Installation.running` is a daemon in it, from healthy to a clean stop. Every wait has
a deadline, and one that is missed says what the daemon's log ends with.
"""

import asyncio
import contextlib
import http.client
import importlib.util
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Final, TypeVar

import tomli_w

from ipc_protocol import control, methods
from ipc_protocol.aio import Connection, connect
from ipc_protocol.errors import Failure
from ipc_protocol.events import Hello
from ipc_protocol.inference import Nothing
from ipc_protocol.methods import Method
from orchestrator.store.database import Database

T = TypeVar("T")

AGENTD: Final = (sys.executable, "-m", "orchestrator.cli.main")
READY_SECONDS_MAX: Final = 60.0
ANSWER_SECONDS_MAX: Final = 90.0
STOP_SECONDS_MAX: Final = 20.0
COMMAND_SECONDS_MAX: Final = 60.0
POLL_SECONDS: Final = 0.2
"""Between two looks: most of them are an `agentd ctl` command, which costs half of that."""
LOG_LINES: Final = 25


@dataclass(frozen=True)
class Command:
    """How one `agentd` command ended."""

    status: int
    output: str
    errors: str

    def json(self) -> Any:
        assert self.status == 0, f"it ended with {self.status}: {self.errors}"
        return json.loads(self.output)


def agentd(*arguments: str, seconds: float = COMMAND_SECONDS_MAX) -> Command:
    """Run a command to its end, in a pipe, as a script would."""
    done = subprocess.run(
        [*AGENTD, *arguments], capture_output=True, text=True, check=False, timeout=seconds
    )
    return Command(done.returncode, done.stdout, done.stderr)


def load_module(path: Path) -> ModuleType:
    """A program that lies outside of every package, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A temporary folder whose path leaves room for a socket's name."""
    folder = Path(tempfile.mkdtemp(prefix="agentd-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@dataclass(frozen=True)
class Installation:
    """The folder of one instance, with its configuration."""

    folder: Path

    @classmethod
    def create(cls, folder: Path, model: Path) -> "Installation":
        """`agentd init`, and the model registered where it lies."""
        made = agentd("init", str(folder))
        assert made.status == 0, made.errors
        here = cls(folder)
        added = agentd("models", "add", str(model), "--name", "smollm2", *here.config_option)
        assert added.status == 0, added.errors
        return here

    @classmethod
    def bare(cls, folder: Path, **tables: dict[str, Any]) -> "Installation":
        """`agentd init` without its agents and without a model, and these tables."""
        made = agentd("init", str(folder))
        assert made.status == 0, made.errors
        here = cls(folder)
        document = tomllib.loads(here.config.read_text())
        del document["model"]
        here.config.write_text(tomli_w.dumps({**document, **tables}))
        for path in (folder / "agents.d").glob("*.toml"):
            path.unlink()
        return here

    @property
    def config(self) -> Path:
        return self.folder / "agentd.toml"

    @property
    def config_option(self) -> tuple[str, str]:
        return "--config", str(self.config)

    @property
    def socket(self) -> Path:
        return self.folder / "agentd.sock"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def log(self) -> Path:
        return self.folder / "daemon.log"

    def configure(self, **tables: dict[str, Any]) -> None:
        """Merge tables into the main file; its comments are lost."""
        document = tomllib.loads(self.config.read_text())
        for name, table in tables.items():
            document[name] = {**document.get(name, {}), **table}
        self.config.write_text(tomli_w.dumps(document))

    def add_agent(self, name: str, **keys: Any) -> None:
        (self.folder / "agents.d" / f"{name}.toml").write_text(
            tomli_w.dumps({"agent": {name: keys}})
        )

    def remove_agents(self, *names: str) -> None:
        """Remove agents, and them from everybody's delegates."""
        for name in names:
            (self.folder / "agents.d" / f"{name}.toml").unlink()
        for path in (self.folder / "agents.d").glob("*.toml"):
            document = tomllib.loads(path.read_text())
            for keys in document.get("agent", {}).values():
                keys["delegate"] = [one for one in keys.get("delegate", []) if one not in names]
            path.write_text(tomli_w.dumps(document))

    @contextlib.contextmanager
    def running(self, wrapper: Sequence[str] = ()) -> Iterator["RunningDaemon"]:
        """A daemon, from healthy to stopped. It must end with 0 and leave nobody behind."""
        daemon = self.start(wrapper)
        try:
            daemon.wait_healthy()
            yield daemon
            daemon.stop()
        finally:
            if daemon.process.poll() is None:
                daemon.kill()

    def start(self, wrapper: Sequence[str] = ()) -> "RunningDaemon":
        """Start one and return at once."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [*wrapper, *AGENTD, "run", *self.config_option], stdout=log, stderr=log
            )
        return RunningDaemon(self, process)


@dataclass(frozen=True)
class RunningDaemon:
    """A daemon and how to talk to it."""

    installation: Installation
    process: "subprocess.Popen[bytes]"

    # -- life

    def wait_healthy(self) -> None:
        """Until every agent and engine is up."""

        def healthy() -> bool:
            asked = self.run_ctl("status")
            return asked.status == 0 and bool(asked.json()["healthy"])

        self.wait(healthy, "to be healthy", READY_SECONDS_MAX)

    def stop(self) -> None:
        """SIGTERM: it ends with status 0, and with it everybody it has started."""
        children = descendants(self.process.pid)
        assert self.process.poll() is None, f"the daemon has died:\n{self.tail()}"
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the daemon does not stop when asked:\n{self.tail()}") from None
        assert status == 0, f"the daemon ended with {status}:\n{self.tail()}"
        assert not any(map(is_alive, children)), f"it left processes behind:\n{self.tail()}"

    def kill(self) -> None:
        """SIGKILL. Whoever it has started notices that its line has ended, and leaves."""
        children = descendants(self.process.pid)
        self.process.kill()
        self.process.wait()
        self._wait(lambda: not any(map(is_alive, children)), "to leave no process behind", 20.0)

    def wait(
        self, condition: Callable[[], bool], what: str, seconds: float = ANSWER_SECONDS_MAX
    ) -> None:
        """Wait until `condition()`. What is missing, and the log's end, is the failure message."""

        def alive_and_true() -> bool:
            assert self.process.poll() is None, f"the daemon has died:\n{self.tail()}"
            return condition()

        self._wait(alive_and_true, what, seconds)

    def _wait(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {seconds:g} s for the daemon {what}:\n{self.tail()}")
            time.sleep(POLL_SECONDS)

    def tail(self) -> str:
        lines = self.installation.log.read_text("utf-8", "replace").splitlines()
        return "\n".join(lines[-LOG_LINES:])

    # -- what operators do

    @property
    def socket(self) -> Path:
        return self.installation.socket

    def run_ctl(self, *arguments: str, seconds: float = COMMAND_SECONDS_MAX) -> Command:
        return agentd("ctl", *arguments, "--socket", str(self.socket), "--json", seconds=seconds)

    def ctl(self, *arguments: str) -> Any:
        """The decoded answer of an `agentd ctl` command that must succeed."""
        done = self.run_ctl(*arguments)
        assert done.status == 0, f"ctl {arguments} failed: {done.errors}\n{self.tail()}"
        return json.loads(done.output)

    def ask(self, text: str, correlation: str, *options: str) -> None:
        """Ask, and do not wait."""
        self.ctl("ask", text, "--correlation", correlation, *options)

    def wait_answer(self, correlation: str) -> dict[str, Any]:
        """Wait for the reply; the whole trace of the conversation."""
        timeout = str(int(ANSWER_SECONDS_MAX))
        done = self.run_ctl(
            "answer", correlation, "--timeout", timeout, seconds=ANSWER_SECONDS_MAX + 10
        )
        assert done.status == 0, f"{correlation} was not answered: {done.errors}\n{self.tail()}"
        trace: dict[str, Any] = self.ctl("trace", correlation)
        return trace

    def answered(self, text: str, correlation: str, *options: str) -> dict[str, Any]:
        """Ask, wait, and return the trace."""
        self.ask(text, correlation, *options)
        return self.wait_answer(correlation)

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.ctl("status")
        return status

    def agent(self, name: str) -> dict[str, Any]:
        agents: dict[str, dict[str, Any]] = {one["name"]: one for one in self.status()["agents"]}
        return agents[name]

    # -- what monitoring does

    def http(self, path: str) -> tuple[int, str]:
        """GET from the gateway: the status and the text."""
        connection = http.client.HTTPConnection("agentd", timeout=10)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(10)
        connection.sock.connect(str(self.seen(self.installation.state / "gateway.sock")))
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def metrics(self) -> "Samples":
        status, text = self.http("/metrics")
        assert status == 200, text
        return Samples.of(text)

    # -- what is on disk

    def seen(self, path: Path) -> Path:
        """A path as the daemon sees it: it may have mounts of its own."""
        return Path(f"/proc/{self.process.pid}/root{path}")

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        database = Database(self.seen(self.installation.state / "agentd.db"), writable=False)
        try:
            return database.rows(sql)
        finally:
            database.close()


_SAMPLE: Final = re.compile(r"(?P<name>\w+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
_LABEL: Final = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class Samples:
    """What `/metrics` says."""

    series: list[tuple[str, dict[str, str], float]]

    @classmethod
    def of(cls, text: str) -> "Samples":
        found = []
        for line in text.splitlines():
            if not line.startswith("#") and (match := _SAMPLE.fullmatch(line)):
                labels = dict(_LABEL.findall(match["labels"] or ""))
                found.append((match["name"], labels, float(match["value"])))
        return cls(found)

    def total(self, name: str, **labels: str) -> float:
        """The sum of the series of this name that have these labels."""
        return sum(
            value for one, of, value in self.series if one == name and labels.items() <= of.items()
        )


# ---- Processes ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Process:
    """A process that cannot be taken for a later one of the same number."""

    pid: int
    started: str


def is_alive(process: Process) -> bool:
    state, found = _stat(process.pid)
    return found == process.started and state not in "ZX"


def descendants(pid: int) -> list[Process]:
    """Everybody below `pid`, in no order."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (parent := parent_of(int(entry.name))) is not None:
            parents.setdefault(parent, []).append(int(entry.name))
    below, found = [pid], []
    while below:
        children = parents.get(below.pop(), [])
        below += children
        found += [Process(child, _stat(child)[1]) for child in children]
    return found


def parent_of(pid: int) -> int | None:
    fields = _fields(pid)
    return int(fields[1]) if fields else None


def _stat(pid: int) -> tuple[str, str]:
    """Its state, and when it started; empty for one that is not there."""
    fields = _fields(pid)
    return (fields[0], fields[19]) if fields else ("X", "")


def _fields(pid: int) -> list[str]:
    try:
        data = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return data.rpartition(b")")[2].decode().split()


# ---- Following a daemon, and killing at a chosen moment ------------------------------------------


@dataclass
class Follower:
    """Follows everything that a daemon commits, in a thread; `on_happening` runs there.

    Use it as a context manager. It asks the daemon over a connection of its own with `call`, which
    only `on_happening` may use. It ends with the daemon.
    """

    daemon: RunningDaemon
    on_happening: Callable[["Follower", control.Happening], Any]
    happenings: list[control.Happening] = field(default_factory=list)
    error: BaseException | None = None
    _connection: Connection | None = None

    def __enter__(self) -> "Follower":
        self._loop = asyncio.new_event_loop()
        self._following = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower")
        self._thread.start()
        assert self._following.wait(READY_SECONDS_MAX), "the follower could not connect"
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(RuntimeError):  # it has ended, and its loop with it
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()
        self._loop.close()
        if self.error is not None:
            raise self.error

    async def call(self, method: Method[Any, T, Any], params: Any) -> T:
        assert self._connection is not None
        return await self._connection.call(method, params)

    def _run(self) -> None:
        self._task = self._loop.create_task(self._follow())
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            pass
        except Failure as failure:
            if failure.code != "protocol.closed":  # the daemon ended, as it may
                self.error = failure
        except BaseException as error:  # noqa: BLE001 - raised again where the block is left
            self.error = error
        finally:
            self._following.set()

    async def _follow(self) -> None:
        async with connect(self.daemon.socket, Hello(name="test")) as connection:
            self._connection = connection
            async with connection.stream(methods.WATCH, control.Watch()) as happenings:
                # The daemon serves requests in the order in which they come.
                await connection.call(methods.AGENTS, Nothing())
                self._following.set()
                async for happening in happenings:
                    self.happenings.append(happening)
                    done = self.on_happening(self, happening)
                    if done is not None:
                        await done
