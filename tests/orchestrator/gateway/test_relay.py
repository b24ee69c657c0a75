"""What stands between who produces and who is slow."""

import asyncio

import pytest

from ipc_protocol.errors import Failure
from orchestrator.gateway.relay import Relay, RelayFull


async def test_everything_is_taken_together_and_in_order() -> None:
    relay: Relay[str] = Relay(10)
    relay.put("a", 1)
    relay.put("b", 1)
    assert await relay.take() == ["a", "b"]


async def test_whoever_takes_waits_until_there_is_something() -> None:
    relay: Relay[str] = Relay(10)
    async with asyncio.TaskGroup() as tasks:
        taken = tasks.create_task(relay.take())
        await asyncio.sleep(0)
        assert not taken.done()
        relay.put("a", 1)
    assert taken.result() == ["a"]


async def test_what_goes_over_the_bound_is_refused_until_something_is_taken() -> None:
    relay: Relay[str] = Relay(10)
    relay.put("a", 6)
    with pytest.raises(RelayFull):
        relay.put("b", 5)
    assert await relay.take() == ["a"]
    relay.put("b", 5)
    assert await relay.take() == ["b"]


async def test_one_item_of_any_size_passes_alone() -> None:
    relay: Relay[str] = Relay(10)
    relay.put("large", 100)
    assert await relay.take() == ["large"]


async def test_the_end_comes_behind_what_was_put() -> None:
    relay: Relay[str] = Relay(10)
    relay.put("a", 1)
    relay.end()
    assert await relay.take() == ["a"]
    assert await relay.take() == []


async def test_a_failure_comes_behind_what_was_put() -> None:
    relay: Relay[str] = Relay(10)
    relay.put("a", 1)
    relay.end(Failure("request.internal", "It broke."))
    assert await relay.take() == ["a"]
    with pytest.raises(Failure, match="It broke"):
        await relay.take()
