"""`agentd bench component`, with small fleets of a small echo."""

import json
from pathlib import Path

import wasmtime
import wat_components as wat
from daemons import agentd


def test_it_prints_the_boundary_beside_its_peer_and_the_stages_of_each_fleet(
    tmp_path: Path,
) -> None:
    echo = tmp_path / "echo.wasm"
    echo.write_bytes(wasmtime.wat2wasm(wat.agent()))
    sizes = ("--agents", "1", "--agents", "3")
    done = agentd("bench", "component", "--component", str(echo), *sizes, "--json")
    measures = {one["measure"]: one for one in json.loads(done.output)}
    for size in (16, 256, 4096, 65536, 262144):
        measure = measures[f"handle of {size} B"]
        assert measure["unit"] == "µs"
        assert measure["ratio"] == measure["value"] / measure["peer_value"]
    assert measures["handle of 256 B"]["expected"] == 60.0
    for fleet in ("alone", "of 3"):
        whole = measures[f"fork to first message, one {fleet}"]
        assert whole["unit"] == "ms"
        assert measures[f"proportional memory, one {fleet}"]["value"] > 1
    stages = [one for one in measures if one.startswith("  ")]
    assert len(stages) == 3
    assert done.status == (1 if any(one["met"] is False for one in measures.values()) else 0)


def test_what_is_no_echo_is_not_measured(tmp_path: Path) -> None:
    silent = tmp_path / "silent.wasm"
    silent.write_bytes(
        wasmtime.wat2wasm(wat.agent(handle="(call $answers (i32.const 0) (i32.const 0))"))
    )
    done = agentd("bench", "component", "--component", str(silent), "--agents", "1", "--json")
    assert done.status == 1
    assert "does not return what it is sent" in done.errors
