"""What a hostile worker would try. Each attempt returns what it got, or raises what stopped it.

Every function runs inside a worker that may import nothing any more, so all imports stand here.
The same function runs in a worker without a sandbox as the positive control.
"""

# An attempt is a system call, and should look like the one that it is.
# ruff: noqa: PTH101, PTH102, PTH104, PTH106, PTH116, PTH123, PTH208

import asyncio
import ctypes
import errno
import mmap
import os
import random
import resource
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import uvloop
import wasmtime
from wasmtime.component import Linker

from agent_runtime.component import library
from agent_runtime.component.native import Native

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.argtypes = (ctypes.c_long, *[ctypes.c_long] * 5)
_libc.syscall.restype = ctypes.c_long
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)

Arguments = dict[str, Any]
_PAGE = mmap.PAGESIZE
_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def open_path(arguments: Arguments) -> int:
    with open(arguments["path"], "rb") as file:
        return len(file.read(64))


def stat_path(arguments: Arguments) -> int:
    return os.stat(arguments["path"]).st_mode


def list_root(_: Arguments) -> list[str]:
    return sorted(os.listdir("/"))


def write_root(_: Arguments) -> None:
    os.mkdir("/escape")


def leave_root_upwards(_: Arguments) -> list[str]:
    os.chdir("../../../../..")
    return sorted(os.listdir("."))


def use_scratch(_: Arguments) -> list[str]:
    Path("notes").mkdir()
    Path("notes/a").write_text("kept")
    os.rename("notes/a", "b")
    assert Path("b").read_text() == "kept"
    os.rmdir("notes")
    return sorted(os.listdir("."))


def fill_scratch(_: Arguments) -> int:
    written = 0
    for number in range(64):
        with open(f"f{number}", "wb", buffering=0) as file:
            written += file.write(b"x" * 65536)
    return written


def make_many_files(_: Arguments) -> int:
    for number in range(100_000):
        os.close(os.open(f"f{number}", os.O_CREAT | os.O_WRONLY))
    return number


def run_from_scratch(_: Arguments) -> None:
    Path("script").write_text("#!/bin/sh\n")
    os.chmod("script", 0o700)


def connect_unix(arguments: Arguments) -> None:
    client = socket.socket(socket.AF_UNIX)
    client.connect(arguments["address"].replace("@", "\0"))


def connect_inet(arguments: Arguments) -> None:
    client = socket.socket(socket.AF_INET)
    client.connect(("127.0.0.1", arguments["port"]))


def open_netlink(_: Arguments) -> int:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).fileno()


def pass_descriptor(_: Arguments) -> int:
    left, _right = socket.socketpair()
    return socket.send_fds(left, [b"x"], [0])


def signal_process(arguments: Arguments) -> None:
    os.kill(arguments["target"], 0)


def open_pidfd(arguments: Arguments) -> int:
    return os.pidfd_open(arguments["target"])


def read_limits_of(arguments: Arguments) -> Any:
    return resource.prlimit(arguments["target"], resource.RLIMIT_NOFILE)


def own_pid(_: Arguments) -> int:
    return os.getpid()


def own_ids(_: Arguments) -> list[int]:
    return [os.getuid(), os.geteuid(), os.getgid(), os.getegid()]


def host_name(_: Arguments) -> str:
    return os.uname().nodename


def map_executable(_: Arguments) -> int:
    return len(mmap.mmap(-1, _PAGE, prot=_READ_WRITE | mmap.PROT_EXEC))


def map_plain(_: Arguments) -> int:
    return len(mmap.mmap(-1, _PAGE, prot=_READ_WRITE))


