"""Five agents answer three requests, and two components turn readings into an alert.

From a fresh configuration to a clean stop, everything is done as an operator would do it, through
the `agentd` command: init, build the components, pull the model, check, run, ask, send, trace,
status. Ends with 0 only if everything was handled as `judge` and `judge_readings` demand.

Usage: demo.py [--keep]      --keep leaves the configuration and the state for a look around
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROJECTS = ROOT / "deploy" / "agents" / "components"
BUILT = ROOT / "build" / "components"

AGENTD = [sys.executable, "-m", "orchestrator.cli.main"]
READY_SECONDS_MAX = 120
BUILD_SECONDS_MAX = 120
ANSWER_SECONDS_MAX = 180
STOP_SECONDS_MAX = 15


@dataclass(frozen=True)
class Stimulus:
    """One request, whose duty it plainly is, and whether it is sent to somebody else first."""

    text: str
    owner: str
    to: str | None = None


STIMULI = (
    Stimulus("The server is slow today. Is the load too high or the memory used up?", "opsclaw"),
    Stimulus("Write a JavaScript function that reverses a string.", "devclaw"),
    Stimulus(
        "A former employee may still have access. Which accounts can log in to this host?",
        owner="secclaw",
        to="uxclaw",
    ),
)

COMPONENTS = ("gatekeeper", "sensors")
"""The gatekeeper passes readings on to the sensors, which raise an alert for opsclaw."""

SENSOR = "server-temperature"
READINGS = (21.5, 24.0, 34.5)
"""The sensor's threshold is 30."""
READINGS_NAME = "demo-readings"


class DemoFailure(Exception):
    """The demo did not show what it promises."""


@dataclass(frozen=True)
class Daemon:
    """A running daemon and the folder with its configuration."""

    folder: Path
    process: "subprocess.Popen[bytes]"

    def ctl(self, *arguments: str) -> Any:
        """The decoded JSON answer of one `agentd ctl` command."""
        command = [*AGENTD, "ctl", *arguments, *self.where(), "--json"]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=ANSWER_SECONDS_MAX
        )
        if done.returncode != 0:
            raise DemoFailure(f"`agentd ctl {' '.join(arguments)}` failed: {done.stderr.strip()}")
        return json.loads(done.stdout)

    def where(self) -> tuple[str, str]:
        return "--socket", str(self.folder / "agentd.sock")


def prepare(folder: Path) -> None:
    """A complete configuration in `folder`, and the model in its state."""
    agentd("init", str(folder))
    agentd("models", "pull", "smollm2", "--config", str(folder / "agentd.toml"))
    agentd("check", "--config", str(folder / "agentd.toml"))


def add_components(folder: Path) -> None:
    """Build the agents that are components, and put them into the configuration of `folder`."""
    title("Two agents are components, built from Python: a quarter of a minute, the first time …")
    building = {name: start_build(name) for name in COMPONENTS}
    for name, process in building.items():
        said, _ = process.communicate(timeout=BUILD_SECONDS_MAX)
        if process.returncode != 0:
            raise DemoFailure(f"`agentd component build {PROJECTS / name}` failed:\n{said}")
        print(said.strip(), flush=True)
    agents = folder / "agents.d"
    for name in COMPONENTS:
        shutil.copy(PROJECTS / name / f"{name}.toml", agents)
        shutil.copy(BUILT / f"{name}.wasm", agents)


