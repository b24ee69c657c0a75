"""The program: `python -m orchestrator.gateway --fd N --listen 127.0.0.1:9464`.

It binds first and greets the orchestrator then, so a hello means that it is being served. It leaves
when the line closes, or on SIGTERM. Exit statuses: 0 after that, 2 for a wrong command line, 3 when
the address cannot be had, 4 when the line fails.
"""

import argparse
import asyncio
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Final

import uvloop

from ipc_protocol.aio import Connection, Handlers
from ipc_protocol.errors import Failure
from ipc_protocol.events import Hello
from orchestrator.gateway.address import Address, AddressError, InternetAddress, parse_address
from orchestrator.gateway.listener import listening
from orchestrator.gateway.server import Server, serving
from orchestrator.sockets import ListenError
from orchestrator.waiting import first_of

EXIT_USAGE: Final = 2
EXIT_ADDRESS: Final = 3
EXIT_LINE: Final = 4


async def run(line: socket.socket, address: Address) -> None:
    """Serve until the line closes. Raises `ListenError`, and `Failure` when nobody is there."""
    hello = Hello(name="gateway")
    leaving = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, leaving.set)
    with listening(address) as sock:
        async with (
            Connection(line, hello, Handlers(), initiator=True) as connection,
            serving(Server(connection), sock),
        ):
            print(f"listening on {_actual(address, sock)}", file=sys.stderr)
            await first_of(connection.wait_closed(), leaving.wait())


def _actual(address: Address, sock: socket.socket) -> Address:
    """With the port that the kernel chose where 0 was asked for."""
    if isinstance(address, InternetAddress):
        return InternetAddress(address.host, sock.getsockname()[1])
    return address


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("orchestrator.gateway", description="Serves metrics, health.")
    parser.add_argument("--fd", type=int, required=True, help="the socket to the orchestrator")
    parser.add_argument("--listen", required=True, help="127.0.0.1:PORT, [::1]:PORT or unix:PATH")
    parser.add_argument(
        "--beyond-loopback", action="store_true", help="allow an address that others can reach"
    )
    options = parser.parse_args(arguments)
    try:
        address = parse_address(options.listen, beyond_loopback=options.beyond_loopback)
        line = socket.socket(fileno=options.fd)
    except AddressError as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    except OSError as error:
        print(f"--fd {options.fd} is no socket: {error.strerror}.", file=sys.stderr)
        return EXIT_USAGE
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(line, address))
    except ListenError as error:
        print(error, file=sys.stderr)
        return EXIT_ADDRESS
    except Failure as failure:
        print(failure, file=sys.stderr)
        return EXIT_LINE
    return 0


if __name__ == "__main__":
    sys.exit(main())
