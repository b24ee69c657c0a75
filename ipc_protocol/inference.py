"""What is asked of an engine: text from a prompt, a preference among choices, vectors.

The language engine and the embedding engine answer the same `engine.start`, `engine.status` and
their own kind of request; a request of the other kind is `request.unknown-method`.
"""

from typing import Any, Final, Literal

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
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    stop: list[str] = []


class Share(Message, frozen=True):
    """What one agent may have of a model. 0 is no limit.

    Within a class an agent of weight 2 is given twice the tokens of one of weight 1. Beyond
    `running_max` or `tokens_per_minute` its requests wait; nobody else's do.
    """

    weight: float = 1.0
    running_max: int = 0
    tokens_per_minute: int = 0


KvType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]
"""What the elements of a KV cache are, by llama.cpp's names."""

KvLayout = Literal["unified", "streams"]
"""*unified*: all sequences share one pool of cells, and prefixes by reference. *streams*: each has
cells of its own, and a prefix is copied as a whole stream."""


class EngineStart(Message, frozen=True):
    """Load a model, or stand in front of a remote one.

    `slots` sequences share `context` cells. At most `threads` decode, fewer while other programs
    need the cores. `gpu_layers` of -1 are all of them; `devices` are named as llama.cpp lists them,
    none for all. `swap_bytes` of host memory hold sequences that had to make way.
    """

    name: str
    path: str = ""
    slots: int = 4
    context: int = 8192
    threads: int = 1
    gpu_layers: int = 0
    devices: list[str] = []
    kv_type: KvType = "f16"
    kv_layout: KvLayout | None = None
    """None: what suits the model and its device."""
    flash_attention: Literal["auto", "on", "off"] = "auto"
    swap_bytes: int = 0
    remote_model: str = ""
    """What the remote server calls the model, of an engine of kind *remote*."""


REMOTE: Final = "remote"
"""The architecture of a model that another server has: nothing of it is here."""


class ModelInfo(Message, frozen=True):
    """What was loaded. `context` is tokens for one sequence; `dimensions` of an embedding or 0."""

    name: str
    kind: Literal["language", "embedding"]
    architecture: str
    """As the model file names it, or *remote*."""
    parameters: int = 0
    context: int = 0
    vocabulary: int = 0
    dimensions: int = 0
    slots: int = 0
    kv_layout: KvLayout | None = None
    partial_removal: bool = True
    """A sequence can lose its end: not with recurrent or sliding-window layers."""
    device_sampling: bool = False
    devices: list[str] = []
    """Where its layers lie, as llama.cpp names the devices; none for the processor alone."""
    memory_bytes: int = 0
    """Memory of the devices that the model and its cache took, measured while it was loaded; of the
    host, where there is no other."""
    device_memory_bytes: int = 0
    """All memory of those devices, whoever has it; 0 where there is none but the host's."""


class Generate(Message, frozen=True):
    """Generate at most `tokens_max` tokens for the chat `messages`, or behind the text `prompt`.

    With `schema` (a JSON Schema) the answer parses and validates, or the request ends in
    `inference.budget`. With `logprobs` the likelihood of each token comes with it, and of so many
    others in its place. `deadline_us` is how long the answer is of use, in microseconds from now:
    when it cannot come in time any more the request ends in `inference.deadline`. `produced` are
    tokens of an answer that an engine began before it died: the answer goes on behind them, and
    they count as generated, but are not sent again.
    """

    agent: str
    priority: Priority
    tokens_max: int
    messages: list[ChatMessage] = []
    prompt: str | None = None
    schema: dict[str, Any] | None = None
    sampling: Sampling = Sampling()
    share: Share = Share()
    deadline_us: int | None = None
    logprobs: int | None = None
    produced: list[int] = []
    stream: bool = False
    interval_us: int = 0
    """Of a stream: the least time from one item to the next."""


class TokenLogprob(Message, frozen=True):
    """One token of an answer: its bytes, the natural logarithm of its likelihood, and the most
    likely ones in its place, the likeliest first."""

    piece: bytes
    logprob: float
    others: list[tuple[bytes, float]] = []


