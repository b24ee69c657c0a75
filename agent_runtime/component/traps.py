"""What a failed call means to the person who has to do something about it. Pure.

`library.trap_of` says what happened; here is the sentence, and the cure.
"""

from typing import Final, NamedTuple

from agent_runtime.component import limits


class Explained(NamedTuple):
    """`reason` completes the sentence *`handle` of the component …*."""

    code: str
    reason: str
    cure: str


_NEARLY_ALL: Final = 15 / 16
"""Of the memory that a component may have. One that has as much, and reaches beyond it, has not
noticed that it got no more."""
_OUT_OF_BOUNDS: Final = "in linear memory of size "
_NO_ADDRESS_SPACE: Final = "(os error 12)"
"""ENOMEM: the limit of the process, which holds more than linear memories."""

_MEMORY_CURE: Final = (
    "Raise `linear_memory` or `tables` in the `limits` of the agent, or build a component that "
    "takes less."
)
_IMPORT_CURE: Final = (
    "Leave the import out of its world, or build it against the interface as it was published: "
    "only functions and resources of interfaces are linked."
)
_OUTPUT_CURE: Final = "The bindings of its toolchain do not let that happen: use them."
_OWN_FAULT_CURE: Final = (
    "The backtrace says where; `agentd component run` with the message of the trace shows it again."
)

CODES: Final = frozenset(
    {
        "component.trapped",
        "component.fuel",
        "component.deadline",
        "component.memory",
        "component.import",
    }
)
"""What the end of an instance may be called. Whatever else ends one is a trap."""

_BY_KIND: Final[dict[str, tuple[str, str]]] = {
    "link": ("imports what is not there: {message}", _IMPORT_CURE),
    "fuel": (
        "used up its fuel",
        "Look for an endless loop where the backtrace points; else raise `fuel` in the `limits` of "
        "the agent.",
    ),
    "deadline": (
        "took too long",
        "Do less for one message, or raise `call` in the `limits` of the agent.",
    ),
    "stack": (
        "used up its stack",
        "Look for a recursion without end where the backtrace points.",
    ),
    "memory": ("needs more memory than it may have: {message}", _MEMORY_CURE),
    "table": ("needs larger tables than it may have: {message}", _MEMORY_CURE),
    "instances": (
        "is made of more parts than a component may have: {message}",
        f"It may have {limits.INSTANCES_MAX} instances, {limits.MEMORIES_MAX} memories and "
        f"{limits.TABLES_MAX} tables: link it into fewer modules.",
    ),
    "encoding": ("handed over what is no value of its type: {message}", _OUTPUT_CURE),
    "output": ("handed over more than a call may copy: {message}", "Send less for one message."),
}


def explained(kind: str, code: str, message: str, memory_bytes: int) -> Explained:
    """Of a trap, as `library.Trap` has it, of a component that may have `memory_bytes`."""
    if kind == "bounds" and _size_at_fault(message) >= _NEARLY_ALL * memory_bytes:
        why = f"reached beyond the {memory_bytes} bytes of memory that it may have"
        return Explained("component.memory", why, _MEMORY_CURE)
    if _NO_ADDRESS_SPACE in message:
        return out_of_memory()
    reason, cure = _BY_KIND.get(kind, ("trapped: {message}", _OWN_FAULT_CURE))
    return Explained(code, reason.replace("{message}", message), cure)


def out_of_memory() -> Explained:
    """Of a call for which the process, not the component, got no more memory."""
    return Explained(
        "component.memory",
        "needs more memory than its worker has left",
        "Raise `memory` in the `limits` of the agent: it has to hold `linear_memory`, the native "
        "code and the worker itself.",
    )


def ended_by_host(reason: str) -> Explained:
    """Of a call that a function of the host has ended."""
    cure = "Its code must not do that, or must not rely on it."
    return Explained("component.trapped", f"was ended: {reason}", cure)


def _size_at_fault(message: str) -> int:
    _, found, size = message.partition(_OUT_OF_BOUNDS)
    return int(size.split()[0], 16) if found else 0
