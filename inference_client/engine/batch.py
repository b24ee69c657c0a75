"""A llama_batch whose arrays are numpy's, so that a step fills it without allocating."""

import ctypes
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from inference_client.engine.llama import library


class SequenceRow(Protocol):
    """What `decode` needs to know of a row."""

    @property
    def slot(self) -> int: ...
    @property
    def start(self) -> int: ...
    @property
    def tokens(self) -> Sequence[int]: ...
    @property
    def outputs(self) -> int: ...


class Batch:
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
        self.struct = library.llama_batch(
            n_tokens=0,
            token=self._token.ctypes.data_as(integer),
            embd=None,
            pos=self._pos.ctypes.data_as(integer),
            n_seq_id=self._counts.ctypes.data_as(integer),
            seq_id=self._pointers.ctypes.data_as(ctypes.POINTER(integer)),
            logits=self._logits.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def fill(self, rows: Sequence[SequenceRow]) -> list[int]:
        """Put the rows in, ordered by sequence. Returns where the last token of each has come.

        With cells for each sequence, llama.cpp computes those together whose numbers follow one
        another in the batch; out of order each would be a batch of its own, at twice the time.
        """
        ends = [0] * len(rows)
        end = 0
        for place in sorted(range(len(rows)), key=lambda place: rows[place].slot):
            row = rows[place]
            begin, end = end, end + len(row.tokens)
            self._token[begin:end] = row.tokens
            self._pos[begin:end] = np.arange(row.start, row.start + len(row.tokens))
            self._sequence[begin:end] = row.slot
            self._logits[begin:end] = 0
            self._logits[end - row.outputs : end] = 1
            ends[place] = end - 1
        self.struct.n_tokens = end
        return ends
