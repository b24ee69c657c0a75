"""What msgspec knows of each type, built before there are threads.

It is built when a type is first used, and half of it can be seen while it is: two threads that use
a type for the first time at once end the process with SIGSEGV (msgspec 0.22).
"""

import contextlib
import functools
from collections.abc import Iterator

import msgspec


@functools.cache
def build_types() -> None:
    """Build it for every type that is imported by now."""
    for each in set(_below(msgspec.Struct)):
        with contextlib.suppress(TypeError):  # one that is never read from anything
            msgspec.json.Decoder(each)


def _below(parent: type[msgspec.Struct]) -> Iterator[type[msgspec.Struct]]:
    for child in parent.__subclasses__():
        yield child
        yield from _below(child)
