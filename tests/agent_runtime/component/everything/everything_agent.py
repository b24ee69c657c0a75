"""An agent in Python that does what its message says, and answers with what came of it.

Built by componentize-py for the world of `everything_world.wit`, with all of WASI that its
toolchain imports.
"""

import encodings.idna  # noqa: F401  which the toolchain leaves out, and names of hosts need
import json
import os
import random
import socket
import sys
import time
from pathlib import Path

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports import phases
from wit_world.imports import (
    attention,
    bus,
    health,
    inference,
    logging,
    memory,
    state,
    tasks,
    tools,
    types,
)

SCRATCH = Path("/scratch")
CONFIG = {}
COUNT = 0

# ---- WASI ----------------------------------------------------------------------------------------


def times():
    begun = time.monotonic()
    time.sleep(3600)
    return f"{time.time():.6f} {time.monotonic() - begun:.0f}"


def chance():
    return f"{os.urandom(8).hex()} {random.SystemRandom().random()}"


def stderr():
    print("from Python", file=sys.stderr)
    print("to nobody")
    return "printed"


def folder():
    return " ".join(sorted(path.name for path in SCRATCH.iterdir()))


def files():
    note = SCRATCH / "a" / "b" / "note.txt"
    note.parent.mkdir(parents=True)
    note.write_text("hello\n" * 1000)
    moved = note.rename(SCRATCH / "a" / "note.txt")
    with moved.open() as file:
        lines = len(file.readlines())
    names = sorted(path.name for path in moved.parent.iterdir())
    return f"{lines} {moved.stat().st_size} {names}"


def escape():
    return (SCRATCH / ".." / "outside").read_text()


def connect():
    return str(socket.create_connection(("127.0.0.1", 9), timeout=1))


def resolve():
    return str(socket.getaddrinfo("example.org", 80))


def environment():
    return f"{dict(os.environ)} {sys.argv[1:]}"


def vanish():
    os._exit(3)


# ---- What is granted -----------------------------------------------------------------------------


def publish():
    bus.publish(bus.Envelope("ops.report", "", b"published", ""))
    return "published"


def pressed():
    try:
        bus.publish(bus.Envelope("ops.report", "", b"published", ""))
    except Err as error:
        return str(error.value.value)


def ask():
    messages = [inference.ChatMessage(inference.Role.USER, "Is 97 % much?")]
    answer = inference.ask(inference.Request(messages, 20, '{"type": "string"}'))
    return f"{answer.text} {answer.tokens}"


def remember():
    memory.note("It was full.", "Look.", types.Outcome.PARTIAL, 0.25)
    (found,) = memory.search("disk", 3)
    return f"{found.id} {found.text} {found.outcome.name} {found.importance} {found.created}"


def use():
    names = [tool.name for tool in tools.available()]
    return f"{names} {tools.call('host.read', json.dumps({'path': '@disk'}))}"


def fail():
    try:
        tools.call("host.read", "nothing")
    except Err as error:
        return f"{type(error.value).__name__} {error.value.value}"


def plan():
    tasks.create("Order a disk", "soon")
    (task,) = tasks.unfinished()
    tasks.update(task.id, tasks.Status.DONE, "cleaned up")
    return f"{task.id} {task.title} {task.status.name} {task.note}"


def person():
    return attention.request("May I?")


def keep():
    before = state.get("count")
    state.put("count", b"%d" % (int(before or b"0") + 1))
    state.delete("other")
    return f"{before} {state.get('count')} {state.get('other')}"


def feel():
    health.emit(health.Condition.DEGRADED, "no sensor")
    logging.log(logging.Level.WARNING, "two\nlines")
    return "emitted"


def count():
    global COUNT
    COUNT += 1
    return str(COUNT)


def refuse():
    raise Err("not today")


def crash():
    raise ValueError("a bug")


def spin():
    while True:
        pass


def leave():
    return None


class Phases(exports.Phases):
    def init(self, agent_id, config):
        CONFIG.update(json.loads(config), agent=agent_id)
        if "refuse" in CONFIG:
            raise Err("I am not configured")

    def triage(self, msg, screening):
        if "decision" not in CONFIG:
            return None
        score = None if screening is None else screening.scores
        action, to, seconds = CONFIG["decision"]
        return phases.Decision(phases.Action[action], to, seconds, f"{score}")

    def act(self, msg):
        try:
            said = globals()[msg.payload.decode()]()
        except OSError as error:
            said = f"{type(error).__name__}: {error}"
        if said is None:
            return None
        return [bus.Envelope("answer", "", said.encode(), msg.correlation_id)]

    def reflect(self, msg, sent):
        if "importance" not in CONFIG:
            return None
        lesson = " ".join(f"{one.topic} {one.sender} {one.payload.decode()}" for one in sent)
        return phases.Reflection(lesson, types.Outcome.SUCCESS, CONFIG["importance"])

    def shutdown(self):
        print("goodbye", CONFIG["agent"], file=sys.stderr)
