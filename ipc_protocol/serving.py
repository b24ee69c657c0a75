"""What the gateway asks for other programs: the pool through an OpenAI-compatible endpoint.

The gateway turns HTTP into these and back, and decides nothing: who a key belongs to, and what it
may have, is the orchestrator's to say.
"""

from typing import Any, Literal

from ipc_protocol.inference import ChatMessage, Sampling
from ipc_protocol.values import Message, Priority


class ServedModel(Message, frozen=True):
    """A model that the key may use. `context` is tokens of one sequence, 0 for embeddings."""

    name: str
    kind: Literal["language", "embedding"]
    context: int = 0


class OfKey(Message, frozen=True):
    """`key` is what the client sent, empty for none."""

    key: str


class ServedModels(Message, frozen=True):
    models: list[ServedModel]


class ServeGenerate(Message, frozen=True):
    """As `Generate`, for whoever the key belongs to.

    Without `priority` it is the key's class, without `tokens_max` what the context leaves.
    """

    key: str
    model: str
    priority: Priority | None = None
    messages: list[ChatMessage] = []
    prompt: str | None = None
    tokens_max: int | None = None
    schema: dict[str, Any] | None = None
    sampling: Sampling = Sampling()
    logprobs: int | None = None
    deadline_us: int | None = None
    stream: bool = False


class ServeEmbed(Message, frozen=True):
    key: str
    model: str
    texts: list[str]
