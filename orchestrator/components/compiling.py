"""Native code for a component: from the cache, or from a compiler that is watched.

Theory of operation. A compiler is forked by the zygote, confined like a worker, and has two
descriptors: the component, and an empty file. It answers once. Its limits are the kernel's on
processor time and memory, and this module's on time by the clock, after which it is killed. Only
when it is dead is its file hashed, signed and given its name, and then opened again as an entry of
the cache like any other: what workers are given has passed the same checks on both ways.

Whoever asks for a component that is being compiled, or that another agent uses, shares it: there is
one compilation, one check and one descriptor for all of them, from the first `ensure` to the last
`close`. A compilation that nobody waits for any more is ended.

The settings that native code has to be good for are the zygote's, since it is the zygote's workers
that run it; they are asked for each time, because a new zygote may have a newer library.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable
from typing import Final, Literal

import msgspec

from ipc_protocol.aio import Handlers
from ipc_protocol.components import Compile, Compiled, ComponentInfo
from ipc_protocol.errors import Failure
from ipc_protocol.methods import COMPILER_COMPILE
from ipc_protocol.work import Fork
from orchestrator.components import limits
from orchestrator.components.cache import Draft, NativeCache, NativeCode
from orchestrator.components.files import ComponentFile, ComponentFiles
from orchestrator.config.types import ComponentsConfig
from orchestrator.workers import Exit, Zygote, ZygoteDied

NAME_DIGITS: Final = 12
"""Of the hash, in the name of a compiler and of its log."""

STILL_THERE: Final = Exit("could not be ended", own=True)


class CompileLimits(msgspec.Struct, frozen=True):
    """What one compilation may cost. Above them it ends with `component.compile`."""

    cpu_seconds_max: int = limits.COMPILE_CPU_SECONDS_MAX
    memory_bytes_max: int = limits.COMPILE_MEMORY_BYTES_MAX
    seconds_max: float = limits.COMPILE_SECONDS_MAX

    @classmethod
    def of(cls, config: ComponentsConfig) -> "CompileLimits":
        """As configured. By the clock it may take longer, in the same proportion as usual."""
        cpu_seconds = math.ceil(config.compile_time_us / 1e6)
        stretch = limits.COMPILE_SECONDS_MAX / limits.COMPILE_CPU_SECONDS_MAX
        return cls(
            cpu_seconds_max=cpu_seconds,
            memory_bytes_max=config.compile_memory_bytes,
            seconds_max=cpu_seconds * stretch,
        )


class Confinement(msgspec.Struct, frozen=True):
    """How compilers are confined: like workers, as a user of their own where there can be one."""

    sandbox: Literal["strict", "standard", "off"]
    uid: int | None


class Progress(msgspec.Struct, frozen=True):
    """How far a compilation is, for people. Both are 0 while it waits for its turn."""

    elapsed_s: float
    expected_s: float
    """For all of it, by the size of the component."""


class Ready:
    """One user's hold on the native code of a component, until it is closed."""

    def __init__(self, native: NativeCode, let_go: Callable[[], None]) -> None:
        self.info: ComponentInfo = native.info
        self.native_fd = native.fd
        """The same descriptor for everybody, to be sent to the zygote; not to be closed."""
        self._let_go: Callable[[], None] | None = let_go

    def close(self) -> None:
        """The descriptor is of no more use to this user. May be called again."""
        if self._let_go is not None:
            let_go, self._let_go = self._let_go, None
            let_go()


class _Shared:
    """Native code that is used, or on its way."""

    def __init__(self) -> None:
        self.users = 0
        self.began_s: float | None = None
        """When its compiler was asked, by the monotonic clock."""
        self.making: asyncio.Task[NativeCode] | None = None


