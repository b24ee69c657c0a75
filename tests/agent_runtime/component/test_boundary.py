"""Values across the boundary, against wasmtime-py's own conversion, in real components."""

import functools
import gc
import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import wasmtime
import wat_components as wat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wasmtime import component as stock
from wat_identities import identity

from agent_runtime.component import boundary, library, shipped, types
from agent_runtime.component.boundary import callbacks
from agent_runtime.component.types import Case
from ipc_protocol.errors import Failure

NEVER: Final = 1 << 40


# ---- Values --------------------------------------------------------------------------------------


def contract_types() -> dict[str, types.Type]:
    """Every type that a function of the contract has for a parameter or a result."""
    found: dict[str, types.Type] = {}
    for package in shipped.load().packages:
        for declared in package.interfaces.values():
            for function in declared.interface.functions.values():
                for type_ in (*(type_ for _, type_ in function.parameters), function.result):
                    if type_ is not None:
                        found[str(type_)] = type_
    return found


def named(name: str) -> types.Type:
    return types.Primitive(name)


OTHERS: Final[tuple[types.Type, ...]] = (
    *map(named, ("bool", "u8", "u16", "u32", "u64", "s8", "s16", "s32", "s64", "f32", "f64")),
    *map(named, ("char", "string")),
    types.BYTES,
    types.ListOf(types.BYTES),
    types.ListOf(named("u16")),
    types.TupleOf((named("f32"), named("s64"), types.STRING)),
    types.Flags(("read", "write", "run")),
    types.Enum(("one",)),
    types.OptionOf(types.Record((("a", named("s8")), ("b", types.OptionOf(types.BYTES))))),
    types.ResultOf(None, None),
    types.ResultOf(named("u64"), types.Enum(("no", "never"))),
    types.Variant((("f", named("f32")), ("i", named("s32")), ("none", None))),
    types.Record(tuple((f"field{i}", types.STRING) for i in range(9))),
    types.TupleOf((types.ResultOf(types.BYTES, types.STRING), types.ListOf(types.Flags(("x",))))),
)
EVERY: Final = {**contract_types(), **{str(type_): type_ for type_ in OTHERS}}

INTEGERS: Final = {f"{sign}{bits}": (sign, bits) for sign in "us" for bits in (8, 16, 32, 64)}
TEXT: Final = st.text(max_size=20)


def values(type_: types.Type) -> st.SearchStrategy[Any]:
    match type_:
        case types.Primitive(name) if name in INTEGERS:
            sign, bits = INTEGERS[name]
            low, high = (
                (0, 2**bits - 1) if sign == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            )
            return st.integers(low, high)
        case types.Primitive("bool"):
            return st.booleans()
        case types.Primitive("string"):
            return TEXT
        case types.Primitive("char"):
            return st.characters(exclude_categories=["Cs"])
        case types.Primitive(name):
            return st.floats(width=32 if name == "f32" else 64, allow_nan=False)
        case types.ListOf(types.Primitive("u8")):
            return st.binary(max_size=100)
        case types.ListOf(element):
            return st.lists(values(element), max_size=4)
        case types.TupleOf(elements):
            return st.tuples(*map(values, elements))
        case types.Record(fields):
            return st.fixed_dictionaries({name: values(field) for name, field in fields})
        case types.OptionOf(some):
            return st.none() | values(some)
        case types.ResultOf(ok, err):
            return _cases([("ok", ok), ("err", err)])
        case types.Variant(cases):
            return _cases(cases)
        case types.Enum(names):
            return st.sampled_from(names)
        case types.Flags(names):
            return st.frozensets(st.sampled_from(names))
    raise AssertionError(f"no values of {type_}")


def _cases(cases: Any) -> st.SearchStrategy[Case]:
    return st.one_of(
        st.builds(Case, st.just(name), st.none() if payload is None else values(payload))
        for name, payload in cases
    )


