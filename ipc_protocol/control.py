"""What operators and their programs ask the daemon on the control socket, and what it answers."""

from typing import Any, Literal

from ipc_protocol.errors import Problem
from ipc_protocol.inference import EngineStatus
from ipc_protocol.values import Count, Id, LayerReport, Message, Priority, TimeUs
from ipc_protocol.work import Effect, EffectResult, Handle, Memory, WorkerStart

ConversationState = Literal["open", "composing", "answered"]


class Ask(Message, frozen=True):
    """Open a conversation with `text` on `user.request`, or at one agent with `to`."""

    text: str
    to: str | None = None
    priority: Priority = "normal"
    correlation: str | None = None
    """Name the conversation. Asking the same again under its name returns the first receipt, asking
    something else goes on with it."""


class AwaitAnswer(Message, frozen=True):
    """Wait until the conversation is answered. Returns at once when it already is."""

    correlation: str


class OfConversation(Message, frozen=True):
    correlation: str


class Conversation(Message, frozen=True):
    correlation: str
    state: ConversationState
    question: str
    reply: str | None
    opened_us: int
    answered_us: int | None = None


class Send(Message, frozen=True):
    """Publish `payload` on `topic` as the operator."""

    topic: str
    payload: bytes
    priority: Priority = "normal"
    correlation: str | None = None


class Publish(Message, frozen=True):
    """Publish each of `payloads` on `topic` as the operator: all of them, or none and an error.

    Each opens a conversation of its own, unless `correlation` names one for all. With
    `message_ids`, one for each, a payload that was published before under its id is not published
    again; its first receipt is given. The answer comes when all are on disk (*accepted*), or when
    all their deliveries are done or dead (*handled*).
    """

    topic: str
    payloads: list[bytes]
    message_ids: list[str] = []
    priority: Priority = "normal"
    correlation: str | None = None
    wait: Literal["accepted", "handled"] = "accepted"


class Published(Message, frozen=True):
    """Each payload's message and conversation, in order. `repeated` of them were there before."""

    messages: list[int]
    correlations: list[str]
    subscribers: list[str]
    repeated: Count = 0


class Watch(Message, frozen=True):
    """Follow what is committed from now on; everything, or one conversation."""

    correlation: str | None = None
    kinds: list[str] = []


class Happening(Message, frozen=True):
    """One committed change. `lost` counts those a slow watcher missed just before this one."""

    at_us: int
    kind: str
    agent: str = ""
    correlation: str = ""
    summary: str = ""
    data: dict[str, Any] = {}
    lost: int = 0


class OnProbation(Message, frozen=True):
    """How far a new version is, and what it has to reach."""

    since_us: int
    handled: int
    messages: int
    us: int


class AgentComponent(Message, frozen=True):
    """The component that an agent runs instead of the loop of its model, or beside it."""

    sha256: str
    number: int = 0
    """Of the version; 0 until it is installed."""
    world: str = ""
    """Empty until its worker is up."""
    inert: list[str] = []
    probation: OnProbation | None = None


class AgentStatus(Message, frozen=True):
    name: str
    role: str
    state: Literal["starting", "idle", "busy", "backoff", "quarantined", "stopped"]
    priority: Priority
    restarts: int
    pending: int
    parked: int
    done: int
    memories: int
    pid: int | None = None
    delivery: int | None = None
    phase: str = ""
    detail: str = ""
    sandbox: list[LayerReport] = []
    component: AgentComponent | None = None
    problem: Problem | None = None
    """Why its component cannot be run."""


class Agents(Message, frozen=True):
    agents: list[AgentStatus]
    retired: list[str] = []
    """Those that are configured and not there, because an operator has retired them."""


class EngineSummary(Message, frozen=True):
    """One model's engine. An *unloaded* one starts when somebody asks for it; one in *backoff* has
    died, and is started again."""

    name: str
    state: Literal["unloaded", "starting", "ready", "backoff"]
    restarts: int
    pid: int | None = None
    detail: str = ""
    status: EngineStatus | None = None


class Engines(Message, frozen=True):
    engines: list[EngineSummary]


class Status(Message, frozen=True):
    """One screen: what runs, what waits, what needs a person."""

    version: str
    pid: int
    started_us: int
    now_us: int
    healthy: bool
    sandbox: str
    agents: list[AgentStatus]
    engines: list[EngineSummary]
    deliveries: dict[str, int]
    conversations: dict[str, int]
    attention_open: int
    dead_letters: int
    retired: list[str] = []
    """As in `Agents`."""


class Trap(Message, frozen=True):
    """A component was lost while it handled a delivery."""

    code: str
    message: str
    at_us: int
    backtrace: str = ""
    fuel: int | None = None
    """Used by the call, where that is known."""
    component: str = ""
    """Its SHA-256."""


class JournalStep(Message, frozen=True):
    step: int
    kind: str
    phase: str
    summary: str
    at_us: int
    took_us: int
    generated_tokens: int = 0
    request: dict[str, Any] = {}
    result: dict[str, Any] = {}
    run: int = 0
    """A deferral ends one run, and the next begins anew."""


class TracedDelivery(Message, frozen=True):
    """One delivery of a conversation, with its journal. `cause` is the message it handled."""

    delivery: int
    message: int
    agent: str
    topic: str
    sender: str
    state: str
    outcome: str
    reason: str
    attempts: int
    queued_us: int
    done_us: int | None
    steps: list[JournalStep]
    memories: list[Memory]
    traps: list[Trap] = []
    composing: bool = False
    run: int = 0
    begun_us: int | None = None
    """When the present run began."""
    deaths: int = 0
    """Of workers that held it."""
    last_error: str = ""
    parked_reason: str = ""
    parked_until_us: int | None = None
    parked_on: str = ""
    """Whom or what it waits for."""


