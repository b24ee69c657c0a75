"""Links a component with functions of the host, and finds what it exports.

Every resource that it imports is one of the host's, and all of them are of one kind to the library:
what a handle stands for is known to whoever made it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from agent_runtime.component import boundary, library
from agent_runtime.component.permission import AGENT_NET
from agent_runtime.component.types import ComponentType

Functions: TypeAlias = dict[str, Callable[..., Any]]
Exports: TypeAlias = dict[str, boundary.GuestFunction]
"""What is exported, by the names of its functions in WIT."""


def link(
    found: ComponentType, functions: dict[str, Functions], drop: Callable[[int], None]
) -> library.Linker:
    """For one component, which `found` describes.

    `functions` are those of each interface that it imports; `drop` is told of each resource that it
    is done with.
    """
    linker = library.Linker(library.engine())
    with linker.root() as root:
        for name, interface in found.imports.items():
            with root.add_instance(name) as linked:
                for resource in interface.resources:
                    boundary.add_host_resource(linked, resource, drop)
                for function in interface.functions:
                    declared = partial(interface.functions.__getitem__, function)
                    implementation = functions[name][function]
                    boundary.add_host_function(linked, function, declared, implementation)
    return linker


def exports(store: library.Store, instance: library.Instance, found: ComponentType) -> Exports:
    """What an instance of the component that `found` describes exports as an agent.

    What it exports beside that, under whatever names, is nobody's business here.
    """
    exported: Exports = {}
    for name, interface in found.exports.items():
        if not name.startswith(AGENT_NET):
            continue
        index = instance.get_export_index(store, name)
        for function, declared in interface.functions.items():
            at = instance.get_export_index(store, function, index)
            exported[function] = boundary.GuestFunction(
                store, instance.get_func(store, at), declared
            )
    return exported
