"""One end of a line for code that blocks: the protocol's session around a connected socket.

The worker and the zygote are single-threaded and have no event loop, so they cannot use the asyncio
adapter. Nothing here decides anything; what the bytes mean is the session's business.
"""

import select
import socket
from typing import Final

from ipc_protocol import limits
from ipc_protocol.errors import Failure
from ipc_protocol.events import Event, Failed, Hello, Opened
from ipc_protocol.session import Session

END_OF_LINE: Final = "protocol.closed"
"""The code of the `Failed` event with which a line ends when its peer has hung up."""


class BlockingLine:
    """Send with `send`; receive with `receive`, which waits, or `feed` bytes received elsewhere.

    The hello goes out by itself: the initiator's at once, the acceptor's in reply.
    """

    def __init__(self, sock: socket.socket, hello: Hello, *, initiator: bool) -> None:
        self.session = Session(hello, initiator=initiator)
        self._sock = sock
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._initiator = initiator
        if initiator:
            self.send(self.session.hello())

    def fileno(self) -> int:
        return self._sock.fileno()

    def has_more_within(self, seconds: float) -> bool:
        """Wait for bytes, or for the end, but no longer than this."""
        return bool(self._poll.poll(seconds * 1000))

    def receive(self) -> list[Event]:
        """Wait for bytes and return what they bring, which may be nothing yet.

        The last event of a line is a `Failed`; with `END_OF_LINE` the peer hung up. After an
        orderly goodbye the end brings a `Failed` all the same, so that a reader needs one rule.
        """
        try:
            data = self._sock.recv(limits.SOCKET_READ_BYTES)
        except ConnectionError:
            data = b""
        return self.feed(data) if data else self.end()

    def feed(self, data: bytes) -> list[Event]:
        """What `data` brings. Answers a hello, and says farewell before a failure."""
        events = self.session.receive(data)
        for event in events:
            if isinstance(event, Opened) and not self._initiator:
                self.send(self.session.hello())
            elif isinstance(event, Failed):
                self.send(event.farewell)
        return events

    def end(self) -> list[Event]:
        """The peer has closed its end."""
        failure = Failure(END_OF_LINE, "The peer hung up.")
        return self.session.receive_end() or [Failed(problem=failure.problem)]

    def send(self, data: bytes) -> None:
        """Write all of it. A peer that is gone is told by the next `receive`, not here."""
        try:
            self._sock.sendall(data)
        except ConnectionError:
            return

    def close(self) -> None:
        self._sock.close()
