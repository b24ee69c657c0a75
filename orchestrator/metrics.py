"""What the daemon counts and measures, for Prometheus.

`METRICS` of `metric_table` is the whole list, and every series is made from it; `Metrics` is what
the rest of the daemon calls. It decides nothing, and reads no clock: durations are arguments, in
seconds. What engines count themselves is in `engine_metrics`.

Labels are bounded. Only counters are split by agent, and only up to `AGENTS_MAX` names: those that
come later share `agent="other"`. A label whose values are known falls back to `other` as well.
"""

from collections.abc import Collection, Mapping
from typing import Final, Literal, TypeVar, get_args

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.metrics import MetricWrapperBase

from ipc_protocol.control import AgentStatus, ConversationState
from ipc_protocol.errors import CODES
from ipc_protocol.inference import EngineStatus, Usage
from ipc_protocol.values import PRIORITIES, LayerReport, Priority
from ipc_protocol.work import Outcome, Phase
from orchestrator.bus.delivery import DeliveryState
from orchestrator.bus.rows import ParkedReason
from orchestrator.engine_metrics import EngineCollector
from orchestrator.metric_table import DAEMON_METRICS, METRICS, Metric

M = TypeVar("M", bound=MetricWrapperBase)

AGENTS_MAX: Final = 256
"""A few hundred agents, times five classes, times six outcomes: 8,000 series at the very most."""
OTHER: Final = "other"

DELIVERY_STATES: Final = get_args(DeliveryState)
CONVERSATION_STATES: Final = get_args(ConversationState)
PARKED_REASONS: Final = get_args(ParkedReason)
DEAD_CODES: Final = (*CODES, "work.deaths", "work.refused")
"""Error codes, and the two reasons of the bus for giving a delivery up."""
AGENT_STATES: Final = get_args(AgentStatus.__annotations__["state"])


