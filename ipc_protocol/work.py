"""What the orchestrator and a worker say to each other, and the zygote that forks it.

A worker is told who it is once (`worker.start`), then is handed deliveries (`worker.handle`), which
it handles one after the other; it streams their completions, several to a frame where they are
quick. While it works on one it may ask for effects (`work.effect`); each answer is in the journal
of the delivery before the worker sees it. An error names in its details the `delivery` that it is
about; those behind that one were not begun.
"""

from typing import Any, Literal

import msgspec

from ipc_protocol.errors import Problem
from ipc_protocol.inference import ChatMessage, Sampling
from ipc_protocol.values import (
    PRIORITIES,
    Count,
    Envelope,
    Id,
    LayerReport,
    Message,
    Priority,
    TimeUs,
    rank,
)

Phase = Literal["triage", "act", "reflect", "compose"]


# ---- The zygote ---------------------------------------------------------------------------------


class Fork(Message, frozen=True):
    """Fork a confined process.

    Its descriptors were sent before (SCM_RIGHTS), over the zygote's socket for descriptors, with
    `token` as 8 bytes, big-endian: its end of a socket pair, its log, and then those of its role.
    A *worker* may have one more, the native code of its component, which it maps before it is
    sealed. A *compiler* has two: the component, to be read, and an empty file for the native code.
    """

    token: int
    agent: str
    """Whose worker it is, or what the compiler calls the component; for its name and its log."""
    sandbox: Literal["strict", "standard", "off"]
    uid: int | None
    memory_bytes_max: int
    scratch_bytes_max: int
    role: Literal["worker", "compiler"] = "worker"
    native: bool = False
    """A worker's third descriptor is there."""
    cpu_seconds_max: int | None = None


class Forked(Message, frozen=True):
    """The worker is sealed. `pid` is in the zygote's namespace."""

    pid: int
    layers: list[LayerReport]


class Kill(Message, frozen=True):
    pid: int


class WatchExits(Message, frozen=True):
    """Ask for the exits of workers, streamed as `WorkerExited` until the line closes."""


class WorkerExited(Message, frozen=True):
    pid: int
    status: int | None
    """The exit status, or None after a signal."""
    description: str
    """For people: *exited with status 1*, *killed by SIGKILL*."""
    cpu_used_up: bool = False
    """It was killed for having used up its `cpu_seconds_max`."""


# ---- Who a worker is ----------------------------------------------------------------------------


class ToolDescription(Message, frozen=True):
    """A tool as its agent sees it. `parameters` is the JSON Schema of its arguments.

    A string property with a `contentMediaType` is a text: the agent writes it plainly, in a request
    of its own, because a small model cannot write a page inside of a JSON string.
    """

    name: str
    purpose: str
    parameters: dict[str, Any]
    outward: bool = False
    """Its effect leaves the agent: a message, a task, a question to a person. Such a tool is not
    offered as the first step of a delivery, which is for evidence or for the work itself."""


class AgentProfile(Message, frozen=True):
    """Everything of an agent's configuration that its own process may know."""

    name: str
    role: Literal["agent", "conductor"]
    identity: str
    duties: list[str]
    delegates: dict[str, str]
    """Agents it may delegate to, each with one line about what they do."""
    tools: list[ToolDescription]
    """The one it most often needs comes first."""
    publishes: list[str]
    steps_max: int
    tokens_max: int
    sampling: Sampling = Sampling()
    preference_weight: float = 0.0
    """How much the model's calibrated preference counts beside the screening in triage."""


class ComponentStart(Message, frozen=True):
    """How the component that was mapped at the fork is run. Sizes are bytes."""

    sha256: str
    """Of the component, in hexadecimal."""
    config: bytes
    """For `init`."""
    grants: list[str]
    """Interfaces of `agent-net:core` that the configuration grants by name, such as *state*."""
    types: bytes = b""
    """`ComponentShape.types`; empty to have them read from the component."""
    strict_imports: bool = False
    preopen_scratch: bool = False
    fuel: int = 2_000_000_000
    """For each call: one instruction of Wasm costs about one."""
    call_us: int = 10_000_000
    """How long one call may take, with what it waits for left out."""
    memory_bytes: int = 128 * 1024 * 1024
    table_elements: int = 100_000


class WorkerStart(Message, frozen=True):
    profile: AgentProfile
    component: ComponentStart | None = None
    echo: list[str] | None = None
    """The topics of an agent whose brain is *echo*: it acts on every message, and publishes what it
    got on each of them."""


class WorkerReady(Message, frozen=True):
    """The loop is up. `loop` is its version, which a delivery keeps through all its attempts."""

    loop: int
    world: str = ""
    """The world of the component, such as *agent@0.2.0*; empty for a worker that has none."""
    inert: list[str] = []
    """Imports that were linked to nothing."""


# ---- One delivery -------------------------------------------------------------------------------


VerdictAction = Literal["act", "ignore", "delegate", "uncertain"]


