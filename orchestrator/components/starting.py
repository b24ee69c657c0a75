"""How an agent's component is run, as its configuration says."""

from ipc_protocol.work import ComponentStart
from orchestrator.config.types import AgentConfig


def component_start(agent: AgentConfig, sha256: str, types: bytes = b"") -> ComponentStart:
    """What its worker is told about the component of that hash, and of those types if known."""
    limits = agent.limits
    return ComponentStart(
        sha256=sha256,
        config=agent.component_config,
        grants=list(agent.imports),
        types=types,
        strict_imports=agent.strict_imports,
        preopen_scratch=agent.preopen_scratch,
        fuel=limits.fuel,
        call_us=limits.call_us,
        memory_bytes=limits.linear_memory_bytes,
        table_elements=limits.tables,
    )
