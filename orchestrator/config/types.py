"""Everything that can be configured: the only place with the names, defaults and bounds of keys.

A field's description is what `agentd init` writes above the key. A field marked `DERIVED` is not a
key: the loader fills it in. Loaded paths are absolute; times are microseconds, sizes bytes.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, field

from ipc_protocol.inference import KvLayout, KvType, Sampling, Share
from ipc_protocol.values import Priority
from orchestrator import egress_urls, secrets
from orchestrator.bus import topics
from orchestrator.bus.routing import RESERVED_NAMES
from orchestrator.config.problems import ConfigProblem
from orchestrator.egress_urls import GrantedUrl, UrlError

DERIVED: Final = Meta(extra={"derived": True})
"""Not a key of the file."""

Duration = Annotated[int, Meta(extra={"unit": "duration"})]
"""Microseconds, written as `"120s"`."""

Size = Annotated[int, Meta(extra={"unit": "size"})]
"""Bytes, written as `"256MiB"`."""

TopicPattern = Annotated[
    str,
    Meta(
        extra={
            "expected": "words of a-z, 0-9, _ and - with dots between them (`*` is one word, a "
            "final `>` the rest)",
            "fault": topics.fault_of_pattern,
        },
    ),
]
"""What the bus takes for a pattern."""

AGENT_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
AGENT_NAME_EXPECTED: Final = "up to 32 lower-case letters, digits, - and _, with a letter first"
AGENT_NAMES_RESERVED: Final = RESERVED_NAMES | {"agentd", "none", "nobody"}
"""Senders that are no agents, the program itself, and the words for nobody."""

ToolName = Literal[
    "attention.request",
    "fs.list",
    "fs.read",
    "fs.write",
    "host.read",
    "memory.search",
    "message.send",
    "task.create",
    "task.update",
]

Interface = Literal[
    "inference", "memory", "tools", "tasks", "attention", "state", "health", "logging"
]
"""Of `agent-net:core`, those that are granted one by one."""

HOST_REPORTS: Final = frozenset({"@disk"})
"""What `host.read` may be granted besides files: reports that the daemon makes."""

LogFormat = Literal["text", "json", "auto"]
LogLevel = Literal["debug", "info", "warning", "error"]
SandboxMode = Literal["strict", "standard", "off"]
Restart = Literal["permanent", "transient", "temporary"]

MODELS_FOLDER: Final = "models"
"""Within the state folder."""

MODEL_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MODEL_NAME_EXPECTED: Final = "up to 64 letters, digits, -, _ and ., with a letter or digit first"
"""Programs use it in addresses; it stands in logs, in metrics and in process names."""

EMBEDDING_NAME: Final = "embed"
"""What the one embedding model is called, beside the names of `[model.NAME]`."""

DEFAULT_STATE: Final = Path("/var/lib/agentd")
DEFAULT_SOCKET: Final = Path("/run/agentd/agentd.sock")


def names_file(model: str) -> bool:
    """Whether this is the path of a model, and no name in the registry."""
    return "/" in model or model.endswith(".gguf")


def fault_of_url(url: str) -> str | None:
    """What is wrong with the address of a remote server, or None; empty is for no server."""
    if not url:
        return None
    try:
        GrantedUrl.parse(url)
    except UrlError:  # its text repeats what may be a password
        if "@" in url:
            return "has credentials in it: `key` says where they are"
        return "is no address that egress takes"
    return None


def fault_of_key_place(place: str) -> str | None:
    """What is wrong with where the key to a remote server is, or None; empty is for no key."""
    if not place or secrets.kind_of(place) is not None:
        return None
    return "names no place. If it is the key itself, take it out of this file"


def fault_of_component_config(value: object) -> str | None:
    """What is wrong with the `config` of a component, or None."""
    return None if isinstance(value, str | dict) else "is neither text nor a table"


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every table of the configuration."""


