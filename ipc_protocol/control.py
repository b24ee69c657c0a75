"""What operators and their programs ask the daemon on the control socket, and what it answers."""

from typing import Any, Literal

from ipc_protocol.inference import EngineStatus
from ipc_protocol.values import Count, Id, LayerReport, Message, Priority
from ipc_protocol.work import Memory

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


class Agents(Message, frozen=True):
    agents: list[AgentStatus]


class EngineSummary(Message, frozen=True):
    name: str
    state: Literal["starting", "ready", "backoff"]
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


class TracedMessage(Message, frozen=True):
    message: int
    topic: str
    sender: str
    text: str
    sent_us: int
    cause: int | None = None


class DeadLetter(Message, frozen=True):
    message: int | None
    agent: str
    reason: str
    at_us: int


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