class Metrics:
    """The series of one daemon. Safe to call from any thread; `render` belongs into one.

    `tools` are the names of the tools there are: a model invents others without end.
    """

    def __init__(
        self, version: str, tools: Collection[str], *, agents_max: int = AGENTS_MAX
    ) -> None:
        # A second time series for each counter's birth helps nobody and costs as much as the first.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        self._agents: set[str] = set()
        self._agents_max = agents_max
        self._tools = frozenset(tools)
        self._layers: set[tuple[str, str]] = set()
        for name in DAEMON_METRICS:
            self._register(METRICS[name])
        self._engines = EngineCollector()
        self._registry.register(self._engines)
        ProcessCollector(registry=self._registry)
        self._gauge("agentd_build_info", version).set(1)
        self.deliveries({})
        self.queued({})
        self.parked({})
        self.conversations({})
        self.agents({})

    def render(self) -> str:
        """Everything, in the text format 0.0.4. Takes milliseconds with many agents."""
        return prometheus_client.generate_latest(self._registry).decode()

    # -- deliveries and the bus

    def deliveries_done(
        self,
        agent: str,
        priority: Priority,
        outcome: Outcome | Literal["dead"],
        seconds: Collection[float],
    ) -> None:
        """Several that ended alike, each after so many seconds."""
        done = self._counter("agentd_deliveries_done_total", self._agent(agent), priority, outcome)
        done.inc(len(seconds))
        lasted = self._histogram("agentd_delivery_seconds", priority)
        for each in seconds:
            lasted.observe(each)

    def delivery_retried(self, agent: str) -> None:
        self._counter("agentd_delivery_retries_total", self._agent(agent)).inc()

    def dead_letter(self, code: str) -> None:
        self._counter("agentd_dead_letters_total", _known(code, DEAD_CODES)).inc()

    def published(self, priority: Priority, count: int) -> None:
        self._counter("agentd_messages_total", priority).inc(count)

    def publish_refused(self, code: str) -> None:
        self._counter("agentd_publish_refused_total", _known(code, CODES)).inc()

    def deliveries(self, counts: Mapping[str, int]) -> None:
        self._set_all("agentd_deliveries", DELIVERY_STATES, counts)

    def queued(self, counts: Mapping[str, int]) -> None:
        self._set_all("agentd_queue_depth", PRIORITIES, counts)

    def parked(self, counts: Mapping[str, int]) -> None:
        self._set_all("agentd_parked", PARKED_REASONS, counts)

    def conversations(self, counts: Mapping[str, int]) -> None:
        self._set_all("agentd_conversations", CONVERSATION_STATES, counts)

    def conversation_answered(self, seconds: float) -> None:
        self._histogram("agentd_conversation_seconds").observe(seconds)

    def attention_open(self, count: int) -> None:
        self._gauge("agentd_attention_open").set(count)

    # -- processes

    def agents(self, counts: Mapping[str, int]) -> None:
        self._set_all("agentd_agents", AGENT_STATES, counts)

    def worker_died(self, agent: str) -> None:
        self._counter("agentd_worker_deaths_total", self._agent(agent)).inc()

    def worker_restarted(self, agent: str) -> None:
        self._counter("agentd_worker_restarts_total", self._agent(agent)).inc()

    def component_trapped(self, agent: str, code: str) -> None:
        name = self._agent(agent)
        self._counter("agentd_component_traps_total", name, _known(code, CODES)).inc()

    def upgraded(self, agent: str) -> None:
        self._counter("agentd_component_upgrades_total", self._agent(agent)).inc()

    def rolled_back(self, agent: str) -> None:
        self._counter("agentd_component_rollbacks_total", self._agent(agent)).inc()

    def compiled(self, seconds: float, result: str) -> None:
        """`result` is *ok* or an error code."""
        label = result if result == "ok" else _known(result, CODES)
        self._histogram("agentd_component_compile_seconds", label).observe(seconds)

    def cache_refused(self) -> None:
        self._counter("agentd_component_cache_refused_total").inc()

    def agent_gone(self, agent: str) -> None:
        """Its place among the agents with series of their own is free. What they counted is gone
        too, as it is after a restart."""
        if agent not in self._agents:
            return
        self._agents.remove(agent)
        for name in DAEMON_METRICS:
            if "agent" in METRICS[name].labels:
                self._counters[name].remove_by_labels({"agent": agent})

    def program_restarted(self, program: str) -> None:
        """`program` is a name of the configuration: *zygote*, *engine/default*."""
        self._counter("agentd_program_restarts_total", program).inc()

    def sandbox(self, workers: Collection[Collection[LayerReport]]) -> None:
        """The layers around each running worker, all of them at once."""
        counts: dict[tuple[str, str], int] = dict.fromkeys(self._layers, 0)
        for layers in workers:
            for report in layers:
                key: tuple[str, str] = (report.layer, report.state)
                counts[key] = counts.get(key, 0) + 1
        self._layers = set(counts)
        for key, count in counts.items():
            self._gauge("agentd_sandbox_layers", *key).set(count)

    # -- the loop and the engines

    def phase(self, phase: Phase, seconds: float) -> None:
        self._histogram("agentd_phase_seconds", phase).observe(seconds)

    def tool_call(self, tool: str, seconds: float, *, ok: bool) -> None:
        name = _known(tool, self._tools)
        self._counter("agentd_tool_calls_total", name, "ok" if ok else "failed").inc()
        self._histogram("agentd_tool_seconds").observe(seconds)

    def inference(self, agent: str, priority: Priority, usage: Usage) -> None:
        """A request that was answered."""
        generated, prompt, cached = (
            usage.generated_tokens,
            usage.prompt_tokens,
            usage.cached_tokens,
        )
        self._counter("agentd_inference_requests_total", priority, "ok").inc()
        self._counter("agentd_prompt_tokens_total", priority).inc(prompt)
        self._counter("agentd_prompt_tokens_cached_total", priority).inc(cached)
        self._counter("agentd_generation_tokens_total", priority).inc(generated)
        name = self._agent(agent)
        self._counter("agentd_agent_tokens_total", name, "prompt").inc(prompt)
        self._counter("agentd_agent_tokens_total", name, "generation").inc(generated)
        for metric, duration_us in (
            ("agentd_request_queue_time_seconds", usage.queue_us),
            ("agentd_time_to_first_token_seconds", usage.first_token_us),
            ("agentd_request_prefill_time_seconds", usage.first_token_us - usage.queue_us),
            ("agentd_request_decode_time_seconds", usage.total_us - usage.first_token_us),
            ("agentd_e2e_request_latency_seconds", usage.total_us),
        ):
            self._histogram(metric, priority).observe(max(0, duration_us) / 1e6)

    def engine(self, model: str, status: EngineStatus | None, pid: int | None) -> None:
        """What the engine of a model says of itself; None when it is not up, or has been silent for
        long. `model` is its name in the configuration; `pid` tells it from its successor."""
        self._engines.report(model, status, pid or 0)

    def inference_failed(self, priority: Priority, code: str) -> None:
        """A request that ended in an error, counted by its code."""
        self._counter("agentd_inference_requests_total", priority, _known(code, CODES)).inc()

    # -- the store

    def committed(self, writes: int, seconds: float) -> None:
        self._histogram("agentd_store_commit_writes").observe(writes)
        self._histogram("agentd_store_commit_seconds").observe(seconds)

    def rows_deleted(self, rows: Mapping[str, int]) -> None:
        """Rows that retention has deleted, by table."""
        for table, count in rows.items():
            self._counter("agentd_store_rows_deleted_total", table).inc(count)

    def store(self, *, log: int, free: int, reserve: int, intake: bool) -> None:
        """The write-ahead log and the room for it, in bytes, and whether new work is taken in."""
        self._gauge("agentd_store_log_bytes").set(log)
        self._gauge("agentd_store_free_bytes").set(free)
        self._gauge("agentd_store_reserve_bytes").set(reserve)
        self._gauge("agentd_store_intake_open").set(intake)

    # -- within

    def _register(self, metric: Metric) -> None:
        name, labels = metric.name, metric.labels
        match metric.kind:
            case "counter":
                self._counters[name] = Counter(name, metric.help, labels, registry=self._registry)
            case "gauge":
                self._gauges[name] = Gauge(name, metric.help, labels, registry=self._registry)
            case "histogram":
                self._histograms[name] = Histogram(
                    name, metric.help, labels, registry=self._registry, buckets=metric.buckets
                )

    def _counter(self, name: str, *labels: str) -> Counter:
        return _labelled(self._counters[name], labels)

    def _gauge(self, name: str, *labels: str) -> Gauge:
        return _labelled(self._gauges[name], labels)

    def _histogram(self, name: str, *labels: str) -> Histogram:
        return _labelled(self._histograms[name], labels)

    def _agent(self, agent: str) -> str:
        if agent not in self._agents:
            if len(self._agents) >= self._agents_max:
                return OTHER
            self._agents.add(agent)
        return agent

    def _set_all(self, name: str, values: Collection[str], counts: Mapping[str, int]) -> None:
        """Every value is present, at 0 if need be: an alert on a missing series never fires."""
        sums = dict.fromkeys(values, 0)
        for value, count in counts.items():
            label = _known(value, values)
            sums[label] = sums.get(label, 0) + count
        for value, count in sums.items():
            self._gauge(name, value).set(count)


def _labelled(metric: M, labels: tuple[str, ...]) -> M:
    return metric.labels(*labels) if labels else metric


def _known(value: str, values: Collection[str]) -> str:
    return value if value in values else OTHER