def to_stock(type_: types.Type, found: Any, value: Any) -> Any:
    """A value of ours as wasmtime-py has it. `found` is the same type in its words."""
    match type_:
        case types.ListOf(element) if element != types.U8:
            return [to_stock(element, found.element, each) for each in value]
        case types.TupleOf(elements):
            return tuple(map(to_stock, elements, found.elements, value))
        case types.Record(fields):
            record = stock.Record()
            inner = dict(found.fields)
            for name, field in fields:
                setattr(record, name, to_stock(field, inner[name], value[name]))
            return record
        case types.OptionOf(some):
            if value is None:
                return stock.Variant("none") if found._tagged() else None
            payload = to_stock(some, found.payload, value)
            return stock.Variant("some", payload) if found._tagged() else payload
        case types.ResultOf() | types.Variant():
            ours = (
                {"ok": type_.ok, "err": type_.err}
                if isinstance(type_, types.ResultOf)
                else dict(type_.cases)
            )
            inner_type = ours[value.name]
            payload = None
            if inner_type is not None:
                payload = to_stock(inner_type, dict(found._cases())[value.name], value.payload)
            return stock.Variant(value.name, payload) if found._tagged() else payload
        case types.Flags():
            return set(value)
    return value


def is_confused(type_: types.Type, value: Any) -> bool:
    """Whether the stock conversion lowers the value as another case. It tells the cases of
    result<option<T>, E> apart by their classes, and takes every value for an option."""
    match type_:
        case types.ResultOf(types.OptionOf(), _):
            return bool(value.name == types.ERR)
    return False


def plain(value: Any) -> Any:
    """A value in a form that compares, whichever conversion it comes from."""
    if isinstance(value, stock.Record):
        return {name: plain(each) for name, each in vars(value).items()}
    if isinstance(value, stock.Variant):
        return (value.tag, plain(value.payload))
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value


# ---- Both conversions, crossed -------------------------------------------------------------------

Same = Callable[[Any], Any]


class Identity:
    """One component, linked to a host function by one conversion, and callable by both."""

    def __init__(
        self,
        component: Any,
        type_: types.Type,
        *,
        our_host: bool,
        bytes_max: int = boundary.LIFTED_BYTES_MAX,
    ) -> None:
        function = types.Function((("value", type_),), type_)
        linker = library.Linker(library.engine())
        self.seen: Any = None
        with linker.root() as root, root.add_instance("host") as host:
            if our_host:
                boundary.add_host_function(host, "same", function, self._same, bytes_max)
            else:
                host.add_func("same", lambda _store, value: self._same(value))
        self.store = library.Store(library.engine())
        self.store.set_fuel(NEVER)
        self.store.set_epoch_deadline(NEVER)
        instance = boundary.instantiate(linker, self.store, component)
        guest = instance.get_export_index(self.store, "guest")
        self.func = instance.get_func(
            self.store, instance.get_export_index(self.store, "same", guest)
        )
        self.ours = boundary.GuestFunction(self.store, self.func, function, bytes_max)

    def stock(self, value: Any) -> Any:
        return self.func(self.store, value)

    def _same(self, value: Any) -> Any:
        self.seen = value
        return value


@functools.cache
def identities(name: str) -> tuple[Identity, Identity]:
    type_ = EVERY[name]
    component = library.compile_component(bytes(wasmtime.wat2wasm(identity(type_))))
    return Identity(component, type_, our_host=True), Identity(component, type_, our_host=False)


@pytest.mark.parametrize("name", EVERY)
def test_a_value_of_every_type_crosses_as_in_the_stock_conversion(name: str) -> None:
    type_ = EVERY[name]
    ours, theirs = identities(name)
    found = theirs.func.type(theirs.store).params[0][1]

    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    @given(values(type_))
    def check(value: Any) -> None:
        other = to_stock(type_, found, value)
        assert ours.ours(value) == value
        assert ours.seen == value
        if is_confused(type_, value):
            return
        assert theirs.ours(value) == value
        assert plain(theirs.seen) == plain(other)
        assert plain(ours.stock(other)) == plain(other)
        assert ours.seen == value

    check()


@pytest.mark.parametrize("name", ["f32", "f64"])
def test_not_a_number_stays_none(name: str) -> None:
    ours, _ = identities(str(named(name)))
    assert ours.ours(float("nan")) != ours.seen
    assert ours.ours(float("-inf")) == float("-inf")


