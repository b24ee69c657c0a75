"""What an agent keeps: set, read and deleted, and how much it is, counted as it changes."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipc_protocol.work import StateChange
from orchestrator.store.state import change_state, read_state, state_bytes
from orchestrator.store.store import Store

Change = tuple[str, bytes | None]


async def keep(store: Store, agent: str, *changes: Change) -> None:
    wanted = [StateChange(key=key, value=value) for key, value in changes]
    await store.apply(change_state, agent, wanted)


async def test_what_was_kept_is_read(store: Store) -> None:
    reader = store.reader("test")
    await keep(store, "opsclaw", ("a", b"one"), ("b", b""), ("a", b"two"))
    assert await reader.view(read_state, "opsclaw", "a") == b"two"
    assert await reader.view(read_state, "opsclaw", "b") == b""
    assert await reader.view(read_state, "opsclaw", "c") is None


async def test_each_agent_has_a_state_of_its_own(store: Store) -> None:
    reader = store.reader("test")
    await keep(store, "opsclaw", ("a", b"mine"))
    await keep(store, "devclaw", ("a", None))
    assert await reader.view(read_state, "opsclaw", "a") == b"mine"
    assert await reader.view(read_state, "devclaw", "a") is None
    assert await reader.view(state_bytes, "devclaw") == 0


async def test_what_was_deleted_is_gone_and_costs_nothing(store: Store) -> None:
    reader = store.reader("test")
    await keep(store, "opsclaw", ("a", b"one"), ("b", b"two"))
    await keep(store, "opsclaw", ("a", None), ("never", None))
    assert await reader.view(read_state, "opsclaw", "a") is None
    assert await reader.view(state_bytes, "opsclaw") == 64 + 1 + 3


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(
        st.tuples(st.sampled_from(["a", "b", "ä", "x" * 9]), st.none() | st.binary(max_size=20)),
        max_size=20,
    )
)
async def test_the_size_that_is_counted_is_the_size_that_is_there(
    store: Store, changes: list[Change]
) -> None:
    await keep(store, "opsclaw", *changes)
    reader = store.reader("test")
    rows = await reader.fetch("SELECT key, value FROM state")
    held = sum(64 + len(key.encode()) + len(value) for key, value in rows)
    assert await reader.view(state_bytes, "opsclaw") == held
