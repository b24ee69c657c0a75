"""May this agent run this component?"""

import pytest

from agent_runtime.component import permission
from ipc_protocol.components import ComponentShape
from ipc_protocol.errors import Failure
from ipc_protocol.work import ComponentStart

SOCKETS = "wasi:sockets/tcp@0.2.9"
FILES = "wasi:filesystem/types@0.2.9"


def shape(grants: list[str] | None = None, inert: list[str] | None = None) -> ComponentShape:
    wanted = grants or []
    return ComponentShape(
        world="agent@0.2.0",
        imports=["agent-net:core/bus@0.2.0", *(f"agent-net:core/{one}@0.2.0" for one in wanted)],
        exports=["agent-net:core/lifecycle@0.2.0"],
        grants=wanted,
        inert=inert or [],
    )


def start(
    *grants: str, strict_imports: bool = False, preopen_scratch: bool = False
) -> ComponentStart:
    return ComponentStart(
        sha256="",
        config=b"",
        grants=list(grants),
        strict_imports=strict_imports,
        preopen_scratch=preopen_scratch,
    )


def test_what_is_granted_may_be_imported() -> None:
    permission.require(shape(["state"]), start("state", "health"), "sensors")


def test_what_is_not_granted_is_named_with_the_line_that_grants_it() -> None:
    with pytest.raises(Failure, match=r"agent-net:core/state@0\.2\.0") as caught:
        permission.require(shape(["health", "state"]), start("health", "tasks"), "sensors")
    problem = caught.value.problem
    assert problem.code == "component.grant"
    assert 'imports = ["health", "state", "tasks"]' in problem.cure
    assert "[agent.sensors]" in problem.cure
    assert problem.details == {"interfaces": ["agent-net:core/state@0.2.0"]}


def test_imports_of_nothing_are_taken_unless_imports_are_strict() -> None:
    permission.require(shape(inert=[SOCKETS]), start(), "sensors")
    permission.require(shape(), start(strict_imports=True), "sensors")
    with pytest.raises(Failure, match=SOCKETS) as caught:
        permission.require(shape(inert=[SOCKETS]), start(strict_imports=True), "sensors")
    assert caught.value.code == "component.strict-imports"
    assert caught.value.problem.details == {"interfaces": [SOCKETS]}


def test_the_scratch_space_makes_files_something() -> None:
    granted = start(strict_imports=True, preopen_scratch=True)
    permission.require(shape(inert=[FILES]), granted, "sensors")
    assert permission.inert(shape(inert=[FILES, SOCKETS]), granted) == [SOCKETS]
    assert permission.inert(shape(inert=[FILES]), start()) == [FILES]
