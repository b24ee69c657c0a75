"""A client that knows only docs/protocol.md talks to a server of this package."""

import ast
import asyncio
import contextlib
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import stdlib_client
from stdlib_client import CANCEL, ERROR, HEADER, REQUEST, Client, ProtocolError, ask_question

from ipc_protocol import control, methods
from ipc_protocol.aio import Call, Connection, Handlers
from ipc_protocol.errors import Failure
from ipc_protocol.events import Hello
from ipc_protocol.inference import Nothing
from ipc_protocol.values import Receipt


class Daemon:
    """Just enough of one: it answers a question with the question."""

    def __init__(self) -> None:
        self.questions: dict[str, str] = {}

    async def ask(self, params: control.Ask, call: Call) -> Receipt:
        correlation = params.correlation or f"c{len(self.questions) + 1}"
        self.questions[correlation] = params.text
        return Receipt(
            message=len(self.questions), correlation=correlation, subscribers=["opsclaw"]
        )

    async def answer(self, params: control.AwaitAnswer, call: Call) -> control.Conversation:
        question = self.questions.get(params.correlation)
        if question is None:
            raise Failure(
                "conversation.unknown", f"No conversation {params.correlation!r}.", "Ask first."
            )
        return control.Conversation(
            correlation=params.correlation,
            state="answered",
            question=question,
            reply=f"You asked: {question}",
            opened_us=1,
            answered_us=2,
        )

    async def watch(self, params: control.Watch, call: Call) -> Nothing:
        for number in range(300):
            await call.send_item(control.Happening(at_us=number, kind="test"))
        if params.correlation is not None:
            await asyncio.Event().wait()
        return Nothing()

    def handlers(self) -> Handlers:
        return (
            Handlers()
            .add(methods.ASK, self.ask)
            .add(methods.ANSWER, self.answer)
            .add(methods.WATCH, self.watch)
        )


async def serve(listener: socket.socket, stop: threading.Event) -> None:
    """One connection after the other, until `stop` is set and somebody connects once more."""
    handlers = Daemon().handlers()
    loop = asyncio.get_running_loop()
    while True:
        accepted, _ = await loop.sock_accept(listener)
        if stop.is_set():
            accepted.close()
            return
        connection = Connection(accepted, Hello(name="daemon"), handlers, initiator=False)
        with contextlib.suppress(Failure):
            async with connection:
                await connection.wait_closed()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "control"
    stop = threading.Event()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.setblocking(False)
        thread = threading.Thread(target=lambda: asyncio.run(serve(listener, stop)))
        thread.start()
        yield path
        stop.set()
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(str(path))
        thread.join()


def test_the_client_imports_nothing_but_the_standard_library_and_msgpack() -> None:
    tree = ast.parse(Path(stdlib_client.__file__).read_text())
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
        )
    }
    assert imported - set(sys.stdlib_module_names) == {"msgpack"}


def test_a_question_is_answered(daemon: Path) -> None:
    assert ask_question(daemon, "Is /var full? ä") == "You asked: Is /var full? ä"


def test_a_question_can_be_asked_now_and_its_answer_fetched_later(daemon: Path) -> None:
    with Client(daemon) as client:
        receipt = client.request("ctl.ask", {"text": "a", "correlation": "mine"})
        assert receipt == {"message": 1, "correlation": "mine", "subscribers": ["opsclaw"]}
    with Client(daemon) as client:
        assert client.peer["name"] == "daemon"
        answered = client.request("ctl.answer", {"correlation": "mine"})
        assert answered["state"] == "answered"


def test_the_items_of_a_stream_arrive_in_order(daemon: Path) -> None:
    with Client(daemon) as client:
        assert [item["at_us"] for item in client.stream("ctl.watch", {})] == list(range(300))


def test_a_stream_can_be_withdrawn_and_the_connection_goes_on(daemon: Path) -> None:
    with Client(daemon) as client:
        stream = client.open("ctl.watch", {"correlation": "c"})
        frames = client.frames_of(stream)
        next(frames)
        client.cancel(stream)
        with pytest.raises(ProtocolError) as caught:
            list(frames)
        assert caught.value.code == "request.cancelled"
        assert client.request("ctl.ask", {"text": "a"})["message"] == 1


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("ctl.answer", {"correlation": "nobody"}, "conversation.unknown"),
        ("ctl.answer", {}, "request.invalid"),
        ("ctl.ask", {"text": b"bytes"}, "request.invalid"),
        ("ctl.ask", {"text": "a", "priority": "very"}, "request.invalid"),
        ("ctl.nothing", {}, "request.unknown-method"),
    ],
)
def test_an_error_is_one_of_the_page_and_the_connection_goes_on(
    daemon: Path, method: str, params: dict[str, object], code: str
) -> None:
    with Client(daemon) as client:
        with pytest.raises(ProtocolError) as caught:
            client.request(method, params)
        assert caught.value.code == code
        assert client.request("ctl.ask", {"text": "a"})["message"] == 1


def test_a_client_of_another_version_is_told_so(daemon: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(str(daemon))
        other.sendall(HEADER.pack(b"AGD\x02", 1, REQUEST, 0, 1) + b"\x80")
        header = other.recv(HEADER.size, socket.MSG_WAITALL)
        assert HEADER.unpack(header)[2] == ERROR
        assert b"protocol.version" in other.recv(65536)
    assert ask_question(daemon, "still there?") == "You asked: still there?"


def test_a_client_that_breaks_a_rule_is_told_which(daemon: Path) -> None:
    with Client(daemon) as client, pytest.raises(ProtocolError) as caught:
        client._send(CANCEL, 7, {})
        client._receive()
    assert caught.value.code == "protocol.sequence"
