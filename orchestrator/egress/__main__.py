"""The program: `python -m orchestrator.egress --fd N`.

It greets the orchestrator when it can dial, and leaves when the line closes, or on SIGTERM. Exit
statuses: 0 after that, 2 for a wrong command line, 4 when the line fails.
"""

import argparse
import asyncio
import ctypes
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Final

import uvloop

from ipc_protocol.aio import Connection
from ipc_protocol.errors import Failure
from ipc_protocol.events import Hello
from orchestrator.egress.dialler import Dialler
from orchestrator.egress.service import Service
from orchestrator.waiting import first_of

EXIT_USAGE: Final = 2
EXIT_LINE: Final = 4

PR_SET_DUMPABLE: Final = 4
"""Of prctl(2): no core is written, and nobody of the same user may read the memory."""


def conceal_memory() -> None:
    """Before any secret is in it. Raises `OSError`."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


async def run(line: socket.socket) -> None:
    """Serve until the line closes. Raises `Failure` when nobody is there."""
    leaving = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, leaving.set)
    async with (
        Dialler.opened() as dialler,
        Connection(
            line, Hello(name="egress"), Service(dialler).handlers(), initiator=True
        ) as connection,
    ):
        await first_of(connection.wait_closed(), leaving.wait())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("orchestrator.egress", description="Dials remote servers.")
    parser.add_argument("--fd", type=int, required=True, help="the socket to the orchestrator")
    options = parser.parse_args(arguments)
    try:
        line = socket.socket(fileno=options.fd)
    except OSError as error:
        print(f"--fd {options.fd} is no socket: {error.strerror}.", file=sys.stderr)
        return EXIT_USAGE
    conceal_memory()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(line))
    except Failure as failure:
        print(failure, file=sys.stderr)
        return EXIT_LINE
    return 0


if __name__ == "__main__":
    sys.exit(main())