class Verdict(Message, frozen=True):
    """What an agent should do with a message by the evidence, and why."""

    action: VerdictAction
    reason: str
    certain: bool
    """The evidence alone left no doubt: the model is not needed."""
    probability: float
    """Of the option that won, among the options."""
    to: str | None = None
    """The agent to delegate to, for `delegate` only."""


class Evidence(Message, frozen=True):
    """What screening found out about one message, as the delivery of `agent` carries it.

    Scores are similarities from -1 to 1. `scores` has every agent that was compared, also those
    that did not receive the message: to them it can be delegated.
    """

    agent: str
    score: float
    margin: float
    """`score` minus the best other agent's, or minus nobody's where there is no other agent."""
    scores: dict[str, float]
    nobody: float
    nearest: str
    """The duty of `agent` that the message resembles most; empty if it has none."""
    fallback: str | None = None
    """Who takes it if nobody does; None where it is plainly nobody's business."""
    recipients: tuple[str, ...] = ()
    """The agents that hold a delivery of this message, `agent` among them."""
    takers: tuple[str, ...] = ()
    """The recipients whose business it may well be, best first."""
    verdict: Verdict | None = None
    """What follows from the scores alone; `uncertain` where the model should be asked."""


class Answer(Message, frozen=True):
    """A contribution to a conversation, as the conductor gets it."""

    agent: str
    text: str


class Beginning(Message, frozen=True):
    """The first journal entry of a delivery: all that its run may depend on from outside."""

    now_us: int
    seed: int
    loop: int
    prompts: dict[str, str]
    component: str = ""
    """The SHA-256 of the component that the run began with, or empty."""
    evidence: Evidence | None = None
    must_take: bool = False
    """Nobody else took the message, or it was delegated: it may not be ignored or passed on."""
    deferred: bool = False
    """It was deferred before and is due now."""


class Setting(Message, frozen=True):
    """What the runs of many deliveries have in common."""

    loop: int
    component: str = ""
    """The SHA-256 of the component, or empty."""
    prompts: dict[str, str] = {}


class Handle(Message, frozen=True):
    """One delivery as the loop sees it."""

    delivery: int
    attempt: int
    envelope: Envelope
    beginning: Beginning
    question: str = ""
    """For the conductor: what the conversation was opened with."""
    answers: list[Answer] = []


class Delivery(msgspec.Struct, frozen=True, array_like=True):
    """One delivery as it travels: the fields in this order, without names, since there are many."""

    delivery: int
    attempt: int
    message: int
    topic: str
    sender: str
    payload: bytes
    correlation: str
    rank: int
    sent_us: int
    expires_us: int
    cause: int | None
    hops: int
    begun_us: int
    seed: int
    must_take: bool = False
    deferred: bool = False
    evidence: Evidence | None = None
    question: str = ""
    answers: list[Answer] = []


class Work(Message, frozen=True):
    """Deliveries to be handled one after the other, all of one setting."""

    setting: Setting
    deliveries: list[Delivery]

    def handle(self, each: Delivery) -> Handle:
        """`each` of these deliveries as the loop sees it."""
        return Handle(
            delivery=each.delivery,
            attempt=each.attempt,
            envelope=Envelope(
                id=each.message,
                topic=each.topic,
                sender=each.sender,
                payload=each.payload,
                correlation=each.correlation,
                priority=PRIORITIES[each.rank],
                sent_us=each.sent_us,
                expires_us=each.expires_us,
                cause=each.cause,
                hops=each.hops,
            ),
            beginning=Beginning(
                now_us=each.begun_us,
                seed=each.seed,
                loop=self.setting.loop,
                prompts=self.setting.prompts,
                component=self.setting.component,
                evidence=each.evidence,
                must_take=each.must_take,
                deferred=each.deferred,
            ),
            question=each.question,
            answers=each.answers,
        )


def work_of(handle: Handle) -> Work:
    """One delivery as it travels."""
    envelope, beginning = handle.envelope, handle.beginning
    delivery = Delivery(
        handle.delivery,
        handle.attempt,
        envelope.id,
        envelope.topic,
        envelope.sender,
        envelope.payload,
        envelope.correlation,
        rank(envelope.priority),
        envelope.sent_us,
        envelope.expires_us,
        envelope.cause,
        envelope.hops,
        beginning.now_us,
        beginning.seed,
        beginning.must_take,
        beginning.deferred,
        beginning.evidence,
        handle.question,
        handle.answers,
    )
    setting = Setting(loop=beginning.loop, component=beginning.component, prompts=beginning.prompts)
    return Work(setting=setting, deliveries=[delivery])


# ---- Effects ------------------------------------------------------------------------------------


class Infer(Message, tag="infer", frozen=True):
    """Ask the agent's model. `phase` is for the trace and the metrics."""

    phase: Phase
    messages: list[ChatMessage]
    tokens_max: Count
    schema: dict[str, Any] | None = None


class Weigh(Message, tag="weigh", frozen=True):
    """Ask for the verdict on the delivery's evidence, weighed against what the model prefers.

    The orchestrator knows the evidence and the message, and asks the model, because that takes the
    duties of all agents. It answers from screening alone where the model cannot be asked or does
    not count.
    """

    phase: Phase


