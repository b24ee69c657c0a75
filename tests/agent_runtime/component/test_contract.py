"""Which components are agents, and what is said about those that are not."""

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest

from agent_runtime.component.contract import (
    BACKED,
    FUNCTION_BYTES_MAX,
    INTERFACES_MAX,
    LISTING_CHARS_MAX,
    NAME_CHARS_MAX,
    PROBLEMS_MAX,
    SPELLED_CHARS_MAX,
    fit,
    listing,
)
from agent_runtime.component.shipped import load
from agent_runtime.component.types import (
    BYTES,
    STRING,
    ComponentType,
    Function,
    Interface,
    ListOf,
    Primitive,
    Record,
    ResultOf,
    TupleOf,
    Type,
    Variant,
)
from agent_runtime.component.wit import spell_function
from ipc_protocol.components import ComponentShape
from ipc_protocol.errors import Failure

CONTRACT = load()
ANY = Interface(functions={"get": Function((), Primitive("u64"))}, resources=("thing",))
GRANTED = ["attention", "health", "inference", "logging", "memory", "state", "tasks", "tools"]


def core(name: str) -> str:
    return f"agent-net:core/{name}"


def offered(*names: str) -> dict[str, Interface]:
    """Interfaces of `agent-net:core` with all that they have."""
    return {core(name): CONTRACT.interface(core(name)) for name in names}


def component(
    imports: Iterable[str] = ("bus@0.2.0",),
    exports: Iterable[str] = ("lifecycle@0.2.0",),
    more: dict[str, Interface] | None = None,
    others: tuple[str, ...] = (),
) -> ComponentType:
    """`more` are imports by their full names, which replace those of `agent-net:core`."""
    return ComponentType(offered(*imports) | (more or {}), offered(*exports), others)


def fits(found: ComponentType) -> ComponentShape:
    return fit(found, CONTRACT)


def refusal(found: ComponentType) -> Failure:
    with pytest.raises(Failure) as raised:
        fits(found)
    return raised.value


def problems(found: ComponentType) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = refusal(found).problem.details["problems"]
    return listed


def only_problem(found: ComponentType, code: str) -> Failure:
    failure = refusal(found)
    assert [problem["code"] for problem in failure.problem.details["problems"]] == [code]
    assert failure.code == code
    assert failure.problem.cure
    return failure


# ---- What fits -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "export", "world"),
    [
        ("0.1.0", "lifecycle", "agent@0.1.0"),
        ("0.2.0", "lifecycle", "agent@0.2.0"),
        ("0.2.0", "phases", "mind@0.2.0"),
    ],
)
def test_a_component_fits_the_world_whose_interface_it_exports(
    version: str, export: str, world: str
) -> None:
    found = component([f"bus@{version}"], [f"{export}@{version}"])
    assert fits(found) == ComponentShape(
        world=world,
        imports=[f"agent-net:core/bus@{version}"],
        exports=[f"agent-net:core/{export}@{version}"],
        grants=[],
        inert=[],
    )


def test_types_are_compared_by_structure() -> None:
    """Written out from DESIGN by hand, as a library would describe them."""
    envelope = Record(
        (("topic", STRING), ("sender", STRING), ("payload", BYTES), ("correlation-id", STRING))
    )
    error = Variant(
        (("no-subscriber", STRING), ("payload-too-large", Primitive("u32")), ("backpressure", None))
    )
    bus = Interface(functions={"publish": Function((("msg", envelope),), ResultOf(None, error))})
    lifecycle = Interface(
        functions={
            "init": Function((("agent-id", STRING), ("config", BYTES)), ResultOf(None, STRING)),
            "handle": Function((("msg", envelope),), ResultOf(ListOf(envelope), STRING)),
            "shutdown": Function((), None),
        }
    )
    assert CONTRACT.interface(core("bus@0.1.0")) == bus
    found = ComponentType({core("bus@0.1.0"): bus}, {core("lifecycle@0.1.0"): lifecycle})
    assert fits(found).world == "agent@0.1.0"


def test_an_agent_need_not_import_anything() -> None:
    assert fits(component(imports=[])).imports == []


def test_an_import_may_leave_functions_out() -> None:
    state = CONTRACT.interface(core("state@0.2.0"))
    getter = Interface(functions={"get": state.functions["get"]})
    assert fits(component(more={core("state@0.2.0"): getter})).grants == ["state"]


