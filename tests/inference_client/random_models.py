"""Tiny models with random weights, of the architectures that refuse to lose the end of a sequence.

They speak the vocabulary of the real model, and talk nonsense that depends on all they were told.
The weights are 4-byte floats, so that what a batch is made of changes next to nothing.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

CONTEXT = 4096
WIDTH = 64
LAYERS = 2
WINDOW = 16
"""Tokens that the sliding-window layers see."""

HEADS, HEADS_KV, FORWARD_WIDTH = 4, 2, 128
CONV, STATE, RANK = 4, 8, 4
"""Of the recurrent layers: tokens of the convolution, numbers for each channel, rank of the time
step."""


class _Writer:
    """Writes one model. Every matrix is drawn so that what it is given keeps its size."""

    def __init__(self, path: Path, architecture: str, vocabulary_of: Path, seed: int) -> None:
        self.file = gguf.GGUFWriter(path, architecture)
        self._random = np.random.default_rng(seed)
        self.vocabulary = _copy_vocabulary(self.file, vocabulary_of)
        self.file.add_vocab_size(self.vocabulary)
        self.file.add_context_length(CONTEXT)
        self.file.add_embedding_length(WIDTH)
        self.file.add_block_count(LAYERS)
        self.file.add_layer_norm_rms_eps(1e-6)

    def matrix(self, name: str, rows: int, columns: int, scale: float = 1.0) -> None:
        values = self._random.standard_normal((rows, columns), np.float32)
        self.tensor(name, values * (scale / columns**0.5))

    def ones(self, name: str, size: int) -> None:
        self.tensor(name, np.ones(size))

    def tensor(self, name: str, values: np.ndarray) -> None:
        self.file.add_tensor(name, np.ascontiguousarray(values, np.float32))

    def ends(self) -> None:
        """The first and the last matrix. The logits differ by more than rounding does."""
        self.matrix("token_embd.weight", self.vocabulary, WIDTH, scale=8.0)
        self.ones("output_norm.weight", WIDTH)
        self.matrix("output.weight", self.vocabulary, WIDTH, scale=4.0)

    def close(self) -> None:
        self.file.write_header_to_file()
        self.file.write_kv_data_to_file()
        self.file.write_tensors_to_file()
        self.file.close()


def _copy_vocabulary(file: gguf.GGUFWriter, source: Path) -> int:
    """The tokenizer of another model. Returns how many tokens it has."""
    fields = _tokenizer(source)
    for key, (value, kind, of) in fields.items():
        file.add_key_value(key, value, kind, of)
    return len(fields["tokenizer.ggml.tokens"][0])


@functools.cache
def _tokenizer(source: Path) -> dict[str, tuple[Any, Any, Any]]:
    """What the header says of the tokenizer: value, its type, and that of an array's items."""
    return {
        key: (field.contents(), *[*field.types, None][:2])
        for key, field in gguf.GGUFReader(source).fields.items()
        if key.startswith("tokenizer.")
    }


def write_recurrent(path: Path, vocabulary_of: Path, seed: int = 0) -> None:
    """A Mamba: each layer has a state in place of a cache."""
    inner = 2 * WIDTH
    model = _Writer(path, "mamba", vocabulary_of, seed)
    model.file.add_feed_forward_length(0)
    model.file.add_head_count(0)
    model.file.add_ssm_conv_kernel(CONV)
    model.file.add_ssm_inner_size(inner)
    model.file.add_ssm_state_size(STATE)
    model.file.add_ssm_time_step_rank(RANK)
    model.ends()
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        model.ones(block + "attn_norm.weight", WIDTH)
        model.matrix(block + "ssm_in.weight", 2 * inner, WIDTH)
        model.matrix(block + "ssm_conv1d.weight", inner, CONV)
        model.tensor(block + "ssm_conv1d.bias", np.zeros(inner))
        model.matrix(block + "ssm_x.weight", RANK + 2 * STATE, inner, scale=4.0)
        model.matrix(block + "ssm_dt.weight", inner, RANK)
        model.tensor(block + "ssm_dt.bias", np.full(inner, -2.0))
        # Some of the state fades within a few tokens, and some hardly at all.
        model.tensor(block + "ssm_a", np.tile(-np.geomspace(0.001, 1.0, STATE), (inner, 1)))
        model.ones(block + "ssm_d", inner)
        model.matrix(block + "ssm_out.weight", WIDTH, inner, scale=4.0)
    model.close()


def write_sliding_window(path: Path, vocabulary_of: Path, seed: int = 0) -> None:
    """An OLMo 2: its first layer sees a window, its last one everything."""
    model = _Writer(path, "olmo2", vocabulary_of, seed)
    model.file.add_feed_forward_length(FORWARD_WIDTH)
    model.file.add_head_count(HEADS)
    model.file.add_head_count_kv(HEADS_KV)
    model.file.add_sliding_window(WINDOW)
    model.file.add_sliding_window_pattern([layer < LAYERS - 1 for layer in range(LAYERS)])
    model.ends()
    width_kv = WIDTH * HEADS_KV // HEADS
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        model.matrix(block + "attn_q.weight", WIDTH, WIDTH)
        model.matrix(block + "attn_k.weight", width_kv, WIDTH)
        model.matrix(block + "attn_v.weight", width_kv, WIDTH)
        model.matrix(block + "attn_output.weight", WIDTH, WIDTH)
        # Some tokens are attended to far more than others.
        model.tensor(block + "attn_q_norm.weight", np.full(WIDTH, 2.0))
        model.tensor(block + "attn_k_norm.weight", np.full(width_kv, 2.0))
        model.ones(block + "post_attention_norm.weight", WIDTH)
        model.matrix(block + "ffn_gate.weight", FORWARD_WIDTH, WIDTH)
        model.matrix(block + "ffn_up.weight", FORWARD_WIDTH, WIDTH)
        model.matrix(block + "ffn_down.weight", WIDTH, FORWARD_WIDTH)
        model.ones(block + "post_ffw_norm.weight", WIDTH)
    model.close()


ARCHITECTURES: dict[str, Callable[[Path, Path], None]] = {
    "mamba": write_recurrent,
    "olmo2": write_sliding_window,
}
