"""The program: `python -m orchestrator.gateway --fd N --listen 127.0.0.1:9464`.

With `--endpoint ADDRESS` it serves the models there, besides or alone: nothing of one address is
found on the other. It binds first and greets the orchestrator then, so a hello means that it is
being served. It leaves when the line closes, or on SIGTERM. Exit statuses: 0 after that, 2 for a
wrong command line, 3 when an address cannot be had, 4 when the line fails.
"""

import argparse
import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Final

import uvloop

from ipc_protocol.aio import Connection, Handlers
from ipc_protocol.errors import Failure
from ipc_protocol.events import Hello
from orchestrator.gateway.address import (
    Address,
    AddressError,
    InternetAddress,
    UnixAddress,
    parse_address,
)
from orchestrator.gateway.endpoint import Endpoint
from orchestrator.gateway.endpoint_server import serving_endpoint
from orchestrator.gateway.listener import listening
from orchestrator.gateway.server import Server, serving
from orchestrator.sockets import ListenError
from orchestrator.waiting import first_of

EXIT_USAGE: Final = 2
EXIT_ADDRESS: Final = 3
EXIT_LINE: Final = 4


async def run(line: socket.socket, metrics: Address | None, endpoint: Address | None) -> None:
    """Serve until the line closes. Raises `ListenError`, and `Failure` when nobody is there."""
    hello = Hello(name="gateway")
    leaving = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, leaving.set)
    async with contextlib.AsyncExitStack() as served:
        monitored = None if metrics is None else served.enter_context(listening(metrics))
        asked = None if endpoint is None else served.enter_context(listening(endpoint))
        connection = Connection(line, hello, Handlers(), initiator=True)
        await served.enter_async_context(connection)
        if monitored is not None:
            await served.enter_async_context(serving(Server(connection), monitored))
            print(f"listening on {_where(monitored)}", file=sys.stderr)
        if asked is not None:
            await served.enter_async_context(serving_endpoint(Endpoint(connection), asked))
            print(f"listening on {_where(asked)} for the endpoint", file=sys.stderr)
        await first_of(connection.wait_closed(), leaving.wait())


def _where(sock: socket.socket) -> Address:
    """With the port that the kernel chose where 0 was asked for."""
    name = sock.getsockname()
    return UnixAddress(name) if isinstance(name, str) else InternetAddress(*name[:2])


def _any_port(address: Address | None) -> bool:
    return isinstance(address, InternetAddress) and address.port == 0


def _parser() -> argparse.ArgumentParser:
    where = "127.0.0.1:PORT, [::1]:PORT or unix:PATH"
    parser = argparse.ArgumentParser("orchestrator.gateway", description="What is served by HTTP.")
    parser.add_argument("--fd", type=int, required=True, help="the socket to the orchestrator")
    parser.add_argument("--listen", help=f"metrics and health: {where}")
    parser.add_argument("--endpoint", help=f"the models, as OpenAI serves its own: {where}")
    parser.add_argument(
        "--beyond-loopback", action="store_true", help="allow addresses that others can reach"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        metrics, endpoint = (
            parse_address(text, beyond_loopback=options.beyond_loopback) if text else None
            for text in (options.listen, options.endpoint)
        )
        line = socket.socket(fileno=options.fd)
    except AddressError as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    except OSError as error:
        print(f"--fd {options.fd} is no socket: {error.strerror}.", file=sys.stderr)
        return EXIT_USAGE
    if metrics is None and endpoint is None:
        print("Neither --listen nor --endpoint says where to listen.", file=sys.stderr)
        return EXIT_USAGE
    if metrics == endpoint and not _any_port(metrics):
        print(f"Metrics and models cannot both be served on {metrics}.", file=sys.stderr)
        return EXIT_USAGE
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(line, metrics, endpoint))
    except ListenError as error:
        print(error, file=sys.stderr)
        return EXIT_ADDRESS
    except Failure as failure:
        print(failure, file=sys.stderr)
        return EXIT_LINE
    return 0


if __name__ == "__main__":
    sys.exit(main())
