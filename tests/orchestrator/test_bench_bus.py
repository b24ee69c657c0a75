"""`agentd bench bus`: its schedule and statistics, its client, and a short run of everything."""

import asyncio
import contextlib
import json
import os
import socket
import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from daemons import agentd, short_folder

from ipc_protocol.aio import Call, Connection, Handlers
from ipc_protocol.control import AgentStatus, Publish, Published, Status
from ipc_protocol.errors import Failure
from ipc_protocol.events import Hello
from ipc_protocol.inference import Nothing
from ipc_protocol.methods import PUBLISH, STATUS
from orchestrator.bench import bus_measures as plan
from orchestrator.bench import bus_program
from orchestrator.bench.bus import QUICK, SYNC
from orchestrator.bench.bus_daemon import Daemon
from orchestrator.bench.bus_measures import Compared, Figure
from orchestrator.bench.bus_pacing import (
    Load,
    Outcome,
    Pacer,
    interval_ns,
    percentile_ms,
    rate,
)
from orchestrator.bench.bus_processes import Side, measure, running, tail
from orchestrator.bench.bus_program import NOTICE, Notices, Publisher
from orchestrator.bench.bus_publisher import ControlLine
from orchestrator.bench.peer_servers import installed
from orchestrator.bench.peer_servers import tuned as tuned_of
from orchestrator.sockets import listening

SECOND = 1_000_000_000

# ---- When a publisher sends ---------------------------------------------------------------------


def test_a_closed_loop_sends_as_much_as_may_be_in_flight() -> None:
    pacer = Pacer(Load(batch=4, in_flight=10, duration_ns=SECOND), 0)
    assert pacer.due(0) == 2
    assert [pacer.send(0), pacer.send(0)] == [0, 1]
    assert pacer.due(1) == 0
    assert pacer.wait_ns(1) is None
    pacer.finish(0, 2)
    assert pacer.due(2) == 1


def test_a_closed_loop_ends_with_its_time_and_waits_for_what_is_in_flight() -> None:
    pacer = Pacer(Load(batch=1, in_flight=2, warmup_ns=10, duration_ns=100), 1000)
    first, second = pacer.send(1010), pacer.send(1050)
    pacer.finish(first, 1109)
    assert pacer.due(1109) == 1
    assert pacer.due(1110) == 0
    assert not pacer.is_over(1110)
    pacer.finish(second, 1200)
    assert pacer.is_over(1200)


def test_what_is_handled_in_the_warm_up_or_after_the_end_is_not_counted() -> None:
    pacer = Pacer(Load(batch=2, in_flight=8, warmup_ns=10, duration_ns=100), 0)
    for sent_ns, finished_ns in ((0, 9), (5, 10), (20, 109), (50, 110)):
        pacer.finish(pacer.send(sent_ns), finished_ns)
    outcome = pacer.outcome()
    assert outcome.published == 8
    assert outcome.counted == 4
    assert outcome.elapsed_ns == 100
    assert outcome.latencies_ns == [89, 60], "those that were sent while it was counted"


def test_a_run_goes_on_until_one_request_of_its_time_is_handled() -> None:
    pacer = Pacer(Load(batch=1, in_flight=1, warmup_ns=10, duration_ns=100), 0)
    pacer.finish(pacer.send(0), 500)
    assert pacer.due(600) == 1, "that one was sent in the warm-up"
    pacer.finish(pacer.send(600), 700)
    assert pacer.is_over(800)
    assert pacer.outcome() == Outcome(published=2, counted=2, elapsed_ns=691, latencies_ns=[100])


def test_a_number_of_requests_is_sent_and_counted_whole() -> None:
    pacer = Pacer(Load(batch=8, in_flight=16, requests=3), 100)
    assert pacer.due(100) == 2
    for _ in range(2):
        pacer.send(100)
    pacer.finish(1, 150)
    assert pacer.due(150) == 1
    pacer.send(150)
    assert not pacer.is_over(150)
    pacer.finish(0, 160)
    pacer.finish(2, 300)
    assert pacer.is_over(300)
    assert pacer.due(300) == 0
    assert pacer.outcome() == Outcome(
        published=24, counted=24, elapsed_ns=200, latencies_ns=[50, 60, 150]
    )


def test_an_open_loop_follows_its_schedule_and_not_the_answers() -> None:
    load = Load(batch=1, in_flight=100, duration_ns=50, interval_ns=10)
    pacer = Pacer(load, 1000)
    assert pacer.due(1000) == 1
    pacer.send(1000)
    assert pacer.due(1009) == 0
    assert pacer.wait_ns(1009) == 1
    assert pacer.due(1035) == 3, "nothing was answered, and three more are due"
    assert pacer.wait_ns(1035) == 0


