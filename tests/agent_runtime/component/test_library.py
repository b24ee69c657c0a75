"""Compiling, loading, describing and what traps mean, with real components."""

import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
import wasmtime
import wat_components as wat
from wasmtime import _ffi as ffi

from agent_runtime.component import boundary, library, shipped, types
from ipc_protocol.errors import CODES, Failure

FUEL = 100_000_000


def compiled(text: str) -> Any:
    return library.compile_component(bytes(wasmtime.wat2wasm(text)))


def threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


# ---- Settings ------------------------------------------------------------------------------------


def test_every_feature_of_the_library_is_settled() -> None:
    """A feature that a new version of the library brings has to be decided on."""
    known = {name for name, _, _ in library.SETTINGS}
    offered = {
        name.removeprefix("wasmtime_config_").removesuffix("_set")
        for name in dir(ffi)
        if name.startswith("wasmtime_config_wasm_")
    }
    assert offered - known <= {"wasm_relaxed_simd_deterministic"}


def test_the_settings_are_part_of_what_native_code_is_good_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = library.settings_id()
    assert before.startswith("wasmtime-")
    monkeypatch.setattr(library, "SETTINGS", library.SETTINGS[1:])
    library.settings_id.cache_clear()
    try:
        assert library.settings_id() != before
    finally:
        library.settings_id.cache_clear()


def test_compiling_starts_no_thread() -> None:
    before = threads()
    compiled(wat.agent())
    assert threads() == before
    assert threading.active_count() <= before


# ---- What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("feature", wat.FEATURES)
def test_a_feature_that_is_switched_off_is_named(feature: str) -> None:
    with pytest.raises(Failure) as failed:
        compiled(wat.agent(extra=wat.FEATURES[feature]))
    assert failed.value.code == "component.feature"
    assert failed.value.problem.details["feature"] == feature


@pytest.mark.parametrize(
    ("wasm", "said"),
    [
        (b"", "not WebAssembly"),
        (b"#!/bin/sh\n", "not WebAssembly"),
        (b"\0asm\x01\0\0\0", "core module"),
        (b"\0asm\x01\0\x07\0", "layer 7"),
        (b"\0asm\x0d\0\x01\0\xff\xff\xff", "not valid"),
    ],
)
def test_what_is_no_component_is_told_apart(wasm: bytes, said: str) -> None:
    with pytest.raises(Failure, match=said) as failed:
        library.compile_component(wasm)
    assert failed.value.code == "component.malformed"
    assert failed.value.problem.cure


def test_a_truncated_component_is_malformed() -> None:
    whole = bytes(wasmtime.wat2wasm(wat.agent()))
    for size in range(9, len(whole), 97):
        with pytest.raises(Failure) as failed:
            library.compile_component(whole[:size])
        assert failed.value.code == "component.malformed"


# ---- Native code ---------------------------------------------------------------------------------


def test_native_code_is_loaded_by_descriptor() -> None:
    native = library.serialize(compiled(wat.agent()))
    with tempfile.TemporaryFile() as file:
        file.write(native)
        file.flush()
        loaded = library.load_component(file.fileno())
    assert library.describe(loaded) == library.describe(compiled(wat.agent()))


def test_native_code_of_other_settings_is_refused(tmp_path: Path) -> None:
    other = wasmtime.Engine(wasmtime.Config())
    component = wasmtime.component.Component(other, wat.agent())
    (tmp_path / "native").write_bytes(component.serialize())
    with (tmp_path / "native").open("rb") as file, pytest.raises(Failure) as failed:
        library.load_component(file.fileno())
    assert failed.value.code == "component.compile"


# ---- Describing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", wat.VERSIONS)
def test_an_agent_is_described_as_its_contract_says(version: str) -> None:
    imports = (wat.STATE, wat.LOGGING, wat.HEALTH) if version == "0.2.0" else ()
    found = library.describe(compiled(wat.agent(version, imports=imports)))
    (package,) = (each for each in shipped.load().packages if each.version == version)
    declared = {package.full_name(n): each.interface for n, each in package.interfaces.items()}
    assert not found.others
    assert list(found.exports) == [f"agent-net:core/lifecycle@{version}"]
    for name, interface in {**found.imports, **found.exports}.items():
        assert interface.functions == declared[name].functions


def test_types_of_every_kind_are_described() -> None:
    found = library.describe(
        compiled(
            """(component
      (import "all" (instance
        (export "r" (type $r (sub resource)))
        (type $f' (flags "a" "b")) (export "f" (type $f (eq $f')))
        (type $v' (variant (case "x" char) (case "y"))) (export "v" (type $v (eq $v')))
        (type $e' (enum "k")) (export "e" (type $e (eq $e')))
        (export "call" (func (param "a" (borrow $r)) (param "b" (tuple $f $v $e))
          (param "c" (option f32)) (result (result (own $r)))))
        (export "quiet" (func))))
      (import "alone" (func)))"""
        )
    )
    v = types.Variant((("x", types.Primitive("char")), ("y", None)))
    call = types.Function(
        (
            ("a", types.Handle(owned=False)),
            ("b", types.TupleOf((types.Flags(("a", "b")), v, types.Enum(("k",))))),
            ("c", types.OptionOf(types.Primitive("f32"))),
        ),
        types.ResultOf(types.Handle(owned=True), None),
    )
    quiet = types.Function((), None)
    assert found == types.ComponentType(
        {"all": types.Interface({"call": call, "quiet": quiet}, ("r",))}, {}, ("alone",)
    )


