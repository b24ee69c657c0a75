"""The metrics as a scraper reads them."""

import re
from pathlib import Path

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ipc_protocol.inference import (
    Distribution,
    EngineCounters,
    EngineStatus,
    ModelInfo,
    SlotState,
    Usage,
    Waiting,
)
from ipc_protocol.values import PRIORITIES, LayerReport
from orchestrator.metric_table import ENGINE_METRICS, METRICS
from orchestrator.metrics import Metrics

USAGE = Usage(
    prompt_tokens=300,
    cached_tokens=200,
    generated_tokens=50,
    queue_us=20_000,
    first_token_us=70_000,
    total_us=900_000,
)
STEPS = Distribution(bounds=[0.01, 0.1], counts=[3, 2, 1], total=0.75)
ENGINE = EngineStatus(
    model=ModelInfo(name="default", kind="language", architecture="llama", memory_bytes=4096),
    slots=[
        SlotState(slot=0, state="decode"),
        SlotState(slot=1, state="left-out"),
        SlotState(slot=2, state="free"),
    ],
    queue=[
        Waiting(position=1, agent="a", priority="low", reason="", waited_us=1),
        Waiting(position=2, agent="b", priority="low", reason="", waited_us=1, state="swapped"),
    ],
    steps=6,
    kv_cells_used=2048,
    kv_cells=8192,
    swap_bytes_used=512,
    swap_bytes=1024,
    threads=2,
    counters=EngineCounters(
        preemptions={"left-out": 2, "dropped": 1},
        swapped_out_bytes=300,
        swapped_in_bytes=200,
        prefix_queries=100,
        prefix_hits=40,
        recomputed_tokens=7,
        forced_tokens=9,
        prefill_tokens=60,
        decode_tokens=30,
        step_seconds=STEPS,
        step_tokens=Distribution(bounds=[1.0, 8.0], counts=[1, 5, 0], total=90.0),
        inter_token_seconds={"high": STEPS},
    ),
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
    metrics.engine("default", ENGINE, 100)
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
        has_buckets = metric.kind == "histogram" and metric.name not in ENGINE_METRICS
        assert bool(metric.buckets) == has_buckets
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
        for name in (
            "request_queue_time",
            "request_prefill_time",
            "request_decode_time",
            "time_to_first_token",
            "e2e_request_latency",
        )
    }
    assert sums == {
        "request_queue_time": 0.02,
        "request_prefill_time": 0.05,
        "request_decode_time": 0.83,
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


# ---- What engines count themselves ---------------------------------------------------------------

ENGINE_SAMPLES = {
    "num_requests_running": 2,
    "num_requests_waiting/priority=low": 2,
    "num_requests_waiting/priority=urgent": 0,
    "kv_cache_usage_ratio": 0.25,
    "num_preemptions_total/strength=left-out": 2,
    "num_preemptions_total/strength=swapped": 0,
    "num_preemptions_total/strength=dropped": 1,
    "prefix_cache_queries_total": 100,
    "prefix_cache_hits_total": 40,
    "swapped_bytes_total/direction=out": 300,
    "swapped_bytes_total/direction=in": 200,
    "swap_bytes": 512,
    "engine_steps_total": 6,
    "engine_tokens_total/phase=prefill": 60,
    "engine_tokens_total/phase=decode": 30,
    "recomputed_tokens_total": 7,
    "forced_tokens_total": 9,
    "engine_threads": 2,
    "model_loaded": 1,
    "model_memory_bytes": 4096,
    "step_seconds_bucket/le=0.01": 3,
    "step_seconds_bucket/le=0.1": 5,
    "step_seconds_bucket/le=+Inf": 6,
    "step_seconds_count": 6,
    "step_seconds_sum": 0.75,
    "step_tokens_bucket/le=8.0": 6,
    "inter_token_latency_seconds_count/priority=high": 6,
    "inter_token_latency_seconds_count/priority=low": 0,
}
"""What `ENGINE` comes to, by the name of each series behind `agentd_` and its other label."""


def of_engine(metrics: Metrics, series: str, model: str = "default") -> float | None:
    name, _, label = series.partition("/")
    labels = dict([label.split("=")]) if label else {}
    return sample(metrics, f"agentd_{name}", model=model, **labels)


def test_what_an_engine_reports_is_exported_by_model(metrics: Metrics) -> None:
    metrics.engine("default", ENGINE, 100)
    assert {one: of_engine(metrics, one) for one in ENGINE_SAMPLES} == ENGINE_SAMPLES
    assert of_engine(metrics, "engine_steps_total", "other") is None


def test_reports_of_one_engine_are_not_added_up(metrics: Metrics) -> None:
    for _ in range(3):
        metrics.engine("default", ENGINE, 100)
    assert {one: of_engine(metrics, one) for one in ENGINE_SAMPLES} == ENGINE_SAMPLES


def test_counters_go_on_from_one_engine_to_the_next(metrics: Metrics) -> None:
    metrics.engine("default", ENGINE, 100)
    metrics.engine("default", msgspec.structs.replace(ENGINE, steps=0), 200)
    metrics.engine("default", ENGINE, 300)
    assert of_engine(metrics, "engine_steps_total") == 12
    assert of_engine(metrics, "prefix_cache_hits_total") == 120
    assert of_engine(metrics, "num_preemptions_total/strength=dropped") == 3
    assert of_engine(metrics, "step_seconds_bucket/le=0.1") == 15
    assert of_engine(metrics, "step_seconds_sum") == 2.25
    assert of_engine(metrics, "inter_token_latency_seconds_count/priority=high") == 18
    assert of_engine(metrics, "num_requests_running") == 2


def test_an_engine_that_is_silent_for_a_while_is_counted_once(metrics: Metrics) -> None:
    metrics.engine("default", ENGINE, 100)
    metrics.engine("default", None, None)
    assert of_engine(metrics, "model_loaded") == 0
    assert of_engine(metrics, "num_requests_waiting/priority=low") == 0
    assert of_engine(metrics, "kv_cache_usage_ratio") == 0
    assert of_engine(metrics, "engine_steps_total") == 6
    metrics.engine("default", ENGINE, 100)
    assert of_engine(metrics, "engine_steps_total") == 6


def test_a_model_that_was_never_loaded_has_its_series(metrics: Metrics) -> None:
    metrics.engine("big", None, None)
    assert of_engine(metrics, "model_loaded", "big") == 0
    assert of_engine(metrics, "engine_steps_total", "big") == 0
    assert of_engine(metrics, "step_seconds_count", "big") == 0


def test_a_histogram_with_other_buckets_begins_anew(metrics: Metrics) -> None:
    metrics.engine("default", ENGINE, 100)
    finer = Distribution(bounds=[0.001], counts=[4, 0], total=0.002)
    counters = msgspec.structs.replace(ENGINE.counters, step_seconds=finer)
    metrics.engine("default", msgspec.structs.replace(ENGINE, counters=counters), 200)
    assert of_engine(metrics, "step_seconds_count") == 4
    assert of_engine(metrics, "step_seconds_bucket/le=0.001") == 4
    assert of_engine(metrics, "step_seconds_bucket/le=0.01") is None


def test_an_engine_that_counts_nothing_has_empty_histograms(metrics: Metrics) -> None:
    metrics.engine("default", ENGINE, 100)
    metrics.engine("default", EngineStatus(model=ENGINE.model), 200)
    assert of_engine(metrics, "step_seconds_count") == 6
    assert of_engine(metrics, "kv_cache_usage_ratio") == 0


# ---- The documentation ---------------------------------------------------------------------------


def test_the_metrics_that_operators_read_of_exist_and_all_of_engines_are_explained() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    named = set(re.findall(r"agentd_[a-z0-9_]+", page))
    assert named <= set(METRICS)
    assert set(ENGINE_METRICS) <= named