def test_what_a_world_does_not_import_needs_a_grant() -> None:
    imports = ["bus@0.2.0", "types@0.2.0", *(f"{name}@0.2.0" for name in reversed(GRANTED))]
    for export in ("lifecycle@0.2.0", "phases@0.2.0"):
        assert fits(component(imports, [export])).grants == GRANTED


def test_types_alone_need_no_grant() -> None:
    found = component(["bus@0.2.0", "types@0.2.0"], more={core("inference@0.2.0"): Interface()})
    assert fits(found).grants == []


def test_the_types_of_an_exported_interface_may_be_imported() -> None:
    found = component(exports=["phases@0.2.0"], more={core("phases@0.2.0"): Interface()})
    assert fits(found).world == "mind@0.2.0"


def test_exports_that_are_not_of_the_package_do_not_matter() -> None:
    found = component()
    found.exports.update({"exports": ANY, "wasi:cli/run@0.2.9": ANY})
    assert fits(found).exports == [core("lifecycle@0.2.0"), "exports", "wasi:cli/run@0.2.9"]


# ---- WASI ----------------------------------------------------------------------------------------


def test_all_of_wasi_is_accepted_and_what_does_nothing_is_listed() -> None:
    backed = {f"{name}@0.2.9": ANY for name in BACKED}
    inert = {
        "wasi:cli/environment@0.2.0": ANY,
        "wasi:filesystem/types@0.2.12": ANY,
        "wasi:http/types@0.2.3": ANY,
        "wasi:sockets/tcp@0.2.9": ANY,
    }
    shape = fits(component(more=inert | backed))
    assert shape.inert == sorted(inert)
    assert shape.imports == sorted([core("bus@0.2.0"), *inert, *backed])


@pytest.mark.parametrize("version", ["0.2.0", "0.2.3", "0.2.9", "0.2.12"])
def test_every_patch_of_wasi_is_the_same_wasi(version: str) -> None:
    assert fits(component(more={f"wasi:random/random@{version}": ANY})).inert == []
    name = f"wasi:cli/stdout@{version}"
    assert fits(component(more={name: ANY})).inert == [name]


@pytest.mark.parametrize(
    "name",
    [
        "wasi:clocks/monotonic-clock@0.3.0",
        "wasi:io/streams@0.2.0-rc-2023-11-10",
        "wasi:io/streams@1.0.2.0",
        "wasi:io/streams",
        "wasi:logging/logging@0.1.0-draft",
    ],
)
def test_wasi_of_another_version_is_unknown(name: str) -> None:
    failure = only_problem(component(more={name: ANY}), "component.import")
    assert name in failure.problem.message
    assert "WASI in 0.2" in failure.problem.message
    assert "WASI 0.2" in failure.problem.cure


def test_what_of_an_interface_cannot_be_linked_is_named() -> None:
    nested = Interface(others=("inner", "module"))
    failure = only_problem(component(more={"wasi:foo/bar@0.2.0": nested}), "component.import")
    assert "wasi:foo/bar@0.2.0 with `inner` and `module` in it" in failure.problem.message


def test_an_interface_of_the_package_has_nothing_else_in_it() -> None:
    bus = msgspec.structs.replace(CONTRACT.interface(core("bus@0.2.0")), others=("inner",))
    failure = only_problem(component(more={core("bus@0.2.0"): bus}), "component.import")
    assert "with `inner`, which agent-net:core@0.2.0 does not have" in failure.problem.message


def test_a_function_with_too_many_types_is_named() -> None:
    def of(count: int) -> Interface:
        types = TupleOf((Primitive("u8"),) * count)
        return Interface({"few": Function((), None), "many": Function((("of", types),), None)})

    name = "wasi:foo/bar@0.2.0"
    nearly_all = (FUNCTION_BYTES_MAX - 100) // len(msgspec.msgpack.encode(Primitive("u8")))
    assert name in fits(component(more={name: of(nearly_all)})).imports
    failure = only_problem(component(more={name: of(nearly_all + 10)}), "component.import")
    assert f"{name} with `many`, " in failure.problem.message


