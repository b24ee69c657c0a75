"""The one module that imports llama_cpp: the library, its log, its devices, and loaded models.

`context` decodes with a model and `embedder` makes vectors; they take the library from here.
Pointers from llama.cpp never leave these three. The low-level API is used because the high-level
`Llama` serves one sequence at a time.

A `Model` may be used from any thread.
"""

import contextlib
import ctypes
import logging
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from inference_client.engine.chat import fragments_of
from ipc_protocol.errors import Failure
from ipc_protocol.inference import ChatMessage

# These are read when the library loads. Threads that wait for one another spin for 0.1 ms, and then
# sleep: not to spin costs a third of the speed on a quiet machine, and spinning on costs all of it
# on a busy one. An abort would start a debugger for its backtrace, where there is one. A CUDA build
# crashes unless libstdc++ was loaded first.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
os.environ.setdefault("GGML_NO_BACKTRACE", "1")
with contextlib.suppress(OSError):
    ctypes.CDLL("libstdc++.so.6", mode=ctypes.RTLD_GLOBAL)

import llama_cpp
import llama_cpp.llama_cpp as library

__all__ = ["DecodeError", "Device", "Model", "complaint", "devices", "invalid_model", "library"]

log = logging.getLogger("llama.cpp")

_errors: deque[str] = deque(maxlen=4)
"""The last complaints of llama.cpp, for the message of the failure that follows them."""


@library.llama_log_callback  # type: ignore[untyped-decorator]
def _on_log(level: int, text: bytes, _: Any) -> None:
    line = text.decode("utf-8", "replace").rstrip()
    if level == _LEVEL_ERROR and line:
        _errors.append(line)
    log.debug("%s", line)


_LEVEL_ERROR: Final = 4
"""GGML_LOG_LEVEL_ERROR of ggml.h; the numbers in llama_cpp._logger are those of an older one."""

library.llama_log_set(_on_log, ctypes.c_void_p(0))
library.llama_backend_init()


class DecodeError(Exception):
    """llama.cpp could not do what it was asked, for another reason than room. The context is
    lost."""


def complaint() -> str:
    """What llama.cpp has complained of since the last model or context was made."""
    return "; ".join(_errors)


def invalid_model(path: Path, what: str) -> Failure:
    cause = f" llama.cpp says: {_errors[-1]}" if _errors else ""
    return Failure(
        "model.invalid",
        f"{path} {what}.{cause}",
        "Register another GGUF file with `agentd models add`.",
        path=str(path),
    )


# -- devices

_KINDS: Final = ("cpu", "gpu", "igpu", "accel")
"""By ggml_backend_dev_type of ggml-backend.h."""


class Device(msgspec.Struct, frozen=True):
    """A device as ggml knows it. `pointer` is its ggml_backend_dev_t."""

    pointer: int
    name: str
    description: str
    kind: str
    memory_bytes: int
    memory_free_bytes: int


def devices() -> list[Device]:
    """What this build of llama.cpp can compute on, at this moment. The processor is one of them."""
    ggml = library._lib
    ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    ggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    return [_device(ggml, index) for index in range(ggml.ggml_backend_dev_count())]


def _device(ggml: Any, index: int) -> Device:
    pointer = ctypes.c_void_p(ggml.ggml_backend_dev_get(ctypes.c_size_t(index)))
    for function in (ggml.ggml_backend_dev_name, ggml.ggml_backend_dev_description):
        function.restype = ctypes.c_char_p
    kind = ggml.ggml_backend_dev_type(pointer)
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    ggml.ggml_backend_dev_memory(pointer, ctypes.byref(free), ctypes.byref(total))
    return Device(
        pointer=pointer.value or 0,
        name=ggml.ggml_backend_dev_name(pointer).decode(),
        description=ggml.ggml_backend_dev_description(pointer).decode(),
        kind=_KINDS[kind] if 0 <= kind < len(_KINDS) else "accel",
        memory_bytes=total.value,
        memory_free_bytes=free.value,
    )


def version() -> str:
    """Of llama-cpp-python, which carries the source of llama.cpp."""
    return str(llama_cpp.__version__)


def offloads() -> bool:
    """Whether this build can compute on a GPU at all."""
    return bool(library.llama_supports_gpu_offload())


# -- models