@pytest.mark.parametrize("size", [0, 1, 31, 4096, 256 << 10])
def test_bytes_of_any_size_stay_as_they_are(size: int) -> None:
    value = (bytes(range(256)) * (size // 256 + 1))[:size]
    ours, _ = identities(str(types.BYTES))
    assert ours.ours(value) == value
    assert ours.seen == value


# ---- Values that are none ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_", "value", "error"),
    [
        (named("u8"), 256, struct.error),
        (named("u32"), -1, struct.error),
        (named("bool"), 1, TypeError),
        (named("char"), "ab", TypeError),
        (types.STRING, "\ud800", UnicodeEncodeError),
        (types.STRING, b"x", AttributeError),
        (types.BYTES, "x", TypeError),
        (types.Enum(("one",)), "two", KeyError),
        (types.Flags(("read", "write", "run")), frozenset({"fly"}), KeyError),
        (types.ResultOf(None, None), Case("ok", 1), TypeError),
        (types.Record(tuple((f"field{i}", types.STRING) for i in range(9))), {}, KeyError),
    ],
)
def test_what_is_no_value_of_the_type_is_refused(
    type_: types.Type, value: Any, error: type[Exception]
) -> None:
    ours, _ = identities(str(type_))
    with pytest.raises(error):
        ours.ours(value)
    again = {"u8": 7, "u32": 7, "bool": True, "char": "c", "string": "s"}
    if isinstance(type_, types.Primitive):
        assert ours.ours(again[type_.name]) == again[type_.name]


def test_the_number_of_arguments_has_to_be_right() -> None:
    ours, _ = identities(str(types.BYTES))
    with pytest.raises(ValueError, match="zip"):
        ours.ours()


# ---- Agents --------------------------------------------------------------------------------------

MESSAGE: Final = {"topic": "t", "sender": "s", "payload": b"abc", "correlation-id": "c"}


class Agent:
    def __init__(
        self,
        text: str,
        publish: Callable[[Any], Any] = lambda message: types.ok(),
        version: str = "0.1.0",
        bytes_max: int = boundary.LIFTED_BYTES_MAX,
    ) -> None:
        component = library.compile_component(bytes(wasmtime.wat2wasm(text)))
        found = library.describe(component)
        bus, lifecycle = f"agent-net:core/bus@{version}", f"agent-net:core/lifecycle@{version}"
        linker = library.Linker(library.engine())
        with linker.root() as root, root.add_instance(bus) as linked:
            declared = found.imports[bus].functions["publish"]
            boundary.add_host_function(linked, "publish", declared, publish, bytes_max)
        store = library.Store(library.engine())
        store.set_fuel(NEVER)
        store.set_epoch_deadline(NEVER)
        instance = boundary.instantiate(linker, store, component)
        at = instance.get_export_index(store, lifecycle)
        self.functions = {
            name: boundary.GuestFunction(
                store,
                instance.get_func(store, instance.get_export_index(store, name, at)),
                function,
                bytes_max,
            )
            for name, function in found.exports[lifecycle].functions.items()
        }

    def __getattr__(self, name: str) -> boundary.GuestFunction:
        return self.functions[name]


@pytest.mark.parametrize("version", wat.VERSIONS)
def test_an_agent_answers_and_publishes(version: str) -> None:
    published: list[Any] = []
    agent = Agent(
        wat.agent(version, handle=wat.PUBLISH),
        lambda message: types.ok() if published.append(message) is None else None,
        version,
    )
    assert agent.init("me", b"out") == types.ok()
    expected = {**MESSAGE, "topic": "out", "sender": ""}
    assert agent.handle(MESSAGE) == types.ok([expected])
    assert published == [{**MESSAGE, "topic": "out"}]
    assert agent.shutdown() is None


def test_an_error_of_a_host_function_arrives() -> None:
    refusal = types.err(Case("payload-too-large", 7))
    agent = Agent(wat.agent(handle=wat.PUBLISH), lambda message: refusal)
    ((answer,)) = agent.handle(MESSAGE).payload
    assert (answer["topic"], answer["payload"]) == ("failed", b"\1")


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), KeyboardInterrupt()])
def test_what_a_host_function_raises_is_raised_by_the_call(error: BaseException) -> None:
    def publish(message: Any) -> None:
        raise error

    agent = Agent(wat.agent(handle=wat.PUBLISH), publish)
    with pytest.raises(type(error)) as raised:
        agent.handle(MESSAGE)
    assert raised.value is error
    with pytest.raises(library.WasmtimeError, match="cannot enter"):
        agent.handle(MESSAGE)


def test_a_host_function_that_returns_something_else_ends_the_call() -> None:
    agent = Agent(wat.agent(handle=wat.PUBLISH), lambda message: Case("perhaps"))
    with pytest.raises(KeyError):
        agent.handle(MESSAGE)


def test_a_component_cannot_be_entered_from_its_own_import() -> None:
    inner: list[Exception] = []

    def publish(message: Any) -> Case:
        with pytest.raises(RuntimeError, match="while it runs"):
            agent.handle(message)
        inner.append(RuntimeError())
        return types.ok()

    agent = Agent(wat.agent(handle=wat.PUBLISH), publish)
    assert agent.handle(MESSAGE).name == types.OK
    assert len(inner) == 1