def test_functions_are_listed_as_far_as_there_is_room() -> None:
    many = {f"f{number}": Function((), None) for number in range(LISTING_CHARS_MAX)}
    found = component(more={"wasi:a/few@0.2.0": ANY, "wasi:b/many@0.2.0": Interface(many)})
    assert list(listing(found)) == [core("bus@0.2.0"), "wasi:a/few@0.2.0"]
    assert listing(found)["wasi:a/few@0.2.0"] == ["get: func() -> u64"]


# ---- Worlds that do not fit ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exports", "named"),
    [
        ([], "exports no interface,"),
        (["lifecycle@0.2.0", "phases@0.2.0"], "core/lifecycle@0.2.0 and agent-net:core/phases"),
        (["lifecycle@0.1.0", "lifecycle@0.2.0"], "lifecycle@0.1.0 and agent-net:core/lifecycle"),
        (["bus@0.2.0"], "exports agent-net:core/bus@0.2.0,"),
        (["lifecycle@0.2.0", "bus@0.2.0"], "lifecycle@0.2.0 and agent-net:core/bus@0.2.0,"),
    ],
)
def test_an_agent_exports_one_of_the_interfaces_that_are_worlds(
    exports: list[str], named: str
) -> None:
    failure = only_problem(component(imports=[], exports=exports), "component.world")
    assert named in failure.problem.message
    for world in ("agent@0.1.0", "agent@0.2.0", "mind@0.2.0"):
        assert f"({world})" in failure.problem.message
    assert "grants" not in failure.problem.message


def test_a_component_of_another_world_is_told_what_it_exports() -> None:
    failure = only_problem(ComponentType({}, {"wasi:cli/run@0.2.9": ANY}), "component.world")
    assert "exports wasi:cli/run@0.2.9," in failure.problem.message
    assert failure.problem.details["interface"] == "wasi:cli/run@0.2.9"
    assert failure.problem.details["found"] == "0.2.9"
    assert failure.problem.details["offered"] == ["0.1.0", "0.2.0"]


def test_of_many_foreign_exports_the_first_are_named() -> None:
    found = ComponentType({}, {f"a:b/c{number}@1.0.0": ANY for number in range(100)})
    message = only_problem(found, "component.world").problem.message
    assert "a:b/c11@1.0.0 and 88 more, " in message


@pytest.mark.parametrize("version", ["0.9.0", "0.2.1", "0.1", ""])
def test_an_export_of_a_version_that_is_not_offered_names_those_that_are(version: str) -> None:
    name = core("lifecycle") + (version and f"@{version}")
    failure = only_problem(ComponentType({}, {name: ANY}), "component.version")
    assert f"exports {name}, " in failure.problem.message
    assert "offered in 0.1.0 and 0.2.0" in failure.problem.message
    assert failure.problem.details["interface"] == name
    assert failure.problem.details["found"] == version


def test_an_offered_export_does_not_excuse_another() -> None:
    found = component()
    found.exports[core("lifecycle@0.9.0")] = ANY
    assert "lifecycle@0.9.0" in only_problem(found, "component.version").problem.message


def changed(name: str, functions: dict[str, Function | None]) -> dict[str, Interface]:
    """An interface with some functions replaced, or left out."""
    kept = CONTRACT.interface(core(name)).functions | functions
    return {core(name): Interface({of: function for of, function in kept.items() if function})}


NOTHING = Function((), None)


@pytest.mark.parametrize(
    ("functions", "named"),
    [
        ({"shutdown": None}, "without `shutdown: func()`"),
        ({"extra": NOTHING}, "with `extra: func()`, which agent-net:core@0.2.0 does not have"),
        ({"shutdown": Function((), STRING)},
         "`shutdown: func() -> string`, which in agent-net:core@0.2.0 is `shutdown: func()`"),
        ({"handle": NOTHING},
         "`handle: func()`, which in agent-net:core@0.2.0 is `handle: func(msg: record { topic: "
         "string, sender: string, payload: list<u8>, correlation-id: string })"),
    ],
)  # fmt: skip
def test_an_export_has_exactly_the_functions_of_its_interface(
    functions: dict[str, Function | None], named: str
) -> None:
    found = component()
    found.exports.update(changed("lifecycle@0.2.0", functions))
    failure = only_problem(found, "component.world")
    assert "exports agent-net:core/lifecycle@0.2.0 with" in failure.problem.message
    assert named in failure.problem.message
    assert "agent-net:core@0.2.0" in failure.problem.cure


