"""A model file is read without trusting it."""

import struct
from pathlib import Path

import pytest
from ggufs import ARRAY, VALUES, model, pair, string
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference_client import gguf
from ipc_protocol.errors import Failure


@pytest.fixture
def read(tmp_path: Path):
    def write_and_read(data: bytes) -> gguf.Gguf:
        path = tmp_path / "model.gguf"
        path.write_bytes(data)
        return gguf.read(path)

    return write_and_read


def without(key: str) -> dict:
    return {name: value for name, value in VALUES.items() if name != key}


def test_a_header_says_what_the_model_is(read):
    found = read(model())
    assert (found.architecture, found.title, found.quantization) == ("llama", "Tiny", "F32")
    assert (found.parameters, found.context, found.vocabulary, found.tensors) == (32, 2048, 3, 1)
    assert found.kv_bytes_per_token == 2 * 2 * (16 + 16) * 2


def test_an_unknown_file_type_is_called_mixed(read):
    assert read(model(VALUES | {"general.file_type": 999})).quantization == "mixed"


def test_a_header_may_leave_out_what_is_not_needed(read):
    values = {"general.architecture": "x", "tokenizer.ggml.model": "gpt2"}
    found = read(model(values))
    assert (found.quantization, found.context, found.kv_bytes_per_token) == ("", 0, 0)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "not a GGUF file"),
        (b"PK\x03\x04 a zip", "not a GGUF file"),
        (model(version=1), "version 1"),
        (model(without("general.architecture")), "architecture"),
        (model(without("tokenizer.ggml.model")), "no tokenizer"),
        (model(VALUES | {"general.alignment": 0}), "alignment"),
        (model(dimensions=(1,) * 5), "5 dimensions"),
        (model(dimensions=()), "0 dimensions"),
        (model(dimensions=(2**63, 2**63)), "truncated"),
        (model(data=100), "truncated"),
        (model()[:200], "truncated"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63), "truncated"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0), "truncated"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 100_000) + b"\0" * 2_000_000, "over 65536"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**40) + b"\0" * 64, "a string of"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("k") + struct.pack("<IQ", 77, 0), "77"),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("k") + struct.pack("<IIQ", 9, 77, 0),
            "77",
        ),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + pair("general.architecture", "x"),
            "no tensors",
        ),
    ],
)
def test_a_damaged_or_foreign_file_is_named_with_its_fault(read, data, complaint):
    with pytest.raises(Failure, match=complaint) as failure:
        read(data)
    assert failure.value.code == "model.invalid"


def test_a_header_of_too_many_values_is_refused(read, monkeypatch):
    monkeypatch.setattr(gguf, "ELEMENTS_MAX", 4)
    with pytest.raises(Failure, match="more than 4 values"):
        read(model())


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(Failure, match="No such file"):
        gguf.read(tmp_path / "none.gguf")


def test_long_and_real_valued_arrays_are_only_counted(read):
    floats = string("f") + struct.pack("<IIQ", ARRAY, 6, 2000) + b"\0" * 8000
    data = bytearray(model())
    data[16:24] = struct.pack("<Q", len(VALUES) + 1)
    whole = bytes(data[:24]) + floats + bytes(data[24:]) + b"\0" * 64
    assert read(whole).architecture == "llama"


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400), st.booleans())
def test_random_bytes_raise_nothing_but_the_typed_error(read, data, magic):
    try:
        read((b"GGUF\x03\0\0\0" if magic else b"") + data)
    except Failure as failure:
        assert failure.code == "model.invalid"


@settings(
    deadline=None, max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=6),
    st.integers(0, 2000),
)
def test_a_mutated_header_raises_nothing_but_the_typed_error(read, changes, length):
    data = bytearray(model())
    for at, value in changes:
        data[at % len(data)] = value
    try:
        read(bytes(data[: length or None]))
    except Failure as failure:
        assert failure.code == "model.invalid"


@pytest.mark.model
def test_the_real_model_is_read_right(model_path):
    found = gguf.read(model_path)
    assert (found.architecture, found.quantization, found.context) == ("llama", "Q4_1", 8192)
    assert found.parameters == 134_515_008


@pytest.mark.model
def test_the_real_model_cut_short_is_truncated(model_path, tmp_path):
    path = tmp_path / "short.gguf"
    with model_path.open("rb") as file:
        path.write_bytes(file.read(4_000_000))
    with pytest.raises(Failure, match="is truncated"):
        gguf.read(path)
