"""The KV cache of a model, the batch that is decoded in it, and what is moved out of it and back.

It decides nothing: the planner's operations go in, logits and tokens come out. A view of logits is
good until the next `decode`. A `Context` belongs to the decode thread.
"""

import ctypes
import logging
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from inference_client.engine.batch import Batch, SequenceRow
from inference_client.engine.device_sampling import Chain
from inference_client.engine.llama import DecodeError, Model, complaint, invalid_model, library
from inference_client.engine.planning.policy import SCORED_OUTPUTS_MAX
from inference_client.engine.planning.slots import Copy, Forget, Keep, Operation, SwapIn, SwapOut
from inference_client.engine.sampling import Logits
from ipc_protocol.inference import EngineStart, KvLayout, KvType, Sampling

log = logging.getLogger(__name__)

KV_TYPES: Final[dict[KvType, int]] = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q5_0": 6,
    "q5_1": 7,
    "q8_0": 8,
    "iq4_nl": 20,
    "bf16": 30,
}
"""ggml_type of ggml.h."""

FLASH_ATTENTION: Final = {"auto": -1, "off": 0, "on": 1}
"""llama_flash_attn_type of llama.h."""

NO_ROOM: Final = 1
"""What llama_decode returns when the cache has no room for the batch, which is no error."""

PROBE: Final = 0
"""The sequence that is tried before the first request comes."""

PROBE_TOKENS: Final = 17
"""Long enough to see what a token takes beside what a sequence takes anyway."""


