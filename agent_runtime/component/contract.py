"""Does a component fit a world of `agent-net:core`? Pure.

The contract is every version of the package that is offered. A component fits a world if it exports
exactly the interfaces of that world, with the types that were written down, and if everything it
imports is there: of `agent-net:core` interfaces of the same version, of which it may leave out
functions but not change any, and of WASI 0.2 whatever it likes, because ordinary toolchains always
import most of it. What of WASI does nothing is listed, and so is what an agent has to be granted.

Nothing in here knows an interface of `agent-net:core` by its name: what an agent exports, what it
may import and what needs no grant follows from the worlds of the package. Versions are compared
exactly, there is no guessing about what is compatible.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import msgspec

from agent_runtime.component.types import ComponentType, Function, Interface
from agent_runtime.component.wit import Package, spell_function
from ipc_protocol.components import ComponentShape
from ipc_protocol.errors import Failure

INTERFACES_MAX: Final = 256
"""All of `agent-net:core` and of WASI 0.2 are 45, and a component lists few of its own."""
NAME_CHARS_MAX: Final = 256
"""`wasi:sockets/instance-network@0.2.9` has 35. Shapes travel in frames, so they have a size."""
PROBLEMS_MAX: Final = 16
"""Nobody reads more, and a hostile component has a hundred thousand."""
SPELLED_CHARS_MAX: Final = 600
"""The longest function of `agent-net:core` has 350. A hostile type has a million nodes."""
FUNCTION_BYTES_MAX: Final = 64 * 1024
"""Of the type of an imported function, encoded. That is some 5,000 types in one another, which are
read when the function is first called, outside of fuel and deadline. WASI's largest has 961."""
LISTING_CHARS_MAX: Final = 64 * 1024
"""For people: an ordinary component of Python has 25 interfaces of WASI, which take half of it."""

BACKED: Final = frozenset(
    {
        "wasi:cli/stderr",
        "wasi:clocks/monotonic-clock",
        "wasi:clocks/wall-clock",
        "wasi:io/error",
        "wasi:io/poll",
        "wasi:io/streams",
        "wasi:random/insecure",
        "wasi:random/insecure-seed",
        "wasi:random/random",
    }
)
"""What of WASI does something without a grant: time, chance, and standard error with the streams
that it takes. All other WASI is linked to nothing."""

_NAME: Final = re.compile(
    r"(?P<package>[^:/@]+:[^:/@]+)/(?P<interface>[^:/@]+)(?:@(?P<version>.+))?"
)
_WASI_0_2: Final = re.compile(r"wasi:[^:/@]+/[^:/@]+@0\.2\.[0-9]+")
_LISTED_MAX: Final = 12
"""Names in one sentence: a version of the package has as many interfaces."""


class Contract(msgspec.Struct, frozen=True):
    """`packages` are the versions of one package, the oldest first, and at least one."""

    packages: tuple[Package, ...]

    @property
    def name(self) -> str:
        return self.packages[0].name

    @property
    def offered(self) -> tuple[str, ...]:
        """The versions, the oldest first."""
        return tuple(package.version for package in self.packages)

    def package(self, version: str) -> Package | None:
        return next((of for of in self.packages if of.version == version), None)

    def interface(self, full_name: str) -> Interface:
        """Such as *agent-net:core/bus@0.2.0*. Raises `KeyError` for one that is not offered."""
        for package in self.packages:
            for name, declared in package.interfaces.items():
                if package.full_name(name) == full_name:
                    return declared.interface
        raise KeyError(full_name)


class Misfit(msgspec.Struct, frozen=True):
    """One thing that keeps a component from being an agent."""

    code: str
    message: str
    cure: str
    interface: str = ""
    """In full, as the component names it."""
    found: str = ""
    """Its version, empty where it has none."""


def fit(found: ComponentType, contract: Contract) -> ComponentShape:
    """What the component is as an agent.

    Raises `Failure`: *component.world* if it exports what no agent does, *component.version* if it
    was built against a version that is not offered or against several, *component.import* if it
    imports what is not there. The message leads with the first problem; `problems` in the details
    are all of them as `Misfit`, up to `PROBLEMS_MAX`.
    """
    _refuse_oversized(found)
    fitting = _fitting(found.exports, contract)
    misfits = list(_export_misfits(found.exports, fitting, contract))
    for name, interface in found.imports.items():
        misfits += _import_misfits(_parts(name), interface, fitting, contract)
    misfits += map(_bare, found.others)
    if misfits or fitting is None:
        raise _failure(misfits, contract)
    return ComponentShape(
        world=f"{fitting.world}@{fitting.package.version}",
        imports=sorted(found.imports),
        exports=sorted(found.exports),
        grants=_grants(found.imports, fitting),
        inert=sorted(name for name in found.imports if _is_inert(name)),
    )


def listing(found: ComponentType) -> dict[str, list[str]]:
    """The functions of each import and export as WIT spells them, as far as there is room."""
    spelled: dict[str, list[str]] = {}
    left = LISTING_CHARS_MAX
    for name, interface in (*found.imports.items(), *found.exports.items()):
        lines = [_spell(of, function) for of, function in interface.functions.items()]
        left -= len(name) + sum(map(len, lines))
        if left < 0:
            break
        spelled[name] = lines
    return spelled


