"""A real zygote in a process of its own, driven by one JSON object a line.

The tests cannot be the zygote themselves: a test runner has threads, and forking it would copy all
of it. Options: `--uid N` gives up root for that uid first, with everything already imported;
`--refuse NAME` makes the kernel answer system call NAME as a kernel without it would (ENOSYS),
`--kill NAME` makes that call deadly, `--hang NAME` endless;
`--keep-user` gives the agents no uid of their own.
"""

import argparse
import errno
import json
import os
import select
import socket
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import pyseccomp
from attacks import ATTEMPTS, TAKEOVERS, WITH_COMPONENT

from agent_runtime import sandbox
from agent_runtime.component.native import Native, preload
from agent_runtime.zygote import ForkError, WorkerSpec, Zygote

_AGENT_UID = 61184
_MEGABYTE = 1 << 20
_SECONDS_MAX = 20
_HANG_SECONDS = 0.3


def worker_main(connection: socket.socket, spec: WorkerSpec, native: Native | None) -> NoReturn:
    _attempt_until_closed(connection, native)


def compiler_main(connection: socket.socket, component_fd: int, native_fd: int) -> NoReturn:
    assert component_fd != native_fd
    _attempt_until_closed(connection, None)


def _attempt_until_closed(connection: socket.socket, native: Native | None) -> NoReturn:
    connection.setblocking(True)
    while line := connection.recv(65536):
        request = json.loads(line)
        takeover = TAKEOVERS.get(request["attempt"])
        if takeover is not None:
            connection.sendall(b"!")  # what follows is for the loop
            takeover(connection)
            break
        try:
            answer = {"value": _attempt(request["attempt"], request["arguments"], native)}
        except OSError as error:
            answer = {"refused": errno.errorcode.get(error.errno or 0, str(error))}
        except (MemoryError, RuntimeError) as error:
            answer = {"refused": type(error).__name__}
        connection.sendall(json.dumps(answer).encode())
    raise SystemExit(0)


def _attempt(name: str, arguments: dict[str, Any], native: Native | None) -> Any:
    if native is not None and name in WITH_COMPONENT:
        return WITH_COMPONENT[name](native, arguments)
    return ATTEMPTS[name](arguments)


def _answer_calls(names: list[str], action: int) -> pyseccomp.SyscallFilter:
    """A filter of the host's own, as a container engine would install it."""
    program = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    for name in names:
        program.add_rule(action, name)
    program.load()
    return program


def _descriptor(path: str) -> int:
    """As whoever forks gets it from somebody who may open it: one that is writable, or not."""
    return os.open(path, os.O_RDWR if os.access(path, os.W_OK) else os.O_RDONLY)