class Model:
    """The weights and the vocabulary of one GGUF file, whose header has been checked before.

    `on_devices` are the names of those that take the layers; none for all there are.
    """

    def __init__(self, path: Path, gpu_layers: int = 0, on_devices: Sequence[str] = ()) -> None:
        params = library.llama_model_default_params()
        params.n_gpu_layers = gpu_layers if gpu_layers >= 0 else _ALL_LAYERS
        chosen = _chosen(on_devices)
        if chosen is not None:
            params.devices = ctypes.cast(chosen, ctypes.c_void_p)
        _errors.clear()
        self.pointer = library.llama_model_load_from_file(os.fsencode(path), params)
        if not self.pointer:
            raise invalid_model(path, "cannot be loaded")
        self.path = path
        self.vocab = library.llama_model_get_vocab(self.pointer)
        self.vocabulary: int = library.llama_vocab_n_tokens(self.vocab)
        self.context_trained: int = library.llama_model_n_ctx_train(self.pointer)
        self.parameters: int = library.llama_model_n_params(self.pointer)
        self.bytes: int = library.llama_model_size(self.pointer)
        self.dimensions: int = library.llama_model_n_embd(self.pointer)
        self.keeps_all: bool = not (
            library.llama_model_is_recurrent(self.pointer)
            or library.llama_model_is_hybrid(self.pointer)
            or library.llama_model_n_swa(self.pointer) > 0
        )
        """Whether its layers remember every token apart: not recurrent ones, nor those that look
        through a sliding window."""
        self.generates: bool = library.llama_model_has_decoder(
            self.pointer
        ) and not library.llama_model_has_encoder(self.pointer)
        self._template = library.llama_model_chat_template(self.pointer, None) or b"chatml"
        self._pieces: dict[int, bytes] = {}
        self._ends: dict[int, bool] = {}

    def close(self) -> None:
        library.llama_model_free(self.pointer)

    def prompt(self, messages: Sequence[ChatMessage]) -> list[int]:
        """The tokens of a chat, up to where the assistant's answer begins."""
        tokens: list[int] = []
        for fragment in fragments_of(messages, self._render):
            tokens += self.tokenise(fragment.text, control=fragment.template)
        return self._begun(tokens)

    def plain_prompt(self, text: str) -> list[int]:
        """The tokens of a text that is to be continued."""
        return self._begun(self.tokenise(text))

    def tokenise(self, text: str, *, control: bool = False) -> list[int]:
        """Tokens of a text. With `control`, the texts of control tokens become those tokens."""
        data = text.encode("utf-8", "replace")
        size = len(data) + 8
        buffer = (library.llama_token * size)()
        count = library.llama_tokenize(self.vocab, data, len(data), buffer, size, False, control)
        assert count >= 0, "a text has no more tokens than bytes"
        return list(buffer[:count])

    def piece(self, token: int) -> bytes:
        """The bytes of a token; a control token has none."""
        piece = self._pieces.get(token)
        if piece is None:
            buffer = ctypes.create_string_buffer(256)
            count = library.llama_token_to_piece(self.vocab, token, buffer, 256, 0, False)
            piece = self._pieces[token] = buffer.raw[: max(count, 0)]
        return piece

    def ends(self, token: int) -> bool:
        """Whether the token ends the generation."""
        ends = self._ends.get(token)
        if ends is None:
            # Remembered, since every call into the library lets other threads go first.
            ends = self._ends[token] = bool(library.llama_vocab_is_eog(self.vocab, token))
        return ends

    @property
    def end_tokens(self) -> list[int]:
        """All tokens that end a generation, the end of a turn first."""
        first = [library.llama_vocab_eot(self.vocab), library.llama_vocab_eos(self.vocab)]
        return list(dict.fromkeys(int(token) for token in first if token >= 0))

    def _begun(self, tokens: list[int]) -> list[int]:
        first = library.llama_vocab_bos(self.vocab)
        if library.llama_vocab_get_add_bos(self.vocab) and tokens[:1] != [first]:
            tokens.insert(0, first)
        return tokens

    def _render(self, pairs: Sequence[tuple[str, str]]) -> str:
        chat = (library.llama_chat_message * len(pairs))(
            *(library.llama_chat_message(role.encode(), text.encode()) for role, text in pairs)
        )
        size = 4096 + 256 * len(pairs)
        for template in (self._template, b"chatml"):
            buffer = ctypes.create_string_buffer(size)
            count = library.llama_chat_apply_template(
                template, chat, len(pairs), True, buffer, size
            )
            if count >= 0:
                assert count <= size, "a template is far shorter than the buffer"
                return buffer.raw[:count].decode()
            # llama.cpp knows templates by their looks; one that it does not know gets ChatML.
        raise AssertionError("ChatML is built in")


_ALL_LAYERS: Final = 2**31 - 1
"""More than any model has."""


def _chosen(names: Sequence[str]) -> Any:
    """The devices of these names as llama.cpp wants them: pointers, and a null behind them."""
    if not names:
        return None
    known = {device.name: device for device in devices()}
    for name in names:
        if name not in known:
            raise Failure(
                "model.unavailable",
                f"There is no device {name!r}; this build of llama.cpp knows {', '.join(known)}.",
                "`agentd doctor` lists the devices. A card needs `make install CUDA=1`.",
                device=name,
            )
    pointers = [known[name].pointer for name in names]
    return (ctypes.c_void_p * (len(pointers) + 1))(*pointers, None)
