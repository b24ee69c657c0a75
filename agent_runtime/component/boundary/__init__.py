"""Values on their way into a component and out of it, by plans that are made once for a function.

wasmtime-py describes the types of a function anew at each call and converts lists of bytes one by
one; this package can be dropped when it no longer does. It has the same two halves: `lowering`
writes a Python value as a `wasmtime_component_val_t`, `lifting` reads one. A plan is a tree of
closures, one for each type, built from `types.Function`. `guest` calls with it what a component
exports, `callbacks` lets a component call what the host has.
"""

from agent_runtime.component.boundary.callbacks import add_host_function, add_host_resource
from agent_runtime.component.boundary.crossing import LIFTED_BYTES_MAX
from agent_runtime.component.boundary.guest import GuestFunction, instantiate

__all__ = [
    "LIFTED_BYTES_MAX",
    "GuestFunction",
    "add_host_function",
    "add_host_resource",
    "instantiate",
]
