"""How long a message takes to cross the boundary: `python -m agent_runtime.component.measure FILE`.

FILE is an echo: a component of the world *agent* whose `handle` returns the message. It is called
through `boundary` and through wasmtime-py's own conversion in turns, in one process and one
instance, so that whatever else the machine does slows both. What it imports of WASI is wasmtime's
own, and it may call nothing else. Prints JSON, a list of
`{"bytes", "ours_us", "stock_us"}`: medians, in microseconds for one call.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from agent_runtime.component import boundary, library, types
from ipc_protocol.errors import Failure

PAYLOADS_BYTES: Final = (16, 256, 4096, 65536, 262144)

FUEL: Final = 1 << 62
NEVER: Final = 1 << 62
STOCK_BYTES_MAX: Final = 1 << 20
"""The stock conversion takes 1.4 µs a byte: for large payloads it gets as many calls as this is
worth, and three at least."""


class Echo:
    """The component in two guises: `ours` and `stock` call the same function."""

    def __init__(self, component: library.Component) -> None:
        found = library.describe(component)
        name = next((name for name in found.exports if "/lifecycle@" in name), None)
        if name is None:
            raise Failure("component.world", "The component exports no lifecycle.")
        lifecycle = found.exports[name]
        linker = library.Linker(library.engine())
        linker.add_wasip2()
        with linker.root() as root:
            for imported, interface in found.imports.items():
                if not imported.startswith("wasi:"):
                    with root.add_instance(imported) as into:
                        for of, function in interface.functions.items():
                            boundary.add_host_function(into, of, function, _nothing)
        self.store = library.Store(library.engine())
        self.store.set_wasi(library.WasiConfig())
        self.store.set_fuel(FUEL)
        self.store.set_epoch_deadline(NEVER)
        instance = boundary.instantiate(linker, self.store, component)
        at = instance.get_export_index(self.store, name)

        def func(of: str) -> library.Func:
            return instance.get_func(self.store, instance.get_export_index(self.store, of, at))

        def bound(of: str) -> boundary.GuestFunction:
            return boundary.GuestFunction(self.store, func(of), lifecycle.functions[of])

        self._handle = bound("handle")
        self._stock = func("handle")
        bound("init")("measured", b"")

    def ours(self, payload: bytes) -> Callable[[], Any]:
        message = self._message(payload)

        def call() -> Any:
            return self._handle(message)

        sent = call()
        if sent.name != types.OK or [each["payload"] for each in sent.payload] != [payload]:
            raise Failure("component.world", "The component does not return what it is sent.")
        return call

    def stock(self, payload: bytes) -> Callable[[], Any]:
        record = library.Record()
        vars(record).update(self._message(payload))
        return lambda: self._stock(self.store, record)

    @staticmethod
    def _message(payload: bytes) -> dict[str, Any]:
        return {"topic": "echo", "sender": "me", "payload": payload, "correlation-id": "0" * 32}


def _nothing(*_: Any) -> None:
    raise Failure("component.world", "The component is no echo: it calls what it imports.")


def measure(component: library.Component, calls: int) -> list[dict[str, float]]:
    library.hold_freed_memory()
    echo = Echo(component)
    results: list[dict[str, float]] = []
    for size in PAYLOADS_BYTES:
        payload = bytes(range(256)) * (size // 256) if size >= 256 else bytes(size)
        ours, stock = echo.ours(payload), echo.stock(payload)
        times: dict[str, list[float]] = {"ours_us": [], "stock_us": []}
        for _ in range(max(3, min(calls, STOCK_BYTES_MAX // size))):
            times["ours_us"].append(_timed_us(ours))
            times["stock_us"].append(_timed_us(stock))
        medians = {name: round(statistics.median(each), 1) for name, each in times.items()}
        results.append({"bytes": size, **medians})
    return results


def _timed_us(call: Callable[[], Any]) -> float:
    start_ns = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start_ns) / 1000


def main() -> int:
    parser = argparse.ArgumentParser(description="Time messages across the boundary.")
    parser.add_argument("file", type=Path, help="an echo component, or its native code (.cwasm)")
    parser.add_argument("--calls", type=int, default=500, help="calls for each size, at most")
    parser.add_argument("--json", action="store_true", help="one line instead of a table")
    options = parser.parse_args()
    try:
        results = measure(_load(options.file), options.calls)
    except (Failure, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(results))
    else:
        for row in results:
            print(f"{row['bytes']:>8} B {row['ours_us']:>12} µs {row['stock_us']:>12} µs stock")
    return 0


def _load(path: Path) -> library.Component:
    if path.suffix == ".cwasm":
        with path.open("rb") as file:
            return library.load_component(file.fileno())
    return library.compile_component(path.read_bytes())


if __name__ == "__main__":
    raise SystemExit(main())
