"""A component asks a person in the middle of a message, and goes on with the answer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import wat_components as wat
from component_daemons import (
    add,
    component_daemon,
    healthy_neighbour,
    send,
    wait_done,
    write_agent,
    write_component,
)
from daemons import RunningDaemon, short_folder

ASKS: Final = wat.agent(
    "0.2.0",
    imports=(wat.ATTENTION,),
    handle="""(local.set $a (call $allocate (i32.const 12)))
    (call $attention-request "May I?" (local.get $a))
    (if (i32.load8_u (local.get $a)) (then (unreachable)))
    (call $answer (global.get $topic) (global.get $topic-length)
      (i32.load offset=4 (local.get $a)) (i32.load offset=8 (local.get $a))
      (local.get $correlation) (local.get $correlation-length))""",
)


@pytest.fixture
def daemon() -> Iterator[RunningDaemon]:
    with short_folder() as folder, component_daemon(folder) as running:
        yield running


def test_a_delivery_waits_for_a_person_without_holding_its_worker_up(
    daemon: RunningDaemon, tmp_path: Path
) -> None:
    component = write_component(tmp_path, "asks", ASKS)
    keys = {"publishes": ["echo.out"], "config": "echo.out", "imports": ["attention"]}
    done = add(daemon, write_agent(tmp_path, "asks", component, **keys))
    assert done.status == 0, done.errors
    pid = daemon.agent("asks")["pid"]
    correlation = send(daemon, "asks.in", "go")
    daemon.wait(lambda: bool(daemon.ctl("attention", "list")["requests"]), "to ask a person")
    (request,) = daemon.ctl("attention", "list")["requests"]
    assert request["question"] == "May I?"
    healthy_neighbour(daemon)
    daemon.ctl("attention", "answer", str(request["id"]), "You may.")
    wait_done(daemon, correlation, "asks")
    sql = "SELECT CAST(payload AS TEXT) FROM message WHERE sender = 'asks'"
    assert daemon.rows(sql) == [("You may.",)]
    # It was asked in the middle of a call, which cost the instance, and not the worker.
    assert daemon.agent("asks")["pid"] == pid
    assert daemon.rows("SELECT deaths FROM delivery WHERE agent = 'asks'") == [(0,)]
