"""The metrics as a scraper reads them."""

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ipc_protocol.inference import Usage
from ipc_protocol.values import PRIORITIES, LayerReport
from orchestrator.metrics import METRICS, Metrics

USAGE = Usage(
    prompt_tokens=300,
    cached_tokens=200,
    generated_tokens=50,
    queue_us=20_000,
    first_token_us=70_000,
    total_us=900_000,
)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("0.1.0", ["fs.read"])


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    for family in text_string_to_metric_families(metrics.render()):
        for found in family.samples:
            if found.name == name and found.labels == labels:
                return found.value
    return None


def exercise(metrics: Metrics) -> None:
    metrics.deliveries_done("opsclaw", "high", "acted", [2.0])
    metrics.delivery_retried("opsclaw")
    metrics.dead_letter("bus.expired")
    metrics.published("high", 1)
    metrics.publish_refused("bus.backpressure")
    metrics.deliveries({"queued": 2})
    metrics.queued({"high": 2})
    metrics.parked({"attention": 1})
    metrics.conversations({"open": 1})
    metrics.conversation_answered(3.0)
    metrics.attention_open(1)
    metrics.agents({"idle": 5})
    metrics.worker_died("opsclaw")
    metrics.worker_restarted("opsclaw")
    metrics.component_trapped("opsclaw", "component.fuel")
    metrics.upgraded("opsclaw")
    metrics.rolled_back("opsclaw")
    metrics.compiled(9.5, "ok")
    metrics.cache_refused()
    metrics.program_restarted("engine/default")
    metrics.sandbox([[LayerReport(layer="seccomp", state="enforced")]])
    metrics.phase("triage", 0.4)
    metrics.tool_call("fs.read", 0.01, ok=True)
    metrics.inference("opsclaw", "high", USAGE)
    metrics.inference_failed("high", "inference.budget")
    metrics.committed(16, 0.002)
    metrics.rows_deleted({"message": 3})
    metrics.store(log=1, free=1, reserve=1, intake=True)


def test_every_metric_of_the_table_is_exported_and_no_other(metrics: Metrics) -> None:
    exercise(metrics)
    families = {family.name: family for family in text_string_to_metric_families(metrics.render())}
    exported = {
        name + ("_total" if family.type == "counter" else "")
        for name, family in families.items()
        if name.startswith("agentd_")
    }
    assert exported == set(METRICS)
    for family in families.values():
        assert family.samples, f"{family.name} has no sample"


