"""Real programs are started, asked, ended and mourned."""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from ipc_protocol.aio import Connection, Handlers
from ipc_protocol.errors import Failure
from ipc_protocol.events import Hello
from orchestrator.supervision.lines import (
    LINE_BYTES_MAX,
    LINES_BURST_MAX,
    LINES_PER_SECOND_MAX,
    LineLimit,
    LineSplitter,
)
from orchestrator.supervision.processes import ChildProcess, Death, StopDeadlines

OPEN = "import os, signal, socket, sys, time\nline = socket.socket(fileno=int(sys.argv[1]))\n"
LEAVES_WITH_THE_LINE = OPEN + "line.send(b'!')\nline.recv(1)\n"
DEAF = OPEN + "line.send(b'!')\nline.recv(1)\ntime.sleep(600)\n"
DEAF_AND_STUBBORN = DEAF.replace(
    "line.send", "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nline.send"
)
AT_ONCE = StopDeadlines(ask_seconds=0.2, term_seconds=0.2)


def python(source: str) -> Callable[[int], Sequence[str]]:
    return lambda fd: (sys.executable, "-c", source, str(fd))


def test_a_program_leaves_when_its_line_closes() -> None:
    async def body() -> Death:
        async with ChildProcess.spawn("calm", python(LEAVES_WITH_THE_LINE)) as child:
            await child.wait_ready(30)
            return await child.stop()

    assert run(body) == Death(exit_status=0, signal=None)


def run(body: Callable[[], Any]) -> Any:
    """On both loops; the outcome must be the same."""
    outcomes = [asyncio.run(body())]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        outcomes.append(runner.run(body()))
    assert outcomes[0] == outcomes[1]
    return outcomes[0]


def test_one_that_does_not_listen_gets_sigterm() -> None:
    async def body() -> str:
        async with ChildProcess.spawn("deaf", python(DEAF), deadlines=AT_ONCE) as child:
            await child.wait_ready(30)
            return (await child.stop()).description

    assert run(body) == "killed by SIGTERM"


def test_one_that_ignores_sigterm_gets_sigkill() -> None:
    async def body() -> str:
        async with ChildProcess.spawn(
            "stubborn", python(DEAF_AND_STUBBORN), deadlines=AT_ONCE
        ) as child:
            await child.wait_ready(30)
            return (await child.stop()).description

    assert run(body) == "killed by SIGKILL"


def test_leaving_the_block_ends_the_program_and_waits_for_its_death() -> None:
    async def body() -> int:
        async with ChildProcess.spawn("deaf", python(DEAF), deadlines=AT_ONCE) as child:
            await child.wait_ready(30)
        with pytest.raises(ProcessLookupError):
            os.kill(child.pid, 0)
        return child.pid > 0

    run(body)


def test_an_error_in_the_block_comes_out_as_it_is() -> None:
    async def body() -> None:
        with pytest.raises(ZeroDivisionError):
            async with ChildProcess.spawn("calm", python(LEAVES_WITH_THE_LINE)):
                raise ZeroDivisionError

    run(body)


def test_a_cancelled_stop_still_kills() -> None:
    async def body() -> str:
        async with ChildProcess.spawn("stubborn", python(DEAF_AND_STUBBORN)) as child:
            await child.wait_ready(30)
            stopping = asyncio.ensure_future(child.stop())
            await asyncio.sleep(0)
            stopping.cancel()
            return (await child.wait_death()).description

    assert run(body) == "killed by SIGKILL"


def test_a_death_is_noticed_and_its_last_words_are_kept() -> None:
    async def body() -> Death:
        source = OPEN + "line.send(b'!')\nline.recv(1)\nraise SystemExit('no such model')"
        async with ChildProcess.spawn("engine", python(source)) as child:
            await child.wait_ready(30)
            child.line.send(b"?")
            return await child.wait_death()

    assert run(body) == Death(exit_status=1, signal=None, last_lines=("no such model",))


def test_a_death_is_reported_although_a_grandchild_holds_the_log_open() -> None:
    source = OPEN + (
        "if os.fork() == 0:\n    time.sleep(600)\nline.send(b'!')\nline.recv(1)\nos._exit(3)"
    )

    async def body() -> Death:
        async with ChildProcess.spawn("parent", python(source)) as child:
            await child.wait_ready(30)
            child.line.send(b"?")
            death = await child.wait_death()
            os.killpg(child.pid, signal.SIGKILL)
            return death

    assert run(body).exit_status == 3


def test_a_kill_from_outside_is_told_by_name() -> None:
    async def body() -> Death:
        async with ChildProcess.spawn("calm", python(LEAVES_WITH_THE_LINE)) as child:
            await child.wait_ready(30)
            assert child.alive
            child.kill()
            death = await child.wait_death()
            child.kill()
            assert not child.alive
            return death

    death = run(body)
    assert death.description == "killed by SIGKILL"
    assert not death.orderly


