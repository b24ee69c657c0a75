"""The one module that imports llama_cpp: a model, its context, and samplers over its logits.

It decides nothing. Pointers from llama.cpp never leave it: tokens go in, numpy arrays and tokens
come out, and a view of logits is good until the next `decode`. The low-level API is used because
the high-level `Llama` serves one sequence at a time.

A `Model` may be used from any thread; a `Context` and a `Sampler` belong to the decode thread.
"""

import contextlib
import ctypes
import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from inference_client.engine.chat import fragments_of
from inference_client.engine.slots import Copy, Operation
from ipc_protocol.errors import Failure
from ipc_protocol.inference import ChatMessage, Sampling

# Both are read when the library loads. Spinning threads stall one another on a busy machine, and
# a CUDA build crashes unless libstdc++ was loaded first.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
with contextlib.suppress(OSError):
    ctypes.CDLL("libstdc++.so.6", mode=ctypes.RTLD_GLOBAL)

import llama_cpp.llama_cpp as llama

log = logging.getLogger("llama.cpp")

Logits = npt.NDArray[np.float32]

CANDIDATE: Final = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""The layout of llama_token_data."""

SHORTLIST: Final = 256
"""The most likely tokens that are tried against a grammar before the whole vocabulary is: the check
costs 0.05 ms for these, and 3 to 16 ms for 49,152."""

PENALTY_TOKENS: Final = 64
UBATCH_TOKENS: Final = 512

_errors: deque[str] = deque(maxlen=4)
"""The last complaints of llama.cpp, for the message of the failure that follows them."""


@llama.llama_log_callback  # type: ignore[untyped-decorator]
def _on_log(level: int, text: bytes, _: Any) -> None:
    line = text.decode("utf-8", "replace").rstrip()
    if level == _LEVEL_ERROR and line:
        _errors.append(line)
    log.debug("%s", line)


_LEVEL_ERROR: Final = 4
"""GGML_LOG_LEVEL_ERROR of ggml.h; the numbers in llama_cpp._logger are those of an older one."""

llama.llama_log_set(_on_log, ctypes.c_void_p(0))
llama.llama_backend_init()


class DecodeError(Exception):
    """llama.cpp could not decode a batch, for another reason than room. The context is lost."""


class SequenceRow(Protocol):
    """What `decode` needs to know of a row."""

    @property
    def slot(self) -> int: ...
    @property
    def start(self) -> int: ...
    @property
    def tokens(self) -> list[int]: ...
    @property
    def outputs(self) -> int: ...


def _invalid(path: Path, what: str) -> Failure:
    cause = f" llama.cpp says: {_errors[-1]}" if _errors else ""
    return Failure(
        "model.invalid",
        f"{path} {what}.{cause}",
        "Register another GGUF file with `agentd models add`.",
        path=str(path),
    )


class Model:
    """The weights and the vocabulary of one GGUF file, whose header has been checked before."""

    def __init__(self, path: Path, gpu_layers: int = 0) -> None:
        params = llama.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        _errors.clear()
        self.pointer = llama.llama_model_load_from_file(os.fsencode(path), params)
        if not self.pointer:
            raise _invalid(path, "cannot be loaded")
        self.path = path
        self.vocab = llama.llama_model_get_vocab(self.pointer)
        self.vocabulary: int = llama.llama_vocab_n_tokens(self.vocab)
        self.context_trained: int = llama.llama_model_n_ctx_train(self.pointer)
        self.parameters: int = llama.llama_model_n_params(self.pointer)
        self.dimensions: int = llama.llama_model_n_embd(self.pointer)
        self.partial_removal = not (
            llama.llama_model_is_recurrent(self.pointer)
            or llama.llama_model_is_hybrid(self.pointer)
            or llama.llama_model_n_swa(self.pointer) > 0
        )
        """Whether a sequence can lose its end: not with recurrent or sliding-window layers."""
        self.generates: bool = llama.llama_model_has_decoder(
            self.pointer
        ) and not llama.llama_model_has_encoder(self.pointer)
        self._template = llama.llama_model_chat_template(self.pointer, None) or b"chatml"
        self._pieces: dict[int, bytes] = {}

    def close(self) -> None:
        llama.llama_model_free(self.pointer)

    def prompt(self, messages: Sequence[ChatMessage]) -> list[int]:
        """The tokens of a chat, up to where the assistant's answer begins."""
        tokens: list[int] = []
        for fragment in fragments_of(messages, self._render):
            tokens += self.tokenise(fragment.text, control=fragment.template)
        first = llama.llama_vocab_bos(self.vocab)
        if llama.llama_vocab_get_add_bos(self.vocab) and tokens[:1] != [first]:
            tokens.insert(0, first)
        return tokens

    def tokenise(self, text: str, *, control: bool = False) -> list[int]:
        """Tokens of a text. With `control`, the texts of control tokens become those tokens."""
        data = text.encode("utf-8", "replace")
        size = len(data) + 8
        buffer = (llama.llama_token * size)()
        count = llama.llama_tokenize(self.vocab, data, len(data), buffer, size, False, control)
        assert count >= 0, "a text has no more tokens than bytes"
        return list(buffer[:count])

    def piece(self, token: int) -> bytes:
        """The bytes of a token; a control token has none."""
        piece = self._pieces.get(token)
        if piece is None:
            buffer = ctypes.create_string_buffer(256)
            count = llama.llama_token_to_piece(self.vocab, token, buffer, 256, 0, False)
            piece = self._pieces[token] = buffer.raw[: max(count, 0)]
        return piece

    def ends(self, token: int) -> bool:
        """Whether the token ends the generation."""
        return bool(llama.llama_vocab_is_eog(self.vocab, token))

    @property
    def end_token(self) -> int:
        end = llama.llama_vocab_eot(self.vocab)
        return int(end if end >= 0 else llama.llama_vocab_eos(self.vocab))

    def _render(self, pairs: Sequence[tuple[str, str]]) -> str:
        chat = (llama.llama_chat_message * len(pairs))(
            *(llama.llama_chat_message(role.encode(), text.encode()) for role, text in pairs)
        )
        size = 4096 + 256 * len(pairs)
        for template in (self._template, b"chatml"):
            buffer = ctypes.create_string_buffer(size)
            count = llama.llama_chat_apply_template(template, chat, len(pairs), True, buffer, size)
            if count >= 0:
                assert count <= size, "a template is far shorter than the buffer"
                return buffer.raw[:count].decode()
            # llama.cpp knows templates by their looks; one that it does not know gets ChatML.
        raise AssertionError("ChatML is built in")


