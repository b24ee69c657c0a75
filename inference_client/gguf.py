"""What a GGUF file says about its model, read without trusting it.

The format is specified in ggml's `docs/gguf.md`. llama.cpp may abort on a damaged file, so a file
is read here first: no count is believed before the bytes behind it are there, nothing is allocated
in advance, and every fault is a `model.invalid` that says what is wrong.
"""

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

from ipc_protocol.errors import Failure

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)

STRING_BYTES_MAX: Final = 1024 * 1024
"""The longest string that is looked at: chat templates have some 10 KiB."""

ELEMENTS_MAX: Final = 8_000_000
"""Values in the whole header, so that a hostile one takes seconds at most. The largest vocabularies
have 262,144 tokens in three arrays."""

ARRAY_KEPT_MAX: Final = 1024
"""Longer arrays are vocabularies, of which only the length is of interest."""

ITEMS_MAX: Final = 65_536
"""Tensors, and key-value pairs: the largest models have some 2,000 and 100."""

VALUE_KEPT_MAX: Final = 256
"""Characters of a string that is kept: names, and no templates."""

DIMENSIONS_MAX: Final = 4

SCALARS: Final[dict[int, str]] = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
STRING: Final = 8
ARRAY: Final = 9

BLOCKS: Final[dict[int, tuple[int, int]]] = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    9: (32, 40), 10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),
    15: (256, 292), 16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18),
    21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8),
    28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip
"""Tensor type: weights in a block, and its bytes (ggml's `ggml-common.h`)."""

FILE_TYPES: Final[dict[int, str]] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K",
    11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S",
    17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS",
    23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M",
    30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4",
}  # fmt: skip
"""`general.file_type`: llama.cpp's `llama_ftype`."""

KV_BYTES: Final = 2
"""A number in the KV cache, as F16."""


@dataclass(frozen=True)
class Gguf:
    """One file. Sizes are bytes; `context` is what the model was trained for, in tokens."""

    path: Path
    size: int
    architecture: str
    title: str
    parameters: int
    context: int
    quantization: str
    vocabulary: int
    tensors: int
    kv_bytes_per_token: int


@dataclass
class _Header:
    values: dict[str, Any] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    weights: int = 0
    data_bytes: int = 0