class DaemonConfig(Section, frozen=True):
    """The daemon itself."""

    state: Annotated[
        Path,
        Meta(description="The folder of this instance: database, models, work folders of agents."),
    ] = DEFAULT_STATE
    socket: Annotated[
        Path,
        Meta(
            description="The control socket, at most 107 characters. `agentd ctl` connects to it."
        ),
    ] = DEFAULT_SOCKET
    sandbox: Annotated[
        SandboxMode,
        Meta(
            description="How workers are confined. `strict` starts no agent where a layer of the "
            "sandbox is missing; `standard` takes the layers that this host offers and reports the "
            "rest. Only the command line can switch it off.",
            extra={"choices": ("strict", "standard")},
        ),
    ] = "strict"
    log: Annotated[
        LogFormat,
        Meta(description="`text` for people, `json` for programs, `auto`: text on a terminal."),
    ] = "auto"
    log_level: Annotated[LogLevel, Meta(description="The least severe lines that are written.")] = (
        "info"
    )


class ModelConfig(Section, frozen=True):
    """A language model, which gets an engine process of its own; agents name it by `model`."""

    file: Annotated[
        str,
        Meta(
            min_length=1,
            description="A name from `agentd models list`, or the path of a GGUF file.",
        ),
    ] = "smollm2"
    slots: Annotated[
        int,
        Meta(
            ge=1,
            le=256,
            description="Requests that are decoded together. A slot also keeps what it has read: "
            "triage reads a list of duties for each of five owners, which should stay.",
        ),
    ] = 8
    context: Annotated[int, Meta(ge=256, description="Tokens of context that all slots share.")] = (
        8192
    )
    threads: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(
            description="The most threads that decode; fewer do while other programs need the "
            "cores. Default: as many as there are cores.",
            examples=[1],
        ),
    ] = None
    gpu_layers: Annotated[
        Annotated[int, Meta(ge=-1)] | None,
        Meta(
            description="Layers of the model that go to the GPU; -1 is all of them. Default: all, "
            "which are none where llama.cpp was built for no GPU.",
            examples=[-1],
        ),
    ] = None
    devices: Annotated[
        list[str],
        Meta(description="Devices for those layers, as `agentd doctor` lists them. Default: all."),
    ] = []
    kv_type: Annotated[
        KvType, Meta(description="What the KV cache is kept in; `q8_0` halves it.")
    ] = "f16"
    kv_layout: Annotated[
        KvLayout | None,
        Meta(
            description="`unified`: slots share all cells, and prefixes by reference. `streams`: "
            "each has its own, which a GPU is faster with. Default: what suits the device.",
            examples=["unified"],
        ),
    ] = None
    flash_attention: Annotated[
        Literal["auto", "on", "off"], Meta(description="Whether attention is computed in one go.")
    ] = "auto"
    swap_bytes: Annotated[
        Size,
        Meta(description="Host memory for what a request had cached when it had to make way."),
    ] = field(default=256 * 1024**2, name="swap")
    pin: Annotated[
        bool, Meta(description="Load it at the start, and keep it loaded whatever else is asked.")
    ] = False
    url: Annotated[
        str,
        Meta(
            description="A server that speaks OpenAI's interface, instead of `file`: "
            "`https://HOST/v1`. Egress asks it; the queue and its classes stay here.",
            extra={
                "expected": egress_urls.EXPECTED,
                "fault": fault_of_url,
                "secret": True,
            },
        ),
    ] = ""
    remote_model: Annotated[
        str, Meta(description="What that server calls the model. Default: the name of this table.")
    ] = ""
    key: Annotated[
        str,
        Meta(
            description="Where the key to that server is: `file:PATH`, `env:NAME` or "
            "`credential:NAME` (of systemd). The key itself never stands here.",
            extra={
                "expected": secrets.EXPECTED,
                "fault": fault_of_key_place,
                "secret": True,
            },
        ),
    ] = ""
    preference_weight: Annotated[
        float,
        Meta(
            ge=0,
            le=10,
            description="What the model's preference counts in triage, beside the screening. "
            "A small model's deserves little, a large one's 1.",
        ),
    ] = 0.4

    @property
    def is_path(self) -> bool:
        """`file` is a path, and no name in the registry."""
        return names_file(self.file)

    @property
    def is_remote(self) -> bool:
        """Another server has it: nothing is loaded here."""
        return bool(self.url)

    def threads_on(self, cores: int) -> int:
        """The most threads that decode. The engine measures who else needs the cores, and decodes
        with fewer as long as somebody does."""
        return self.threads if self.threads is not None else cores

    @property
    def offloaded_layers(self) -> int:
        """As llama.cpp is told: -1 for all of them. One that was built for no GPU ignores it, so
        all is also right where there is none."""
        return -1 if self.gpu_layers is None else self.gpu_layers