def start_build(name: str) -> "subprocess.Popen[str]":
    command = [*AGENTD, "component", "build", str(PROJECTS / name), "--if-stale"]
    return subprocess.Popen(
        [*command, "--output", str(BUILT / f"{name}.wasm")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Daemon]:
    """The daemon of `folder`, from ready to stopped. Its log goes to `daemon.log` there."""
    command = [*AGENTD, "run", "--config", str(folder / "agentd.toml")]
    with (folder / "daemon.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    daemon = Daemon(folder, process)
    try:
        wait_ready(daemon)
        yield daemon
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            raise DemoFailure("The daemon did not stop when it was asked to.") from None
    if status != 0:
        raise DemoFailure(f"The daemon ended with status {status}; see {folder}/daemon.log.")


def wait_ready(daemon: Daemon) -> None:
    """Until every agent is up. The socket answers before that."""
    deadline = time.monotonic() + READY_SECONDS_MAX
    reason = "it has not said why"
    while time.monotonic() < deadline:
        if daemon.process.poll() is not None:
            raise DemoFailure(f"The daemon ended at once:\n{tail(daemon.folder)}")
        try:
            if daemon.ctl("status").get("healthy"):
                return
            reason = "not every agent and engine is up"
        except DemoFailure as failure:
            reason = str(failure)
        time.sleep(0.2)
    raise DemoFailure(
        f"The daemon was not ready in {READY_SECONDS_MAX} s: {reason}\n{tail(daemon.folder)}"
    )


def tail(folder: Path) -> str:
    return "\n".join((folder / "daemon.log").read_text("utf-8", "replace").splitlines()[-15:])


def ask(daemon: Daemon, stimulus: Stimulus, correlation: str) -> None:
    """Ask as an operator does, and show the conversation as it happens."""
    command = [*AGENTD, "ctl", "ask", stimulus.text, *daemon.where(), "--wait", "--show"]
    command += ["--timeout", str(ANSWER_SECONDS_MAX), "--correlation", correlation]
    if stimulus.to:
        command += ["--to", stimulus.to]
    done = subprocess.run(command, check=False, timeout=ANSWER_SECONDS_MAX + 10)
    if done.returncode != 0:
        raise DemoFailure(f"The request was not answered (status {done.returncode}).")


def judge(trace: dict[str, Any], stimulus: Stimulus) -> list[str]:
    """What is missing in the trace of one conversation; empty when all is as it should be."""
    missing = []
    own = [delivery for delivery in trace["deliveries"] if delivery["agent"] == stimulus.owner]
    acted = [delivery for delivery in own if delivery["outcome"] == "acted"]
    if not acted:
        missing.append(f"{stimulus.owner} did not act")
    if not any(step["kind"] == "tool" for delivery in acted for step in delivery["steps"]):
        missing.append(f"{stimulus.owner} called no tool")
    if not any(delivery.get("memories") for delivery in acted):
        missing.append(f"{stimulus.owner} remembered nothing")
    if not (trace["conversation"].get("reply") or "").strip():
        missing.append("no reply was composed")
    if not any(delivery["outcome"] == "composed" for delivery in trace["deliveries"]):
        missing.append("the conductor did not compose")
    if trace["dead_letters"]:
        missing.append(f"dead letters: {trace['dead_letters']}")
    return missing


def converse(
    daemon: Daemon, asked: Callable[[Daemon, Stimulus, str], None] = ask
) -> list[dict[str, Any]]:
    """Ask and judge everything. Returns the traces; `DemoFailure` says all that is missing."""
    traces, missing = [], []
    for number, stimulus in enumerate(STIMULI, start=1):
        title(f"{number}. {stimulus.text}" + (f"  (sent to {stimulus.to})" if stimulus.to else ""))
        asked(daemon, stimulus, f"demo-{number}")
        trace = daemon.ctl("trace", f"demo-{number}")
        traces.append(trace)
        missing += [f"request {number}: {what}" for what in judge(trace, stimulus)]
    outcomes = {delivery["outcome"] for trace in traces for delivery in trace["deliveries"]}
    if "delegated" not in outcomes:
        missing.append("nothing was delegated")
    if dead := daemon.ctl("status")["dead_letters"]:
        missing.append(f"{dead} dead letters")
    if missing:
        raise DemoFailure("The demo did not go as promised:\n  " + "\n  ".join(missing))
    return traces


def report_readings(daemon: Daemon) -> dict[str, Any]:
    """Send readings as they come from outside, and judge what became of them."""
    shown = ", ".join(f"{value:g}" for value in READINGS)
    title(f"4. A sensor reads {shown} degrees, and its threshold is 30.")
    for value in READINGS:
        reading = json.dumps({"kind": "reading", "sensor": SENSOR, "value": value})
        daemon.ctl("send", "intake.raw", reading, "--correlation", READINGS_NAME)
    trace = settled(daemon, READINGS_NAME)
    subprocess.run([*AGENTD, "ctl", "trace", READINGS_NAME, *daemon.where()], check=False)
    missing = judge_readings(trace)
    if missing:
        raise DemoFailure("The readings did not go as promised:\n  " + "\n  ".join(missing))
    return trace


def settled(daemon: Daemon, correlation: str) -> dict[str, Any]:
    """The trace of a conversation in which opsclaw has an alert and nothing is under way."""
    deadline = time.monotonic() + ANSWER_SECONDS_MAX
    while True:
        trace: dict[str, Any] = daemon.ctl("trace", correlation)
        states = {delivery["state"] for delivery in trace["deliveries"]}
        alerted = any(delivery["topic"] == "ops.alert" for delivery in trace["deliveries"])
        if alerted and states <= {"done", "dead"} and trace["conversation"]["state"] == "answered":
            return trace
        if time.monotonic() > deadline:
            raise DemoFailure(f"The readings did not settle in {ANSWER_SECONDS_MAX} s.")
        time.sleep(0.2)


def judge_readings(trace: dict[str, Any]) -> list[str]:
    """What is missing in the trace of the readings; empty when all is as it should be."""
    missing = []
    for name in COMPONENTS:
        acted = [
            delivery
            for delivery in trace["deliveries"]
            if delivery["agent"] == name and delivery["outcome"] == "acted"
        ]
        if len(acted) != len(READINGS):
            missing.append(f"{name} acted {len(acted)} times, and not {len(READINGS)}")
    alerts = [message for message in trace["messages"] if message["topic"] == "ops.alert"]
    if [message["sender"] for message in alerts] != ["sensors"]:
        missing.append(f"sensors raised {len(alerts)} alerts, and not one")
    counted = f"{len(READINGS)} readings"
    if not any(counted in message["text"] for message in alerts):
        missing.append(f"the alert does not say that there were {counted}: the state was lost")
    if not any(delivery["agent"] == "opsclaw" for delivery in trace["deliveries"]):
        missing.append("opsclaw did not get the alert")
    if trace["dead_letters"]:
        missing.append(f"dead letters: {trace['dead_letters']}")
    return missing


def agentd(*arguments: str) -> None:
    if subprocess.run([*AGENTD, *arguments], check=False).returncode != 0:
        raise DemoFailure(f"`agentd {' '.join(arguments)}` failed.")


def title(text: str) -> None:
    print(f"\n━━ {text}", flush=True)


def main(arguments: list[str]) -> int:
    keep = arguments == ["--keep"]
    if arguments and not keep:
        print(__doc__, file=sys.stderr)
        return 2
    os.environ.setdefault("FORCE_COLOR", "1" if sys.stdout.isatty() else "")
    folder = Path(tempfile.mkdtemp(prefix="agentd-demo-"))
    began = time.monotonic()
    try:
        prepare(folder)
        add_components(folder)
        agentd("check", "--config", str(folder / "agentd.toml"))
        title("Starting the daemon, its engines and seven sandboxed agents; two are compiled …")
        with running(folder) as daemon:
            converse(daemon)
            report_readings(daemon)
            title("Status")
            subprocess.run([*AGENTD, "ctl", "status", *daemon.where()], check=False)
    except DemoFailure as failure:
        print(f"\n{failure}\nThe configuration, state and log are kept in {folder}.")
        return 1
    if keep:
        print(f"\nKept in {folder}.")
    else:
        shutil.rmtree(folder)
    took_s = time.monotonic() - began
    print(f"\nDone: three requests and an alert in {took_s:.0f} s, all of it here.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
