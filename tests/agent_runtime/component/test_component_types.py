"""The types of a component as bytes, and back."""

import msgspec
import pytest

from agent_runtime.component import types
from ipc_protocol.errors import Failure

U32 = types.Primitive("u32")
EVERY: tuple[types.Type, ...] = (
    U32,
    types.BYTES,
    types.TupleOf((U32, types.STRING)),
    types.Record((("a", U32), ("b", types.OptionOf(types.STRING)))),
    types.ResultOf(None, types.STRING),
    types.ResultOf(U32, None),
    types.Variant((("a", U32), ("b", None))),
    types.Enum(("a", "b")),
    types.Flags(("a",)),
    types.Handle(owned=False),
    types.Unsupported("StreamType"),
)
FOUND = types.ComponentType(
    imports={
        "a:b/c@1.0.0": types.Interface(
            {f"f{i}": types.Function((("x", type_),), type_) for i, type_ in enumerate(EVERY)},
            resources=("r",),
            others=("inner",),
        ),
        "a:b/types@1.0.0": types.Interface(),
    },
    exports={"d": types.Interface({"run": types.Function((), None)})},
    others=("alone",),
)


def broken(found: types.ComponentType) -> bytes:
    """`found` as bytes, with what is no type where a function has no result."""
    encoded = types.encode(found)
    result = msgspec.msgpack.encode(types.Function((), None))
    assert encoded.count(result) == 1
    return encoded.replace(result, result[:-1] + msgspec.msgpack.encode(7))


def test_what_was_encoded_is_decoded() -> None:
    decoded = types.decode(types.encode(FOUND))
    for ours, theirs in ((FOUND.imports, decoded.imports), (FOUND.exports, decoded.exports)):
        assert list(ours) == list(theirs)
        for name, interface in ours.items():
            assert dict(theirs[name].functions) == interface.functions
            assert len(theirs[name].functions) == len(interface.functions)
            assert theirs[name].resources == interface.resources
            assert theirs[name].others == interface.others
    assert decoded.others == FOUND.others


def test_a_function_is_decoded_when_it_is_asked_for() -> None:
    decoded = types.decode(broken(FOUND))
    assert list(decoded.exports["d"].functions) == ["run"]
    assert decoded.imports["a:b/c@1.0.0"].functions["f0"] == types.Function((("x", U32),), U32)
    with pytest.raises(Failure, match="type of run") as failed:
        decoded.exports["d"].functions["run"]
    assert failed.value.code == "component.compile"
    assert "nowhere" not in decoded.exports["d"].functions


@pytest.mark.parametrize("data", [b"", b"x", msgspec.msgpack.encode([{}, {}])])
def test_what_was_not_encoded_is_refused(data: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        types.decode(data)


def test_results_are_cases() -> None:
    assert types.ok() == ("ok", None)
    assert types.ok(7) == types.Case("ok", 7)
    assert types.err("why") == types.Case("err", "why")