class Recall(Message, tag="recall", frozen=True):
    phase: Phase
    query: str
    limit: Count = 3


class UseTool(Message, tag="tool", frozen=True):
    name: str
    arguments: dict[str, Any]


class Note(Message, tag="note", frozen=True):
    """Tell the trace what was decided. Journaled like every effect, so it is told once."""

    phase: Phase
    summary: str
    data: dict[str, Any] = {}


class Offer(Message, tag="offer", frozen=True):
    """Ask whether a message of this size could be published now. Nothing is published."""

    topic: str
    payload_bytes: Count
    correlation: str = ""
    """Empty, or that of the message in hand; nothing else can be joined."""


class ReadState(Message, tag="read-state", frozen=True):
    key: str


class ListTasks(Message, tag="list-tasks", frozen=True):
    """The agent's tasks that are not done or dropped."""


class EmitHealth(Message, tag="emit-health", frozen=True):
    condition: Literal["healthy", "degraded", "overloaded"]
    detail: str


Effect = Infer | Weigh | Recall | UseTool | Note | Offer | ReadState | ListTasks | EmitHealth


class EffectRequest(Message, frozen=True):
    delivery: Id
    step: Count
    effect: Effect


class Inferred(Message, tag="inferred", frozen=True):
    text: str
    generated_tokens: int


class Weighed(Message, tag="weighed", frozen=True):
    """The verdict, never `uncertain`, and the log-likelihoods by option that went into it."""

    verdict: Verdict
    preferences: dict[str, float] = {}


class Memory(Message, frozen=True):
    id: int
    text: str
    outcome: str
    importance: float
    created_us: int


class Recalled(Message, tag="recalled", frozen=True):
    memories: list[Memory]


class ToolResult(Message, tag="tool-result", frozen=True):
    """`staged` names what will happen when the completion commits.

    `unknown` is for a call that was in flight when something died, of which the tool cannot tell
    what came: it may have been done, and is not repeated by itself. It is not `ok` then.
    """

    ok: bool
    output: str
    staged: "Staged | None" = None
    unknown: bool = False


class Noted(Message, tag="noted", frozen=True):
    pass


class Offered(Message, tag="offered", frozen=True):
    """`problem` is None where the bus would take it; else a problem of `bus.*`."""

    problem: Problem | None = None


class StateValue(Message, tag="state-value", frozen=True):
    value: bytes | None


class Task(Message, frozen=True):
    id: int
    title: str
    state: Literal["open", "doing", "done", "dropped"]
    note: str


class TaskList(Message, tag="task-list", frozen=True):
    tasks: list[Task]


class Refused(Message, tag="refused", frozen=True):
    """The effect could not be had; journaled, so a replay sees the same refusal."""

    code: str
    message: str


EffectResult = (
    Inferred | Weighed | Recalled | ToolResult | Noted | Offered | StateValue | TaskList | Refused
)


# ---- The completion -----------------------------------------------------------------------------


class Outgoing(Message, tag="message", frozen=True):
    topic: str
    payload: bytes
    priority: Priority | None = None


class TaskChange(Message, tag="task", frozen=True):
    """Create a task (`id` None) or update one of the agent's own."""

    id: Id | None
    title: str | None = None
    state: Literal["open", "doing", "done", "dropped"] | None = None
    note: str = ""


Staged = Outgoing | TaskChange


class StateChange(Message, frozen=True):
    """Set `key` of the agent's own state, or delete it (`value` None)."""

    key: str
    value: bytes | None


class MemoryEntry(Message, frozen=True):
    text: str
    outcome: Literal["success", "partial", "failure"]
    lesson: str
    importance: float


class Usage(Message, frozen=True):
    """What the calls of a component cost that led to a completion."""

    fuel: int
    call_us: int
    """In the component's own code; what it waited for is left out."""
    memory_bytes_peak: int
    """What its worker's memory grew by at the most, since the component was instantiated."""


Outcome = Literal["acted", "delegated", "ignored", "deferred", "composed", "failed"]


class Completion(Message, frozen=True):
    """All that follows from a delivery. One transaction applies it, or nothing of it."""

    outcome: Outcome
    reason: str
    outputs: list[Outgoing] = []
    tasks: list[TaskChange] = []
    memories: list[MemoryEntry] = []
    state: list[StateChange] = []
    """In their order; the last change of a key holds."""
    left_out: Count = 0
    """Outputs beyond `outputs` that were too many to be passed on."""
    until_us: TimeUs | None = None
    """When a deferred delivery is due again."""
    usage: Usage | None = None
    """None where no component was called."""


class Finished(msgspec.Struct, frozen=True, array_like=True):
    """What came of one delivery of a `Work`."""

    delivery: int
    completion: Completion


class Done(Message, frozen=True):
    """Completions, in the order of the deliveries."""

    finished: list[Finished]
    worked_us: Count = 0
    """From the first of them in the worker's hands to the end of the last."""


def effect_key(effect: Effect) -> bytes:
    """The bytes whose hash identifies a request in the journal: canonical msgspec JSON."""
    return msgspec.json.encode(effect, order="sorted")