class InferenceConfig(Section, frozen=True):
    """All models together."""

    memory_bytes: Annotated[
        Annotated[int, Meta(ge=64 * 1024**2, extra={"unit": "size"})] | None,
        Meta(
            description="Memory that loaded models may take: of the GPUs where there are any, else "
            "of the host. Beyond it the one that matters least is unloaded. Default: nine tenths "
            "of what there is.",
            examples=["8GiB"],
        ),
    ] = field(default=None, name="memory")


class EndpointConfig(Section, frozen=True):
    """The models for other programs, by OpenAI's interface."""

    listen: Annotated[
        str,
        Meta(
            description="`127.0.0.1:PORT`, `[::1]:PORT`, `unix:PATH` (relative to the state "
            "folder), or empty: off."
        ),
    ] = ""


class ClientConfig(Section, frozen=True):
    """A program that may use the endpoint. Its name is the name of its table."""

    key_sha256: Annotated[
        str,
        Meta(
            pattern="^[0-9a-f]{64}$",
            description="The SHA-256 of its key; `agentd keys new NAME` makes both.",
            examples=["0" * 64],
            extra={
                "required": True,
                "expected": "the 64 digits that `agentd keys new` prints",
                "secret": True,
            },
        ),
    ] = ""
    name: Annotated[str, DERIVED] = ""
    priority: Annotated[
        Priority, Meta(description="The class of its requests, and the most urgent it may ask for.")
    ] = "normal"
    models: Annotated[
        list[str], Meta(description="The models that it may use. Default: all of them.")
    ] = []
    weight: Annotated[
        float, Meta(gt=0, le=100, description="Its share of a model beside others of its class.")
    ] = 1.0
    requests: Annotated[
        int, Meta(ge=0, description="Requests of its that may run at once; 0 is no limit.")
    ] = 0
    tokens_per_minute: Annotated[
        int, Meta(ge=0, description="Tokens that it may spend; beyond, it waits. 0 is no limit.")
    ] = 0

    @property
    def share(self) -> Share:
        return Share(
            weight=self.weight,
            running_max=self.requests,
            tokens_per_minute=self.tokens_per_minute,
        )


class EmbeddingConfig(Section, frozen=True):
    """Vectors for screening and for memories."""

    engine: Annotated[
        str,
        Meta(min_length=1, description="`wordllama`, or the path of a GGUF file that embeds text."),
    ] = "wordllama"


class ScreeningConfig(Section, frozen=True):
    """Whose business a message is, judged across all agents before any model is asked."""

    ignores: Annotated[
        list[str], Meta(description="What concerns no agent at all: short phrases, one per kind.")
    ] = []


class ConversationConfig(Section, frozen=True):
    """Requests and their answers."""

    time_to_live_us: Annotated[
        Duration,
        Meta(gt=0, description="A message that is older than this is not handled any more."),
    ] = field(default=86_400_000_000, name="time_to_live")
    conductor: Annotated[str | None, DERIVED] = None
    """The agent of role conductor, or None."""