def test_a_result_over_the_limit_is_a_typed_error() -> None:
    agent = Agent(wat.agent(handle=wat.payload_of(100_000)), bytes_max=50_000)
    with pytest.raises(Failure) as failed:
        agent.handle(MESSAGE)
    assert failed.value.code == "component.output"
    many = Agent(wat.agent(handle=wat.answers(10_000)), bytes_max=50_000)
    with pytest.raises(Failure, match="more data"):
        many.handle(MESSAGE)


@pytest.mark.parametrize(
    ("type_", "value", "spent"),
    [
        (named("u8"), 1, 0),
        (types.STRING, "four", 4),
        (types.BYTES, b"four", 4),
        (types.ListOf(named("u16")), [1, 2], 64),
        (types.TupleOf((types.STRING, named("u8"))), ("four", 1), 100),
        (types.Record((("a", named("u8")),)), {"a": 1}, 64),
        (types.ListOf(types.TupleOf((named("u8"),))), [(1,), (1,)], 192),
        (types.OptionOf(named("u8")), 1, 32),
        (types.OptionOf(named("u8")), None, 0),
        (types.ResultOf(None, types.STRING), types.err("four"), 36),
        (types.Variant((("a", named("u8")), ("b", None))), Case("a", 1), 32),
        (types.Flags(("x", "y", "z")), frozenset({"x", "z"}), 64),
    ],
)
def test_values_within_values_count(type_: types.Type, value: Any, spent: int) -> None:
    component = library.compile_component(bytes(wasmtime.wat2wasm(identity(type_))))
    assert Identity(component, type_, our_host=True, bytes_max=spent).ours(value) == value
    if spent:
        with pytest.raises(Failure, match="more data"):
            Identity(component, type_, our_host=True, bytes_max=spent - 1).ours(value)


def test_an_argument_over_the_limit_ends_the_call() -> None:
    agent = Agent(wat.agent(handle=wat.PUBLISH), bytes_max=1000)
    with pytest.raises(Failure) as failed:
        agent.handle({**MESSAGE, "payload": bytes(2000)})
    assert failed.value.code == "component.output"


def test_invalid_text_is_a_trap_of_its_own_kind() -> None:
    agent = Agent(wat.agent(handle=wat.INVALID_UTF8))
    with pytest.raises(library.WasmtimeError) as trapped:
        agent.handle(MESSAGE)
    assert library.trap_of(trapped.value).kind == "encoding"


# ---- Types are compared before memory is read ----------------------------------------------------


def test_an_export_of_another_type_is_not_bound() -> None:
    ours, _ = identities(str(types.BYTES))
    with pytest.raises(Failure) as failed:
        boundary.GuestFunction(ours.store, ours.func, types.Function((), None))
    assert failed.value.code == "component.world"


def test_an_import_of_another_type_is_not_called() -> None:
    component = library.compile_component(bytes(wasmtime.wat2wasm(identity(types.BYTES))))
    linker = library.Linker(library.engine())
    wrong = types.Function((("value", types.STRING),), types.BYTES)
    with linker.root() as root, root.add_instance("host") as host:
        boundary.add_host_function(host, "same", wrong, lambda value: value)
    store = library.Store(library.engine())
    store.set_fuel(NEVER)
    store.set_epoch_deadline(NEVER)
    instance = boundary.instantiate(linker, store, component)
    index = instance.get_export_index(store, "same", instance.get_export_index(store, "guest"))
    function = types.Function((("value", types.BYTES),), types.BYTES)
    call = boundary.GuestFunction(store, instance.get_func(store, index), function)
    with pytest.raises(Failure) as failed:
        call(b"x")
    assert failed.value.code == "component.import"


# ---- Resources -----------------------------------------------------------------------------------