# ---- Names ---------------------------------------------------------------------------------------


class _Name(NamedTuple):
    """The full name of an interface and its parts; one that is none has only `full`."""

    full: str
    package: str
    interface: str
    version: str


class _Fitting(NamedTuple):
    """The world whose exports the component has, by their names."""

    package: Package
    world: str


def _parts(name: str) -> _Name:
    parts = _NAME.fullmatch(name)
    if parts is None:
        return _Name(name, "", "", "")
    return _Name(name, parts["package"], parts["interface"], parts["version"] or "")


def _refuse_oversized(found: ComponentType) -> None:
    names = [*found.imports, *found.exports, *found.others]
    if len(names) > INTERFACES_MAX:
        raise Failure(
            "component.import",
            f"The component imports and exports {len(names)} interfaces; {INTERFACES_MAX} are"
            " allowed.",
            "Leave those out of its world that it does not need.",
        )
    if any(len(name) > NAME_CHARS_MAX for name in names):
        raise Failure(
            "component.import",
            f"The component has an interface whose name is longer than {NAME_CHARS_MAX}"
            " characters.",
            "Only interfaces of agents and of WASI are linked: leave it out of its world.",
        )


# ---- Exports -------------------------------------------------------------------------------------


def _fitting(exports: Iterable[str], contract: Contract) -> _Fitting | None:
    own = {name for name in exports if _parts(name).package == contract.name}
    for package in contract.packages:
        for name, world in package.worlds.items():
            if world.exports and own == set(map(package.full_name, world.exports)):
                return _Fitting(package, name)
    return None


def _export_misfits(
    exports: dict[str, Interface], fitting: _Fitting | None, contract: Contract
) -> Iterator[Misfit]:
    if fitting is not None:
        package = fitting.package
        for interface in sorted(package.worlds[fitting.world].exports):
            name = _parts(package.full_name(interface))
            declared = package.interfaces[interface].interface
            found = exports[name.full]
            missing = (
                f"without `{_spell(of, declared.functions[of])}`"
                for of in declared.functions
                if of not in found.functions
            )
            for difference in (*missing, *_differences(found, declared, package)):
                yield _other_types("component.world", "exports", name, difference, package)
        return
    strangers = [
        name
        for name in map(_parts, exports)
        if name.package == contract.name and contract.package(name.version) is None
    ]
    for name in strangers:
        yield _not_offered("exports", name, contract)
    if not strangers:
        yield _no_world(list(exports), contract)


def _no_world(exports: list[str], contract: Contract) -> Misfit:
    worlds = [
        f"{_listed(map(package.full_name, sorted(world.exports)))} ({name}@{package.version})"
        for package in contract.packages
        for name, world in package.worlds.items()
        if world.exports
    ]
    own = [name for name in exports if _parts(name).package == contract.name]
    first = _parts((own or exports or [""])[0])
    return Misfit(
        "component.world",
        f"The component exports {_listed(own or exports) or 'no interface'}, and that is no world"
        f" of an agent. An agent exports one of: {', '.join(worlds)}.",
        f"Build it for a world that includes one of those of {contract.name}.",
        first.full,
        first.version,
    )


# ---- Imports -------------------------------------------------------------------------------------


def _import_misfits(
    name: _Name, found: Interface, fitting: _Fitting | None, contract: Contract
) -> Iterator[Misfit]:
    package = contract.package(name.version)
    if name.package != contract.name:
        if _WASI_0_2.fullmatch(name.full) is None:
            yield _unknown(name, contract)
        else:
            yield from _unlinkable(name, found)
    elif package is None:
        yield _not_offered("imports", name, contract)
    elif fitting is not None and package.version != fitting.package.version:
        yield _mixed(name, fitting.package)
    elif name.interface not in package.interfaces:
        yield _no_interface(name, package, contract)
    elif found.functions and not _importable(name.interface, package):
        yield Misfit(
            "component.import",
            f"The component imports functions of {name.full}, which is what an agent exports.",
            "Import its types alone, or leave it out of the imports of its world.",
            name.full,
            name.version,
        )
    else:
        declared = package.interfaces[name.interface].interface
        for difference in _differences(found, declared, package):
            yield _other_types("component.import", "imports", name, difference, package)


def _unlinkable(name: _Name, found: Interface) -> Iterator[Misfit]:
    """What of an interface is not linked, whose functions otherwise may be what they like."""
    if found.others:
        others = _listed(f"`{_short(other)}`" for other in found.others)
        yield Misfit(
            "component.import",
            f"The component imports {name.full} with {others} in it, and of an interface only"
            " functions and types are linked.",
            "Leave out of the interface what is an instance, a module or a component.",
            name.full,
            name.version,
        )
    for of, function in found.functions.items():
        size = len(msgspec.msgpack.encode(function))
        if size > FUNCTION_BYTES_MAX:
            yield Misfit(
                "component.import",
                f"The component imports {name.full} with `{_short(of)}`, whose types have {size}"
                f" bytes; {FUNCTION_BYTES_MAX} are allowed.",
                "Give it fewer and flatter types, or leave it out.",
                name.full,
                name.version,
            )