def test_a_latency_of_an_open_loop_begins_when_the_request_was_due() -> None:
    load = Load(batch=1, in_flight=1, duration_ns=30, interval_ns=10)
    pacer = Pacer(load, 0)
    pacer.send(0)
    assert pacer.due(25) == 0, "it may not have more in flight"
    assert pacer.wait_ns(25) is None
    pacer.finish(0, 25)
    pacer.finish(pacer.send(25), 35)
    pacer.finish(pacer.send(35), 45)
    assert pacer.outcome().latencies_ns == [25, 25, 25]


def test_an_open_loop_sends_all_that_its_schedule_has_however_late() -> None:
    pacer = Pacer(Load(batch=1, in_flight=9, warmup_ns=10, duration_ns=25, interval_ns=10), 0)
    assert pacer.due(10_000) == 4
    for _ in range(4):
        pacer.send(10_000)
    assert pacer.due(10_000) == 0
    assert pacer.wait_ns(10_000) is None
    assert not pacer.is_over(10_000)


def test_a_request_that_is_not_in_flight_cannot_be_finished() -> None:
    pacer = Pacer(Load(batch=1, in_flight=1, requests=1), 0)
    with pytest.raises(KeyError):
        pacer.finish(0, 1)


# ---- Statistics ---------------------------------------------------------------------------------


def outcome(*latencies_ns: int, counted: int = 0, elapsed_ns: int = SECOND) -> Outcome:
    return Outcome(
        published=counted, counted=counted, elapsed_ns=elapsed_ns, latencies_ns=list(latencies_ns)
    )


def test_a_percentile_is_a_latency_that_was_measured() -> None:
    hundred = outcome(*(each * 1_000_000 for each in range(100, 0, -1)))
    assert percentile_ms([hundred], 0.5) == 50
    assert percentile_ms([hundred], 0.99) == 99
    assert percentile_ms([hundred], 1.0) == 100
    assert percentile_ms([hundred], 0.0) == 1
    assert percentile_ms([outcome(3_000_000), outcome(1_000_000)], 0.5) == 1


def test_nothing_has_no_percentile() -> None:
    with pytest.raises(ValueError, match="no request"):
        percentile_ms([outcome()], 0.5)