def test_what_an_interface_holds_beside_functions_and_types_is_described() -> None:
    found = library.describe(
        compiled(
            """(component (import "all" (instance
      (type $t' (record (field "a" u8))) (export "t" (type (eq $t')))
      (export "inner" (instance (export "f" (func)))) (export "m" (core module))
      (export "c" (component)))))"""
        )
    )
    assert found.imports == {"all": types.Interface(others=("inner", "m", "c"))}


# ---- Traps ---------------------------------------------------------------------------------------


def trap(handle: str, fuel: int = FUEL, **limits: int) -> library.Trap:
    component = compiled(wat.agent(handle=handle))
    bus, lifecycle = "agent-net:core/bus@0.1.0", "agent-net:core/lifecycle@0.1.0"
    found = library.describe(component)
    linker = library.Linker(library.engine())
    with linker.root() as root, root.add_instance(bus) as linked:
        declared = found.imports[bus].functions["publish"]
        boundary.add_host_function(linked, "publish", declared, lambda message: types.ok())
    store = library.Store(library.engine())
    store.set_limits(**{"memory_size": 1 << 20, "table_elements": 5000, **limits})
    store.set_fuel(fuel)
    store.set_epoch_deadline(1)
    message = {"topic": "t", "sender": "s", "payload": b"", "correlation-id": "c"}
    with pytest.raises(library.WasmtimeError) as raised:
        instance = boundary.instantiate(linker, store, component)
        at = instance.get_export_index(store, lifecycle)
        func = instance.get_func(store, instance.get_export_index(store, "handle", at))
        call = boundary.GuestFunction(store, func, found.exports[lifecycle].functions["handle"])
        if fuel > FUEL:
            library.engine().increment_epoch()
        call(message)
    return library.trap_of(raised.value)


@pytest.mark.parametrize(
    ("handle", "kind"),
    [
        (wat.TRAP, "unreachable"),
        (wat.LOOP, "fuel"),
        (wat.RECURSE, "stack"),
        (wat.GROW_MEMORY, "bounds"),
        (wat.GROW_TABLE, "bounds"),
        (f"(drop (i32.div_u (i32.const 1) (i32.const 0))) {wat.ECHO}", "arithmetic"),
        (f"(call_indirect (i32.const 0)) {wat.ECHO}", "indirect-call"),
    ],
)
def test_a_trap_has_its_kind_and_a_backtrace(handle: str, kind: str) -> None:
    found = trap(handle)
    assert found.kind == kind
    assert "main!handle" in found.backtrace or "main!recurse" in found.backtrace
    assert "\n" not in found.message
    assert found.code in CODES


def test_a_deadline_is_told_from_fuel() -> None:
    found = trap(wat.LOOP, fuel=1 << 60)
    assert (found.kind, found.code) == ("deadline", "component.deadline")


@pytest.mark.parametrize("limit", ["memory_size", "table_elements", "instances"])
def test_a_limit_at_the_start_is_told(limit: str) -> None:
    found = trap(wat.ECHO, **{limit: 0})
    assert found.code == "component.memory"
    assert found.backtrace == ""


def test_values_that_are_none_of_their_type_are_told() -> None:
    assert trap(wat.INVALID_UTF8).code == "component.output"
    outside = '(call $answer (i32.const 0x7fffffff) (i32.const 9) "x" "")'
    assert trap(outside).code == "component.output"


def test_what_is_not_linked_is_told_from_a_trap() -> None:
    component = compiled('(component (import "a:b/c@1.0.0" (instance (export "output" (func)))))')
    store = library.Store(library.engine())
    with pytest.raises(library.WasmtimeError) as raised:
        boundary.instantiate(library.Linker(library.engine()), store, component)
    found = library.trap_of(raised.value)
    assert (found.kind, found.code) == ("link", "component.import")
    assert "a:b/c@1.0.0" in found.message
    assert "`output`" in found.message


def test_every_kind_of_trap_has_a_code() -> None:
    assert set(library.TRAP_CODES.values()) <= set(CODES)
    assert library.trap_of(library.WasmtimeError("something new")).kind == "other"


HOLDING = """
import ctypes, resource
from agent_runtime.component import library

def faults():
    size = 8 << 20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    ctypes.memset(ctypes.create_string_buffer(size), 1, size)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

library.hold_freed_memory()
fresh, held = faults(), faults()
library.release_freed_memory()
assert held < fresh / 10 < faults() / 5, (fresh, held)
"""


def test_freed_memory_is_held_until_it_is_released() -> None:
    subprocess.run([sys.executable, "-c", HOLDING], check=True, timeout=60)
