"""Redis Streams for `agentd bench bus`: the programs that publish and consume.

    python -m orchestrator.bench.peer_redis publish|consume|publish-tuned|consume-tuned TOLD

The plain ones use redis-py as its documentation does: a pipeline of XADD for each request, one
XREADGROUP after the other, one XACK for what it brought. The tuned ones use the connections below
those commands, because only there may several requests be under way at once: what is due leaves in
one write, and the consumer sends its XACK and the next XREADGROUP together. All read in C where
`redis[hiredis]` is installed. A consumer gives notice when its XACK is answered.
"""

import os
import select
import sys
from collections import Counter
from typing import Any, Final

import msgspec
from redis import Redis
from redis.connection import UnixDomainSocketConnection

from orchestrator.bench import bus_program
from orchestrator.bench.bus_program import NOTICE, Consumer, Publisher

GROUP: Final = "bench"
READ_MAX: Final = 64
READ_MAX_TUNED: Final = 256
"""Messages of one XREADGROUP."""
BLOCK_MS: Final = 0
"""A read waits until there is something."""

Entries = list[tuple[bytes, Any]]
"""Ids, and the fields with the payload among them."""


# ---- Plain --------------------------------------------------------------------------------------


class PipelineLine:
    """Publishes with one pipeline for each request, and waits for its replies."""

    sent_at_once_max = 1

    def __init__(self, told: Publisher) -> None:
        self._topic = told.topic
        self._client = Redis(unix_socket_path=told.address)
        self._client.ping()
        self._notices = bus_program.Notices(told)
        self._poll = select.epoll()
        self._poll.register(told.notices, select.EPOLLIN)

    def send(self, payloads: list[list[bytes]], numbers: range) -> None:
        for each in payloads:
            if len(each) == 1:
                self._client.xadd(self._topic, {"p": each[0]})
                continue
            pipeline = self._client.pipeline(transaction=False)
            for one in each:
                pipeline.xadd(self._topic, {"p": one})
            pipeline.execute()

    def wait_finished(self, timeout_s: float) -> range:
        return self._notices.take() if self._poll.poll(timeout_s) else range(0)


def consume(told: Consumer) -> None:
    """Read and acknowledge, in a group of one."""
    client = Redis(unix_socket_path=told.address)
    client.delete(told.topic)
    client.xgroup_create(told.topic, GROUP, id="$", mkstream=True)
    print(bus_program.READY, flush=True)
    while True:
        answer: Any = client.xreadgroup(
            GROUP, "one", {told.topic: ">"}, count=READ_MAX, block=BLOCK_MS
        )
        entries: Entries = answer[0][1]
        client.xack(told.topic, GROUP, *(id_ for id_, _ in entries))
        _give_notice(told, Counter(_sender(fields[b"p"]) for _, fields in entries))


# ---- Tuned --------------------------------------------------------------------------------------


class StreamLine:
    """Publishes without waiting for the replies before the next request."""

    sent_at_once_max = 1024

    def __init__(self, told: Publisher) -> None:
        self._topic = told.topic
        self._notices = bus_program.Notices(told)
        self._notices_descriptor = told.notices
        self._connection = _connected(told.address)
        self._poll = select.epoll()
        self._poll.register(self._connection._get_socket(), select.EPOLLIN)
        self._poll.register(told.notices, select.EPOLLIN)

    def send(self, payloads: list[list[bytes]], numbers: range) -> None:
        commands = [("XADD", self._topic, "*", "p", one) for each in payloads for one in each]
        packed = self._connection.pack_commands(commands)
        self._connection.send_packed_command(packed, check_health=False)

    def wait_finished(self, timeout_s: float) -> range:
        finished = range(0)
        for descriptor, _ in self._poll.poll(timeout_s):
            if descriptor == self._notices_descriptor:
                finished = self._notices.take()
            else:
                while self._connection.can_read(0):
                    self._connection.read_response()
        return finished


def consume_tuned(told: Consumer) -> None:
    """The same as `consume`, with one write and one wait where that has two."""
    connection = _connected(told.address)
    connection.send_command("DEL", told.topic)
    connection.read_response()
    connection.send_command("XGROUP", "CREATE", told.topic, GROUP, "$", "MKSTREAM")
    connection.read_response()
    print(bus_program.READY, flush=True)
    read = (
        "XREADGROUP", "GROUP", GROUP, "one", "COUNT", READ_MAX_TUNED, "BLOCK", BLOCK_MS,
        "STREAMS", told.topic, ">",
    )  # fmt: skip
    connection.send_command(*read)
    while True:
        entries: Entries = connection.read_response()[0][1]
        acknowledge = ("XACK", told.topic, GROUP, *(id_ for id_, _ in entries))
        connection.send_packed_command(connection.pack_commands([acknowledge, read]))
        connection.read_response()
        _give_notice(told, Counter(_sender(fields[1]) for _, fields in entries))


def _connected(path: str) -> Any:
    connection = UnixDomainSocketConnection(path=path, protocol=2)
    connection.connect()
    return connection


# ---- Both ---------------------------------------------------------------------------------------


_sender = bus_program.sender_of


def _give_notice(told: Consumer, senders: Counter[int]) -> None:
    for sender, count in senders.items():
        os.write(told.notices[sender], NOTICE.pack(count))


def main() -> None:
    role, told = sys.argv[1:]
    if role.startswith("publish"):
        bus_program.run(StreamLine if role.endswith("tuned") else PipelineLine, told)
    else:
        consumer = msgspec.json.decode(told, type=Consumer)
        (consume_tuned if role.endswith("tuned") else consume)(consumer)


if __name__ == "__main__":
    main()