class TracedMessage(Message, frozen=True):
    message: int
    topic: str
    sender: str
    text: str
    sent_us: int
    cause: int | None = None
    produced_by: int | None = None
    """The delivery whose completion published it."""
    priority: Priority = "normal"
    hops: int = 0


class DeadLetter(Message, frozen=True):
    """Of a delivery that died, or of an output of `delivery` that never became a message."""

    message: int | None
    agent: str
    reason: str
    at_us: int
    number: int = 0
    delivery: int | None = None
    topic: str = ""
    code: str = ""
    attempts: int = 0
    last_error: str = ""
    replayed_as: int | None = None


class Trace(Message, frozen=True):
    """One conversation. `cut` says what was left out so that it fits into a frame."""

    conversation: Conversation
    messages: list[TracedMessage]
    deliveries: list[TracedDelivery]
    dead_letters: list[DeadLetter]
    cut: str = ""


class MemoryQuery(Message, frozen=True):
    """Memories of one agent or of all; the best matches for `query`, or the newest."""

    agent: str | None = None
    query: str | None = None
    limit: Count = 20


class OwnedMemory(Message, frozen=True):
    agent: str
    memory: Memory


class Memories(Message, frozen=True):
    memories: list[OwnedMemory]


class OfAgent(Message, frozen=True):
    agent: str | None = None


class Task(Message, frozen=True):
    id: int
    agent: str
    title: str
    state: str
    note: str
    updated_us: int


class Tasks(Message, frozen=True):
    tasks: list[Task]


class AttentionQuery(Message, frozen=True):
    all: bool = False
    """Answered ones too."""


class AttentionRequest(Message, frozen=True):
    id: int
    agent: str
    question: str
    raised_us: int
    correlation: str = ""
    answer: str | None = None
    answered_us: int | None = None


class AttentionRequests(Message, frozen=True):
    requests: list[AttentionRequest]


class AttentionAnswer(Message, frozen=True):
    id: Id
    text: str


class Exposition(Message, frozen=True):
    """Metrics in the text format of Prometheus."""

    text: str


class Health(Message, frozen=True):
    healthy: bool
    detail: str = ""


# ---- Agents that come, change and go -------------------------------------------------------------


class ComponentPiece(Message, frozen=True):
    """A piece of a component, at most 1 MiB. Without `data` it only asks how far the upload is."""

    sha256: str
    """Of the whole."""
    offset: Count
    data: bytes
    total_bytes: Count


class ComponentReceived(Message, frozen=True):
    """`received_bytes` is the offset of the next piece; with all of them the component is kept."""

    received_bytes: int
    complete: bool


class AgentVersion(Message, frozen=True):
    """One component that an agent ran, runs, or was to run."""

    number: int
    sha256: str
    size_bytes: int
    world: str
    source: Literal["configuration", "upgrade", "rollback"]
    state: Literal["candidate", "active", "retired", "rolled-back", "refused"]
    installed_by: str
    installed_us: int
    activated_us: int | None = None
    """When it was given the messages."""
    settled_us: int | None = None
    """When its probation was over."""
    ended_us: int | None = None
    reason: str = ""
    """Why it ended."""


class OfOneAgent(Message, frozen=True):
    agent: str


class AgentVersions(Message, frozen=True):
    """The newest first."""

    agent: str
    versions: list[AgentVersion]
    probation: OnProbation | None = None
    """Of the active one."""


class UpgradeAgent(Message, frozen=True):
    """Let a component that was uploaded take over, on probation."""

    agent: str
    sha256: str
    messages: Count = 20
    us: TimeUs = 60_000_000


class RollBackAgent(Message, frozen=True):
    """Let an earlier version take over; without `to` the one before."""

    agent: str
    to: Count | None = None


class AgentChange(Message, frozen=True):
    """How far the change of an agent is. `done` is a fraction, where one is known."""

    stage: Literal["check", "compile", "start", "hand-over", "drain"]
    detail: str = ""
    done: float | None = None


class AgentUpgraded(Message, frozen=True):
    """The version that has the agent's messages from now on, and the one that had them before."""

    agent: str
    version: AgentVersion
    before: AgentVersion | None = None
    probation: OnProbation | None = None


class AddAgent(Message, frozen=True):
    """Add the agent of a file such as those of `agents.d`.

    The files that it names belong to whoever asks, so what is in them comes along: by the names
    that stand in the file, the contents, and the SHA-256 of a component that was uploaded.
    """

    file: str
    """Where it lies, for what is said about it."""
    text: str
    contents: dict[str, bytes] = {}
    components: dict[str, str] = {}


class AgentAdded(Message, frozen=True):
    agent: str
    file: str
    """The daemon's own file of it, which it loads at each start."""
    warnings: list[str] = []


class AgentRetired(Message, frozen=True):
    agent: str
    parked: int
    """Deliveries that wait for something else than the agent, and will for its return."""
    removed_file: str | None = None
    """The daemon's own file of it."""


# ---- A delivery, to be repeated elsewhere --------------------------------------------------------


class OfDelivery(Message, frozen=True):
    delivery: Id


class JournaledEffect(Message, frozen=True):
    """What a delivery asked for at a step of its present run, and what it was answered."""

    step: Count
    effect: Effect
    result: EffectResult


class DeliveryRecord(Message, frozen=True):
    """Whose it is, how its worker is started now, and what that was handed.

    The component that the run began with is `handle.beginning.component`.
    """

    agent: str
    state: str
    start: WorkerStart
    handle: Handle
