"""The native code of a component as a worker has it: mapped before it was sealed, and a ticker."""

import msgspec

from agent_runtime.component import library, shipped
from agent_runtime.component.ticker import Ticker


class Native(msgspec.Struct, frozen=True):
    component: library.Component
    ticker: Ticker
    """Moves the epoch of the engine that the component belongs to."""


def preload() -> None:
    """Make, in the zygote, what all workers and compilers share. Starts no thread."""
    library.engine()
    library.settings_id()
    shipped.load()


def load(fd: int) -> Native:
    """Map the native code of descriptor `fd`, by its path in /proc. Starts no thread.

    Whoever wrote that code is to be trusted: it is run as it is. Raises `Failure`.
    """
    return Native(library.load_component(fd), Ticker(library.engine().increment_epoch))