def test_the_description_of_a_death_names_status_or_signal() -> None:
    assert Death(exit_status=2, signal=None).description == "exited with status 2"
    assert Death(exit_status=None, signal=40).description == "killed by signal 40"


def test_one_that_dies_before_it_is_ready_says_why() -> None:
    async def body() -> str:
        with pytest.raises(Failure) as caught:
            async with ChildProcess.spawn("engine", python("raise SystemExit('no GPU')")) as child:
                await child.wait_ready(30)
        assert caught.value.code == "protocol.closed"
        return str(caught.value)

    assert run(body) == "engine exited with status 1 before it was ready. no GPU"


def test_one_that_closes_its_line_before_it_is_ready_and_hangs_is_ended() -> None:
    async def body() -> str:
        source = OPEN + "line.close()\ntime.sleep(600)"
        async with ChildProcess.spawn("hung", python(source), deadlines=AT_ONCE) as child:
            with pytest.raises(Failure) as caught:
                await child.wait_ready(30)
            assert not child.alive
        return str(caught.value)

    assert run(body) == "hung killed by SIGTERM before it was ready."


def test_one_that_never_gets_ready_is_given_up() -> None:
    async def body() -> None:
        with pytest.raises(Failure) as caught:
            async with ChildProcess.spawn(
                "mute", python(OPEN + "line.recv(1)"), deadlines=AT_ONCE
            ) as child:
                await child.wait_ready(0)
        assert caught.value.code == "protocol.hello-timeout"

    run(body)


def test_a_program_that_cannot_be_started_is_an_error_and_leaks_nothing() -> None:
    async def body() -> None:
        before = open_descriptors()
        with pytest.raises(OSError, match="No such file"):
            async with ChildProcess.spawn("none", lambda _: ("/agentd-no-such-program",)):
                pass
        assert open_descriptors() == before

    run(body)


def test_no_descriptor_is_left_over() -> None:
    async def body() -> None:
        async with ChildProcess.spawn("first", python(LEAVES_WITH_THE_LINE)):
            pass
        before = open_descriptors()
        async with ChildProcess.spawn("second", python(LEAVES_WITH_THE_LINE)):
            pass
        assert open_descriptors() == before

    run(body)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def test_the_program_inherits_its_socket_and_nothing_else() -> None:
    source = LEAVES_WITH_THE_LINE.replace(
        "line.send", "sys.stderr.write(' '.join(sorted(os.listdir('/proc/self/fd'))))\nline.send"
    )

    async def body() -> int:
        with socket.socket() as ours:
            ours.set_inheritable(True)
            async with ChildProcess.spawn("nosy", python(source)) as child:
                await child.wait_ready(30)
                death = await child.stop()
        # Standard streams, the socket, and the listing itself.
        return len(death.last_lines[0].split())

    assert run(body) == 5


def test_a_further_descriptor_is_inherited_when_it_is_named() -> None:
    source = OPEN + "os.write(int(sys.argv[2]), b'here')"

    async def body() -> bytes:
        read, write = os.pipe()

        def command(fd: int) -> Sequence[str]:
            return (*python(source)(fd), str(write))

        async with ChildProcess.spawn("child", command, inherit=(write,)) as child:
            await child.wait_death()
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            return pipe.read()

    assert run(body) == b"here"


def test_it_runs_in_a_session_of_its_own_with_the_added_environment() -> None:
    source = OPEN + "sys.stderr.write(f\"{os.getsid(0) == os.getpid()} {os.environ['MARK']}\")"

    async def body() -> Sequence[str]:
        async with ChildProcess.spawn("own", python(source), environment={"MARK": "7"}) as child:
            return (await child.wait_death()).last_lines

    assert run(body) == ("True 7",)