def test_names_follow_the_conventions_of_prometheus() -> None:
    for metric in METRICS.values():
        assert re.fullmatch(r"agentd_[a-z0-9_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert bool(metric.buckets) == (metric.kind == "histogram")
        assert list(metric.buckets) == sorted(metric.buckets)
        assert metric.help.endswith(".")


def test_only_counters_are_split_by_agent() -> None:
    assert {metric.kind for metric in METRICS.values() if "agent" in metric.labels} == {"counter"}


def test_agents_beyond_the_cap_are_counted_together() -> None:
    metrics = Metrics("0.1.0", [], agents_max=2)
    for agent in ("a", "b", "c", "d", "a"):
        metrics.worker_died(agent)
    assert sample(metrics, "agentd_worker_deaths_total", agent="a") == 2
    assert sample(metrics, "agentd_worker_deaths_total", agent="other") == 2
    assert sample(metrics, "agentd_worker_deaths_total", agent="c") is None


def test_an_invented_tool_makes_no_series_of_its_own(metrics: Metrics) -> None:
    metrics.tool_call("fs.delete_everything", 0.0, ok=False)
    assert sample(metrics, "agentd_tool_calls_total", tool="other", result="failed") == 1


def test_an_unknown_code_or_reason_is_counted_as_other(metrics: Metrics) -> None:
    metrics.dead_letter("something new")
    metrics.parked({"something new": 2, "another": 1})
    assert sample(metrics, "agentd_dead_letters_total", code="other") == 1
    assert sample(metrics, "agentd_parked", reason="other") == 3


def test_every_class_has_a_queue_depth_from_the_start(metrics: Metrics) -> None:
    for priority in PRIORITIES:
        assert sample(metrics, "agentd_queue_depth", priority=priority) == 0


def test_a_state_that_empties_goes_back_to_zero(metrics: Metrics) -> None:
    metrics.deliveries({"parked": 3})
    metrics.deliveries({"queued": 1})
    assert sample(metrics, "agentd_deliveries", state="parked") == 0


def test_the_sandbox_report_counts_running_workers(metrics: Metrics) -> None:
    enforced = LayerReport(layer="cgroup", state="enforced")
    missing = LayerReport(layer="cgroup", state="missing")
    metrics.sandbox([[enforced], [missing], [missing]])
    assert sample(metrics, "agentd_sandbox_layers", layer="cgroup", state="missing") == 2
    metrics.sandbox([[enforced]])
    assert sample(metrics, "agentd_sandbox_layers", layer="cgroup", state="missing") == 0
    assert sample(metrics, "agentd_sandbox_layers", layer="cgroup", state="enforced") == 1


def test_an_answered_request_is_counted_by_class_and_agent(metrics: Metrics) -> None:
    metrics.inference("opsclaw", "high", USAGE)
    assert sample(metrics, "agentd_prompt_tokens_total", priority="high") == 300
    assert sample(metrics, "agentd_prompt_tokens_cached_total", priority="high") == 200
    assert sample(metrics, "agentd_generation_tokens_total", priority="high") == 50
    assert sample(metrics, "agentd_agent_tokens_total", agent="opsclaw", kind="prompt") == 300
    sums = {
        name: sample(metrics, f"agentd_{name}_seconds_sum", priority="high")
        for name in ("request_queue_time", "time_to_first_token", "e2e_request_latency")
    }
    assert sums == {
        "request_queue_time": 0.02,
        "time_to_first_token": 0.07,
        "e2e_request_latency": 0.9,
    }


def test_the_condition_of_the_store_is_exported(metrics: Metrics) -> None:
    metrics.store(log=4096, free=3, reserve=2, intake=False)
    names = ("log_bytes", "free_bytes", "reserve_bytes", "intake_open")
    assert [sample(metrics, f"agentd_store_{name}") for name in names] == [4096, 3, 2, 0]


def test_deleted_rows_are_counted_by_table(metrics: Metrics) -> None:
    metrics.rows_deleted({"message": 3, "journal": 1})
    metrics.rows_deleted({"message": 2})
    deleted = {
        table: sample(metrics, "agentd_store_rows_deleted_total", table=table)
        for table in ("message", "journal")
    }
    assert deleted == {"message": 5, "journal": 1}


def test_messages_that_are_published_together_are_counted_each(metrics: Metrics) -> None:
    metrics.published("high", 64)
    assert sample(metrics, "agentd_messages_total", priority="high") == 64


def test_the_build_and_the_process_are_known(metrics: Metrics) -> None:
    assert sample(metrics, "agentd_build_info", version="0.1.0") == 1
    assert (sample(metrics, "process_open_fds") or 0) > 0


def test_two_daemons_in_one_process_do_not_share_series(metrics: Metrics) -> None:
    metrics.worker_died("a")
    assert sample(Metrics("0.1.0", []), "agentd_worker_deaths_total", agent="a") is None


def test_an_agent_that_is_gone_leaves_its_place_to_another() -> None:
    metrics = Metrics("0.1.0", [], agents_max=1)
    metrics.worker_died("gate")
    metrics.component_trapped("gate", "component.fuel")
    metrics.agent_gone("gate")
    metrics.agent_gone("nobody")
    metrics.worker_died("opsclaw")
    assert sample(metrics, "agentd_worker_deaths_total", agent="opsclaw") == 1
    assert sample(metrics, "agentd_worker_deaths_total", agent="gate") is None
    trapped = sample(metrics, "agentd_component_traps_total", agent="gate", code="component.fuel")
    assert trapped is None