class Compiler:
    """Has components compiled.

    `on_compile` is told the seconds that each took, and *ok* or the code of its error. It needs a
    running zygote, and waits for one.
    """

    def __init__(
        self,
        zygote: Zygote,
        files: ComponentFiles,
        cache: NativeCache,
        confinement: Confinement,
        on_compile: Callable[[float, str], None],
        compile_limits: CompileLimits = CompileLimits(),  # noqa: B008 (it is frozen)
    ) -> None:
        self._zygote = zygote
        self._files = files
        self._cache = cache
        self._confinement = confinement
        self._on_compile = on_compile
        self._limits = compile_limits
        self._shared: dict[tuple[str, str], _Shared] = {}
        self._compilers = asyncio.Semaphore(limits.COMPILERS_MAX)

    async def ensure(
        self, file: ComponentFile, on_progress: Callable[[Progress], None] | None = None
    ) -> Ready:
        """The native code of a component. To be closed when no worker will be forked with it.

        Raises `component.compile` for what goes over a limit, whatever the compiler says about the
        component (`component.*`), `component.unknown`, `sandbox.refused` and `store.full`.
        """
        settings = (await self._zygote.library()).settings
        key = file.sha256, settings
        shared = self._shared.get(key)
        if shared is None:
            shared = self._shared[key] = _Shared()
            shared.making = asyncio.create_task(
                self._make(shared, file, settings), name=f"compile {file.sha256[:NAME_DIGITS]}"
            )
        shared.users += 1
        try:
            native = await self._wait(shared, file, on_progress)
        except BaseException:
            await self._give_up(key, shared)
            raise
        return Ready(native, lambda: self._let_go(key, shared))

    async def _wait(
        self,
        shared: _Shared,
        file: ComponentFile,
        on_progress: Callable[[Progress], None] | None,
    ) -> NativeCode:
        making = shared.making
        assert making is not None
        while not making.done():
            timeout = None
            if on_progress is not None:
                on_progress(_progress(shared.began_s, file))
                timeout = limits.PROGRESS_SECONDS
            # Whoever asked first may be cancelled; the others still wait for the same.
            await asyncio.wait((making,), timeout=timeout)
        return making.result()

    def _let_go(self, key: tuple[str, str], shared: _Shared) -> None:
        shared.users -= 1
        if not shared.users:
            del self._shared[key]
            assert shared.making is not None
            shared.making.result().close()

    async def _give_up(self, key: tuple[str, str], shared: _Shared) -> None:
        """After a failure, or because the caller was cancelled."""
        shared.users -= 1
        making = shared.making
        assert making is not None
        failed = making.done() and (making.cancelled() or making.exception() is not None)
        if shared.users and not failed:
            return
        if self._shared.get(key) is shared:  # from now on the next one tries again
            del self._shared[key]
        making.cancel()
        (made,) = await asyncio.gather(making, return_exceptions=True)
        if isinstance(made, NativeCode):  # it was done before it could be ended
            made.close()

    # -- one compilation

    async def _make(self, shared: _Shared, file: ComponentFile, settings: str) -> NativeCode:
        native = await asyncio.to_thread(self._cache.find, file.sha256, settings)
        if native is not None:
            return native
        async with self._compilers:
            shared.began_s = time.monotonic()
            outcome = "request.cancelled"
            try:
                await self._compile(file, settings)
                outcome = "ok"
            except Failure as failure:
                outcome = failure.code
                raise
            finally:
                self._on_compile(time.monotonic() - shared.began_s, outcome)
        native = await asyncio.to_thread(self._cache.find, file.sha256, settings)
        if native is None:
            raise Failure(
                "component.compile",
                f"The native code of component {file.sha256} was changed as soon as it was "
                "written.",
                "Find out who writes to the folder of the daemon's state.",
            )
        return native

    async def _compile(self, file: ComponentFile, settings: str) -> None:
        for _ in range(limits.ZYGOTE_DEATHS_MAX):
            try:
                return await self._compile_once(file, settings)
            except ZygoteDied:
                continue
        raise Failure(
            "component.compile",
            f"The zygote died {limits.ZYGOTE_DEATHS_MAX} times while component {file.sha256} was "
            "compiled.",
            "Look into the log for why, and try again.",
        )

    async def _compile_once(self, file: ComponentFile, settings: str) -> None:
        with contextlib.ExitStack() as stack:
            wasm = stack.enter_context(await asyncio.to_thread(self._files.open, file.sha256))
            draft = await asyncio.to_thread(self._cache.draft)
            stack.callback(draft.close)
            compiled = await self._ask(file, (wasm.fileno(), draft.file.fileno()))
            if compiled.settings != settings:
                raise Failure(
                    "component.compile",
                    f"The WebAssembly library became another one ({compiled.settings}) while "
                    f"component {file.sha256} was compiled.",
                    "Try again.",
                )
            await _to_its_end(self._cache.adopt, draft, file, compiled)

    async def _ask(self, file: ComponentFile, descriptors: tuple[int, int]) -> Compiled:
        """What the compiler says. It is dead when this returns."""
        name = file.sha256[:NAME_DIGITS]

        def fork(token: int) -> Fork:
            return Fork(
                token=token,
                agent=name,
                sandbox=self._confinement.sandbox,
                uid=self._confinement.uid,
                memory_bytes_max=self._limits.memory_bytes_max,
                scratch_bytes_max=limits.COMPILE_SCRATCH_BYTES_MAX,
                role="compiler",
                cpu_seconds_max=self._limits.cpu_seconds_max,
            )

        compiled: Compiled | None = None
        overdue = False
        async with self._zygote.worker(fork, Handlers(), descriptors) as worker:
            try:
                async with asyncio.timeout(self._limits.seconds_max):
                    compiled = await worker.connection.call(COMPILER_COMPILE, Compile())
            except TimeoutError:
                overdue = True
            except Failure as failure:
                if failure.code != "protocol.closed":
                    raise
        # A compiler whose death is uncertain may still write.
        death = worker.exited.result() if worker.exited.done() else STILL_THERE
        if not death.own:
            raise ZygoteDied(f"the compiler {death.description}")
        if overdue:
            raise self._overdue(file)
        if compiled is None or death is STILL_THERE:
            raise self._died(file, death)
        return compiled

    # -- what went wrong

    def _overdue(self, file: ComponentFile) -> Failure:
        seconds = self._limits.seconds_max
        return _over_limit(file, "time", f"compiling took longer than {seconds:g} s by the clock")

    def _died(self, file: ComponentFile, death: Exit) -> Failure:
        if death.cpu_used_up:
            seconds = self._limits.cpu_seconds_max
            return _over_limit(file, "cpu", f"compiling takes more than {seconds} s of CPU time")
        if death.by_signal:  # out of memory, the library aborts, or the kernel kills
            mib = self._limits.memory_bytes_max // 2**20
            return _over_limit(
                file,
                "memory",
                f"the compiler was {death.description}, most likely because it needed more than "
                f"{mib} MiB of memory",
            )
        return Failure(
            "component.compile",
            f"Component {file.sha256} was not compiled: the compiler {death.description}.",
            "Look into the log for what it said.",
            death=death.description,
        )


async def _to_its_end(
    adopt: Callable[[Draft, ComponentFile, Compiled], None],
    draft: Draft,
    file: ComponentFile,
    compiled: Compiled,
) -> None:
    """In a thread; a cancellation waits for it, because it works on what is closed afterwards."""
    adopting = asyncio.ensure_future(asyncio.to_thread(adopt, draft, file, compiled))
    try:
        await asyncio.shield(adopting)
    except asyncio.CancelledError:
        await asyncio.gather(adopting, return_exceptions=True)
        raise


def _over_limit(file: ComponentFile, limit: str, what: str) -> Failure:
    return Failure(
        "component.compile",
        f"Component {file.sha256} was not compiled: {what}.",
        "An honest component stays far below: build it smaller, without what it does not need. If "
        "it is honest, the machine is too busy: try again.",
        limit=limit,
    )


def _progress(began_s: float | None, file: ComponentFile) -> Progress:
    if began_s is None:
        return Progress(0.0, 0.0)
    expected_s = file.size_bytes / limits.COMPILE_BYTES_PER_SECOND
    return Progress(time.monotonic() - began_s, expected_s)
