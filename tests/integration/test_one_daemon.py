"""One daemon, as operators, their programs and monitoring see it."""

import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgpack
import pytest
from daemons import Installation, RunningDaemon, agentd, load_module, short_folder

from agent_runtime.sandbox.apply import REQUIRED_LAYERS
from ipc_protocol import limits
from ipc_protocol.frames import FrameDecoder, FrameType
from orchestrator.metrics import METRICS

pytestmark = pytest.mark.model

CLIENT: Final = Path(__file__).parent.parent / "ipc_protocol" / "stdlib_client.py"
HEADER: Final = struct.Struct(">4sIHHI")
VERSION: Final = b"AGD\x01"
ANSWER_SECONDS: Final = 60

ONLY_IN_TROUBLE: Final = {
    "agentd_dead_letters_total",
    "agentd_delivery_retries_total",
    "agentd_publish_refused_total",
    "agentd_worker_deaths_total",
    "agentd_worker_restarts_total",
    "agentd_program_restarts_total",
    "agentd_num_preemptions_total",
    "agentd_swapped_bytes_total",
    "agentd_recomputed_tokens_total",
}
"""Metrics that stay at 0 while nothing goes wrong."""

OF_COMPONENTS: Final = {
    "agentd_component_traps_total",
    "agentd_component_upgrades_total",
    "agentd_component_rollbacks_total",
    "agentd_component_compile_seconds",
    "agentd_component_cache_refused_total",
}
"""None of these agents is one; `tests/faults/test_upgrades.py` sees them move."""

OF_OLD_AGE: Final = {"agentd_store_rows_deleted_total"}
"""What is deleted is older than this daemon; `test_old_messages.py` sees it move."""

OF_THE_MOMENT: Final = {
    "agentd_queue_depth",
    "agentd_parked",
    "agentd_attention_open",
    "agentd_num_requests_running",
    "agentd_num_requests_waiting",
    "agentd_swap_bytes",
}
"""Gauges of what waits or is at work: nothing is when everything is answered."""


@pytest.fixture(scope="module")
def daemon(model_path: Path) -> Iterator[RunningDaemon]:
    """The five agents, and one with hardly any tokens."""
    with short_folder() as folder:
        installation = Installation.create(folder, model_path)
        installation.add_agent(
            "terse",
            identity="You are Terse.",
            publishes=["user.reply"],
            tools=["host.read"],
            host_read=["/proc/loadavg"],
            limits={"tokens": 64},
        )
        with installation.running() as daemon:
            yield daemon


@pytest.fixture(scope="module")
def reply(daemon: RunningDaemon) -> str:
    """What a client from the documentation alone gets for a question."""
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            str(CLIENT),
            str(daemon.socket),
            "Is the load too high or the memory used up?",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=ANSWER_SECONDS,
    )
    assert done.returncode == 0, f"{done.stderr}\n{daemon.tail()}"
    return done.stdout


@pytest.fixture(scope="module")
def delegated(daemon: RunningDaemon) -> dict[str, Any]:
    """The trace of a question that was sent to the wrong agent."""
    text = "An API key was committed to the public repository. How dangerous is this leak?"
    return daemon.answered(text, "delegated", "--to", "uxclaw")


# ---- Conversations ------------------------------------------------------------------------------


def test_a_client_written_from_the_documentation_gets_a_reply(
    daemon: RunningDaemon, reply: str
) -> None:
    assert reply.strip()
    answered = daemon.rows("SELECT reply FROM conversation WHERE state = 'answered'")
    assert (reply.removesuffix("\n"),) in answered


def test_a_question_at_the_wrong_agent_is_delegated(delegated: dict[str, Any]) -> None:
    outcomes = {one["agent"]: one["outcome"] for one in delegated["deliveries"]}
    assert outcomes == {"uxclaw": "delegated", "secclaw": "acted", "conductor": "composed"}
    assert delegated["conversation"]["reply"].strip()


def test_a_delegated_message_keeps_its_conversation_and_counts_its_hops(
    daemon: RunningDaemon, delegated: dict[str, Any]
) -> None:
    asked, passed_on, *_ = delegated["messages"]
    assert (passed_on["sender"], passed_on["topic"]) == ("uxclaw", "agent.secclaw")
    assert passed_on["cause"] == asked["message"]
    chain = daemon.rows(
        "SELECT m.sender, m.topic, m.hops FROM message m"
        " JOIN conversation c ON c.id = m.conversation WHERE c.correlation = 'delegated'"
        " ORDER BY m.id"
    )
    assert chain == [
        ("operator", "agent.uxclaw", 0),
        ("uxclaw", "agent.secclaw", 1),
        ("secclaw", "user.reply", 2),
        ("bus", "agent.conductor", 0),
        ("conductor", "user.reply", 1),
    ]


