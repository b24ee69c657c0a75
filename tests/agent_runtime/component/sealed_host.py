"""`sealed_host.py NATIVE MESSAGE…`: the component of native code in a sealed worker.

A zygote of its own forks one worker in strict mode, which handles each message and prints what came
of it as a line of JSON: what was answered, or the code of the failure. All that is logged comes
between, as the worker's standard error.
"""

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any, Final, NoReturn

sys.path[:0] = [str(Path(__file__).parents[3]), str(Path(__file__).parents[1])]

from deliveries import handle, profile  # noqa: E402  (the path comes first)

from agent_runtime.component.host import Host  # noqa: E402
from agent_runtime.component.native import Native  # noqa: E402
from agent_runtime.loop.consulting import Consult  # noqa: E402
from agent_runtime.zygote import WorkerSpec, Zygote  # noqa: E402
from ipc_protocol.errors import Failure  # noqa: E402
from ipc_protocol.work import ComponentStart, Effect, Noted  # noqa: E402

MEMORY_BYTES: Final = 256 * 1024 * 1024
SCRATCH_BYTES: Final = 1024 * 1024
CALL_US: Final = 2_000_000
SECONDS_MAX: Final = 60
AGENT_UID: Final = 61184

ALL: Final = ["attention", "health", "inference", "logging", "memory", "state", "tasks", "tools"]


def nothing(_: Effect) -> Noted:
    return Noted()


def outcome(host: Host, message: str) -> dict[str, Any]:
    try:
        (output,) = host.consult(Consult("act"), handle(message), nothing).outputs
    except Failure as failure:
        return {"code": failure.code, "message": failure.problem.message}
    return {"said": output.payload.decode()}


def worker_main(connection: socket.socket, _: WorkerSpec, native: Native | None) -> NoReturn:
    assert native is not None
    start = ComponentStart(
        sha256="", config=b"{}", grants=ALL, preopen_scratch=True, fuel=2**62, call_us=CALL_US
    )
    for message in sys.argv[2:]:
        host = Host(native, start, profile(), sys.stderr)
        host.init()
        connection.sendall(json.dumps(outcome(host, message)).encode() + b"\n")
        host.shutdown()
    connection.close()
    raise SystemExit(0)


def main() -> None:
    uid = AGENT_UID if os.geteuid() == 0 else None
    spec = WorkerSpec("tested", "strict", MEMORY_BYTES, SCRATCH_BYTES, uid, uid)
    native_fd = os.open(sys.argv[1], os.O_RDONLY)
    ours, theirs = socket.socketpair()
    ours.settimeout(SECONDS_MAX)
    with Zygote(worker_main) as zygote, ours:
        zygote.fork(spec, theirs.fileno(), sys.stderr.fileno(), native_fd)
        theirs.close()
        while data := ours.recv(65536):
            sys.stdout.write(data.decode())


main()