class BusConfig(Section, frozen=True):
    """Messages once they are handled."""

    retention_us: Annotated[
        Duration,
        Meta(
            ge=60_000_000,
            description="How long a conversation can be looked at after its end, and how long a "
            "publisher's id keeps doubles of a message out. Dead letters stay until they are "
            "purged.",
        ),
    ] = field(default=7 * 86_400_000_000, name="retention")


class ComponentsConfig(Section, frozen=True):
    """How the components of agents are compiled: once for each, by a confined process."""

    compile_time_us: Annotated[
        Duration,
        Meta(
            ge=1_000_000,
            le=3_600_000_000,
            description="Processor time for one of them. One written in Python takes 10 s.",
        ),
    ] = field(default=120_000_000, name="compile_time")
    compile_memory_bytes: Annotated[
        Size, Meta(ge=64 * 1024**2, description="Memory for one of them. Python takes 500 MiB.")
    ] = field(default=2 * 1024**3, name="compile_memory")


class GatewayConfig(Section, frozen=True):
    """What is served to the network: /metrics and /healthz."""

    listen: Annotated[
        str,
        Meta(
            description="`127.0.0.1:PORT`, `[::1]:PORT`, `unix:PATH` (relative to the state "
            "folder), or empty for nothing at all."
        ),
    ] = "unix:gateway.sock"
    agents_max: Annotated[
        int,
        Meta(
            ge=0,
            le=1000,
            description="Agents with metrics of their own; the others are counted together.",
        ),
    ] = 50


class LimitsConfig(Section, frozen=True):
    """What one agent may use."""

    steps: Annotated[int, Meta(ge=1, le=64, description="Tool calls for one delivery.")] = 8
    tokens: Annotated[
        int, Meta(ge=64, le=1_000_000, description="Tokens generated for one delivery.")
    ] = 2048
    weight: Annotated[
        float, Meta(gt=0, le=100, description="Its share of the model beside others of its class.")
    ] = 1.0
    requests: Annotated[
        int, Meta(ge=0, description="Requests to the model that may run at once; 0 is no limit.")
    ] = 0
    tokens_per_minute: Annotated[
        int, Meta(ge=0, description="Tokens of the model; beyond, it waits. 0 is no limit.")
    ] = 0
    time_us: Annotated[
        Duration, Meta(ge=1_000_000, description="Time to work on one delivery; waiting is free.")
    ] = field(default=120_000_000, name="time")
    memory_bytes: Annotated[
        Size, Meta(ge=64 * 1024**2, description="Memory of the worker process.")
    ] = field(default=256 * 1024**2, name="memory")
    scratch_bytes: Annotated[
        Size, Meta(ge=4096, description="Scratch space in memory, inside the sandbox.")
    ] = field(default=16 * 1024**2, name="scratch")
    inbox: Annotated[
        int,
        Meta(ge=1, le=100_000, description="Pending deliveries before publishers have to wait."),
    ] = 64
    work_bytes: Annotated[
        Size, Meta(ge=4096, description="The work folder, which the fs tools write to.")
    ] = field(default=64 * 1024**2, name="work")
    fuel: Annotated[
        int,
        Meta(
            ge=1_000_000,
            le=1_000_000_000_000,
            description="Fuel of a component for one call: about one for an instruction. The "
            "default is a second or two of computing.",
        ),
    ] = 2_000_000_000
    call_us: Annotated[
        Duration,
        Meta(
            ge=10_000,
            le=600_000_000,
            description="Time that one call of a component may take; waiting is free.",
        ),
    ] = field(default=10_000_000, name="call")
    linear_memory_bytes: Annotated[
        Size,
        Meta(
            ge=65_536,
            le=4 * 1024**3,
            description="Memory that a component sees, part of `memory`: the worker itself takes "
            "up to 64 MiB.",
        ),
    ] = field(default=128 * 1024**2, name="linear_memory")
    tables: Annotated[
        int,
        Meta(ge=1, le=10_000_000, description="Elements in the tables of a component."),
    ] = 100_000
    state_bytes: Annotated[
        Size,
        Meta(
            ge=4096,
            le=1024**3,
            description="What a component may keep in its state: keys, values, and 64 bytes each.",
        ),
    ] = field(default=16 * 1024**2, name="state")

    @property
    def share(self) -> Share:
        """What it may have of its model."""
        return Share(
            weight=self.weight,
            running_max=self.requests,
            tokens_per_minute=self.tokens_per_minute,
        )