def test_too_few_tokens_for_a_typed_answer_still_end_in_an_answer(daemon: RunningDaemon) -> None:
    trace = daemon.answered("What is the load of this machine?", "terse", "--to", "terse")
    (delivery,) = (one for one in trace["deliveries"] if one["agent"] == "terse")
    assert delivery["state"] == "done"
    assert delivery["attempts"] == 1
    assert sum(step["generated_tokens"] for step in delivery["steps"]) <= 64
    assert trace["conversation"]["reply"].strip()
    assert trace["dead_letters"] == []


def test_a_text_that_is_longer_than_any_context_still_ends_in_an_answer(
    daemon: RunningDaemon,
) -> None:
    text = "What is the load of this machine? " * 3_000
    trace = daemon.answered(text, "long", "--to", "opsclaw")
    assert {one["state"] for one in trace["deliveries"]} == {"done"}
    assert trace["conversation"]["reply"].strip()
    assert trace["dead_letters"] == []


# ---- The sandbox --------------------------------------------------------------------------------


def test_every_required_layer_is_enforced_around_every_agent(daemon: RunningDaemon) -> None:
    status = daemon.status()
    assert status["sandbox"] == "strict"
    assert len(status["agents"]) == 6
    for agent in status["agents"]:
        states = {report["layer"]: report["state"] for report in agent["sandbox"]}
        required = {layer: states.get(layer) for layer in REQUIRED_LAYERS}
        assert required == dict.fromkeys(REQUIRED_LAYERS, "enforced"), agent["name"]
        assert "missing" not in states.values(), agent["name"]


def test_a_worker_is_named_after_its_agent(daemon: RunningDaemon) -> None:
    for agent in daemon.status()["agents"]:
        name = Path(f"/proc/{agent['pid']}/comm").read_bytes().rstrip(b"\n")
        assert name == f"worker/{agent['name']}".encode()[:15]


# ---- Metrics ------------------------------------------------------------------------------------


def test_every_metric_moves_that_should(
    daemon: RunningDaemon, reply: str, delegated: dict[str, Any]
) -> None:
    metrics = daemon.metrics()
    resting = [
        name
        for name, metric in METRICS.items()
        if name not in ONLY_IN_TROUBLE | OF_THE_MOMENT | OF_COMPONENTS | OF_OLD_AGE
        and not metrics.total(f"{name}_count" if metric.kind == "histogram" else name)
    ]
    assert resting == []


def test_metrics_tell_what_became_of_deliveries_and_what_it_took(
    daemon: RunningDaemon, delegated: dict[str, Any]
) -> None:
    metrics = daemon.metrics()
    for agent, outcome in (
        ("uxclaw", "delegated"),
        ("secclaw", "acted"),
        ("conductor", "composed"),
    ):
        done = metrics.total("agentd_deliveries_done_total", agent=agent, outcome=outcome)
        assert done >= 1, agent
    for phase in ("triage", "act", "reflect", "compose"):
        assert metrics.total("agentd_phase_seconds_count", phase=phase) >= 1, phase
    for name in ("agentd_time_to_first_token_seconds", "agentd_request_queue_time_seconds"):
        assert metrics.total(f"{name}_count", priority="high") >= 1, name
    assert metrics.total("agentd_agent_tokens_total", agent="secclaw", kind="generation") >= 1
    assert metrics.total("agentd_generation_tokens_total", priority="high") >= 1


def test_every_message_is_counted_whoever_sent_it(
    daemon: RunningDaemon, delegated: dict[str, Any]
) -> None:
    ((messages,),) = daemon.rows("SELECT count(*) FROM message")
    assert daemon.metrics().total("agentd_messages_total") == messages


def test_a_healthy_daemon_says_so(daemon: RunningDaemon) -> None:
    assert daemon.http("/healthz") == (200, "healthy\n")


# ---- Bad input on the control socket -------------------------------------------------------------


def frame(type_: int, body: bytes, *, version: bytes = VERSION, length: int | None = None) -> bytes:
    return HEADER.pack(version, len(body) if length is None else length, type_, 0, 0) + body


HELLO: Final = frame(FrameType.HELLO.value, msgpack.packb({"name": "test"}))

