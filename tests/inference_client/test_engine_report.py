"""What the pool tells about itself."""

from simulated import Simulation

from inference_client.engine import report
from inference_client.engine.report import Accounts, status_of
from inference_client.engine.telemetry import Telemetry
from ipc_protocol.inference import ModelInfo, Usage

INFO = ModelInfo(name="m", kind="language", architecture="llama")
USAGE = Usage(
    prompt_tokens=3, cached_tokens=1, generated_tokens=2, queue_us=0, first_token_us=0, total_us=0
)


def status(pool, now_us=0):
    return status_of(INFO, pool.planner, Accounts(), Telemetry(), threads=1, now_us=now_us)


def test_tokens_are_counted_by_agent():
    accounts = Accounts()
    for agent in ("b", "a", "a"):
        accounts.add(agent, USAGE)
    first, second = accounts.listed()
    assert (first.agent, first.requests, first.prompt_tokens) == ("a", 2, 6)
    assert (second.agent, second.cached_tokens, second.generated_tokens) == ("b", 1, 2)


def test_agents_beyond_the_bound_are_counted_together(monkeypatch):
    monkeypatch.setattr(report, "AGENTS_MAX", 1)
    accounts = Accounts()
    for agent in ("a", "b", "c", "a"):
        accounts.add(agent, USAGE)
    assert [(one.agent, one.requests) for one in accounts.listed()] == [("", 2), ("a", 2)]


def test_the_status_shows_slots_and_the_queue():
    pool = Simulation(slots=2)
    pool.submit("done", prompt=[5, 5], tokens=1)
    pool.run()
    pool.submit("busy", "high", tokens=9)
    pool.step()
    pool.submit("filling", "high", prompt=[4] * 40, tokens=9)
    pool.step()
    pool.submit("late", "low")
    pool.step()
    found = status(pool, 100)
    assert {slot.agent: slot.state for slot in found.slots} == {
        "busy": "decode",
        "filling": "decode",
    }
    assert [(one.agent, one.position) for one in found.queue] == [("late", 1)]
    assert found.kv_cells == 64
    assert found.kv_cells_used == sum(slot.cached_tokens for slot in found.slots)


def test_an_idle_slot_shows_whose_text_it_keeps():
    pool = Simulation(slots=1)
    pool.submit("a", prompt=[5, 5], tokens=1)
    pool.run()
    (slot,) = status(pool).slots
    assert (slot.state, slot.agent, slot.cached_tokens) == ("free", "a", 2)


def test_an_engine_is_working_until_the_last_request_has_its_answer():
    pool = Simulation(slots=1)

    def working() -> bool:
        return status(pool).working

    assert not working()
    pool.submit("a", prompt=[5, 5], tokens=2)
    assert working()
    pool.step()
    assert working()
    pool.run()
    assert not working()
