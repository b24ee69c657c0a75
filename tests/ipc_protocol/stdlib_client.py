"""A client written from docs/protocol.md alone: the standard library, msgpack, nothing of agentd.

`ask_question(path, text)` asks the daemon at the socket `path` and returns its reply. As a program:
`python stdlib_client.py SOCKET TEXT`.
"""

import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack

HELLO, REQUEST, ITEM, RESULT, ERROR, CANCEL, GOODBYE = range(1, 8)
VERSION = b"AGD\x01"
HEADER = struct.Struct(">4sIHHI")


class ProtocolError(Exception):
    """An ERROR frame; `code` is its code."""

    def __init__(self, problem: dict[str, Any]) -> None:
        super().__init__(f"{problem['code']}: {problem['message']} {problem.get('cure', '')}")
        self.code: str = problem["code"]


class Client:
    """One request at a time, which is all that most programs need."""

    def __init__(self, path: str | Path, name: str = "stdlib-client") -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._next_stream = 1
        try:
            self._socket.connect(str(path))
            self._send(HELLO, 0, {"name": name})
            type_, _, self.peer = self._receive()
            assert type_ == HELLO, type_
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._send(GOODBYE, 0, {})
        except OSError:
            pass  # the daemon left first
        finally:
            self._socket.close()

    def request(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Ask, and return the result. Raises `ProtocolError` when it is an error."""
        for type_, body in self.frames_of(self.open(method, params)):
            if type_ == RESULT:
                return body
        raise AssertionError("a stream ends with a result")

    def stream(self, method: str, params: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Ask, and yield the items of the response."""
        for type_, body in self.frames_of(self.open(method, params)):
            if type_ == ITEM:
                yield body

    def open(self, method: str, params: dict[str, Any]) -> int:
        stream = self._next_stream
        self._next_stream += 2
        self._send(REQUEST, stream, {"method": method, "params": params})
        return stream

    def cancel(self, stream: int) -> None:
        self._send(CANCEL, stream, {})

    def frames_of(self, stream: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """The ITEM frames of a stream and its RESULT, after which it ends."""
        while True:
            type_, of_stream, body = self._receive()
            if type_ == GOODBYE or of_stream != stream:
                continue  # what is open still finishes; rests of an earlier stream
            if type_ == ERROR:
                raise ProtocolError(body)
            yield type_, body
            if type_ == RESULT:
                return

    def _send(self, type_: int, stream: int, body: dict[str, Any]) -> None:
        packed = msgpack.packb(body)
        self._socket.sendall(HEADER.pack(VERSION, len(packed), type_, 0, stream) + packed)

    def _receive(self) -> tuple[int, int, dict[str, Any]]:
        version, length, type_, _, stream = HEADER.unpack(self._exactly(HEADER.size))
        assert version == VERSION, version
        body: dict[str, Any] = msgpack.unpackb(self._exactly(length))
        if type_ == ERROR and stream == 0:
            raise ProtocolError(body)
        return type_, stream, body

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = self._socket.recv(size - len(data))
            if not piece:
                raise ConnectionError("The daemon hung up.")
            data += piece
        return bytes(data)


def ask_question(socket_path: str | Path, text: str) -> str:
    """Ask, wait until the conversation is answered, and return the reply."""
    with Client(socket_path) as client:
        receipt = client.request("ctl.ask", {"text": text})
        answered = client.request("ctl.answer", {"correlation": receipt["correlation"]})
    reply: str = answered["reply"]
    return reply


if __name__ == "__main__":
    print(ask_question(sys.argv[1], sys.argv[2]))