class Context:
    """`start.slots` sequences over `start.context` cells, in a layout. `batch` are the most tokens
    that are decoded at once: one pass over the weights for all of them."""

    def __init__(self, model: Model, start: EngineStart, layout: KvLayout, batch: int) -> None:
        params = library.llama_context_default_params()
        params.n_ctx = start.context
        params.n_batch = batch
        params.n_ubatch = batch
        params.n_seq_max = start.slots
        params.n_outputs_max = start.slots + SCORED_OUTPUTS_MAX
        params.n_threads = params.n_threads_batch = start.threads
        params.kv_unified = layout == "unified"
        params.type_k = params.type_v = KV_TYPES[start.kv_type]
        params.flash_attn_type = FLASH_ATTENTION[start.flash_attention]
        params.swa_full = False
        params.no_perf = True
        self.pointer = library.llama_init_from_model(model.pointer, params)
        if not self.pointer:
            raise invalid_model(
                model.path, f"does not fit into memory with {start.context} tokens of context"
            )
        self.model = model
        self.slots = start.slots
        self.layout = layout
        self.cells: int = library.llama_n_ctx(self.pointer)
        self._memory = library.llama_get_memory(self.pointer)
        self._batch = Batch(batch)
        self._logits_type = ctypes.c_float * model.vocabulary
        self._threads = start.threads
        self._swapped: dict[int, npt.NDArray[np.uint8]] = {}
        self._probe()

    def close(self) -> None:
        library.llama_free(self.pointer)

    def use_threads(self, count: int) -> None:
        """So many threads compute from now on."""
        if count != self._threads:
            library.llama_set_n_threads(self.pointer, count, count)
            self._threads = count

    # -- the cache

    def apply(self, operation: Operation) -> int:
        """Carry out one of the planner's operations.

        Returns the bytes that were moved from or to host memory: 0 where a sequence did not fit
        there, or into the cache, which then holds nothing of it. Raises `DecodeError`.
        """
        match operation:
            case Keep(slot, length):
                self._keep(slot, length)
            case Copy(source, target, length):
                self._copy(source, target, length)
            case SwapOut(slot, handle, bytes_max):
                return self._swap_out(slot, handle, bytes_max)
            case SwapIn(handle, slot):
                return self._swap_in(handle, slot)
            case Forget(handle):
                self._swapped.pop(handle, None)
        return 0

    def _keep(self, slot: int, length: int) -> None:
        if not library.llama_memory_seq_rm(self._memory, slot, length, -1):
            raise DecodeError(f"sequence {slot} cannot be cut to {length} tokens")

    def _copy(self, source: int, target: int, length: int) -> None:
        if self.layout == "unified":
            end = length if self.partial_removal else -1
            library.llama_memory_seq_cp(self._memory, source, target, -1, end)
            return
        # Another end than that of the whole sequence aborts the process.
        library.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        if self.partial_removal:
            self._keep(target, length)

    def _swap_out(self, slot: int, handle: int, bytes_max: int) -> int:
        size = int(library.llama_state_seq_get_size_ext(self.pointer, slot, 0))
        if size > bytes_max:
            return 0
        state = np.empty(size, np.uint8)
        pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        if library.llama_state_seq_get_data_ext(self.pointer, pointer, size, slot, 0) != size:
            return 0
        self._swapped[handle] = state
        return size

    def _swap_in(self, handle: int, slot: int) -> int:
        state = self._swapped[handle]
        pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        size = len(state)
        if library.llama_state_seq_set_data_ext(self.pointer, pointer, size, slot, 0):
            return size
        self._keep(slot, 0)
        return 0

    def _probe(self) -> None:
        """Find out what this cache does, whatever the header of the model says.

        `partial_removal`: a sequence can lose its end. Moved to host memory, a sequence takes
        `fixed_bytes` and `token_bytes` for each token.
        """
        token = (self.model.end_tokens or [0])[0]
        sizes = []
        for count in (1, PROBE_TOKENS):
            library.llama_memory_seq_rm(self._memory, PROBE, -1, -1)
            if self.decode([_Probe([token] * count)]) is None:
                raise DecodeError(f"the cache has no room for {count} tokens")
            sizes.append(int(library.llama_state_seq_get_size_ext(self.pointer, PROBE, 0)))
        self.token_bytes = max(1, -(-(sizes[1] - sizes[0]) // (PROBE_TOKENS - 1)))
        self.fixed_bytes = sizes[0]
        cuts = bool(library.llama_memory_seq_rm(self._memory, PROBE, 1, -1))
        library.llama_memory_seq_rm(self._memory, PROBE, -1, -1)
        self.partial_removal = cuts and self.model.keeps_all

    # -- the batch

    def decode(self, rows: Sequence[SequenceRow]) -> list[int] | None:
        """Decode one batch. Returns the index of each row's last token, or None without room.

        Raises `DecodeError`.
        """
        ends = self._batch.fill(rows)
        status = library.llama_decode(self.pointer, self._batch.struct)
        if status == NO_ROOM:
            return None
        if status != 0:
            raise DecodeError(f"llama_decode ended with {status}: {complaint()}")
        # A GPU may still be at it. Who measures a step wants to know how long it takes.
        library.llama_synchronize(self.pointer)
        return ends

    def logits(self, index: int) -> Logits:
        """The logits behind one token of the last batch, as a view into llama.cpp's memory."""
        pointer = library.llama_get_logits_ith(self.pointer, index)
        address = ctypes.addressof(pointer.contents)
        return np.frombuffer(memoryview(self._logits_type.from_address(address)), np.float32)

    # -- sampling on the device

    def attach(self, slot: int, chain: Chain | None) -> bool:
        """Have the device sample for a sequence, or with None no longer. Whether it can."""
        if chain is None:
            return bool(library.llama_set_sampler(self.pointer, slot, None))
        chain.attachable()
        return bool(library.llama_set_sampler(self.pointer, slot, chain.pointer))

    def samples(self) -> bool:
        """Whether the device really samples, greedily and by chance: a chain may be taken and not
        be run. Leaves the cache as it was, empty."""
        token = (self.model.end_tokens or [0])[0]
        return all(
            self._tries(Chain(sampling, self.model.vocabulary), token)
            for sampling in (Sampling(), Sampling(temperature=1.0))
        )

    def _tries(self, chain: Chain, token: int) -> bool:
        taken = self.attach(PROBE, chain)
        try:
            if not taken:
                return False
            ends = self.decode([_Probe([token])])
            return ends is not None and self.sampled(ends[0]) >= 0
        finally:
            self.attach(PROBE, None)
            chain.close()
            library.llama_memory_seq_rm(self._memory, PROBE, -1, -1)

    def sampled(self, index: int) -> int:
        """The token that the device has sampled behind one token of the last batch; less than 0
        for none."""
        return int(library.llama_get_sampled_token_ith(self.pointer, index))


class _Probe:
    """A first row, to see what the cache can do."""

    slot = PROBE
    start = 0
    outputs = 1

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