def make_executable(_: Arguments) -> int:
    page = mmap.mmap(-1, _PAGE, prot=_READ_WRITE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return _checked(_libc.mprotect(address, _PAGE, mmap.PROT_READ | mmap.PROT_EXEC))


def make_executable_while_writable(_: Arguments) -> int:
    page = mmap.mmap(-1, _PAGE, prot=_READ_WRITE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return _checked(_libc.mprotect(address, _PAGE, _READ_WRITE | mmap.PROT_EXEC))


def make_memory_file(_: Arguments) -> int:
    return os.memfd_create("code")


def fork(_: Arguments) -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def start_thread(_: Arguments) -> None:
    threading.Thread(target=threading.Event().wait, daemon=True).start()


def execute(_: Arguments) -> None:
    os.execv("/bin/true", ["/bin/true"])


def system_call(arguments: Arguments) -> int:
    given = [*arguments["arguments"], 0, 0, 0, 0, 0][:5]
    return _checked(_libc.syscall(arguments["number"], *given))


def control_process(arguments: Arguments) -> int:
    return _checked(_libc.prctl(*arguments["arguments"], 0, 0, 0))


def take_memory(arguments: Arguments) -> int:
    return len(bytearray(arguments["bytes"]))


def take_descriptors(_: Arguments) -> int:
    taken = [os.dup(0) for _ in range(1000)]
    return len(taken)


def open_descriptors(_: Arguments) -> list[int]:
    found = []
    for fd in range(256):
        try:
            os.fstat(fd)
        except OSError as error:
            assert error.errno == errno.EBADF
        else:
            found.append(fd)
    return found


def random_number(_: Arguments) -> float:
    return random.random()


def write_scratch(arguments: Arguments) -> int:
    with open("file", "wb", buffering=0) as file:
        return file.write(b"x" * arguments["bytes"])


def write_descriptor(arguments: Arguments) -> int:
    return os.write(arguments["fd"], b"written")


def read_descriptor(arguments: Arguments) -> str:
    return os.pread(arguments["fd"], 64, 0).decode()


def burn_cpu(_: Arguments) -> None:
    while True:
        pass


def write_log(arguments: Arguments) -> None:
    sys.stderr.write(arguments["text"])
    sys.stderr.flush()


def describe_exception(_: Arguments) -> str:
    try:
        _ = 1 // 0
    except ZeroDivisionError:
        return traceback.format_exc()
    return ""


def encode_domain(_: Arguments) -> str:
    return "bücher.example".encode("idna").decode()


def leave(arguments: Arguments) -> None:
    raise SystemExit(arguments["status"])


def fail(_: Arguments) -> None:
    raise ValueError("a fault of the worker's own")


def crash(_: Arguments) -> None:
    ctypes.string_at(8)


def abort(_: Arguments) -> None:
    os.abort()


def wait_for_ever(_: Arguments) -> None:
    select.poll().poll()


def handle_own_signal(_: Arguments) -> bool:
    return signal.signal(signal.SIGTERM, lambda *_: None) == signal.SIG_DFL


async def _echo_until_closed(connection: socket.socket) -> None:
    """Everything that a worker's loop does: tasks, timeouts, framed msgpack, an orderly end."""
    reader, writer = await asyncio.open_connection(sock=connection)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(asyncio.sleep(0.001))
        while size := int.from_bytes(await reader.read(4), "little"):
            async with asyncio.timeout(5):
                body = msgpack.unpackb(await reader.readexactly(size))
            answer = msgpack.packb({"echo": body})
            writer.write(len(answer).to_bytes(4, "little") + answer)
            await writer.drain()
    writer.close()
    await writer.wait_closed()


def run_uvloop(connection: socket.socket) -> None:
    uvloop.run(_echo_until_closed(connection))


def run_asyncio(connection: socket.socket) -> None:
    asyncio.run(_echo_until_closed(connection))


ATTEMPTS: dict[str, Callable[[Arguments], Any]] = {
    function.__name__: function
    for function in (
        open_path,
        stat_path,
        list_root,
        write_root,
        leave_root_upwards,
        use_scratch,
        fill_scratch,
        make_many_files,
        run_from_scratch,
        connect_unix,
        connect_inet,
        open_netlink,
        pass_descriptor,
        signal_process,
        open_pidfd,
        read_limits_of,
        own_pid,
        own_ids,
        host_name,
        map_executable,
        map_plain,
        make_executable,
        make_executable_while_writable,
        make_memory_file,
        fork,
        start_thread,
        execute,
        system_call,
        control_process,
        take_memory,
        take_descriptors,
        open_descriptors,
        random_number,
        write_scratch,
        write_descriptor,
        read_descriptor,
        burn_cpu,
        write_log,
        describe_exception,
        encode_domain,
        leave,
        fail,
        crash,
        abort,
        wait_for_ever,
        handle_own_signal,
    )
}

TAKEOVERS: dict[str, Callable[[socket.socket], None]] = {
    function.__name__: function for function in (run_uvloop, run_asyncio)
}


def call_component(native: Native, arguments: Arguments) -> Any:
    """Call an export without parameters, with a deadline. Returns the result or the cause."""
    store = wasmtime.Store(library.engine())
    store.set_fuel(1 << 62)
    store.set_epoch_deadline(1)
    instance = Linker(library.engine()).instantiate(store, native.component)
    function = instance.get_func(store, arguments["export"])
    assert function is not None
    native.ticker.arm(arguments["seconds"])
    try:
        return function(store)
    except wasmtime.WasmtimeError as error:
        return str(error).strip().rpartition("wasm trap: ")[2]
    finally:
        native.ticker.disarm()


WITH_COMPONENT: dict[str, Callable[[Native, Arguments], Any]] = {
    function.__name__: function for function in (call_component,)
}
