"""The worker sandbox: a module for each layer, two stages that apply them, and their reports."""

from agent_runtime.sandbox.apply import (
    REQUIRED_LAYERS,
    Confinement,
    stage_sealed,
    stage_trusted,
)
from agent_runtime.sandbox.preload import preload
from agent_runtime.sandbox.report import (
    CURE_UNKNOWN,
    LayerReport,
    LayerUnavailable,
    SandboxMode,
    SandboxRefusal,
)
from agent_runtime.sandbox.rlimits import address_space_bytes_now

__all__ = [
    "CURE_UNKNOWN",
    "REQUIRED_LAYERS",
    "Confinement",
    "LayerReport",
    "LayerUnavailable",
    "SandboxMode",
    "SandboxRefusal",
    "address_space_bytes_now",
    "preload",
    "stage_sealed",
    "stage_trusted",
]