def test_rates_of_publishers_add_up() -> None:
    assert rate([outcome(counted=300), outcome(counted=100, elapsed_ns=SECOND // 2)]) == 500
    assert rate([outcome(counted=0, elapsed_ns=0)]) == 0


def test_the_interval_of_a_schedule_has_the_rate_of_its_messages() -> None:
    assert interval_ns(1000, 1) == 1_000_000
    assert interval_ns(64_000, 64) == 1_000_000
    assert interval_ns(1e12, 1) == 1, "never none, which would be a closed loop"


# ---- Rows ---------------------------------------------------------------------------------------


def test_a_figure_is_held_to_what_is_promised_and_then_to_each_peer() -> None:
    ours = {
        "rate": Figure(90.0, "messages/s", "higher", 80.0),
        "latency": Figure(0.9, "ms", "lower", 0.7),
        "alone": Figure(1.0, "ms", "lower"),
    }
    theirs = {"rate": Figure(100.0, "messages/s", "higher"), "latency": Figure(1.8, "ms", "lower")}
    peers = [
        Compared("syncs", theirs, frozenset({"higher", "lower"})),
        Compared("does not", theirs, frozenset({"higher"})),
        Compared("tuned", theirs, frozenset()),
    ]
    found = [
        (row.measure, row.peer, row.expected, row.met, row.ratio) for row in plan.rows(ours, peers)
    ]
    assert found == [
        ("rate", None, 80.0, True, None),
        ("rate", "syncs", 100.0, False, 0.9),
        ("rate", "does not", 100.0, False, 0.9),
        ("rate", "tuned", None, None, 0.9),
        ("latency", None, 0.7, False, None),
        ("latency", "syncs", 1.8, True, 0.5),
        ("latency", "does not", None, None, 0.5),
        ("latency", "tuned", None, None, 0.5),
        ("alone", None, None, None, None),
    ]


def test_growth_is_held_to_the_rate_with_the_fewest_stored() -> None:
    figures = plan.growth({1_000: 200.0, 100_000: 190.0})
    assert [(name.split(",")[0], one.value, one.expected) for name, one in figures.items()] == [
        ("rate with 1", 200.0, None),
        ("rate with 100", 190.0, 180.0),
    ]


def test_the_publishers_of_a_rate_share_what_is_in_flight() -> None:
    four = plan.Rate(publishers=4, batch=64, in_flight=1024)
    assert four.name == "rate, 4 publishers, 64 to a frame, 1024 in flight"
    assert four.load(2.0) == Load(
        batch=64, in_flight=256, warmup_ns=400_000_000, duration_ns=2 * SECOND
    )
    assert plan.Rate(1, 1, 8).name == "rate, 1 publisher, 1 to a frame, 8 in flight"


def test_loads_are_what_their_names_say() -> None:
    assert plan.low_load(3.0).in_flight == 1
    assert plan.open_name(0.1) == "round trip at 10 % of its highest rate, 64 to a frame"
    opened = plan.open_load(64_000, 3.0)
    assert (opened.batch, opened.interval_ns) == (64, 1_000_000)
    assert plan.counted_load(1_000).requests == 16


# ---- The client ---------------------------------------------------------------------------------


class Server:
    """The other end of a control socket. It says that it handled what it was sent."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []
        self.answer_short = False
        self.dead_letters = 0

    async def publish(self, asked: Publish, _: Call) -> Published:
        if asked.topic != "bench.in":
            raise Failure("bus.no-subscriber", "Nobody.")
        assert asked.wait == "handled"
        self.payloads += asked.payloads
        numbers = range(1, len(asked.payloads) + (0 if self.answer_short else 1))
        return Published(messages=list(numbers), correlations=[], subscribers=["echo"])

    async def status(self, _: Nothing, __: Call) -> Status:
        agent = AgentStatus(
            name="echo", role="agent", state="idle", priority="normal", restarts=0, pending=0,
            parked=0, done=len(self.payloads), memories=0,
        )  # fmt: skip
        return Status(
            version="", pid=1, started_us=0, now_us=0, healthy=True, sandbox="strict",
            agents=[agent], engines=[], deliveries={}, conversations={}, attention_open=0,
            dead_letters=self.dead_letters,
        )  # fmt: skip


@contextlib.asynccontextmanager
async def serving(path: Path) -> AsyncIterator[Server]:
    server = Server()
    with listening(path, mode=0o600, backlog=8) as listener:

        async def accept() -> None:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    sock, _ = await asyncio.get_running_loop().sock_accept(listener)
                    tasks.create_task(serve(sock))

        async def serve(sock: socket.socket) -> None:
            handlers = Handlers().add(PUBLISH, server.publish).add(STATUS, server.status)
            async with Connection(sock, Hello(name="test"), handlers, initiator=False) as line:
                await line.wait_closed()

        accepting = asyncio.create_task(accept())
        try:
            yield server
        finally:
            accepting.cancel()
            await asyncio.gather(accepting, return_exceptions=True)


def told(path: Path, load: Load, topic: str = "bench.in") -> Publisher:
    return Publisher(address=str(path), topic=topic, index=7, load=load)


def drive(publisher: Publisher) -> Outcome:
    line = ControlLine(publisher)
    return bus_program.drive(publisher, line, time.monotonic_ns(), time.monotonic_ns)


@pytest.mark.parametrize(("batch", "in_flight"), [(1, 1), (1, 8), (64, 256)])
async def test_every_message_of_a_publisher_arrives_once(batch: int, in_flight: int) -> None:
    load = Load(batch=batch, in_flight=in_flight, requests=50)
    with short_folder() as folder:
        async with serving(folder / "s") as server:
            seen = await asyncio.to_thread(drive, told(folder / "s", load))
    assert seen.published == seen.counted == 50 * batch
    assert len(seen.latencies_ns) == 50
    assert len(set(server.payloads)) == len(server.payloads) == 50 * batch
    assert {len(payload) for payload in server.payloads} == {256}
    assert {bus_program.sender_of(payload) for payload in server.payloads} == {7}


async def test_an_error_ends_a_publisher() -> None:
    load = Load(batch=1, in_flight=1, requests=1)
    with short_folder() as folder:
        async with serving(folder / "s"):
            with pytest.raises(ConnectionError, match=r"bus\.no-subscriber"):
                await asyncio.to_thread(drive, told(folder / "s", load, "else.where"))


async def test_an_answer_for_fewer_messages_ends_a_publisher() -> None:
    load = Load(batch=4, in_flight=4, requests=1)
    with short_folder() as folder:
        async with serving(folder / "s") as server:
            server.answer_short = True
            with pytest.raises(ConnectionError, match="another number"):
                await asyncio.to_thread(drive, told(folder / "s", load))


async def test_publishers_are_processes_that_start_together(tmp_path: Path) -> None:
    with short_folder() as folder:
        async with serving(folder / "s") as server:
            side = Side("a test", str(folder / "s"), ("orchestrator.bench.bus_publisher",))
            load = Load(batch=2, in_flight=4, requests=10)
            outcomes = await measure(side, load, 3, tmp_path)
    assert [one.published for one in outcomes] == [20, 20, 20]
    assert len(set(server.payloads)) == 60


async def test_figures_are_refused_when_the_store_has_another_number(tmp_path: Path) -> None:
    load = Load(batch=2, in_flight=4, requests=10)
    with short_folder() as folder:
        async with serving(folder / "s") as server:
            daemon = Daemon(folder / "s")
            await measure(daemon.side, load, 1, tmp_path)
            assert await daemon.is_healthy()
            await daemon.require_handled(20)
            with pytest.raises(Failure, match="21 messages were handled; the store has 20"):
                await daemon.require_handled(21)
            server.dead_letters = 1
            with pytest.raises(Failure, match="1 dead letters"):
                await daemon.require_handled(20)
        assert not await daemon.is_healthy(), "nobody listens there any more"


async def test_a_publisher_that_fails_is_an_error_with_what_it_said(tmp_path: Path) -> None:
    side = Side("a test", str(tmp_path / "none"), ("orchestrator.bench.bus_publisher",))
    with pytest.raises(Failure, match="did not become ready") as failure:
        await measure(side, Load(batch=1, in_flight=1, requests=1), 1, tmp_path)
    assert "FileNotFoundError" in str(failure.value)


async def test_a_process_ends_with_its_block(tmp_path: Path) -> None:
    async with running(("sh", "-c", "echo here >&2; exec sleep 1000"), tmp_path) as process:
        assert process.returncode is None
    assert process.returncode is not None
    assert tail(tmp_path) in ("here", "(it said nothing)")  # it may have been ended before that


def test_a_request_is_finished_with_the_notice_of_its_last_message(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    try:
        load = Load(batch=64, in_flight=128, requests=2)
        publisher = Publisher(address="", topic="", index=0, load=load, notices=reading)
        notices = Notices(publisher)
        os.write(writing, NOTICE.pack(63))
        assert list(notices.take()) == []
        os.write(writing, NOTICE.pack(1) + NOTICE.pack(60))
        assert list(notices.take()) == [0]
        os.write(writing, struct.pack("=II", 3, 1))
        assert list(notices.take()) == [1]
    finally:
        os.close(reading)
        os.close(writing)


# ---- The peers, and all of it -------------------------------------------------------------------


@pytest.mark.parametrize("tuned", [False, True])
@pytest.mark.parametrize("name", ["NATS JetStream", "Redis Streams"])
async def test_a_peer_that_is_installed_handles_every_message(name: str, tuned: bool) -> None:
    with short_folder() as folder:
        found, missing = installed(folder)
        peers = [peer for peer in found if peer.label.startswith(name)]
        if not peers:
            pytest.skip(" ".join(missing))
        async with peers[0].start(folder) as plain:
            side = tuned_of(plain) if tuned else plain
            for load, publishers in (
                (Load(batch=64, in_flight=128, requests=5), 2),
                (Load(batch=1, in_flight=8, duration_ns=SECOND // 10), 1),
                (Load(batch=1, in_flight=8, duration_ns=SECOND // 10, interval_ns=10**7), 1),
            ):
                outcomes = await measure(side, load, publishers, folder)
                assert all(one.published >= one.counted > 0 for one in outcomes)
                if load.requests:
                    assert [one.counted for one in outcomes] == [320, 320]
                if load.interval_ns:
                    assert len(outcomes[0].latencies_ns) == outcomes[0].published == 10


def test_it_measures_the_bus_and_says_which_peers_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    with short_folder() as folder:
        done = agentd("bench", "bus", "--quick", "--folder", str(folder), "--json", seconds=240)
    assert done.output, done.errors
    measures = {one["measure"]: one for one in json.loads(done.output)}
    latencies = [plan.LOW_LOAD, *(plan.open_name(share) for share in plan.SHARES)]
    rates = [
        *(one.name for one in plan.RATES),
        *(plan.growth_name(stored) for stored in QUICK.stored),
    ]
    percentiles = [f"{name}, {which}" for name in latencies for which in ("p50", "p99")]
    assert set(measures) == {SYNC, *rates, *percentiles}
    assert {measures[name]["unit"] for name in rates} == {"messages/s"}
    assert {measures[name]["unit"] for name in percentiles} == {"ms"}
    assert all(one["value"] > 0 and one["peer"] is None for one in measures.values())
    assert [measures[one.name]["expected"] for one in plan.RATES] == [
        80_000, 80_000, 20_000, 20_000, None,
    ]  # fmt: skip
    assert "nats-server is not installed" in done.errors
    assert "redis-server is not installed" in done.errors
    assert done.status == (1 if any(one["met"] is False for one in measures.values()) else 0)
    assert list(tmp_path.iterdir()) == []
