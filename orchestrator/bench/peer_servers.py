"""The brokers that `agentd bench bus` measures beside the bus, as far as they are installed.

A server is started for the measurement, with files of its own, and ended after it. What it promises
is part of its label: two brokers that sync at different times do not do the same work.
"""

import asyncio
import contextlib
import importlib.util
import json
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final, NamedTuple

from ipc_protocol.errors import Failure
from orchestrator.bench.bus_processes import Side, running, tail

UP_SECONDS_MAX: Final = 15.0
POLL_SECONDS: Final = 0.02
COMMAND_SECONDS_MAX: Final = 10.0

EXTRA: Final = "pip install 'agentd[bench]'"

_VERSION: Final = re.compile(r"v=?(\d+\.\d+\.\d+)")

Start = Callable[[Path], contextlib.AbstractAsyncContextManager[Side]]


class Peer(NamedTuple):
    """A broker that can be started here."""

    label: str
    syncs: bool
    """It syncs each message before it acknowledges it, as the bus does."""
    start: Start
    """With the programs that use its client as its documentation does."""


def tuned(side: Side) -> Side:
    """The same server with the tuned programs of its module."""
    module = side.publisher[0]
    return Side(
        f"{side.label}, tuned client",
        side.address,
        (module, "publish-tuned"),
        (module, "consume-tuned"),
    )


def installed(folder: Path) -> tuple[list[Peer], list[str]]:
    """Those that can be started, and what to do about the others."""
    peers: list[Peer] = []
    missing: list[str] = []
    for program, library, find in (
        ("redis-server", "redis", _redis),
        ("nats-server", "nats", _nats),
    ):
        path = shutil.which(program)
        if path is None:
            missing.append(f"{program} is not installed: `apt install {program}`, or its own page.")
        elif importlib.util.find_spec(library) is None:
            missing.append(f"The Python client of {program} is not installed: `{EXTRA}`.")
        else:
            peers += find(path, folder)
    return peers, missing


# ---- Redis --------------------------------------------------------------------------------------


def _redis(program: str, _: Path) -> list[Peer]:
    label = f"Redis Streams {_version(program)} (appendfsync always)"

    @contextlib.asynccontextmanager
    async def start(folder: Path) -> AsyncIterator[Side]:
        path = folder / "redis.sock"
        options = {
            "port": "0",
            "unixsocket": path,
            "dir": folder,
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "auto-aof-rewrite-percentage": "0",  # in its favour: else it forks while it is measured
            "logfile": folder / "redis.log",
        }
        command = [program, *(str(one) for key in options for one in (f"--{key}", options[key]))]
        async with running(command, folder) as process:
            await _wait_up(process, lambda: _listens(path), label, folder)
            module = "orchestrator.bench.peer_redis"
            yield Side(label, str(path), (module, "publish"), (module, "consume"))

    return [Peer(label, syncs=True, start=start)]


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


# ---- NATS ---------------------------------------------------------------------------------------


def _nats(program: str, folder: Path) -> list[Peer]:
    """With its default, which acknowledges what is not synced, and with a sync of each message
    where this version has that."""
    version = _version(program)
    peers = [_jetstream(program, f"NATS JetStream {version} (file, acks before it syncs)", "")]
    always = "sync_interval: always"
    if _takes(program, _nats_config(folder / "jetstream", always), folder):
        label = f"NATS JetStream {version} (file, syncs always)"
        peers.append(_jetstream(program, label, always))
    return peers


def _jetstream(program: str, label: str, sync: str) -> Peer:
    @contextlib.asynccontextmanager
    async def start(folder: Path) -> AsyncIterator[Side]:
        config = folder / "nats.conf"
        config.write_text(
            _nats_config(folder / "jetstream", sync)
            + f'ports_file_dir: "{folder}"\nlog_file: "{folder / "nats.log"}"\n'
        )
        async with running([program, "-c", str(config)], folder) as process:
            ports = folder / f"nats-server_{process.pid}.ports"
            await _wait_up(process, lambda: _has_address(ports), label, folder)
            module = "orchestrator.bench.peer_nats"
            address = json.loads(ports.read_text())["nats"][0]
            yield Side(label, address, (module, "publish"), (module, "consume"))

    return Peer(label, syncs=bool(sync), start=start)


def _nats_config(store: Path, sync: str) -> str:
    return f'listen: "127.0.0.1:-1"\njetstream {{\n  store_dir: "{store}"\n  {sync}\n}}\n'


def _takes(program: str, config: str, folder: Path) -> bool:
    """Whether this version knows all that the configuration says."""
    path = folder / "trial.conf"
    path.write_text(config)
    done = subprocess.run(
        [program, "-t", "-c", str(path)],
        capture_output=True,
        timeout=COMMAND_SECONDS_MAX,
        check=False,
    )
    return done.returncode == 0


def _has_address(ports: Path) -> bool:
    try:
        return bool(json.loads(ports.read_text())["nats"])
    except (OSError, ValueError, KeyError):
        return False  # it is not there, or not written to its end


# ---- Both ---------------------------------------------------------------------------------------


def _version(program: str) -> str:
    done = subprocess.run(
        [program, "--version"],
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS_MAX,
        check=False,
    )
    found = _VERSION.search(done.stdout)
    return found[1] if found else "of an unknown version"


async def _wait_up(
    process: asyncio.subprocess.Process, is_up: Callable[[], bool], label: str, folder: Path
) -> None:
    try:
        async with asyncio.timeout(UP_SECONDS_MAX):
            while not is_up():
                if process.returncode is not None:
                    raise TimeoutError
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError as error:
        raise Failure(
            "request.internal",
            f"{label} did not come up within {UP_SECONDS_MAX:g} s: {tail(folder)}",
            "Start it by hand; where that works, try again.",
        ) from error
