"""Tiny GGUF files, written by hand."""

import struct

STRING, UINT32, ARRAY = 8, 4, 9


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def pair(key: str, value: str | int | list[int] | list[str]) -> bytes:
    if isinstance(value, str):
        return string(key) + struct.pack("<I", STRING) + string(value)
    if isinstance(value, int):
        return string(key) + struct.pack("<II", UINT32, value)
    kind = STRING if isinstance(value[0], str) else UINT32
    head = string(key) + struct.pack("<IIQ", ARRAY, kind, len(value))
    return head + b"".join(string(v) if isinstance(v, str) else struct.pack("<I", v) for v in value)


VALUES = {
    "general.architecture": "llama",
    "general.name": "Tiny",
    "general.file_type": 0,
    "general.alignment": 32,
    "llama.context_length": 2048,
    "llama.block_count": 2,
    "llama.embedding_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": [2, 1],
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": ["a", "b", "c"],
    "tokenizer.ggml.token_type": [1, 1, 3],
}


def model(values=VALUES, *, version=3, dimensions=(8, 4), kind=0, data=128, magic=b"GGUF"):
    """A whole file with one tensor of 32 weights in F32."""
    pairs = b"".join(pair(key, value) for key, value in values.items())
    tensor = string("blk.0") + struct.pack("<I", len(dimensions))
    tensor += b"".join(struct.pack("<Q", size) for size in dimensions)
    tensor += struct.pack("<IQ", kind, 0)
    head = magic + struct.pack("<IQQ", version, 1, len(values)) + pairs + tensor
    return head + b"\0" * (-len(head) % 32 + data)