# ---- Imports that are not there ------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["acme:tools/hammer@1.0.0", "agent-net:other/bus@0.2.0", "env", "a/b", "a:b/c:d/e@1"]
)
def test_an_import_of_nobody_is_refused(name: str) -> None:
    failure = only_problem(component(more={name: ANY}), "component.import")
    assert f"imports {name}, " in failure.problem.message
    assert "agent-net:core in 0.1.0 and 0.2.0" in failure.problem.message
    assert "compose" in failure.problem.cure
    assert failure.problem.details["interface"] == name


def test_an_import_of_a_version_that_is_not_offered_is_refused() -> None:
    found = component(more={core("bus@0.9.0"): ANY})
    failure = only_problem(found, "component.version")
    assert "imports agent-net:core/bus@0.9.0, " in failure.problem.message
    assert "offered in 0.1.0 and 0.2.0" in failure.problem.message
    assert "agent-net:core@0.2.0" in failure.problem.cure


@pytest.mark.parametrize(("imports", "exports"), [("0.1.0", "0.2.0"), ("0.2.0", "0.1.0")])
def test_all_of_the_package_is_of_one_version(imports: str, exports: str) -> None:
    found = component([f"bus@{imports}"], [f"lifecycle@{exports}"])
    failure = only_problem(found, "component.version")
    assert f"bus@{imports} and exports agent-net:core in {exports}" in failure.problem.message
    assert f"agent-net:core@{exports}" in failure.problem.cure


def test_an_interface_that_the_version_does_not_have_is_refused() -> None:
    name = core("teleport@0.2.0")
    failure = only_problem(component(more={name: ANY}), "component.import")
    assert f"imports {name}, and agent-net:core@0.2.0 has no teleport" in failure.problem.message
    assert "attention, bus, health" in failure.problem.message
    assert "lifecycle" not in failure.problem.message
    assert failure.problem.cure == "Leave the import out."


def test_an_interface_of_a_later_version_names_that_version() -> None:
    found = component(["bus@0.1.0"], ["lifecycle@0.1.0"], more={core("state@0.1.0"): ANY})
    failure = only_problem(found, "component.import")
    assert "agent-net:core@0.1.0 has no state. It offers bus;" in failure.problem.message
    assert "against agent-net:core@0.2.0, which has it" in failure.problem.cure


def test_what_an_agent_exports_cannot_be_imported() -> None:
    found = component(["bus@0.2.0", "lifecycle@0.2.0"])
    failure = only_problem(found, "component.import")
    assert "agent-net:core/lifecycle@0.2.0, which is what an agent" in failure.problem.message


@pytest.mark.parametrize(
    ("functions", "named"),
    [
        ({"shout": NOTHING}, "with `shout: func()`, which agent-net:core@0.2.0 does not have"),
        ({"publish": NOTHING},
         "with `publish: func()`, which in agent-net:core@0.2.0 is `publish: func(msg: record"),
    ],
)  # fmt: skip
def test_an_import_has_no_other_functions_than_its_interface(
    functions: dict[str, Function | None], named: str
) -> None:
    failure = only_problem(component(more=changed("bus@0.2.0", functions)), "component.import")
    assert "imports agent-net:core/bus@0.2.0 with" in failure.problem.message
    assert named in failure.problem.message


def test_no_interface_of_the_package_has_resources() -> None:
    bus = {core("bus@0.2.0"): Interface(resources=("mailbox",))}
    failure = only_problem(component(more=bus), "component.import")
    assert "with the resource `mailbox`" in failure.problem.message


def test_what_is_in_no_interface_is_refused() -> None:
    failure = only_problem(component(others=("now",)), "component.import")
    assert "has now at its top level" in failure.problem.message


def test_imports_are_judged_where_no_world_fits() -> None:
    found = component(["bus@0.1.0", "bus@0.2.0"], [], {core("teleport@0.2.0"): ANY, "env": ANY})
    codes = [problem["code"] for problem in problems(found)]
    assert codes == ["component.world", "component.import", "component.import"]


# ---- What is said --------------------------------------------------------------------------------


