"""What a component gets of WASI 0.2: functions of the host's own, and nothing of the system's.

Clocks and chance are those of the delivery (`moment`), standard error is the agent's log, and the
scratch space is a folder where the configuration grants it. Everything else that toolchains import
is linked `inert`. None of it waits, and none of it reaches out of the sandbox.
"""

import functools
from collections.abc import Callable
from typing import Any, Final

from agent_runtime.component.types import Interface, Type
from agent_runtime.component.wasi import cli, clocks, filesystem, inert, polling, streams
from agent_runtime.component.wasi.chance import random_functions
from agent_runtime.component.wasi.surroundings import Functions, Surroundings
from agent_runtime.component.wasi.trap import HostTrap

VERSION: Final = "0.2."


class Inert:
    """A resource that can do nothing."""


class Wasi:
    """The functions of WASI for one component. `scratch` is the folder that it is given, if any."""

    def __init__(self, around: Surroundings, scratch: str | None) -> None:
        self._around = around
        standard = cli.standard_functions(around)
        terminal = cli.terminal_functions()
        chance = random_functions(around)
        self._backed: dict[str, Functions] = {
            "wasi:io/error": streams.error_functions(around),
            "wasi:io/poll": polling.poll_functions(around),
            "wasi:io/streams": {
                **streams.input_functions(around),
                **streams.output_functions(around),
            },
            "wasi:clocks/monotonic-clock": clocks.monotonic_clock_functions(around),
            "wasi:clocks/wall-clock": clocks.wall_clock_functions(around),
            "wasi:random/random": chance,
            "wasi:random/insecure": chance,
            "wasi:random/insecure-seed": chance,
            "wasi:cli/environment": cli.environment_functions(),
            "wasi:cli/exit": cli.exit_functions(),
            "wasi:cli/stdin": standard,
            "wasi:cli/stdout": standard,
            "wasi:cli/stderr": standard,
            "wasi:cli/terminal-stdin": terminal,
            "wasi:cli/terminal-stdout": terminal,
            "wasi:cli/terminal-stderr": terminal,
            "wasi:filesystem/preopens": filesystem.preopens_functions(around, scratch),
            "wasi:filesystem/types": filesystem.filesystem_functions(around),
        }

    @property
    def backed(self) -> frozenset[str]:
        """The interfaces of which there is more than nothing, without their version."""
        return frozenset(self._backed)

    def functions(self, name: str, interface: Interface) -> dict[str, Callable[..., Any]]:
        """An implementation for every function of `interface`, which is imported as `name`."""
        plain, _, version = name.partition("@")
        backed = self._backed.get(plain, {}) if version.startswith(VERSION) else {}
        return {
            function: backed.get(function) or self._inert(name, interface, function)
            for function in interface.functions
        }

    def drop(self, number: int) -> None:
        """The component has dropped a resource."""
        self._around.handles.drop(number)

    def _inert(self, name: str, interface: Interface, function: str) -> Callable[..., Any]:
        def nothing() -> int:
            return self._around.handles.add(Inert())

        @functools.cache
        def result() -> Type | None:
            return interface.functions[function].result

        def answer(*_: Any) -> Any:
            try:
                return inert.answer(result(), nothing)
            except inert.NoAnswer:
                raise HostTrap(f"it called {name}#{function}, which is linked to nothing") from None

        return answer