def _importable(interface: str, package: Package) -> bool:
    return any(interface in world.imports for world in package.worlds.values())


def _grants(imports: dict[str, Interface], fitting: _Fitting) -> list[str]:
    """What the component calls that is not in the imports of its world. Types need no grant."""
    package = fitting.package
    free = package.worlds[fitting.world].imports
    return sorted(
        interface
        for interface in package.interfaces.keys() - free
        if (found := imports.get(package.full_name(interface))) and found.functions
    )


def _is_inert(name: str) -> bool:
    return _WASI_0_2.fullmatch(name) is not None and name.partition("@")[0] not in BACKED


def _unknown(name: _Name, contract: Contract) -> Misfit:
    cure = "Leave the import out, or compose the component with one that exports it."
    if name.package.startswith("wasi:"):
        cure = "Build the component for WASI 0.2, which toolchains also call `wasip2`."
    return Misfit(
        "component.import",
        f"The component imports {name.full}, which no agent can: there are {contract.name} in"
        f" {_listed(contract.offered)} and WASI in 0.2.",
        cure,
        name.full,
        name.version,
    )


def _mixed(name: _Name, package: Package) -> Misfit:
    return Misfit(
        "component.version",
        f"The component imports {name.full} and exports {package.name} in {package.version}. All"
        f" that a component has of {package.name} is of one version.",
        f"Build the component, and all that it is made of, against {_versioned(package)}.",
        name.full,
        name.version,
    )


def _no_interface(name: _Name, package: Package, contract: Contract) -> Misfit:
    elsewhere = [
        _versioned(other) for other in contract.packages if name.interface in other.interfaces
    ]
    offered = sorted(of for of in package.interfaces if _importable(of, package))
    cure = "Leave the import out."
    if elsewhere:
        cure = f"Build the component against {elsewhere[-1]}, which has it."
    return Misfit(
        "component.import",
        f"The component imports {name.full}, and {_versioned(package)} has no {name.interface}. It"
        f" offers {_listed(offered)}; the versions are {_listed(contract.offered)}.",
        cure,
        name.full,
        name.version,
    )


def _bare(name: str) -> Misfit:
    return Misfit(
        "component.import",
        f"The component has {name} at its top level, outside of any interface.",
        "Only interfaces are linked: put it into one, or leave it out of the world.",
        name,
    )


# ---- Both ----------------------------------------------------------------------------------------


def _not_offered(way: str, name: _Name, contract: Contract) -> Misfit:
    return Misfit(
        "component.version",
        f"The component {way} {name.full}, and {contract.name} is offered in"
        f" {_listed(contract.offered)}.",
        f"Build the component against {contract.name}@{contract.offered[-1]}.",
        name.full,
        name.version,
    )


def _differences(found: Interface, declared: Interface, package: Package) -> Iterator[str]:
    """What `found` has that was not declared so, as the end of a sentence."""
    for name, function in found.functions.items():
        expected = declared.functions.get(name)
        if expected is None:
            yield f"with `{_spell(name, function)}`, which {_versioned(package)} does not have"
        elif function != expected:
            yield (
                f"with `{_spell(name, function)}`, which in {_versioned(package)} is"
                f" `{_spell(name, expected)}`"
            )
    for name in found.resources:
        yield f"with the resource `{_short(name)}`, which {_versioned(package)} does not have"
    for name in found.others:
        yield f"with `{_short(name)}`, which {_versioned(package)} does not have"


def _other_types(code: str, way: str, name: _Name, difference: str, package: Package) -> Misfit:
    return Misfit(
        code,
        f"The component {way} {name.full} {difference}.",
        f"Build the component against the text of {_versioned(package)} as it stands.",
        name.full,
        name.version,
    )


def _failure(misfits: list[Misfit], contract: Contract) -> Failure:
    first, more = misfits[0], len(misfits) - 1
    others = f" {more} more problem{'s' * (more > 1)} in the details." if more else ""
    return Failure(
        first.code,
        first.message + others,
        first.cure,
        interface=first.interface,
        found=first.found,
        offered=list(contract.offered),
        problems=msgspec.to_builtins(misfits[:PROBLEMS_MAX]),
    )


def _versioned(package: Package) -> str:
    return f"{package.name}@{package.version}"


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    if len(listed) > _LISTED_MAX:
        listed[_LISTED_MAX:] = [f"{len(listed) - _LISTED_MAX} more"]
    return " and ".join(filter(None, [", ".join(listed[:-1]), *listed[-1:]]))


def _spell(name: str, function: Function) -> str:
    return _short(f"{name}: {spell_function(function)}")


def _short(text: str) -> str:
    return text if len(text) <= SPELLED_CHARS_MAX else f"{text[:SPELLED_CHARS_MAX]}…"
