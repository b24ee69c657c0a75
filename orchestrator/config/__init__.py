"""The configuration: what an operator may write, as frozen values, and every mistake with its line.

`types` is the whole of it; names, defaults, bounds and descriptions of all keys stand there once.
`loader` reads a configuration, `checks` holds its parts against each other, `installed` against
this machine, `render` writes a new one. `reader` turns TOML into the types, `positions` knows the
line of every key.

Nothing here starts anything, and nothing but `loader`, `installed` and `render` touches a file.
"""

from orchestrator.config.loader import Overrides, load
from orchestrator.config.problems import ConfigErrors, ConfigProblem, did_you_mean, nearest
from orchestrator.config.types import (
    AgentConfig,
    ClientConfig,
    Config,
    ConversationConfig,
    DaemonConfig,
    EmbeddingConfig,
    EndpointConfig,
    GatewayConfig,
    InferenceConfig,
    LimitsConfig,
    ModelConfig,
    ScreeningConfig,
)

__all__ = [
    "AgentConfig",
    "ClientConfig",
    "Config",
    "ConfigErrors",
    "ConfigProblem",
    "ConversationConfig",
    "DaemonConfig",
    "EmbeddingConfig",
    "EndpointConfig",
    "GatewayConfig",
    "InferenceConfig",
    "LimitsConfig",
    "ModelConfig",
    "Overrides",
    "ScreeningConfig",
    "did_you_mean",
    "load",
    "nearest",
]
