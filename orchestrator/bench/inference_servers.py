"""A daemon for `agentd bench inference`, its keys, and the program that asks it over HTTP.

It is the real one, with the endpoint on and no agent of its own. Each agent of a plan is a client
with a key, because that is what the pool shares by; the urgent one and those of low work have keys
of their classes.
"""

import asyncio
import contextlib
import hashlib
import os
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import tomli_w

from ipc_protocol.errors import Failure
from ipc_protocol.inference import EngineStart, KvLayout, KvType
from orchestrator.bench.bus_processes import running, tail
from orchestrator.bench.inference_load import Actor, Answer, Job, Plan, Target

MODEL: Final = "default"
PATIENCE_SECONDS: Final = 180.0
"""Until a server has loaded its model: a large one comes from a disk that may be slow."""
POLL_SECONDS: Final = 0.1
GRACE_SECONDS: Final = 60.0
"""For the program of the load beyond the limit of its plan: its imports, and its end."""


class Device(NamedTuple):
    """What is computed on, and with."""

    kind: str
    """*cpu* or *gpu*."""
    cores: int
    model: Path
    kv_type: KvType = "f16"

    @property
    def layers(self) -> int:
        """Of the model, on a GPU."""
        return -1 if self.kind == "gpu" else 0


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def wait_listening(
    process: asyncio.subprocess.Process, port: int, label: str, folder: Path
) -> None:
    """Until a server accepts connections. Raises `Failure` when it ends before that, or never."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE_SECONDS):
            while process.returncode is None:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(POLL_SECONDS)
                    continue
                writer.close()
                return
    raise Failure(
        "request.internal",
        f"{label} did not come up:\n{tail(folder)}",
        "Start it by hand; where that works, try again.",
    )


KV_LAYOUT: Final[KvLayout] = "streams"
"""Every scenario gives its slots a context that holds their requests, and with cells of its own a
sequence is computed faster. llama-server is tried with both layouts, and its best one taken."""


def engine_start(device: Device, slots: int, context: int) -> EngineStart:
    """The engine alone, as the daemon would start it."""
    return EngineStart(
        name=MODEL,
        path=os.fspath(device.model),
        slots=slots,
        context=context,
        threads=device.cores,
        gpu_layers=device.layers,
        kv_type=device.kv_type,
        kv_layout=KV_LAYOUT,
    )


# ---- The daemon ---------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def pool(
    device: Device, slots: int, context: int, clients: Sequence[Actor], folder: Path
) -> AsyncIterator[Target]:
    """A daemon, which may still load its model. Each of `clients` has a key. `folder` is empty."""
    port = free_port()
    keys = {client.name: f"sk-bench-{client.name}" for client in clients}
    config = folder / "agentd.toml"
    config.write_text(tomli_w.dumps(_config(device, slots, context, clients, keys, port, folder)))
    command = (sys.executable, "-m", "orchestrator.cli.main", "run", "--config", str(config))
    async with running(command, folder) as process:
        await wait_listening(process, port, "The daemon", folder)
        yield Target(url=f"http://127.0.0.1:{port}/v1", model=MODEL, keys=keys)


def _config(
    device: Device,
    slots: int,
    context: int,
    clients: Sequence[Actor],
    keys: dict[str, str],
    port: int,
    folder: Path,
) -> dict[str, Any]:
    model = {
        "file": str(device.model),
        "slots": slots,
        "context": context,
        "threads": device.cores,
        "gpu_layers": device.layers,
        "kv_type": device.kv_type,
        "kv_layout": KV_LAYOUT,
        "pin": True,
    }
    return {
        "daemon": {
            "state": str(folder / "state"),
            "socket": str(folder / "agentd.sock"),
            "sandbox": "standard",
            "log": "text",
            "log_level": "warning",
        },
        "model": {MODEL: model},
        "endpoint": {"listen": f"127.0.0.1:{port}"},
        "gateway": {"listen": ""},
        "client": {
            client.name: {
                "key_sha256": hashlib.sha256(keys[client.name].encode()).hexdigest(),
                "priority": client.priority,
            }
            for client in clients
        },
    }


# ---- The load -----------------------------------------------------------------------------------


async def load(
    label: str, target: Target, plan: Plan, folder: Path, patience_s: float = 0.0
) -> list[Answer]:
    """Play a plan from a process of its own. Raises `Failure`, also for a request that failed."""
    job = folder / "job.json"
    job.write_bytes(msgspec.json.encode(Job(target=target, plan=plan, patience_s=patience_s)))
    command = (sys.executable, "-m", "orchestrator.bench.inference_http", str(job))
    said = b""
    with contextlib.suppress(TimeoutError):
        async with (
            asyncio.timeout(plan.limit_s + patience_s + GRACE_SECONDS),
            running(command, folder) as process,
        ):
            assert process.stdout is not None
            said = await process.stdout.readline()
    try:
        answers = msgspec.json.decode(said, type=list[Answer])
    except msgspec.DecodeError as error:
        raise Failure(
            "request.internal",
            f"The load for {label} did not come to its end:\n{tail(folder)}",
            "Try again on a machine that is less busy, or with --quick.",
        ) from error
    require_answered(label, answers, folder)
    return answers


def require_answered(label: str, answers: Sequence[Answer], folder: Path) -> None:
    """Raises `Failure` for a request that failed: a figure of the others would be worth nothing."""
    for answer in answers:
        if answer.outcome == "failed":
            raise Failure(
                "request.internal",
                f"{label} did not answer {answer.actor}: {answer.error}\n{tail(folder)}",
                "The figures would be worthless. `--only` leaves a scenario out.",
            )
