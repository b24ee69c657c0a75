"""The blocking end of a line, against another one."""

import socket
from collections.abc import Iterator

import pytest

from agent_runtime.wire import END_OF_LINE, BlockingLine
from ipc_protocol.events import Failed, Hello, Opened, RequestReceived
from ipc_protocol.inference import Nothing

Ends = tuple[BlockingLine, BlockingLine]


@pytest.fixture
def ends() -> Iterator[Ends]:
    left, right = socket.socketpair()
    left.settimeout(10)
    right.settimeout(10)
    acceptor = BlockingLine(right, Hello(name="acceptor"), initiator=False)
    initiator = BlockingLine(left, Hello(name="initiator"), initiator=True)
    yield initiator, acceptor
    initiator.close()
    acceptor.close()


def test_the_hellos_go_out_by_themselves(ends: Ends) -> None:
    initiator, acceptor = ends
    (opened,) = acceptor.receive()
    assert isinstance(opened, Opened) and opened.settled.peer == "initiator"
    (opened,) = initiator.receive()
    assert isinstance(opened, Opened) and opened.settled.peer == "acceptor"


def test_bytes_may_be_received_elsewhere(ends: Ends) -> None:
    initiator, acceptor = ends
    acceptor.receive()
    initiator.receive()
    _, data = initiator.session.request("zygote.exits", Nothing())
    assert acceptor.feed(data[:5]) == []
    (event,) = acceptor.feed(data[5:])
    assert isinstance(event, RequestReceived) and event.request.method == "zygote.exits"


def test_a_peer_that_hangs_up_ends_the_line(ends: Ends) -> None:
    initiator, acceptor = ends
    initiator.close()
    acceptor.receive()
    (event,) = acceptor.receive()
    assert isinstance(event, Failed) and event.problem.code == END_OF_LINE


def test_an_orderly_end_ends_it_too(ends: Ends) -> None:
    initiator, acceptor = ends
    acceptor.receive()
    initiator.receive()
    initiator.send(initiator.session.goodbye())
    initiator.close()
    acceptor.receive()
    (event,) = acceptor.receive()
    assert isinstance(event, Failed) and event.problem.code == END_OF_LINE


def test_what_is_sent_to_a_peer_that_is_gone_is_no_error(ends: Ends) -> None:
    initiator, acceptor = ends
    assert acceptor.fileno() > 0
    acceptor.close()
    initiator.send(b"x" * 1000)
    initiator.send(b"x" * 1000)


def test_a_peer_that_breaks_the_protocol_hears_why(ends: Ends) -> None:
    initiator, acceptor = ends
    acceptor.receive()
    initiator.receive()
    initiator.send(b"GET / HTTP/1.1\r\n\r\n")
    (event,) = acceptor.receive()
    assert isinstance(event, Failed) and event.problem.code == "protocol.version"
    (event,) = initiator.receive()
    assert isinstance(event, Failed) and event.problem.code == "protocol.version"
