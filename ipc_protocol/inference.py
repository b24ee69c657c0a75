"""What is asked of an engine: text from a prompt, a preference among choices, vectors.

The language engine and the embedding engine answer the same `engine.start`, `engine.status` and
their own kind of request; a request of the other kind is `request.unknown-method`.
"""

from typing import Any, Literal

import msgspec

from ipc_protocol.values import Message, Priority


class ChatMessage(Message, frozen=True):
    role: Literal["system", "user", "assistant"]
    content: str


class Sampling(Message, frozen=True):
    """Per-request sampling. Temperature 0 is greedy, and then the rest has no effect."""

    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int = 0
    stop: list[str] = []


class EngineStart(Message, frozen=True):
    """Load a model. `slots` sequences share `context` cells; `threads` decode."""

    name: str
    path: str
    slots: int = 4
    context: int = 8192
    threads: int = 1
    gpu_layers: int = 0


class ModelInfo(Message, frozen=True):
    """What was loaded. `context` is tokens for one sequence; `dimensions` of an embedding or 0."""

    name: str
    kind: Literal["language", "embedding"]
    architecture: str
    parameters: int = 0
    context: int = 0
    vocabulary: int = 0
    dimensions: int = 0


class Generate(Message, frozen=True):
    """Generate at most `tokens_max` tokens for the chat `messages`.

    The first message of role system is the agent's preamble; its KV cache is kept and reused for
    the next request of the same agent. With `schema` (a JSON Schema) the answer parses and
    validates, or the request ends in `inference.budget`.
    """

    agent: str
    priority: Priority
    messages: list[ChatMessage]
    tokens_max: int
    schema: dict[str, Any] | None = None
    sampling: Sampling = Sampling()
    stream: bool = False


class GeneratedText(Message, frozen=True):
    """An item of a streamed generation: the text since the item before."""

    text: str


class Usage(Message, frozen=True):
    """What one request cost. `cached_tokens` of the prompt were already in the KV cache."""

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    queue_us: int
    first_token_us: int
    total_us: int


class Generated(Message, frozen=True):
    text: str
    finish: Literal["stop", "length"]
    usage: Usage


class Score(Message, frozen=True):
    """How likely does `prompt` go on with `continuation`? Nothing is generated.

    Both are plain text: no chat template is applied, and no control token is understood.
    """

    agent: str
    priority: Priority
    prompt: str
    continuation: str


class Scored(Message, frozen=True):
    """The natural logarithm of the likelihood, summed over the tokens of the continuation."""

    logprob: float
    usage: Usage


class Embed(Message, frozen=True):
    texts: list[str]


class Embedded(Message, frozen=True):
    """One vector per text: `dimensions` little-endian 4-byte floats, of length 1."""

    dimensions: int
    vectors: list[bytes]


class Nothing(Message, frozen=True):
    """Parameters or a result without content."""


class SlotState(Message, frozen=True):
    """One slot of the pool. `cached_tokens` lie in its KV cache, whoever left them."""

    slot: int
    state: Literal["free", "prefill", "decode"]
    cached_tokens: int = 0
    agent: str = ""
    priority: Priority | None = None
    prompt_tokens: int = 0
    generated_tokens: int = 0
    age_us: int = 0


class Waiting(Message, frozen=True):
    """One queued request: its place, and why it waits."""

    position: int
    agent: str
    priority: Priority
    reason: str
    waited_us: int


class AgentUsage(Message, frozen=True):
    """Tokens an engine has spent for one agent since the engine started."""

    agent: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int


class EngineStatus(Message, frozen=True):
    """One that is `working` makes steps; if their number stays the same, it hangs."""

    model: ModelInfo
    slots: list[SlotState] = []
    queue: list[Waiting] = []
    usage: list[AgentUsage] = []
    steps: int = 0
    working: bool = False
    kv_cells_used: int = 0
    kv_cells: int = 0


def schema_of(answer: type[msgspec.Struct]) -> dict[str, Any]:
    """The JSON Schema that constrains and validates a typed model answer, references resolved."""
    (schema,), components = msgspec.json.schema_components([answer], ref_template="#/$defs/{name}")
    resolved = _resolve(schema, components)
    assert isinstance(resolved, dict)
    return resolved


def _resolve(node: Any, components: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return [_resolve(item, components) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _resolve(components[node["$ref"].removeprefix("#/$defs/")], components)
    return {key: _resolve(value, components) for key, value in node.items()}
