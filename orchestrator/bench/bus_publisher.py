"""A publisher of `agentd bench bus`: a program that knows the control socket and nothing else.

It is a lean client, because it takes time of the cores that it measures, and it cheats at nothing:
every request is encoded when it is sent, every answer is decoded, and the count of its messages
compared. What it leaves out of `ipc_protocol.aio` are the tasks and the checks of the peer.
"""

import select
import socket
import sys

import msgspec

from ipc_protocol import limits
from ipc_protocol.control import Publish, Published
from ipc_protocol.events import Hello, Opened
from ipc_protocol.frames import HEADER, VERSION, FrameType
from ipc_protocol.methods import PUBLISH
from ipc_protocol.session import Session
from orchestrator.bench import bus_program
from orchestrator.bench.bus_program import Publisher


class _Request(msgspec.Struct, frozen=True):
    method: str
    params: Publish


class ControlLine:
    """A blocking connection to a daemon, whose requests are all `ctl.publish`."""

    sent_at_once_max = limits.STREAMS_MAX

    def __init__(self, told: Publisher) -> None:
        self._topic = told.topic
        self._batch = told.load.batch
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(told.address)
        self._greet()
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Published)
        self._poll = select.epoll()
        self._poll.register(self._socket, select.EPOLLIN)
        self._received = bytearray()

    def _greet(self) -> None:
        session = Session(Hello(name="agentd bench"), initiator=True)
        self._socket.sendall(session.hello())
        while not any(
            isinstance(event, Opened)
            for event in session.receive(self._socket.recv(limits.SOCKET_READ_BYTES))
        ):
            pass

    def send(self, payloads: list[list[bytes]], numbers: range) -> None:
        self._socket.sendall(
            b"".join(
                self._frame(number, each) for number, each in zip(numbers, payloads, strict=True)
            )
        )

    def _frame(self, number: int, payloads: list[bytes]) -> bytes:
        params = Publish(topic=self._topic, payloads=payloads, wait="handled")
        body = self._encoder.encode(_Request(PUBLISH.name, params))
        return HEADER.pack(VERSION, len(body), FrameType.REQUEST, 0, 2 * number + 1) + body

    def wait_finished(self, timeout_s: float) -> list[int]:
        if not self._poll.poll(timeout_s):
            return []
        data = self._socket.recv(limits.SOCKET_READ_BYTES)
        if not data:
            raise ConnectionError("the daemon closed the connection")
        self._received += data
        return self._take_answers()

    def _take_answers(self) -> list[int]:
        finished = []
        start, end = 0, len(self._received)
        while end - start >= HEADER.size:
            _, length, type_, _, stream = HEADER.unpack_from(self._received, start)
            if end - start < HEADER.size + length:
                break
            body = bytes(self._received[start + HEADER.size : start + HEADER.size + length])
            if type_ != FrameType.RESULT:
                raise ConnectionError(f"the daemon answered {msgspec.msgpack.decode(body)}")
            if len(self._decoder.decode(body).messages) != self._batch:
                raise ConnectionError("the daemon answered for another number of messages")
            finished.append(stream // 2)
            start += HEADER.size + length
        del self._received[:start]
        return finished


if __name__ == "__main__":
    bus_program.run(ControlLine, sys.argv[1])
