"""The models for other programs: what the gateway asks on behalf of whoever has a key.

A client is to the pool what an agent is: an account with a class, a weight and limits. Its name is
that of its table in the configuration.
"""

import asyncio
from collections.abc import Mapping
from typing import Final

from ipc_protocol.aio import Call, Handlers
from ipc_protocol.errors import Failure
from ipc_protocol.inference import Embedded, Generate, Generated
from ipc_protocol.limits import BODY_ELEMENTS_MAX
from ipc_protocol.methods import SERVE_EMBED, SERVE_GENERATE, SERVE_MODELS
from ipc_protocol.serving import OfKey, ServedModel, ServedModels, ServeEmbed, ServeGenerate
from ipc_protocol.values import Priority
from orchestrator.config.types import ClientConfig, Config
from orchestrator.engines import EmbeddingEngine, LanguageEngine
from orchestrator.principals import allowed_models, check_model, class_of, client_of

EMBED_TEXTS_AT_ONCE: Final = 32
"""Texts that the embedding engine is given at once, so that what agents ask comes in between."""

EMBED_SECONDS_MAX: Final = 60.0
"""For each of these turns, others' before it included: they take milliseconds with wordllama, and
seconds with a large model. An engine that cannot be started would else be waited for for ever."""

LIKELIHOODS_VALUES_MAX: Final = BODY_ELEMENTS_MAX - 64
"""Values in an answer's body, but for those that have nothing to do with likelihoods."""
TOKEN_VALUES: Final = 4
"""Of each token: its place in the list, and the three fields of a `TokenLogprob`."""
OTHER_VALUES: Final = 3
"""Of each other one in its place: it, its piece and its likelihood."""


class Endpoint:
    """Serves the gateway's `serve.…` requests."""

    def __init__(
        self,
        config: Config,
        languages: Mapping[str, LanguageEngine],
        embedding: EmbeddingEngine,
    ) -> None:
        self._clients = config.clients
        self._models = config.models
        self._languages = languages
        self._embedding = embedding
        self._embeds = asyncio.Semaphore(1)

    def add_to(self, handlers: Handlers) -> Handlers:
        return (
            handlers.add(SERVE_MODELS, self._on_models)
            .add(SERVE_GENERATE, self._on_generate)
            .add(SERVE_EMBED, self._on_embed)
        )

    async def _on_models(self, params: OfKey, _: Call) -> ServedModels:
        client = client_of(params.key, self._clients)
        served = [
            ServedModel(name=name, kind="language", context=self._models[name].context)
            for name in allowed_models(client, self._languages)
        ]
        served += [
            ServedModel(name=name, kind="embedding")
            for name in allowed_models(client, [self._embedding.name])
        ]
        return ServedModels(models=served)

    # -- text

    async def _on_generate(self, params: ServeGenerate, call: Call) -> Generated:
        client = client_of(params.key, self._clients)
        check_model(client, params.model, self._languages)
        priority = class_of(client, params.priority)
        asked = self._asked(params, client, priority)
        language = self._languages[params.model]
        return await language.generate(asked, call.send_item if params.stream else None)

    def _asked(self, params: ServeGenerate, client: ClientConfig, priority: Priority) -> Generate:
        return Generate(
            agent=client.name,
            priority=priority,
            tokens_max=_tokens_max(params, self._models[params.model].context),
            messages=params.messages,
            prompt=params.prompt,
            schema=params.schema,
            sampling=params.sampling,
            share=client.share,
            deadline_us=params.deadline_us,
            logprobs=params.logprobs,
            stream=params.stream,
        )

    # -- vectors

    async def _on_embed(self, params: ServeEmbed, _: Call) -> Embedded:
        client = client_of(params.key, self._clients)
        check_model(client, params.model, [self._embedding.name])
        vectors: list[bytes] = []
        tokens = 0
        for start in range(0, len(params.texts), EMBED_TEXTS_AT_ONCE):
            embedded = await self._embed(params.texts[start : start + EMBED_TEXTS_AT_ONCE])
            vectors += embedded.vectors
            tokens += embedded.tokens
        dimensions = len(vectors[0]) // 4 if vectors else 0
        return Embedded(dimensions=dimensions, vectors=vectors, tokens=tokens)

    async def _embed(self, texts: list[str]) -> Embedded:
        """One turn. Raises `inference.unavailable` where it does not come."""
        try:
            async with asyncio.timeout(EMBED_SECONDS_MAX), self._embeds:
                return await self._embedding.embed(texts, wait_seconds=None)
        except TimeoutError as error:
            raise Failure(
                "inference.unavailable",
                f"The engine {self._embedding.name} has not answered within "
                f"{EMBED_SECONDS_MAX:g} s.",
                "Ask again later, or for fewer texts; `agentd ctl status` says how it is.",
            ) from error


def _tokens_max(params: ServeGenerate, context: int) -> int:
    """Without a bound it is the whole context, of which the engine gives what is left; with
    likelihoods, as many tokens as fit into one frame with them. Raises `request.invalid`."""
    asked = params.tokens_max or context
    if params.logprobs is None:
        return asked
    room = LIKELIHOODS_VALUES_MAX // (TOKEN_VALUES + OTHER_VALUES * params.logprobs)
    if params.tokens_max is not None and asked > room:
        raise Failure(
            "request.invalid",
            f"The likelihoods of {asked} tokens, with {params.logprobs} others for each, do not "
            "fit into one answer.",
            f"Ask for at most {room} tokens, or for fewer others.",
        )
    return min(asked, room)