class AgentConfig(Section, frozen=True):
    """One agent. Its name is the name of its table."""

    name: Annotated[str, DERIVED] = ""
    role: Annotated[
        Literal["agent", "conductor"],
        Meta(description="The conductor composes the one reply of a conversation."),
    ] = "agent"
    identity: Annotated[
        str, Meta(description="Who it is, in one or two sentences. Every prompt begins with them.")
    ] = ""
    identity_file: Annotated[
        str | None,
        Meta(
            description="A file beside this one that holds the identity, instead of `identity`.",
            examples=["name.md"],
        ),
    ] = None
    duties: Annotated[
        list[str], Meta(description="What is its business: short, broad phrases.")
    ] = []
    ignores: Annotated[list[str], Meta(description="What looks like its business and is not.")] = []
    consumes: Annotated[
        list[TopicPattern], Meta(description="Topics it listens to, besides `agent.NAME`.")
    ] = []
    publishes: Annotated[list[TopicPattern], Meta(description="Topics it may publish on.")] = []
    delegate: Annotated[
        list[str], Meta(description="Agents to whom it may hand a message on.")
    ] = []
    brain: Annotated[
        Literal["loop", "echo"],
        Meta(
            description="*loop* triages, acts and reflects. *echo* is built in, to measure and to "
            "test with: it takes every message at once, without model, and publishes it again on "
            "each of `publishes` that is no pattern."
        ),
    ] = "loop"
    component: Annotated[
        Path | None,
        Meta(
            description="A WebAssembly component that acts instead of the model. Its identity may "
            "be left out; with no duties it takes every message that it receives.",
            examples=["name.wasm"],
        ),
    ] = None
    config: Annotated[
        Any,
        Meta(
            description="What the component is given when it starts: a string, or a table, which "
            "arrives as JSON.",
            examples=["threshold = 7"],
            extra={"expected": "a string, or a table", "fault": fault_of_component_config},
        ),
    ] = None
    config_file: Annotated[
        str | None,
        Meta(
            description="A file beside this one that the component is given instead of `config`.",
            examples=["name.json"],
        ),
    ] = None
    component_config: Annotated[bytes, DERIVED] = b""
    """`config` or the content of `config_file`, as `init` gets it."""
    imports: Annotated[
        list[Interface],
        Meta(
            description="What the component may import of `agent-net:core` besides the bus: "
            "`inference`, `memory`, `tools`, `tasks`, `attention`, `state`, `health`, `logging`."
        ),
    ] = []
    strict_imports: Annotated[
        bool,
        Meta(
            description="Refuse a component that imports of WASI what it would not get anyway; "
            "else such imports are linked to nothing."
        ),
    ] = False
    preopen_scratch: Annotated[
        bool,
        Meta(description="Open the scratch space to the component, as its directory `/scratch`."),
    ] = False
    tools: Annotated[
        list[ToolName], Meta(description="Tools it may call; everything else is refused.")
    ] = []
    host_read: Annotated[
        list[str], Meta(description="What `host.read` may read: absolute paths, or `@disk`.")
    ] = []
    model: Annotated[str, Meta(description="The `[model.NAME]` that it thinks with.")] = "default"
    priority: Annotated[
        Priority,
        Meta(
            description="The class of its requests: `urgent`, `high`, `normal`, `low` or "
            "`background`. A more urgent conversation raises it."
        ),
    ] = "normal"
    sampling: Annotated[Sampling, Meta(description="How its model picks the next token.")] = (
        Sampling()
    )
    restart: Annotated[
        Restart,
        Meta(
            description="`permanent` is always started again, `transient` after a failure only, "
            "`temporary` never."
        ),
    ] = "permanent"
    limits: Annotated[LimitsConfig, Meta(description="What it may use.")] = LimitsConfig()

    @property
    def needs_model(self) -> bool:
        """Triage and act of a model, or of a component that may ask one. A component without
        duties takes what it receives."""
        if self.brain == "echo":
            return False
        return self.component is None or bool(self.duties) or "inference" in self.imports

    @property
    def screened(self) -> bool:
        """What it receives is compared with all duties first. One without duties that a component
        acts for takes everything, so there is nothing to find out."""
        return self.brain == "loop" and (self.component is None or bool(self.duties))

    @property
    def echoes_on(self) -> list[str] | None:
        """Where an *echo* publishes what it gets; None for an agent that is none."""
        if self.brain != "echo":
            return None
        return [topic for topic in self.publishes if not set("*>") & set(topic)]


