"""Vectors from a GGUF model, one text at a time."""

import numpy as np
import numpy.typing as npt

from inference_client.engine.batch import Batch
from inference_client.engine.llama import DecodeError, Model, complaint, invalid_model, library

Vector = npt.NDArray[np.float32]


class TextEmbedder:
    """Vectors from a GGUF model, one text at a time, pooled as the model wants or by the mean."""

    def __init__(self, model: Model, tokens_max: int, threads: int) -> None:
        params = library.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = tokens_max
        params.n_threads = params.n_threads_batch = threads
        params.embeddings = True
        params.no_perf = True
        self._pointer = library.llama_init_from_model(model.pointer, params)
        pooled = self._pointer and library.llama_pooling_type(self._pointer)
        if pooled == library.LLAMA_POOLING_TYPE_NONE:
            library.llama_free(self._pointer)
            params.pooling_type = library.LLAMA_POOLING_TYPE_MEAN
            self._pointer = library.llama_init_from_model(model.pointer, params)
        if not self._pointer:
            raise invalid_model(model.path, "cannot be used for embeddings")
        self._model = model
        self._tokens_max = tokens_max
        self._batch = Batch(tokens_max)

    def embed(self, text: str) -> tuple[Vector, int]:
        """The vector of a text, of length 1, and its tokens. What the context does not hold is cut
        off, and not counted."""
        tokens = self._model.tokenise(text)[: self._tokens_max] or self._model.end_tokens[:1]
        memory = library.llama_get_memory(self._pointer)
        if memory:
            library.llama_memory_clear(memory, True)
        self._batch.fill([_Whole(tokens)])
        if status := library.llama_decode(self._pointer, self._batch.struct):
            raise DecodeError(f"llama_decode ended with {status}: {complaint()}")
        pointer = library.llama_get_embeddings_seq(self._pointer, 0)
        vector = np.ctypeslib.as_array(pointer, (self._model.dimensions,)).astype(np.float32)
        return vector / max(float(np.linalg.norm(vector)), 1e-12), len(tokens)


class _Whole:
    """A whole text as the only row of a batch; pooling wants all of its tokens."""

    slot = start = 0

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self.outputs = len(tokens)