def test_all_problems_are_in_the_details_and_the_first_leads() -> None:
    found = component(
        ["bus@0.1.0"],
        ["phases@0.2.0"],
        {core("teleport@0.2.0"): ANY, "acme:tools/hammer@1.0.0": ANY},
        ("now",),
    )
    failure = refusal(found)
    details = failure.problem.details
    assert [(problem["code"], problem["interface"]) for problem in details["problems"]] == [
        ("component.version", core("bus@0.1.0")),
        ("component.import", core("teleport@0.2.0")),
        ("component.import", "acme:tools/hammer@1.0.0"),
        ("component.import", "now"),
    ]
    leading = details["problems"][0]
    assert failure.problem.message == f"{leading['message']} 3 more problems in the details."
    assert (failure.code, failure.problem.cure) == (leading["code"], leading["cure"])
    assert details["interface"] == leading["interface"]


def test_one_more_problem_is_in_the_singular() -> None:
    message = refusal(component(others=("now", "then"))).problem.message
    assert message.endswith(" 1 more problem in the details.")


def test_problems_travel_in_a_frame() -> None:
    problem = refusal(component(others=("now",))).problem
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(problem)) == msgspec.to_builtins(problem)


def test_the_functions_of_the_package_are_spelled_whole() -> None:
    for package in CONTRACT.packages:
        for name, declared in package.interfaces.items():
            for of, function in declared.functions.items():
                assert len(f"{of}: {spell_function(function)}") <= SPELLED_CHARS_MAX, (name, of)


# ---- Hostile components --------------------------------------------------------------------------


def test_a_huge_type_is_cut() -> None:
    huge: Type = STRING
    for _ in range(16):
        huge = TupleOf((huge, huge))
    function = Function((("msg", huge),), None)
    failure = only_problem(
        component(more=changed("bus@0.2.0", {"publish": function, "x": None})), "component.import"
    )
    assert "…`, which in" in failure.problem.message
    assert len(failure.problem.message) < 3 * SPELLED_CHARS_MAX


def test_a_long_name_of_a_function_or_resource_is_cut() -> None:
    name = "x" * 100_000
    bus = Interface(functions={name: NOTHING}, resources=(name,))
    for problem in problems(component(more={core("bus@0.2.0"): bus})):
        assert len(problem["message"]) < 2 * SPELLED_CHARS_MAX


def test_many_problems_are_cut() -> None:
    functions = {f"f{number}": NOTHING for number in range(10_000)}
    failure = refusal(component(more={core("bus@0.2.0"): Interface(functions)}))
    assert len(failure.problem.details["problems"]) == PROBLEMS_MAX
    assert failure.problem.message.endswith(" 9999 more problems in the details.")


def test_the_number_of_interfaces_is_limited() -> None:
    def wasi(count: int) -> dict[str, Interface]:
        return {f"wasi:many/of-them-{number}@0.2.0": ANY for number in range(count)}

    assert len(fits(component(more=wasi(INTERFACES_MAX - 2))).inert) == INTERFACES_MAX - 2
    failure = refusal(component(more=wasi(INTERFACES_MAX - 1)))
    assert failure.code == "component.import"
    assert f"imports and exports {INTERFACES_MAX + 1} interfaces" in failure.problem.message


def test_the_length_of_a_name_is_limited() -> None:
    longest = "wasi:long/".ljust(NAME_CHARS_MAX - len("@0.2.0"), "x") + "@0.2.0"
    assert fits(component(more={longest: ANY})).inert == [longest]
    for found in (component(more={"x" + longest: ANY}), component(others=("x" + longest,))):
        failure = refusal(found)
        assert failure.code == "component.import"
        assert f"longer than {NAME_CHARS_MAX} characters" in failure.problem.message
        assert longest not in failure.problem.message


# ---- The contract itself -------------------------------------------------------------------------


def test_an_interface_is_found_by_its_full_name() -> None:
    assert set(CONTRACT.interface(core("state@0.2.0")).functions) == {"get", "put", "delete"}


@pytest.mark.parametrize("name", ["state@0.1.0", "bus@0.9.0", "bus", "teleport@0.2.0"])
def test_an_interface_that_is_not_offered_has_no_type(name: str) -> None:
    with pytest.raises(KeyError, match=core(name)):
        CONTRACT.interface(core(name))