class Context:
    """The KV cache of `slots` sequences over shared cells, and the batch that is decoded in it."""

    def __init__(self, model: Model, slots: int, cells: int, threads: int, batch: int) -> None:
        params = llama.llama_context_default_params()
        params.n_ctx = cells
        params.n_batch = batch
        params.n_ubatch = min(batch, UBATCH_TOKENS)
        params.n_seq_max = slots
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        params.no_perf = True
        _errors.clear()
        self.pointer = llama.llama_init_from_model(model.pointer, params)
        if not self.pointer:
            raise _invalid(model.path, f"does not fit into memory with {cells} tokens of context")
        self.model = model
        self.slots = slots
        self.cells: int = llama.llama_n_ctx(self.pointer)
        self._memory = llama.llama_get_memory(self.pointer)
        self._batch = _Batch(batch)
        self._logits_type = ctypes.c_float * model.vocabulary

    def close(self) -> None:
        llama.llama_free(self.pointer)

    def apply(self, operations: Sequence[Operation]) -> None:
        """Carry out what the slot table decided. Nothing is lost that it believes to be there."""
        for operation in operations:
            if isinstance(operation, Copy):
                llama.llama_memory_seq_cp(
                    self._memory, operation.source, operation.target, 0, operation.length
                )
            elif not llama.llama_memory_seq_rm(self._memory, operation.slot, operation.length, -1):
                raise DecodeError(f"{operation} was refused")

    def decode(self, rows: Sequence[SequenceRow]) -> list[int] | None:
        """Decode one batch. Returns the index of each row's last token, or None without room."""
        ends = self._batch.fill(rows)
        status = llama.llama_decode(self.pointer, self._batch.struct)
        if status == 1:
            return None
        if status != 0:
            raise DecodeError(f"llama_decode ended with {status}: {'; '.join(_errors)}")
        return ends

    def logits(self, index: int) -> Logits:
        """The logits behind one token of the last batch, as a view into llama.cpp's memory."""
        pointer = llama.llama_get_logits_ith(self.pointer, index)
        address = ctypes.addressof(pointer.contents)
        return np.frombuffer(memoryview(self._logits_type.from_address(address)), np.float32)


