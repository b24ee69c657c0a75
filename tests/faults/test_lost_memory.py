"""A component's own memory is lost with its worker; the message that it had in hand is not."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import wat_components as wat
from component_daemons import (
    add,
    component_daemon,
    send,
    wait_done,
    write_agent,
    write_component,
)
from daemons import RunningDaemon, short_folder

REMEMBERS: Final = wat.agent(
    handle=f"""(if (i32.eq (global.get $count) (i32.const 1)) (then
      (call $bus-publish "first.out" "" "" "" (call $allocate (i32.const 16)))))
    (call $bus-publish (global.get $topic) (global.get $topic-length) "" "" ""
      (call $allocate (i32.const 16)))
    (if (i32.eq (global.get $count) (i32.const 2)) (then {wat.LOOP}))
    {wat.ECHO}"""
)
"""Publishes twice in its first message and once in others; in its second one it stays for ever."""


@pytest.fixture
def daemon() -> Iterator[RunningDaemon]:
    with short_folder() as folder, component_daemon(folder) as running:
        yield running


def test_a_message_whose_journal_does_not_fit_any_more_is_handled_anew(
    daemon: RunningDaemon, tmp_path: Path
) -> None:
    component = write_component(tmp_path, "remembers", REMEMBERS)
    limits = {"fuel": 1_000_000_000_000, "call": "60s"}
    publishes = ["echo.out", "first.out"]
    file = write_agent(
        tmp_path, "remembers", component, publishes=publishes, config="echo.out", limits=limits
    )
    done = add(daemon, file)
    assert done.status == 0, done.errors
    wait_done(daemon, send(daemon, "remembers.in", "one"), "remembers")
    second = send(daemon, "remembers.in", "two")
    sql = "SELECT count(*) FROM journal WHERE kind = 'offer'"
    daemon.wait(lambda: daemon.rows(sql) == [(3,)], "to have asked in the second message")
    os.kill(int(daemon.agent("remembers")["pid"]), signal.SIGKILL)
    wait_done(daemon, second, "remembers")
    assert daemon.rows("SELECT max(run) FROM delivery WHERE agent = 'remembers'") == [(1,)]
    assert daemon.rows("SELECT count(*) FROM dead_letter WHERE code = 'work.refused'") == [(0,)]