RESOURCES: Final = """(component
  (import "host" (instance $host
    (export "thing" (type $thing (sub resource)))
    (export "make" (func (param "number" u32) (result (own $thing))))
    (export "look" (func (param "thing" (borrow $thing)) (result u32)))
    (export "take" (func (param "thing" (own $thing))))))
  (alias export $host "thing" (type $thing))
  (core func $make (canon lower (func $host "make")))
  (core func $look (canon lower (func $host "look")))
  (core func $take (canon lower (func $host "take")))
  (core func $drop (canon resource.drop $thing))
  (core module $main
    (import "host" "make" (func $make (param i32) (result i32)))
    (import "host" "look" (func $look (param i32) (result i32)))
    (import "host" "take" (func $take (param i32)))
    (import "host" "drop" (func $drop (param i32)))
    (func (export "run") (param $number i32) (result i32)
      (local $taken i32) (local $dropped i32) (local $sum i32)
      (local.set $taken (call $make (local.get $number)))
      (local.set $dropped (call $make (i32.add (local.get $number) (i32.const 1))))
      (local.set $sum
        (i32.add (call $look (local.get $taken)) (call $look (local.get $dropped))))
      (call $take (local.get $taken))
      (call $drop (local.get $dropped))
      (local.get $sum)))
  (core instance $main (instantiate $main (with "host" (instance
    (export "make" (func $make)) (export "look" (func $look))
    (export "take" (func $take)) (export "drop" (func $drop))))))
  (func (export "run") (param "number" u32) (result u32) (canon lift (core func $main "run"))))"""
"""Makes two things, looks at both, gives the first away and drops the second."""


def resource_run(
    drop: Callable[[int], None], take: Callable[[int], None]
) -> boundary.GuestFunction:
    u32, own, borrow = named("u32"), types.Handle(owned=True), types.Handle(owned=False)
    component = library.compile_component(bytes(wasmtime.wat2wasm(RESOURCES)))
    linker = library.Linker(library.engine())
    with linker.root() as root, root.add_instance("host") as host:
        boundary.add_host_resource(host, "thing", drop)
        boundary.add_host_function(
            host, "make", types.Function((("number", u32),), own), lambda number: number
        )
        boundary.add_host_function(
            host, "look", types.Function((("thing", borrow),), u32), lambda thing: thing * 10
        )
        boundary.add_host_function(host, "take", types.Function((("thing", own),), None), take)
    store = library.Store(library.engine())
    store.set_fuel(NEVER)
    store.set_epoch_deadline(NEVER)
    instance = boundary.instantiate(linker, store, component)
    return boundary.GuestFunction(
        store, instance.get_func(store, "run"), types.Function((("number", u32),), u32)
    )


def test_resources_cross_by_their_number() -> None:
    dropped: list[int] = []
    taken: list[int] = []
    run = resource_run(dropped.append, taken.append)
    assert [run(number) for number in (1, 5, 1)] == [30, 110, 30]
    assert (taken, dropped) == ([1, 5, 1], [2, 6, 2])


def test_what_a_destructor_raises_is_raised_by_the_call() -> None:
    error = SystemExit(1)

    def drop(number: int) -> None:
        raise error

    with pytest.raises(SystemExit) as raised:
        resource_run(drop, lambda number: None)(1)
    assert raised.value is error


def test_a_function_that_returns_nothing_must_not_return_something() -> None:
    with pytest.raises(TypeError, match="returns nothing"):
        resource_run(lambda number: None, lambda number: number)(1)


# ---- Memory --------------------------------------------------------------------------------------


def resident_bytes() -> int:
    """Of this process, now, without what the allocator keeps for later."""
    gc.collect()
    library.release_freed_memory()
    _size, resident, *_ = Path("/proc/self/statm").read_text().split()
    return int(resident) * mmap.PAGESIZE


def test_calls_leave_nothing_behind() -> None:
    name = next(name for name in EVERY if "correlation-id" in name and "ListOf(element=Rec" in name)
    type_ = EVERY[name]
    ours, _ = identities(name)
    value: Any = types.ok([{**MESSAGE, "payload": bytes(1000)}] * 20)
    assert isinstance(type_, types.ResultOf)
    agent = Agent(wat.agent(handle=wat.PUBLISH), lambda message: types.err(Case("backpressure")))
    for _ in range(50):
        ours.ours(value)
    before = resident_bytes()
    for _ in range(500):
        assert ours.ours(value) == value
        agent.handle(MESSAGE)
        with pytest.raises(TypeError):
            ours.ours(types.ok([{**MESSAGE, "payload": 5}]))
    grown_bytes = resident_bytes() - before
    assert grown_bytes < 500 * 2048, "each call leaves some of its values behind"


def test_a_store_lets_go_of_its_host_functions() -> None:
    before = len(callbacks._callbacks)
    agent = Agent(wat.agent())
    assert len(callbacks._callbacks) > before
    del agent
    gc.collect()
    assert len(callbacks._callbacks) <= before
