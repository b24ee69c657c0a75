"""What the engines count themselves, as series of the daemon.

An engine counts since it started; a counter must never go back. So when an engine has ended, what
it had counted is added to what its predecessors had, and its successor counts on from there. What
it counted after its last report is lost with it.

The loop reports, and the thread that renders collects. Both see whole, frozen values: a report puts
a new one in the place of the old one.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from ipc_protocol.inference import Distribution, EngineCounters, EngineStatus
from ipc_protocol.values import PRIORITIES
from orchestrator.metric_table import ENGINE_METRICS, METRICS

STRENGTHS: Final = ("left-out", "swapped", "dropped")
"""Of a preemption, the gentlest first."""

Sample = tuple[tuple[str, ...], float]
"""Values of the labels behind `model`, and the value."""


class Counted(msgspec.Struct, frozen=True):
    """What one model's engines have counted, one after the other."""

    steps: int = 0
    counters: EngineCounters = EngineCounters()


class _Model(msgspec.Struct, frozen=True):
    """`before` is what the engines that have ended had counted, `last` what the latest one has, and
    `status` what it says of itself while it is up."""

    before: Counted = Counted()
    last: Counted = Counted()
    incarnation: int = 0
    status: EngineStatus | None = None


class EngineCollector(Collector):
    """The latest report of each model's engine, and what those before it had counted."""

    def __init__(self) -> None:
        self._models: dict[str, _Model] = {}

    def report(self, model: str, status: EngineStatus | None, incarnation: int) -> None:
        """What an engine says of itself; None when it is not up, or has been silent for long.
        Models are those configured; two engines one after the other are two incarnations."""
        known = self._models.get(model, _Model())
        if status is None:
            self._models[model] = msgspec.structs.replace(known, status=None)
            return
        before = known.before
        if incarnation != known.incarnation:
            before = _added(before, known.last)
        last = Counted(status.steps, status.counters)
        self._models[model] = _Model(before, last, incarnation, status)

    def collect(self) -> Iterator[Metric]:
        families = {name: _family(name) for name in ENGINE_METRICS}
        for model, known in dict(self._models).items():
            counted = _added(known.before, known.last)
            for name, value in _gauges(known.status):
                _add(families[f"agentd_{name}"], model, value)
            for name, value in _counters(counted):
                _add(families[f"agentd_{name}"], model, value)
            for name, labels, distribution in _histograms(counted.counters):
                _add_histogram(families[f"agentd_{name}"], [model, *labels], distribution)
        yield from families.values()


# ---- One report as samples -----------------------------------------------------------------------


def _gauges(status: EngineStatus | None) -> Iterator[tuple[str, Sample]]:
    """All of them at 0 when the engine is not up: an alert on a missing series never fires."""
    yield "model_loaded", ((), float(status is not None))
    slots = [] if status is None else status.slots
    waiting = [] if status is None else status.queue
    yield "num_requests_running", ((), sum(slot.state != "free" for slot in slots))
    for priority in PRIORITIES:
        count = sum(request.priority == priority for request in waiting)
        yield "num_requests_waiting", ((priority,), count)
    used = status.kv_cells_used / status.kv_cells if status is not None and status.kv_cells else 0.0
    yield "kv_cache_usage_ratio", ((), used)
    yield "swap_bytes", ((), 0 if status is None else status.swap_bytes_used)
    yield "engine_threads", ((), 0 if status is None else status.threads)
    yield "model_memory_bytes", ((), 0 if status is None else status.model.memory_bytes)


def _counters(counted: Counted) -> Iterator[tuple[str, Sample]]:
    counters = counted.counters
    for strength in STRENGTHS:
        count = counters.preemptions.get(strength, 0)
        yield "num_preemptions_total", ((strength,), count)
    yield "prefix_cache_queries_total", ((), counters.prefix_queries)
    yield "prefix_cache_hits_total", ((), counters.prefix_hits)
    yield "swapped_bytes_total", (("out",), counters.swapped_out_bytes)
    yield "swapped_bytes_total", (("in",), counters.swapped_in_bytes)
    yield "engine_steps_total", ((), counted.steps)
    yield "engine_tokens_total", (("prefill",), counters.prefill_tokens)
    yield "engine_tokens_total", (("decode",), counters.decode_tokens)
    yield "recomputed_tokens_total", ((), counters.recomputed_tokens)
    yield "forced_tokens_total", ((), counters.forced_tokens)


def _histograms(
    counters: EngineCounters,
) -> Iterator[tuple[str, Sequence[str], Distribution]]:
    yield "step_seconds", (), counters.step_seconds
    yield "step_tokens", (), counters.step_tokens
    for priority in PRIORITIES:
        distribution = counters.inter_token_seconds.get(priority, Distribution())
        yield "inter_token_latency_seconds", (priority,), distribution


# ---- Engines one after the other -----------------------------------------------------------------


def _added(one: Counted, other: Counted) -> Counted:
    fields = {
        name: _sum(getattr(one.counters, name), getattr(other.counters, name))
        for name in EngineCounters.__struct_fields__
    }
    return Counted(one.steps + other.steps, EngineCounters(**fields))


def _sum(one: Any, other: Any) -> Any:
    """Of two numbers, two distributions, or those of the same key."""
    if isinstance(one, dict):
        shared = {key: _sum(one[key], other[key]) for key in one.keys() & other.keys()}
        return {**one, **other, **shared}
    return _added_distributions(one, other) if isinstance(one, Distribution) else one + other


def _added_distributions(one: Distribution, other: Distribution) -> Distribution:
    """Both together. With other buckets, those of an engine of another version, the later ones
    alone: a histogram that begins anew is understood, one with mixed buckets is not."""
    if not one.counts or not other.counts:
        return other if other.counts else one
    if one.bounds != other.bounds:
        return other
    return Distribution(
        bounds=one.bounds,
        counts=[mine + theirs for mine, theirs in zip(one.counts, other.counts, strict=True)],
        total=one.total + other.total,
    )


# ---- Families of Prometheus ----------------------------------------------------------------------


def _family(name: str) -> Metric:
    metric = METRICS[name]
    match metric.kind:
        case "counter":
            return CounterMetricFamily(name, metric.help, labels=metric.labels)
        case "gauge":
            return GaugeMetricFamily(name, metric.help, labels=metric.labels)
        case "histogram":
            return HistogramMetricFamily(name, metric.help, labels=metric.labels)


def _add(family: Metric, model: str, sample: Sample) -> None:
    assert isinstance(family, CounterMetricFamily | GaugeMetricFamily)
    labels, value = sample
    family.add_metric([model, *labels], value)


def _add_histogram(family: Metric, labels: Sequence[str], distribution: Distribution) -> None:
    """Prometheus counts in each bucket what is in the smaller ones too."""
    assert isinstance(family, HistogramMetricFamily)
    bounds = [*map(floatToGoString, distribution.bounds), "+Inf"]
    counts = distribution.counts or [0]
    buckets, sum_so_far = [], 0
    for bound, count in zip(bounds, counts, strict=True):
        sum_so_far += count
        buckets.append((bound, float(sum_so_far)))
    family.add_metric(labels, buckets, distribution.total)
