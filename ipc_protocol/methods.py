"""Every request of the protocol: its name and the types of its parameters, items and result.

docs/protocol.md lists the same methods, and a test holds the two together. `LINES` says on which
line each is served; anything else there is `request.unknown-method`.
"""

from typing import Any, Final, Generic, TypeVar

import msgspec

from ipc_protocol import bus, components, control, egress, inference, serving, work
from ipc_protocol.inference import Nothing
from ipc_protocol.values import Receipt

P = TypeVar("P", bound=msgspec.Struct)
R = TypeVar("R")
Item = TypeVar("Item")


class Method(msgspec.Struct, Generic[P, R, Item], frozen=True):
    """`item` is `Nothing` where the response is not streamed."""

    name: str
    params: type[P]
    result: Any
    item: Any = Nothing


ENGINE_START = Method[inference.EngineStart, inference.ModelInfo, Nothing](
    "engine.start", inference.EngineStart, inference.ModelInfo
)
ENGINE_STATUS = Method[Nothing, inference.EngineStatus, Nothing](
    "engine.status", Nothing, inference.EngineStatus
)
ENGINE_GENERATE = Method[inference.Generate, inference.Generated, inference.GeneratedText](
    "engine.generate", inference.Generate, inference.Generated, inference.GeneratedText
)
ENGINE_SCORE = Method[inference.Score, inference.Scored, Nothing](
    "engine.score", inference.Score, inference.Scored
)
ENGINE_EMBED = Method[inference.Embed, inference.Embedded, Nothing](
    "engine.embed", inference.Embed, inference.Embedded
)

ZYGOTE_FORK = Method[work.Fork, work.Forked, Nothing]("zygote.fork", work.Fork, work.Forked)
ZYGOTE_KILL = Method[work.Kill, Nothing, Nothing]("zygote.kill", work.Kill, Nothing)
ZYGOTE_EXITS = Method[work.WatchExits, Nothing, work.WorkerExited](
    "zygote.exits", work.WatchExits, Nothing, work.WorkerExited
)
ZYGOTE_LIBRARY = Method[Nothing, components.Library, Nothing](
    "zygote.library", Nothing, components.Library
)

WORKER_START = Method[work.WorkerStart, work.WorkerReady, Nothing](
    "worker.start", work.WorkerStart, work.WorkerReady
)
WORKER_HANDLE = Method[work.Work, Nothing, work.Done](
    "worker.handle", work.Work, Nothing, work.Done
)
WORKER_STOP = Method[Nothing, Nothing, Nothing]("worker.stop", Nothing, Nothing)
COMPILER_COMPILE = Method[components.Compile, components.Compiled, Nothing](
    "compiler.compile", components.Compile, components.Compiled
)
WORK_EFFECT = Method[work.EffectRequest, work.EffectResult, Nothing](
    "work.effect", work.EffectRequest, work.EffectResult
)

METRICS = Method[Nothing, control.Exposition, Nothing](
    "gateway.metrics", Nothing, control.Exposition
)
HEALTH = Method[Nothing, control.Health, Nothing]("gateway.health", Nothing, control.Health)

SERVE_MODELS = Method[serving.OfKey, serving.ServedModels, Nothing](
    "serve.models", serving.OfKey, serving.ServedModels
)
SERVE_GENERATE = Method[serving.ServeGenerate, inference.Generated, inference.GeneratedText](
    "serve.generate", serving.ServeGenerate, inference.Generated, inference.GeneratedText
)
SERVE_EMBED = Method[serving.ServeEmbed, inference.Embedded, Nothing](
    "serve.embed", serving.ServeEmbed, inference.Embedded
)

EGRESS_START = Method[egress.EgressStart, Nothing, Nothing](
    "egress.start", egress.EgressStart, Nothing
)
EGRESS_FETCH = Method[egress.Fetch, egress.Fetched, egress.FetchedPiece](
    "egress.fetch", egress.Fetch, egress.Fetched, egress.FetchedPiece
)