class _Batch:
    """One llama_batch whose arrays are numpy's, so that a step fills it without allocating."""

    def __init__(self, size: int) -> None:
        self._token = np.zeros(size, np.int32)
        self._pos = np.zeros(size, np.int32)
        self._logits = np.zeros(size, np.int8)
        self._sequence = np.zeros(size, np.int32)
        self._counts = np.ones(size, np.int32)
        first = self._sequence.ctypes.data
        addresses = first + np.arange(size, dtype=np.uint64) * self._sequence.itemsize
        self._pointers = addresses.astype(np.uint64)
        integer = ctypes.POINTER(ctypes.c_int32)
        self.struct = llama.llama_batch(
            n_tokens=0,
            token=self._token.ctypes.data_as(integer),
            embd=None,
            pos=self._pos.ctypes.data_as(integer),
            n_seq_id=self._counts.ctypes.data_as(integer),
            seq_id=self._pointers.ctypes.data_as(ctypes.POINTER(integer)),
            logits=self._logits.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def fill(self, rows: Sequence[SequenceRow]) -> list[int]:
        ends = []
        end = 0
        for row in rows:
            begin, end = end, end + len(row.tokens)
            self._token[begin:end] = row.tokens
            self._pos[begin:end] = np.arange(row.start, row.start + len(row.tokens))
            self._sequence[begin:end] = row.slot
            self._logits[begin:end] = 0
            self._logits[end - row.outputs : end] = 1
            ends.append(end - 1)
        self.struct.n_tokens = end
        return ends


class Sampler:
    """Chooses the next token of one request, and remembers what it chose.

    It samples first and checks the one token against the grammar; only on refusal the grammar masks
    the most likely tokens, and only if it refuses all of those, the whole vocabulary.
    """

    def __init__(self, model: Model, sampling: Sampling, grammar: str | None = None) -> None:
        self._model = model
        self._chain = None if sampling.temperature <= 0 else _chain(sampling, model.vocabulary)
        self._grammar = None
        if grammar is not None:
            self._grammar = llama.llama_sampler_init_grammar(model.vocab, grammar.encode(), b"root")
            if not self._grammar:
                self.close()
                raise Failure(
                    "inference.schema",
                    "llama.cpp cannot read the grammar of the JSON Schema.",
                    "Use smaller bounds or a simpler schema.",
                )

    def close(self) -> None:
        for sampler in (self._chain, self._grammar):
            if sampler:
                llama.llama_sampler_free(sampler)
        self._chain = self._grammar = None

    def sample(self, logits: Logits) -> int:
        token = self._pick(logits)
        if self._grammar and not self._allows(token):
            token = self._pick_allowed(logits)
        if self._chain:
            llama.llama_sampler_accept(self._chain, token)
        if self._grammar:
            llama.llama_sampler_accept(self._grammar, token)
        return token

    @property
    def may_end(self) -> bool:
        """Whether the text so far is complete by the grammar."""
        return self._allows(self._model.end_token)

    def _pick(self, logits: Logits) -> int:
        if not self._chain:
            return int(np.argmax(logits))
        return self._apply_chain(_candidates(np.arange(len(logits), dtype=np.int32), logits))

    def _pick_allowed(self, logits: Logits) -> int:
        shortlist = np.argpartition(logits, -min(SHORTLIST, len(logits)))[-SHORTLIST:]
        for ids in (shortlist, np.arange(len(logits))):
            candidates = _candidates(ids, logits[ids])
            with _array(candidates) as array:
                llama.llama_sampler_apply(self._grammar, ctypes.byref(array))
            allowed = candidates[np.isfinite(candidates["logit"])]
            if len(allowed) and self._chain:
                return self._apply_chain(allowed)
            if len(allowed):
                return int(allowed["id"][np.argmax(allowed["logit"])])
        raise Failure(
            "inference.schema",
            "No token of the vocabulary continues the answer as the JSON Schema wants it.",
            "Keep to characters that the model knows in keys, enums and constants.",
        )

    def _apply_chain(self, candidates: npt.NDArray[Any]) -> int:
        with _array(candidates) as array:
            llama.llama_sampler_apply(self._chain, ctypes.byref(array))
            return int(array.data[array.selected].id)

    def _allows(self, token: int) -> bool:
        candidates = _candidates(np.array([token]), np.zeros(1, np.float32))
        with _array(candidates) as array:
            llama.llama_sampler_apply(self._grammar, ctypes.byref(array))
        return bool(np.isfinite(candidates["logit"][0]))


def _chain(sampling: Sampling, vocabulary: int) -> Any:
    """llama.cpp's usual order: penalties, then truncation, then temperature, then the draw."""
    chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
    parts = [
        llama.llama_sampler_init_top_k(sampling.top_k),
        llama.llama_sampler_init_top_p(sampling.top_p, 1),
        llama.llama_sampler_init_min_p(sampling.min_p, 1),
        llama.llama_sampler_init_temp(sampling.temperature),
        llama.llama_sampler_init_dist(sampling.seed & 0xFFFFFFFF),
    ]
    if sampling.repeat_penalty != 1.0:
        penalty = llama.llama_sampler_init_penalties(
            vocabulary, PENALTY_TOKENS, sampling.repeat_penalty, 0.0, 0.0
        )
        parts.insert(0, penalty)
    for part in parts:
        llama.llama_sampler_chain_add(chain, part)
    return chain


def _candidates(ids: npt.NDArray[Any], logits: Logits) -> npt.NDArray[Any]:
    candidates = np.empty(len(ids), CANDIDATE)
    candidates["id"] = ids
    candidates["logit"] = logits
    return candidates


@contextlib.contextmanager
def _array(candidates: npt.NDArray[Any]) -> Iterator[Any]:
    """The candidates as llama.cpp wants them, kept alive while it works on them."""
    pointer = candidates.ctypes.data_as(llama.llama_token_data_p)
    yield llama.llama_token_data_array(pointer, len(candidates), -1, False)


def log_probability(logits: Logits, token: int) -> float:
    """The natural logarithm of the probability of one token."""
    highest = float(logits.max())
    total = float(np.exp(logits - highest, dtype=np.float32).sum(dtype=np.float64))
    return float(logits[token]) - highest - float(np.log(total))


class TextEmbedder:
    """Vectors from a GGUF model, one text at a time, pooled as the model wants or by the mean."""

    def __init__(self, model: Model, tokens_max: int, threads: int) -> None:
        params = llama.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = tokens_max
        params.n_threads = params.n_threads_batch = threads
        params.embeddings = True
        params.no_perf = True
        _errors.clear()
        self._pointer = llama.llama_init_from_model(model.pointer, params)
        pooled = self._pointer and llama.llama_pooling_type(self._pointer)
        if pooled == llama.LLAMA_POOLING_TYPE_NONE:
            llama.llama_free(self._pointer)
            params.pooling_type = llama.LLAMA_POOLING_TYPE_MEAN
            self._pointer = llama.llama_init_from_model(model.pointer, params)
        if not self._pointer:
            raise _invalid(model.path, "cannot be used for embeddings")
        self._model = model
        self._tokens_max = tokens_max
        self._batch = _Batch(tokens_max)

    def embed(self, text: str) -> Logits:
        """The vector of a text, of length 1. What the context does not hold is cut off."""
        tokens = self._model.tokenise(text)[: self._tokens_max] or [self._model.end_token]
        memory = llama.llama_get_memory(self._pointer)
        if memory:
            llama.llama_memory_clear(memory, True)
        self._batch.fill([_Whole(tokens)])
        if status := llama.llama_decode(self._pointer, self._batch.struct):
            raise DecodeError(f"llama_decode ended with {status}: {'; '.join(_errors)}")
        pointer = llama.llama_get_embeddings_seq(self._pointer, 0)
        vector = np.ctypeslib.as_array(pointer, (self._model.dimensions,)).astype(np.float32)
        return vector / max(float(np.linalg.norm(vector)), 1e-12)


class _Whole:
    """A whole text as the only row of a batch; pooling wants all of its tokens."""

    slot = start = 0

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self.outputs = len(tokens)
