"""WebAssembly components as files: what the compiler is asked, and what it says about one.

The two descriptors that a compiler is forked with are the component and the file that its native
code goes to. It serves one request and is then of no more use.
"""

from typing import Any

from ipc_protocol.values import Message


class Library(Message, frozen=True):
    """What native code has to be good for, so that a worker of this zygote can run it."""

    settings: str
    """The version of the WebAssembly library and a digest of its settings."""


class Compile(Message, frozen=True):
    """Compile the component of the descriptor that came with the fork."""


class ComponentShape(Message, frozen=True):
    """What a component is, read from the component itself."""

    world: str
    """The world it fits, with the version of the package: *agent@0.1.0*, *mind@0.2.0*."""
    imports: list[str]
    """Interfaces in full, such as *agent-net:core/bus@0.1.0*."""
    exports: list[str]
    grants: list[str]
    """The interfaces of `agent-net:core` that its configuration has to grant, such as *state*."""
    inert: list[str]
    """The interfaces of WASI that are linked to nothing; `strict_imports` refuses them."""
    functions: dict[str, list[str]] = {}
    """Of each import and export, as WIT spells them; of a component with very many, not all."""
    types: bytes = b""
    """All of them with all their types, in a form for the host alone: reading them from the
    component takes longer than all else that a worker does before its first message."""


class Compiled(Message, frozen=True):
    """The native code is written. Raises `component.*` for what does not fit any world."""

    shape: ComponentShape
    settings: str
    """What the native code is good for, as in `Library`."""
    native_bytes: int
    compile_us: int
    memory_bytes_peak: int


class ComponentInfo(Message, frozen=True):
    """One component in the daemon's keeping."""

    sha256: str
    size_bytes: int
    shape: ComponentShape
    native_bytes: int
    compile_us: int
    details: dict[str, Any] = {}