def test_standard_error_is_logged_line_by_line(caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        source = "import sys; sys.stderr.write('one\\n\\ntwo')"
        async with ChildProcess.spawn("engine", python(source)) as child:
            await child.wait_death()

    with caplog.at_level(logging.INFO):
        asyncio.run(body())
    assert caplog.messages == ["engine: one", "engine: two"]


def test_the_line_carries_a_connection_that_can_be_asked_to_end() -> None:
    source = (
        "import asyncio, socket, sys\n"
        "from ipc_protocol.aio import Connection, Handlers\n"
        "from ipc_protocol.session import Hello\n"
        "async def main():\n"
        "    line = socket.socket(fileno=int(sys.argv[1]))\n"
        "    async with Connection(line, Hello(name='child'), Handlers(), initiator=True) as c:\n"
        "        await c.wait_closed()\n"
        "asyncio.run(main())\n"
    )

    async def body() -> tuple[str, Death]:
        async with ChildProcess.spawn("child", python(source)) as child:
            await child.wait_ready(30)
            connection = Connection(child.line, Hello(name="daemon"), Handlers(), initiator=False)
            await connection.__aenter__()
            peer = connection.peer
            return peer, await child.stop(lambda: connection.__aexit__())

    assert run(body) == ("child", Death(exit_status=0, signal=None))


def test_one_that_cannot_be_asked_is_ended_anyway(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise ValueError("broken")

    async def body() -> str:
        async with ChildProcess.spawn(
            "calm", python(LEAVES_WITH_THE_LINE), deadlines=AT_ONCE
        ) as child:
            await child.wait_ready(30)
            return (await child.stop(fail)).description

    assert run(body) == "killed by SIGTERM"
    assert "could not be asked" in caplog.text


# ---- Lines ---------------------------------------------------------------------------------------


def test_lines_are_whole_only_once_their_end_has_come() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"on") == []
    assert splitter.feed(b"e\ntwo\r\n\nthr") == ["one", "two"]
    assert splitter.finish() == ["thr"]
    assert splitter.finish() == []


def test_a_line_without_end_takes_no_more_room_than_the_limit() -> None:
    splitter = LineSplitter(line_bytes_max=10)
    for _ in range(1000):
        assert splitter.feed(b"x" * 7) == []
    assert splitter.feed(b"y\nshort\n") == ["x" * 10, "short"]


def test_a_line_draws_nothing_and_begins_no_other() -> None:
    said = LineSplitter().feed("\x1b[2J\rzygote: died\u2028x\ty\n".encode())
    mark = "\N{REPLACEMENT CHARACTER}"
    assert said == [f"{mark}[2J{mark}zygote: died{mark}x\ty"]


@given(st.binary(max_size=200), st.integers(1, 50))
def test_lines_do_not_depend_on_how_the_bytes_arrive(data: bytes, step: int) -> None:
    whole, parts = LineSplitter(30), LineSplitter(30)
    expected = whole.feed(data) + whole.finish()
    found = [line for at in range(0, len(data), step) for line in parts.feed(data[at : at + step])]
    assert found + parts.finish() == expected


# ---- How many lines ------------------------------------------------------------------------------


def test_a_burst_passes_and_what_is_over_it_is_counted() -> None:
    limit = LineLimit(0, per_second=2, burst=3)
    assert limit.admit(["a", "b", "c", "d", "e"], 10, 0) == ["a", "b", "c"]
    assert limit.exhausted
    assert limit.admit(["f"], 2, 100_000) == []
    assert limit.admit(["g", "h"], 4, 1_100_000) == ["… 3 lines left out, over 2 a second", "g"]


def test_a_quiet_program_has_its_whole_burst_again() -> None:
    limit = LineLimit(0, per_second=2, burst=3)
    limit.admit(["a", "b", "c"], 6, 0)
    assert limit.admit(["d"] * 9, 18, 60_000_000) == ["d"] * 3


def test_what_was_left_out_at_the_end_is_still_said() -> None:
    limit = LineLimit(0, per_second=1, burst=1)
    limit.admit(["a", "b"], 4, 0)
    assert limit.finish() == ["… 1 line left out, over 1 a second"]
    assert limit.finish() == []


def test_bytes_without_an_end_of_line_use_up_the_rate() -> None:
    limit = LineLimit(0, per_second=1, burst=4)
    assert limit.admit([], 3 * LINE_BYTES_MAX, 0) == []
    assert not limit.exhausted
    limit.admit([], LINE_BYTES_MAX, 0)
    assert limit.exhausted


@given(
    st.lists(st.tuples(st.integers(0, 500), st.integers(0, 3_000_000)), max_size=40),
)
def test_no_more_lines_pass_than_the_rate_allows_and_none_is_lost_unsaid(
    reads: list[tuple[int, int]],
) -> None:
    limit, now_us, given_lines, passed, told = LineLimit(0), 0, 0, 0, 0
    for count, after_us in reads:
        now_us += after_us
        given_lines += count
        for line in limit.admit(["x"] * count, 2 * count, now_us):
            passed += line == "x"
            told += 0 if line == "x" else int(line.split()[1])
    told += sum(int(line.split()[1]) for line in limit.finish())
    assert passed + told == given_lines
    assert passed <= LINES_BURST_MAX + LINES_PER_SECOND_MAX * now_us / 1e6


def test_a_flood_is_cut_short_and_its_last_words_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    source = (
        "import sys\nfor n in range(5000): sys.stderr.write(f'{n}\\n')\n"
        "sys.stderr.write('the reason')"
    )

    async def body() -> Death:
        async with ChildProcess.spawn("engine", python(source)) as child:
            return await child.wait_death()

    with caplog.at_level(logging.INFO):
        death = asyncio.run(body())
    assert death.last_lines[-1] == "the reason"
    said = [line for line in caplog.messages if line.startswith("engine: ")]
    told = [line for line in said if "left out" in line]
    assert len(said) < LINES_BURST_MAX + 3 * LINES_PER_SECOND_MAX
    assert len(said) - len(told) + sum(int(line.split()[2]) for line in told) == 5001
