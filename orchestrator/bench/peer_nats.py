"""NATS JetStream for `agentd bench bus`: the programs that publish and consume.

    python -m orchestrator.bench.peer_nats publish|consume|publish-tuned|consume-tuned TOLD

All use nats-py on uvloop. The plain ones use it as its documentation does: a request is some
`publish_async` whose acknowledgements are awaited together, and the consumer fetches. The tuned
publisher hears the acknowledgements on one inbox, without a future and a semaphore for each, and
the tuned consumer is pushed to. Each message is acknowledged explicitly. The notice is given when
that is written: the server's answer to it is not waited for.
"""

import asyncio
import os
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
import nats
import uvloop
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, StorageType, StreamConfig

from orchestrator.bench import bus_program
from orchestrator.bench.bus_pacing import Outcome, Pacer
from orchestrator.bench.bus_program import NOTICE, Consumer, Notices, Publisher

STREAM: Final = "bench"
FETCH_MAX: Final = 64
FETCH_SECONDS: Final = 0.2
"""A fetch waits so long for a batch that does not become full."""
ACKS_PENDING_MIN: Final = 1024
PENDING_MESSAGES_MAX: Final = 1_000_000
PENDING_BYTES_MAX: Final = 1_000_000_000
"""What the client may hold, for it drops what is more."""

Send = Callable[[list[bytes]], Awaitable[None]]


# ---- Publishing ---------------------------------------------------------------------------------


async def publish(told: Publisher, *, tuned: bool) -> Outcome:
    """Publish until the consumer has acknowledged all of it."""
    client = await nats.connect(told.address, allow_reconnect=False)
    async with asyncio.TaskGroup() as tasks:
        send = await _tuned(client, told, tasks) if tuned else _plain(client, told, tasks)
        pacing = _Pacing(told, bus_program.wait_start())
        loop = asyncio.get_running_loop()
        loop.add_reader(told.notices, pacing.on_notice)
        while not pacing.pacer.is_over(now_ns := time.monotonic_ns()):
            for _ in range(pacing.pacer.due(now_ns)):
                number = pacing.pacer.send(now_ns)
                await send(bus_program.payloads(told, number))
            await pacing.wait()
        loop.remove_reader(told.notices)
    await client.close()
    return pacing.pacer.outcome()


def _plain(client: Client, told: Publisher, tasks: asyncio.TaskGroup) -> Send:
    stream = client.jetstream()

    async def send(payloads: list[bytes]) -> None:
        stored = [await stream.publish_async(told.topic, payload) for payload in payloads]
        tasks.create_task(_all_of(stored))

    return send


async def _all_of(stored: list[Any]) -> None:
    await asyncio.gather(*stored)


async def _tuned(client: Client, told: Publisher, tasks: asyncio.TaskGroup) -> Send:
    inbox = client.new_inbox()

    async def on_stored(message: Msg) -> None:
        if b'"error"' in message.data:
            tasks.create_task(_refuse(message.data))

    await client.subscribe(f"{inbox}.*", cb=on_stored, pending_msgs_limit=PENDING_MESSAGES_MAX)
    await client.flush()

    async def send(payloads: list[bytes]) -> None:
        for payload in payloads:
            await client.publish(told.topic, payload, f"{inbox}.a")

    return send


async def _refuse(answer: bytes) -> None:
    raise ConnectionError(f"the server refused a message: {answer!r}")


class _Pacing:
    """The pacer of an asynchronous publisher, and what it waits for."""

    def __init__(self, told: Publisher, start_ns: int) -> None:
        self.pacer = Pacer(told.load, start_ns)
        self._notices = Notices(told)
        self._heard = asyncio.Event()

    def on_notice(self) -> None:
        now_ns = time.monotonic_ns()
        for number in self._notices.take():
            self.pacer.finish(number, now_ns)
        self._heard.set()

    async def wait(self) -> None:
        """Until an answer, or until the schedule wants something sent.

        Raises `TimeoutError` where nothing is handled any more.
        """
        wait_ns = self.pacer.wait_ns(time.monotonic_ns())
        silence_s = bus_program.SILENCE_SECONDS_MAX
        try:
            async with asyncio.timeout(silence_s if wait_ns is None else wait_ns / 1e9):
                await self._heard.wait()
        except TimeoutError:
            if wait_ns is None:
                raise
        self._heard.clear()


# ---- Consuming ----------------------------------------------------------------------------------


async def consume(told: Consumer, *, tuned: bool) -> None:
    """Acknowledge what comes."""
    client = await nats.connect(told.address, allow_reconnect=False)
    await _new_stream(client, told.topic)
    await (_consume_pushed if tuned else _consume_fetched)(client, told)


async def _consume_fetched(client: Client, told: Consumer) -> None:
    batch = min(FETCH_MAX, told.in_flight)  # it waits until it has so many
    subscription = await client.jetstream().pull_subscribe(
        told.topic, durable="one", stream=STREAM, config=_config(told)
    )
    print(bus_program.READY, flush=True)
    while True:
        try:
            messages = await subscription.fetch(batch, timeout=FETCH_SECONDS)
        except TimeoutError:
            continue
        for message in messages:
            await message.ack()
        _give_notice(told, Counter(bus_program.sender_of(one.data) for one in messages))


async def _consume_pushed(client: Client, told: Consumer) -> None:
    handled: Counter[int] = Counter()
    loop = asyncio.get_running_loop()

    def give_notice() -> None:
        _give_notice(told, handled)
        handled.clear()

    async def on_message(message: Msg) -> None:
        await message.ack()
        if not handled:
            loop.call_soon(give_notice)
        handled[bus_program.sender_of(message.data)] += 1

    await client.jetstream().subscribe(
        told.topic,
        stream=STREAM,
        cb=on_message,
        manual_ack=True,
        config=_config(told),
        pending_msgs_limit=PENDING_MESSAGES_MAX,
        pending_bytes_limit=PENDING_BYTES_MAX,
    )
    print(bus_program.READY, flush=True)
    await asyncio.get_running_loop().create_future()


def _config(told: Consumer) -> ConsumerConfig:
    return ConsumerConfig(
        ack_policy=AckPolicy.EXPLICIT, max_ack_pending=max(ACKS_PENDING_MIN, told.in_flight)
    )


def _give_notice(told: Consumer, senders: Counter[int]) -> None:
    for sender, count in senders.items():
        os.write(told.notices[sender], NOTICE.pack(count))


async def _new_stream(client: Client, topic: str) -> None:
    """An empty stream in files: that of the run before is deleted."""
    manager: Any = client.jsm()
    for info in await manager.streams_info():
        await manager.delete_stream(info.config.name)
    await manager.add_stream(
        StreamConfig(name=STREAM, subjects=[topic], storage=StorageType.FILE, num_replicas=1)
    )


def main() -> None:
    role, told = sys.argv[1:]
    tuned = role.endswith("tuned")
    if role.startswith("publish"):
        publisher = msgspec.json.decode(told, type=Publisher)
        bus_program.report(uvloop.run(publish(publisher, tuned=tuned)))
    else:
        uvloop.run(consume(msgspec.json.decode(told, type=Consumer), tuned=tuned))


if __name__ == "__main__":
    main()