BROKEN: Final = {
    "another version": (frame(1, b"\x80", version=b"AGD\x02"), "protocol.version"),
    "another protocol": (b"GET / HTTP/1.1\r\nHost: agentd\r\n\r\n", "protocol.version"),
    "too long": (
        frame(2, b"", length=limits.FRAME_BODY_BYTES_MAX + 1),
        "protocol.frame-too-long",
    ),
    "not msgpack": (frame(2, b"\xc1"), "protocol.malformed"),
    "not a map": (frame(2, msgpack.packb([1])), "protocol.malformed"),
    "unknown type": (frame(99, b"\x80"), "protocol.unknown-type"),
}


@pytest.mark.parametrize("greeting", [b"", HELLO], ids=["at once", "after a hello"])
@pytest.mark.parametrize(("sent", "code"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_frame_is_answered_with_its_error_and_harms_nobody_else(
    daemon: RunningDaemon, sent: bytes, code: str, greeting: bytes
) -> None:
    client = load_module(CLIENT)
    with client.Client(daemon.socket) as bystander:
        before = bystander.request("ctl.agents", {})
        assert last_word(daemon.socket, greeting + sent) == code
        assert bystander.request("ctl.agents", {}) == before


def last_word(path: Path, sent: bytes) -> str:
    """The code of the ERROR frame on stream 0 after which the daemon hangs up."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(ANSWER_SECONDS)
        line.connect(str(path))
        line.sendall(sent)
        received = bytearray()
        while piece := line.recv(65536):
            received += piece
    *_, last = FrameDecoder().feed(bytes(received))
    assert (last.type, last.stream) == (FrameType.ERROR, 0)
    return str(last.body["code"])


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        (("ask", "Hello", "--to", "opsclav"), 1, ("'opsclav'", "'opsclaw'")),
        (("memory", "devclav"), 1, ("'devclav'", "'devclaw'")),
        (("send", "user.reqest", "Hello"), 1, ("'user.reqest'", "user.request")),
        (("send", "user..request", "Hello"), 1, ("'user..request'",)),
        (("trace", "nothing"), 1, ("'nothing'",)),
        (("answer", "nothing"), 1, ("'nothing'",)),
        (("attention", "answer", "99", "Yes."), 1, ("99",)),
        (("ask", "  "), 1, ("empty",)),
        (("statsu",), 2, ("status",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_an_unknown_name_is_refused_with_the_nearest_one(
    daemon: RunningDaemon, command: tuple[str, ...], status: int, said: tuple[str, ...]
) -> None:
    done = daemon.run_ctl(*command)
    assert done.status == status, done.errors
    for words in said:
        assert words in done.errors, done.errors


def test_a_message_over_the_limit_is_refused_and_nothing_of_it_is_kept(
    daemon: RunningDaemon,
) -> None:
    client = load_module(CLIENT)
    payload = bytes(limits.PAYLOAD_BYTES_MAX + 1)
    with client.Client(daemon.socket) as line:
        with pytest.raises(client.ProtocolError) as refused:
            line.request("ctl.send", {"topic": "ops.report", "payload": payload})
        assert refused.value.code == "bus.payload-too-large"
        assert line.request("ctl.agents", {})["agents"]
    assert daemon.rows("SELECT count(*) FROM message WHERE topic = 'ops.report'") == [(0,)]


# ---- Two daemons --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other(model_path: Path) -> Iterator[Installation]:
    with short_folder() as folder:
        yield Installation.create(folder, model_path)


def test_a_socket_in_use_is_not_taken_over(daemon: RunningDaemon, other: Installation) -> None:
    done = agentd("run", *other.config_option, "--socket", str(daemon.socket))
    assert done.status == 1
    assert str(daemon.socket) in done.errors + done.output
    assert daemon.status()["healthy"]


def test_a_state_in_use_is_not_opened_twice(daemon: RunningDaemon, other: Installation) -> None:
    state = daemon.installation.state
    done = agentd("run", *other.config_option, "--state", str(state))
    assert done.status == 1
    assert str(state) in done.errors + done.output
    assert "another agentd uses it" in done.errors + done.output
    assert daemon.status()["healthy"]
    assert daemon.rows("SELECT count(*) FROM delivery WHERE state = 'leased'") == [(0,)]


def test_two_instances_run_side_by_side(daemon: RunningDaemon, other: Installation) -> None:
    with other.running() as second:
        assert second.status()["pid"] != daemon.status()["pid"]
        assert second.answered("Is the load too high?", "theirs")["conversation"]["reply"]
        assert daemon.run_ctl("trace", "theirs").status == 1
        assert second.http("/healthz") == daemon.http("/healthz") == (200, "healthy\n")
    assert daemon.status()["healthy"]
