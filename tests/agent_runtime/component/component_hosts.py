"""Components to run, and hosts to run them on, for the tests of the host."""

import functools
import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from deliveries import handle as delivery
from deliveries import profile
from wasmtime import wat2wasm

from agent_runtime.component import library
from agent_runtime.component.host import Host
from agent_runtime.component.native import Native
from agent_runtime.component.shipped import FOLDER
from agent_runtime.component.ticker import Ticker
from agent_runtime.loop.consulting import Consult, Consulted
from ipc_protocol.work import ComponentStart, Effect, EffectResult, Handle, Offer, Offered

EVERYTHING: Final = Path(__file__).parent / "everything"
BUILD_SECONDS_MAX: Final = 120


@functools.cache
def ticker() -> Ticker:
    """One for all tests: its thread ends with the process."""
    made = Ticker(library.engine().increment_epoch)
    made.start()
    return made


def native(wasm: bytes) -> Native:
    return Native(library.compile_component(wasm), ticker())


@functools.cache
def native_wat(text: str) -> Native:
    """A component of WAT. Compiling one takes some milliseconds."""
    return native(bytes(wat2wasm(text)))


def build_everything(folder: Path) -> bytes:
    """The component of everything/, which takes 10 s to build and as long to compile."""
    core = folder / "wit" / "deps" / "core"
    core.mkdir(parents=True)
    shutil.copy(FOLDER / "0.2.0" / "agent-net.wit", core)
    shutil.copy(EVERYTHING / "everything_world.wit", folder / "wit")
    built = folder / "everything.wasm"
    command = [str(Path(sys.executable).parent / "componentize-py"), "-d", str(folder / "wit")]
    command += ["-w", "everything", "componentize", "-p", str(EVERYTHING), "everything_agent"]
    command += ["-o", str(built)]
    subprocess.run(command, check=True, capture_output=True, timeout=BUILD_SECONDS_MAX)
    return built.read_bytes()


Answer = Callable[[Effect], EffectResult]


def offered(effect: Effect) -> EffectResult:
    assert isinstance(effect, Offer)
    return Offered()


class Hosted:
    """A host with its log, and a world that answers its effects."""

    def __init__(
        self,
        component: Native,
        answer: Answer = offered,
        *,
        scratch: Path | None = None,
        delegates: dict[str, str] | None = None,
        **start: Any,
    ) -> None:
        self.log = io.StringIO()
        self.asked: list[Effect] = []
        self._answer = answer
        fields: dict[str, Any] = {"sha256": "", "config": b"", "grants": []}
        self.host = Host(
            component,
            ComponentStart(**{**fields, **start}),
            profile(delegates=delegates or {}),
            self.log,
            scratch=None if scratch is None else str(scratch),
        )

    def started(self) -> "Hosted":
        self.host.init()
        return self

    def ask(self, effect: Effect) -> EffectResult:
        self.asked.append(effect)
        return self._answer(effect)

    def consult(self, consult: Consult, handle: Handle) -> Consulted:
        return self.host.consult(consult, handle, self.ask)

    def act(self, text: str = "97", **beginning: Any) -> Consulted:
        return self.consult(Consult("act"), delivery(text, **beginning))

    def said(self, text: str = "97", **beginning: Any) -> str:
        """The payload of the one envelope that is returned."""
        (output,) = self.act(text, **beginning).outputs
        return output.payload.decode()
