"""The embedding engine: wordllama by default, any GGUF by its path.

The one importer of wordllama. Vectors are computed on one thread of their own, so that status is
answered meanwhile.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from inference_client import gguf
from ipc_protocol import methods
from ipc_protocol.aio import Call, Handlers
from ipc_protocol.errors import Failure
from ipc_protocol.inference import (
    Embed,
    Embedded,
    EngineStart,
    EngineStatus,
    ModelInfo,
    Nothing,
)

Vectors = npt.NDArray[np.float32]

WORDS_CHARACTERS_MAX: Final = 32_768
"""Of a text, for wordllama, which has no context that would end it: the 8,192 tokens of about four
characters that OpenAI's models read. What follows is cut off, as a context does."""
WORDS_TEXTS_MAX: Final = 64
"""At once: wordllama's own default."""
WORDS_BYTES_TOGETHER: Final = 128 * 1024
"""wordllama fills all texts up to the longest, and makes 256 numbers of each token, twice: so many
bytes become 256 MiB if each is a token, and one long text among many short ones makes no more."""


class EmbeddingEngine:
    """Serves one embedding model. `broken` is never set: it has no thread that could fail alone."""

    def __init__(self) -> None:
        self.broken = asyncio.Event()
        self._embedder: Embedder | None = None
        self._thread = ThreadPoolExecutor(1, "embed")
        self._asked = 0
        self._under_way: set[Future[Embedded]] = set()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Handlers]:
        try:
            yield (
                Handlers()
                .add(methods.ENGINE_START, self._start)
                .add(methods.ENGINE_STATUS, self._status)
                .add(methods.ENGINE_EMBED, self._embed)
            )
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _start(self, params: EngineStart, _: Call) -> ModelInfo:
        loop = asyncio.get_running_loop()
        self._embedder = await loop.run_in_executor(self._thread, load, params)
        return self._embedder.info

    async def _status(self, _: Nothing, __: Call) -> EngineStatus:
        under_way = len(self._under_way)
        return EngineStatus(
            model=self._loaded.info, steps=self._asked - under_way, working=under_way > 0
        )

    async def _embed(self, params: Embed, _: Call) -> Embedded:
        work = self._thread.submit(self._loaded.embed, params.texts)
        self._asked += 1
        self._under_way.add(work)
        # When the work ends, not when nobody waits for it any more: the thread may be stuck in it.
        work.add_done_callback(self._under_way.discard)
        return await asyncio.wrap_future(work)

    @property
    def _loaded(self) -> "Embedder":
        if self._embedder is None:
            raise Failure(
                "inference.unavailable", "The engine has no model yet.", "Send `engine.start`."
            )
        return self._embedder


class Embedder:
    """A loaded embedding model. `embed` blocks: 15 µs a text with wordllama, more with a GGUF."""

    def __init__(
        self, info: ModelInfo, vectors: Callable[[Sequence[str]], tuple[Vectors, int]]
    ) -> None:
        """`vectors` returns a row of length 1 per text, and how many tokens they all are."""
        self.info = info
        self._vectors = vectors

    def embed(self, texts: Sequence[str]) -> Embedded:
        """One vector of length 1 per text, as little-endian 4-byte floats."""
        if not texts:
            return Embedded(dimensions=self.info.dimensions, vectors=[])
        vectors, tokens = self._vectors(texts)
        return Embedded(
            dimensions=self.info.dimensions,
            vectors=[vector.tobytes() for vector in vectors.astype("<f4")],
            tokens=tokens,
        )


def load(start: EngineStart) -> Embedder:
    """Load the model that `start.path` names; an empty path is wordllama from its own package."""
    return _from_gguf(start) if start.path else _wordllama(start.name)


def _wordllama(name: str) -> Embedder:
    import wordllama

    folder = Path(wordllama.__file__).parent
    try:
        model = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)
    except FileNotFoundError as error:
        raise Failure(
            "model.invalid",
            f"The package wordllama has no weights in it: {error}",
            "Install wordllama again.",
        ) from error

    def vectors(texts: Sequence[str]) -> tuple[Vectors, int]:
        cut = [text[:WORDS_CHARACTERS_MAX] for text in texts]
        longest = max(len(text.encode()) for text in cut)
        together = min(WORDS_TEXTS_MAX, max(1, WORDS_BYTES_TOGETHER // max(1, longest)))
        found: Vectors = model.embed(cut, norm=False, batch_size=together)
        tokens = sum(len(model.tokenizer.encode(text, add_special_tokens=False)) for text in cut)
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        unit: Vectors = found / np.maximum(lengths, 1e-12)  # a text of no known word stays zero
        return unit, tokens

    dimensions = int(model.embed(["size"]).shape[1])
    info = ModelInfo(name=name, kind="embedding", architecture="wordllama", dimensions=dimensions)
    return Embedder(info, vectors)


def _from_gguf(start: EngineStart) -> Embedder:
    from inference_client.engine.embedder import TextEmbedder
    from inference_client.engine.llama import Model

    path = Path(start.path)
    header = gguf.read(path)
    model = Model(path, start.gpu_layers)
    tokens_max = min(start.context, model.context_trained)
    embedder = TextEmbedder(model, tokens_max, start.threads)
    info = ModelInfo(
        name=start.name,
        kind="embedding",
        architecture=header.architecture,
        parameters=header.parameters,
        context=tokens_max,
        vocabulary=model.vocabulary,
        dimensions=model.dimensions,
    )

    def vectors(texts: Sequence[str]) -> tuple[Vectors, int]:
        found = [embedder.embed(text) for text in texts]
        return np.stack([vector for vector, _ in found]), sum(tokens for _, tokens in found)

    return Embedder(info, vectors)
