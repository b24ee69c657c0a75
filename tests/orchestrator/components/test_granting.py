"""What a component imports against what its agent is granted."""

import pytest

from ipc_protocol.components import ComponentShape
from ipc_protocol.errors import Failure
from orchestrator.components.granting import require, unused

FILE_SYSTEM = ["wasi:filesystem/preopens@0.2.0", "wasi:filesystem/types@0.2.0"]
INERT = [*FILE_SYSTEM, "wasi:http/types@0.2.0", "wasi:sockets/tcp@0.2.0", "wasi:sockets/udp@0.2.0"]
SHAPE = ComponentShape(
    world="agent@0.2.0",
    imports=[
        "agent-net:core/bus@0.2.0",
        "agent-net:core/logging@0.2.0",
        "agent-net:core/state@0.2.0",
        "agent-net:core/tasks@0.2.0",
        *FILE_SYSTEM,
        *INERT[2:],
        "wasi:logging/logging@0.2.0",
    ],
    exports=["agent-net:core/lifecycle@0.2.0"],
    grants=["logging", "state", "tasks"],
    inert=INERT,
)
GRANTED = ["state", "tasks", "logging"]


def allow(
    imports: list[str],
    *,
    shape: ComponentShape = SHAPE,
    strict_imports: bool = False,
    preopen_scratch: bool = False,
) -> None:
    require(
        shape, "opsclaw", imports, strict_imports=strict_imports, preopen_scratch=preopen_scratch
    )


def refusal(
    imports: list[str], *, strict_imports: bool = False, preopen_scratch: bool = False
) -> Failure:
    with pytest.raises(Failure) as failed:
        allow(imports, strict_imports=strict_imports, preopen_scratch=preopen_scratch)
    return failed.value


def test_a_component_with_all_its_grants_is_allowed() -> None:
    allow(GRANTED)


def test_all_that_is_missing_is_named_at_once_with_its_version() -> None:
    failure = refusal(["tasks"])
    assert failure.code == "component.grant"
    assert failure.problem.message == (
        "The component imports agent-net:core/logging@0.2.0 and agent-net:core/state@0.2.0, "
        "and agent opsclaw is granted tasks."
    )
    assert failure.problem.details == {"missing": ["logging", "state"], "granted": ["tasks"]}


def test_the_cure_is_the_whole_line_of_the_configuration() -> None:
    cure = refusal(["tasks", "memory"]).problem.cure
    assert 'Write `imports = ["logging", "memory", "state", "tasks"]` in `[agent.opsclaw]`' in cure


def test_an_agent_without_any_grant_is_told_so() -> None:
    assert refusal([]).problem.message.endswith("agent opsclaw is granted no interface.")


def test_inert_imports_are_refused_by_a_strict_agent_only() -> None:
    failure = refusal(GRANTED, strict_imports=True)
    assert failure.code == "component.strict-imports"
    assert failure.problem.message == (
        "The component imports of WASI what does nothing here: wasi:filesystem/preopens@0.2.0, "
        "wasi:filesystem/types@0.2.0, wasi:http/types@0.2.0 and 2 more."
    )
    assert "`strict_imports = false` in `[agent.opsclaw]`" in failure.problem.cure
    assert failure.problem.details == {"refused": INERT}


def test_a_missing_grant_is_told_before_what_is_strict() -> None:
    assert refusal([], strict_imports=True).code == "component.grant"


def test_opened_scratch_space_makes_the_file_system_do_something() -> None:
    failure = refusal(GRANTED, strict_imports=True, preopen_scratch=True)
    assert failure.problem.details == {"refused": INERT[2:]}
    assert " more" not in failure.problem.message


def test_a_strict_agent_takes_a_component_that_imports_nothing_inert() -> None:
    shape = ComponentShape("agent@0.2.0", ["agent-net:core/bus@0.2.0"], [], [], [])
    allow([], shape=shape, strict_imports=True)


def test_what_is_granted_for_nothing_is_named() -> None:
    granted = [*GRANTED, "memory", "inference"]
    assert unused(SHAPE, granted, preopen_scratch=False) == ["inference", "memory"]


@pytest.mark.parametrize(("imports", "expected"), [(FILE_SYSTEM, []), ([], ["preopen_scratch"])])
def test_scratch_space_is_used_by_who_imports_a_file_system(
    imports: list[str], expected: list[str]
) -> None:
    shape = ComponentShape("agent@0.2.0", imports, [], [], [])
    assert unused(shape, [], preopen_scratch=True) == expected