class GeneratedText(Message, frozen=True):
    """An item of a streamed generation: what came since the item before.

    The first one comes without text, when the request has been given a slot. `text` may lag behind
    `tokens`, since half a character and the beginning of a stop string are held back. Costs that no
    token tells come with them, so that they are known when the engine dies.
    """

    text: str = ""
    tokens: list[int] = []
    logprobs: list[TokenLogprob] = []
    forced_tokens: int = 0
    preemptions: int = 0


class Usage(Message, frozen=True):
    """What one request cost. `cached_tokens` of the prompt were already in the KV cache;
    `forced_tokens` of those generated followed from the schema, and were not decoded one by one.

    Times are from the arrival: `queue_us` to the first slot, `first_token_us`, `total_us`.
    """

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    queue_us: int
    first_token_us: int
    total_us: int
    forced_tokens: int = 0
    preemptions: int = 0


class Generated(Message, frozen=True):
    """A whole answer; its text also where it was streamed, likelihoods only where not."""

    text: str
    finish: Literal["stop", "length"]
    usage: Usage
    logprobs: list[TokenLogprob] = []


class Score(Message, frozen=True):
    """How likely does `prompt` go on with `continuation`? Nothing is generated.

    Both are plain text: no chat template is applied, and no control token is understood.
    """

    agent: str
    priority: Priority
    prompt: str
    continuation: str
    share: Share = Share()


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
    tokens: int = 0
    """Of all texts, where the model counts them."""


class Nothing(Message, frozen=True):
    """Parameters or a result without content."""


class SlotState(Message, frozen=True):
    """One slot of the pool. `cached_tokens` lie in its KV cache, whoever left them.

    `left_out` sits out for a more urgent class. Of the tokens in the cache, `shared_tokens` lie in
    cells that other slots use as well. `agent` of a free slot is who left what it holds.
    """

    slot: int
    state: Literal["free", "prefill", "decode", "left-out"]
    cached_tokens: int = 0
    shared_tokens: int = 0
    agent: str = ""
    priority: Priority | None = None
    prompt_tokens: int = 0
    generated_tokens: int = 0
    age_us: int = 0


class Waiting(Message, frozen=True):
    """One queued request: its place, why it waits, and about how much longer.

    `state` is *swapped* where its cache lies in host memory, and *preempted* where it is computed
    again. None for `estimate_us` means that nobody can say: it waits for something else than time.
    """

    position: int
    agent: str
    priority: Priority
    reason: str
    waited_us: int
    state: Literal["queued", "swapped", "preempted"] = "queued"
    estimate_us: int | None = None


class AgentUsage(Message, frozen=True):
    """Tokens an engine has spent for one agent since the engine started."""

    agent: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int


class Distribution(Message, frozen=True):
    """A histogram since the engine started: `counts` has one more than there are `bounds`, the
    upper ends of the buckets, and each counts its own bucket alone. `total` is the sum."""

    bounds: list[float] = []
    counts: list[int] = []
    total: float = 0.0


class EngineCounters(Message, frozen=True):
    """What an engine has counted since it started.

    Strengths of a preemption: *left-out* of a step, *swapped* to host memory, *dropped* to be
    computed again; a request counts once each time that it begins to sit out.
    """

    preemptions: dict[str, int] = {}
    swapped_out_bytes: int = 0
    swapped_in_bytes: int = 0
    prefix_queries: int = 0
    """Tokens of prompts that were looked for in the cache."""
    prefix_hits: int = 0
    """Tokens of prompts that were found there."""
    recomputed_tokens: int = 0
    """Tokens that were prefilled again after their sequence had made way."""
    forced_tokens: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    step_seconds: Distribution = Distribution()
    step_tokens: Distribution = Distribution()
    inter_token_seconds: dict[Priority, Distribution] = {}


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
    swap_bytes_used: int = 0
    swap_bytes: int = 0
    threads: int = 0
    """That decode now."""
    counters: EngineCounters = EngineCounters()


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