def read(path: Path) -> Gguf:
    """Read and check a header. Raises `model.invalid`."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return _Reader(path, file, size).read()
    except OSError as error:
        raise _invalid(path, f"cannot be read: {error.strerror}") from error


def _invalid(path: Path, what: str) -> Failure:
    return Failure(
        "model.invalid", f"{path} {what}.", "Fetch or copy the model file again.", path=str(path)
    )


class _Reader:
    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self._path = path
        self._file = file
        self._size = size
        self._at = 0
        self._elements = 0

    def read(self) -> Gguf:
        if self._size < len(MAGIC) or self._take(len(MAGIC)) != MAGIC:
            raise self._wrong("is not a GGUF file")
        version = self._scalar("<I")
        if version not in VERSIONS:
            raise self._wrong(f"has version {version} of GGUF, not 2 or 3")
        tensors = self._count(self._scalar("<Q"), 24)
        pairs = self._count(self._scalar("<Q"), 13)
        if max(tensors, pairs) > ITEMS_MAX:
            raise self._wrong(f"announces {tensors} tensors and {pairs} values, over {ITEMS_MAX}")
        header = _Header()
        for _ in range(pairs):
            self._pair(header)
        for _ in range(tensors):
            self._tensor(header)
        alignment = header.values.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 65_536:
            raise self._wrong(f"wants an alignment of {alignment!r}")
        needed = -(-self._at // alignment) * alignment + header.data_bytes
        if tensors and needed > self._size:
            raise self._wrong(f"is truncated: it has {self._size} bytes and needs {needed}")
        return self._describe(header, tensors)

    def _describe(self, header: _Header, tensors: int) -> Gguf:
        architecture = header.values.get("general.architecture")
        if not isinstance(architecture, str) or not architecture.isprintable():
            raise self._wrong("does not name the architecture of its model")
        if not tensors:
            raise self._wrong("holds no tensors")
        if "tokenizer.ggml.model" not in header.values:
            raise self._wrong("holds no tokenizer")
        file_type = header.values.get("general.file_type")
        title = header.values.get("general.name", "")
        return Gguf(
            path=self._path,
            size=self._size,
            architecture=architecture,
            title=title if isinstance(title, str) else "",
            parameters=header.weights,
            context=_whole(header.values.get(f"{architecture}.context_length")),
            quantization=FILE_TYPES.get(_whole(file_type), "mixed")
            if file_type is not None
            else "",
            vocabulary=header.lengths.get("tokenizer.ggml.tokens", 0),
            tensors=tensors,
            kv_bytes_per_token=_kv_bytes_per_token(header.values, architecture),
        )

    def _pair(self, header: _Header) -> None:
        key = self._string()
        kind = self._scalar("<I")
        if kind == ARRAY:
            header.lengths[key], values = self._array()
            if values:
                header.values[key] = max(values)
        else:
            header.values[key] = self._value(kind)

    def _array(self) -> tuple[int, list[int]]:
        """The length of an array, and its items if they are a few integers."""
        kind, length = self._scalar("<I"), self._scalar("<Q")
        if kind == STRING:
            for _ in range(self._count(length, 8)):
                self._skip(self._scalar("<Q"))
            return length, []
        if kind not in SCALARS:
            raise self._wrong(f"has an array of values of the unknown type {kind}")
        size = struct.calcsize(SCALARS[kind])
        self._count(length, size)
        if length > ARRAY_KEPT_MAX or kind in (6, 7, 12):
            self._skip(length * size)
            return length, []
        return length, [self._scalar(SCALARS[kind]) for _ in range(length)]

    def _tensor(self, header: _Header) -> None:
        name = self._string()
        dimensions = self._scalar("<I")
        if not 1 <= dimensions <= DIMENSIONS_MAX:
            raise self._wrong(f"gives the tensor {name[:64]!r} {dimensions} dimensions")
        weights = 1
        for _ in range(dimensions):
            weights *= self._scalar("<Q")
        kind, offset = self._scalar("<I"), self._scalar("<Q")
        block, size = BLOCKS.get(kind, (1, 0))
        header.weights += weights
        header.data_bytes = max(header.data_bytes, offset + -(-weights // block) * size)

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()[:VALUE_KEPT_MAX]
        if kind not in SCALARS:
            raise self._wrong(f"has a value of the unknown type {kind}")
        return self._scalar(SCALARS[kind])

    def _string(self) -> str:
        length = self._scalar("<Q")
        if length > STRING_BYTES_MAX:
            raise self._wrong(f"has a string of {length} bytes at byte {self._at}")
        return self._take(length).decode("utf-8", "replace")

    def _scalar(self, layout: str) -> Any:
        (value,) = struct.unpack(layout, self._take(struct.calcsize(layout)))
        return value

    def _count(self, count: int, item_bytes_min: int) -> int:
        """A count is believed only if the rest of the file could hold so many items."""
        self._elements += count
        if count * item_bytes_min > self._size - self._at:
            raise self._wrong(f"is truncated, or damaged at byte {self._at}")
        if self._elements > ELEMENTS_MAX:
            raise self._wrong(f"has a header of more than {ELEMENTS_MAX} values")
        return count

    def _take(self, length: int) -> bytes:
        if length > self._size - self._at:
            raise self._wrong(f"is truncated, or damaged at byte {self._at}")
        data = self._file.read(length)
        if len(data) != length:
            raise self._wrong("became shorter while it was read")
        self._at += length
        return data

    def _skip(self, length: int) -> None:
        if length > self._size - self._at:
            raise self._wrong(f"is truncated, or damaged at byte {self._at}")
        if length > 4096:
            self._file.seek(length, 1)
            self._at += length
        else:
            self._take(length)

    def _wrong(self, what: str) -> Failure:
        return _invalid(self._path, what)


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and value >= 0 else 0


def _kv_bytes_per_token(values: dict[str, Any], architecture: str) -> int:
    """What one token costs in the KV cache, as far as the header tells."""

    def number(key: str) -> int:
        return _whole(values.get(f"{architecture}.{key}"))

    heads = number("attention.head_count")
    head = number("embedding_length") // heads if heads else 0
    key = number("attention.key_length") or head
    value = number("attention.value_length") or head
    heads_kv = number("attention.head_count_kv") or heads
    return number("block_count") * heads_kv * (key + value) * KV_BYTES