def _open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class Host:
    def __init__(self, zygote: Zygote, log: tuple[int, int], agent_uid: int | None) -> None:
        self.zygote = zygote
        self.agent_uid = agent_uid
        self.log_read, self.log_write = log
        self.peers: dict[int, socket.socket] = {}

    def fork(self, request: dict[str, Any]) -> dict[str, Any]:
        spec = WorkerSpec(
            agent="tested",
            sandbox=request["mode"],
            memory_bytes_max=request.get("memory_bytes_max", 64 * _MEGABYTE),
            scratch_bytes_max=_MEGABYTE,
            uid=self.agent_uid,
            gid=self.agent_uid,
            cpu_seconds_max=request.get("cpu_seconds_max"),
        )
        given = [_descriptor(path) for path in request.get("given", ())]
        ours, theirs = socket.socketpair()
        ours.settimeout(_SECONDS_MAX)
        before = _open_descriptors()
        try:
            fork = self.zygote.fork_compiler if request.get("compiles") else self.zygote.fork
            worker = fork(spec, theirs.fileno(), self.log_write, *given)
            leaked = _open_descriptors() - before
        except ForkError as error:
            answer = {
                "layer": error.layer,
                "errno": errno.errorcode.get(error.errno, ""),
                "message": error.message,
                "code": error.problem and error.problem.code,
                "cure": error.cure,
                "reports": msgspec.to_builtins(error.reports),
                "leaked": _open_descriptors() - before,
            }
            ours.close()
            return answer
        finally:
            theirs.close()
            for descriptor in given:
                os.close(descriptor)
        self.peers[worker.pid] = ours
        return {
            "pid": worker.pid,
            "reports": msgspec.to_builtins(worker.reports),
            "leaked": leaked,
        }

    def attempt(self, request: dict[str, Any]) -> dict[str, Any]:
        peer = self.peers[request["pid"]]
        peer.sendall(json.dumps(request).encode())
        if request["attempt"] in TAKEOVERS:
            assert peer.recv(1) == b"!"
            return {"value": self._echo(peer, request["arguments"]["message"])}
        try:
            answer = peer.recv(1 << 20)
        except ConnectionResetError:
            answer = b""
        return json.loads(answer) if answer else {"value": "closed"}

    def _echo(self, peer: socket.socket, message: str) -> Any:
        body = msgspec.msgpack.encode(message)
        peer.sendall(len(body).to_bytes(4, "little") + body)
        answer = msgspec.msgpack.decode(peer.recv(65536)[4:])
        peer.shutdown(socket.SHUT_WR)
        return answer

    def kill(self, request: dict[str, Any]) -> dict[str, Any]:
        self.zygote.kill(request["pid"])
        return {}

    def reap(self, request: dict[str, Any]) -> dict[str, Any]:
        """Wait for one to die, and report all who did."""
        os.waitid(os.P_PID, request["pid"], os.WEXITED | os.WNOWAIT)
        return {"exits": [[one.pid, one.agent, one.description] for one in self.zygote.reap()]}

    def log(self, _: dict[str, Any]) -> dict[str, Any]:
        poll = select.poll()
        poll.register(self.log_read, select.POLLIN)
        text = b""
        while poll.poll(0):
            text += os.read(self.log_read, 65536)
        return {"text": text.decode()}

    def start_thread(self, _: dict[str, Any]) -> dict[str, Any]:
        threading.Thread(target=threading.Event().wait, daemon=True, name="stray").start()
        return {}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--uid", type=int)
    parser.add_argument("--refuse", action="append", default=[])
    parser.add_argument("--kill", action="append", default=[])
    parser.add_argument("--hang", action="append", default=[])
    parser.add_argument("--keep-user", action="store_true")
    options = parser.parse_args()
    sandbox.preload()
    preload()
    # Something worth stealing, which the zygote's workers must not inherit.
    secret = os.memfd_create("secret")
    os.set_inheritable(secret, True)
    filters = [
        _answer_calls(names, action)
        for names, action in (
            (options.refuse, pyseccomp.ERRNO(errno.ENOSYS)),
            (options.kill, pyseccomp.KILL_PROCESS),
            (options.hang, pyseccomp.NOTIFY),  # and nobody ever answers
        )
        if names
    ]
    if options.uid is not None:
        os.setgroups([])
        os.setresgid(options.uid, options.uid, options.uid)
        os.setresuid(options.uid, options.uid, options.uid)
    agent_uid = None if options.keep_user or os.geteuid() != 0 else _AGENT_UID
    seconds_max = _HANG_SECONDS if options.hang else _SECONDS_MAX
    with Zygote(worker_main, compiler_main, fork_seconds_max=seconds_max) as zygote:
        host = Host(zygote, os.pipe(), agent_uid)
        for line in sys.stdin:
            request = json.loads(line)
            try:
                answer = getattr(host, request["do"])(request)
            except Exception as error:  # noqa: BLE001 (the test reads it)
                answer = {"error": type(error).__name__, "text": str(error)}
            print(json.dumps(answer), flush=True)
    filters.clear()  # until here they held the descriptors that an unanswered call waits on


if __name__ == "__main__":
    main()