STATUS = Method[Nothing, control.Status, Nothing]("ctl.status", Nothing, control.Status)
AGENTS = Method[Nothing, control.Agents, Nothing]("ctl.agents", Nothing, control.Agents)
ASK = Method[control.Ask, Receipt, Nothing]("ctl.ask", control.Ask, Receipt)
ANSWER = Method[control.AwaitAnswer, control.Conversation, Nothing](
    "ctl.answer", control.AwaitAnswer, control.Conversation
)
SEND = Method[control.Send, Receipt, Nothing]("ctl.send", control.Send, Receipt)
PUBLISH = Method[control.Publish, control.Published, Nothing](
    "ctl.publish", control.Publish, control.Published
)
WATCH = Method[control.Watch, Nothing, control.Happening](
    "ctl.watch", control.Watch, Nothing, control.Happening
)
TRACE = Method[control.OfConversation, control.Trace, Nothing](
    "ctl.trace", control.OfConversation, control.Trace
)
SLOTS = Method[Nothing, control.Engines, Nothing]("ctl.slots", Nothing, control.Engines)
MEMORY = Method[control.MemoryQuery, control.Memories, Nothing](
    "ctl.memory", control.MemoryQuery, control.Memories
)
TASKS = Method[control.OfAgent, control.Tasks, Nothing]("ctl.tasks", control.OfAgent, control.Tasks)
ATTENTION_LIST = Method[control.AttentionQuery, control.AttentionRequests, Nothing](
    "ctl.attention.list", control.AttentionQuery, control.AttentionRequests
)
ATTENTION_ANSWER = Method[control.AttentionAnswer, Nothing, Nothing](
    "ctl.attention.answer", control.AttentionAnswer, Nothing
)
COMPONENT_UPLOAD = Method[control.ComponentPiece, control.ComponentReceived, Nothing](
    "ctl.component.upload", control.ComponentPiece, control.ComponentReceived
)
AGENTS_HISTORY = Method[control.OfOneAgent, control.AgentVersions, Nothing](
    "ctl.agents.history", control.OfOneAgent, control.AgentVersions
)
AGENTS_UPGRADE = Method[control.UpgradeAgent, control.AgentUpgraded, control.AgentChange](
    "ctl.agents.upgrade", control.UpgradeAgent, control.AgentUpgraded, control.AgentChange
)
AGENTS_ROLLBACK = Method[control.RollBackAgent, control.AgentUpgraded, control.AgentChange](
    "ctl.agents.rollback", control.RollBackAgent, control.AgentUpgraded, control.AgentChange
)
AGENTS_ADD = Method[control.AddAgent, control.AgentAdded, control.AgentChange](
    "ctl.agents.add", control.AddAgent, control.AgentAdded, control.AgentChange
)
AGENTS_RETIRE = Method[control.OfOneAgent, control.AgentRetired, control.AgentChange](
    "ctl.agents.retire", control.OfOneAgent, control.AgentRetired, control.AgentChange
)
DELIVERY = Method[control.OfDelivery, control.DeliveryRecord, control.JournaledEffect](
    "ctl.delivery", control.OfDelivery, control.DeliveryRecord, control.JournaledEffect
)
DEAD_LIST = Method[bus.ListDeadLetters, bus.DeadLetters, Nothing](
    "ctl.bus.dead.list", bus.ListDeadLetters, bus.DeadLetters
)
DEAD_SHOW = Method[bus.OfDeadLetter, bus.DeadLetterDetail, Nothing](
    "ctl.bus.dead.show", bus.OfDeadLetter, bus.DeadLetterDetail
)
DEAD_REPLAY = Method[bus.ReplayDeadLetters, bus.ReplayedLetters, bus.ReplayedLetter](
    "ctl.bus.dead.replay", bus.ReplayDeadLetters, bus.ReplayedLetters, bus.ReplayedLetter
)
DEAD_PURGE = Method[bus.PurgeDeadLetters, bus.PurgedLetters, Nothing](
    "ctl.bus.dead.purge", bus.PurgeDeadLetters, bus.PurgedLetters
)
TOPICS = Method[Nothing, bus.Topics, bus.Topic]("ctl.bus.topics", Nothing, bus.Topics, bus.Topic)
TAP = Method[bus.Tap, Nothing, bus.Tapped]("ctl.bus.tap", bus.Tap, Nothing, bus.Tapped)

LINES: Final[dict[str, tuple[Method[Any, Any, Any], ...]]] = {
    "control": (
        STATUS,
        AGENTS,
        ASK,
        ANSWER,
        SEND,
        PUBLISH,
        WATCH,
        TRACE,
        SLOTS,
        MEMORY,
        TASKS,
        ATTENTION_LIST,
        ATTENTION_ANSWER,
        COMPONENT_UPLOAD,
        AGENTS_HISTORY,
        AGENTS_UPGRADE,
        AGENTS_ROLLBACK,
        AGENTS_ADD,
        AGENTS_RETIRE,
        DELIVERY,
        DEAD_LIST,
        DEAD_SHOW,
        DEAD_REPLAY,
        DEAD_PURGE,
        TOPICS,
        TAP,
    ),
    "gateway": (METRICS, HEALTH, SERVE_MODELS, SERVE_GENERATE, SERVE_EMBED),
    "engine": (ENGINE_START, ENGINE_STATUS, ENGINE_GENERATE, ENGINE_SCORE, ENGINE_EMBED),
    "zygote": (ZYGOTE_FORK, ZYGOTE_KILL, ZYGOTE_EXITS, ZYGOTE_LIBRARY),
    "worker": (WORKER_START, WORKER_HANDLE, WORKER_STOP),
    "compiler": (COMPILER_COMPILE,),
    "work": (WORK_EFFECT,),
    "egress": (EGRESS_START, EGRESS_FETCH),
    "dialling": (EGRESS_FETCH,),
}
"""What is served on each line: control, gateway and work by the orchestrator."""