class Config(Section, frozen=True):
    """A whole configuration, read and found in order."""

    source: Annotated[Path, DERIVED]
    """The main file."""
    prompts: Annotated[Path, DERIVED]
    """The folder of prompt overrides, which need not exist."""
    warnings: Annotated[list[ConfigProblem], DERIVED] = []
    daemon: DaemonConfig = DaemonConfig()
    models: Annotated[dict[str, ModelConfig], Meta(extra={"of": ModelConfig})] = field(
        default_factory=lambda: {"default": ModelConfig()}, name="model"
    )
    inference: InferenceConfig = InferenceConfig()
    endpoint: EndpointConfig = EndpointConfig()
    clients: Annotated[dict[str, ClientConfig], Meta(extra={"of": ClientConfig})] = field(
        default_factory=dict, name="client"
    )
    embedding: EmbeddingConfig = EmbeddingConfig()
    screening: ScreeningConfig = ScreeningConfig()
    conversation: ConversationConfig = ConversationConfig()
    bus: BusConfig = BusConfig()
    components: ComponentsConfig = ComponentsConfig()
    gateway: GatewayConfig = GatewayConfig()
    agents: Annotated[dict[str, AgentConfig], Meta(extra={"of": AgentConfig})] = field(
        default_factory=dict, name="agent"
    )

    @property
    def needs_model(self) -> bool:
        """Some agent does."""
        return any(agent.needs_model for agent in self.agents.values())

    @property
    def models_folder(self) -> Path:
        """Where the registry keeps the models."""
        return self.daemon.state / MODELS_FOLDER


class Key(msgspec.Struct, frozen=True):
    """One field of a section, as the reader and the writer of configurations see it."""

    field: str
    name: str
    type: Any
    """With its constraints, for `msgspec.convert`."""
    default: Any
    description: str
    extra: dict[str, Any]
    example: Any
    """What to write where there is no default."""

    @property
    def required(self) -> bool:
        """The table is nothing without it."""
        return bool(self.extra.get("required"))

    @property
    def derived(self) -> bool:
        return bool(self.extra.get("derived"))


def keys_of(section: type[msgspec.Struct]) -> list[Key]:
    """The fields of a section in their order, those that are no keys among them."""
    keys = []
    for one in msgspec.structs.fields(section):
        metas = [meta for meta in getattr(one.type, "__metadata__", ()) if isinstance(meta, Meta)]
        extra = {name: value for meta in metas for name, value in (meta.extra or {}).items()}
        described = [meta.description for meta in metas if meta.description]
        examples = [example for meta in metas for example in meta.examples or ()]
        default = one.default
        if default is msgspec.NODEFAULT and one.default_factory is not msgspec.NODEFAULT:
            default = one.default_factory()
        keys.append(
            Key(
                field=one.name,
                name=one.encode_name,
                type=one.type,
                default=default,
                description=" ".join(described),
                extra=extra,
                example=examples[0] if examples else None,
            )
        )
    return keys
