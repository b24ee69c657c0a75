"""Every metric there is: its name, kind, labels and buckets, and what it means.

Names are as operators of Prometheus, vLLM and llama.cpp know them. Counters end in `_total`; units
are seconds, bytes and ratios from 0 to 1.
"""

from collections.abc import Mapping
from typing import Final, Literal

import msgspec

_WAITS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""From an idle engine's first token to the longest time that a delivery has by default."""
_LIVES: Final = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 600.0, 3600.0, 86_400.0)
"""Deliveries and conversations may be parked until a person answers."""
_COMMITS: Final = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0)
"""An fdatasync takes 0.16 ms on an idle disk."""
_COMPILATIONS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0)
"""From a component of a few kB to the time after which a compiler is killed."""
_BATCHES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metric(msgspec.Struct, frozen=True):
    """One family. `buckets` are upper bounds, of histograms only; those of an engine come with what
    it has counted."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


_OF_THE_DAEMON: Final = (
    Metric(
        "agentd_deliveries_done_total",
        "counter",
        "Deliveries that ended, by what became of them.",
        ("agent", "priority", "outcome"),
    ),
    Metric(
        "agentd_delivery_seconds",
        "histogram",
        "From the message's commit to the end of the delivery.",
        ("priority",),
        _LIVES,
    ),
    Metric("agentd_deliveries", "gauge", "Deliveries by state.", ("state",)),
    Metric("agentd_queue_depth", "gauge", "Queued deliveries by class.", ("priority",)),
    Metric("agentd_parked", "gauge", "Parked deliveries by what they wait for.", ("reason",)),
    Metric("agentd_delivery_retries_total", "counter", "Deliveries handed out again.", ("agent",)),
    Metric("agentd_dead_letters_total", "counter", "Dead letters by error code.", ("code",)),
    Metric("agentd_messages_total", "counter", "Messages accepted by the bus.", ("priority",)),
    Metric("agentd_publish_refused_total", "counter", "Messages refused, by code.", ("code",)),
    Metric("agentd_conversations", "gauge", "Conversations by state.", ("state",)),
    Metric(
        "agentd_conversation_seconds",
        "histogram",
        "From the question to the composed reply.",
        (),
        _LIVES,
    ),
    Metric("agentd_attention_open", "gauge", "Questions that wait for a person."),
    Metric("agentd_agents", "gauge", "Agents by state.", ("state",)),
    Metric("agentd_worker_restarts_total", "counter", "Workers started again.", ("agent",)),
    Metric("agentd_worker_deaths_total", "counter", "Workers that died.", ("agent",)),
    Metric(
        "agentd_component_traps_total",
        "counter",
        "Components lost while they handled a delivery, by error code.",
        ("agent", "code"),
    ),
    Metric(
        "agentd_component_upgrades_total",
        "counter",
        "Versions that took over from another one.",
        ("agent",),
    ),
    Metric(
        "agentd_component_rollbacks_total",
        "counter",
        "Versions that gave way to the one before them.",
        ("agent",),
    ),
    Metric(
        "agentd_component_compile_seconds",
        "histogram",
        "Duration of a compilation, by result.",
        ("result",),
        _COMPILATIONS,
    ),
    Metric(
        "agentd_component_cache_refused_total",
        "counter",
        "Native code in the cache that was not the daemon's own, and was removed.",
    ),
    Metric("agentd_program_restarts_total", "counter", "Programs started again.", ("program",)),
    Metric(
        "agentd_sandbox_layers",
        "gauge",
        "Running workers by sandbox layer and its state.",
        ("layer", "state"),
    ),
    Metric(
        "agentd_phase_seconds",
        "histogram",
        "Duration of a phase of the loop, without time parked.",
        ("phase",),
        _WAITS,
    ),
    Metric("agentd_tool_calls_total", "counter", "Tool calls.", ("tool", "result")),
    Metric("agentd_tool_seconds", "histogram", "Duration of a tool call.", (), _WAITS),
    Metric(
        "agentd_inference_requests_total",
        "counter",
        "Requests that an engine ended, by result.",
        ("priority", "result"),
    ),
    Metric("agentd_prompt_tokens_total", "counter", "Tokens of prompts.", ("priority",)),
    Metric(
        "agentd_prompt_tokens_cached_total",
        "counter",
        "Tokens of prompts that were in the KV cache.",
        ("priority",),
    ),
    Metric("agentd_generation_tokens_total", "counter", "Tokens generated.", ("priority",)),
    Metric("agentd_agent_tokens_total", "counter", "Tokens spent for an agent.", ("agent", "kind")),
    Metric(
        "agentd_time_to_first_token_seconds",
        "histogram",
        "From the request to its first token.",
        ("priority",),
        _WAITS,
    ),
    Metric(
        "agentd_request_queue_time_seconds",
        "histogram",
        "Time that a request waits for a slot.",
        ("priority",),
        _WAITS,
    ),
    Metric(
        "agentd_request_prefill_time_seconds",
        "histogram",
        "From a request's first slot to its first token.",
        ("priority",),
        _WAITS,
    ),
    Metric(
        "agentd_request_decode_time_seconds",
        "histogram",
        "From a request's first token to its last.",
        ("priority",),
        _WAITS,
    ),
    Metric(
        "agentd_e2e_request_latency_seconds",
        "histogram",
        "From the request to its last token.",
        ("priority",),
        _WAITS,
    ),
    Metric("agentd_store_commit_writes", "histogram", "Writes in one commit.", (), _BATCHES),
    Metric("agentd_store_commit_seconds", "histogram", "Duration of a commit.", (), _COMMITS),
    Metric(
        "agentd_store_rows_deleted_total",
        "counter",
        "Rows older than the retention window that were deleted.",
        ("table",),
    ),
    Metric("agentd_store_log_bytes", "gauge", "Bytes in use in the write-ahead log."),
    Metric("agentd_store_free_bytes", "gauge", "Bytes free on the store's file system."),
    Metric("agentd_store_reserve_bytes", "gauge", "Bytes kept free for what was accepted."),
    Metric("agentd_store_intake_open", "gauge", "1 if new work is taken in, 0 on a full disk."),
    Metric("agentd_build_info", "gauge", "Always 1; the version is a label.", ("version",)),
)

_OF_ENGINES: Final = (
    Metric(
        "agentd_num_requests_running",
        "gauge",
        "Requests that have a slot, those that sit out a step among them.",
        ("model",),
    ),
    Metric(
        "agentd_num_requests_waiting",
        "gauge",
        "Requests without a slot, those that had to give theirs up among them.",
        ("model", "priority"),
    ),
    Metric(
        "agentd_kv_cache_usage_ratio",
        "gauge",
        "Cells of the KV cache in use, from 0 to 1: what vLLM calls kv_cache_usage_perc.",
        ("model",),
    ),
    Metric(
        "agentd_num_preemptions_total",
        "counter",
        "Times that a request made way for a more urgent one, by how.",
        ("model", "strength"),
    ),
    Metric(
        "agentd_prefix_cache_queries_total",
        "counter",
        "Tokens of prompts that were looked for in the KV cache.",
        ("model",),
    ),
    Metric(
        "agentd_prefix_cache_hits_total",
        "counter",
        "Tokens of prompts that were found in the KV cache.",
        ("model",),
    ),
    Metric(
        "agentd_swapped_bytes_total",
        "counter",
        "Bytes of KV cache moved to host memory (out) and back (in).",
        ("model", "direction"),
    ),
    Metric("agentd_swap_bytes", "gauge", "Host memory that holds KV cache now.", ("model",)),
    Metric("agentd_engine_steps_total", "counter", "Steps that an engine made.", ("model",)),
    Metric(
        "agentd_engine_tokens_total",
        "counter",
        "Tokens that an engine computed, in prefill or in decode.",
        ("model", "phase"),
    ),
    Metric(
        "agentd_recomputed_tokens_total",
        "counter",
        "Tokens computed again because their request had made way.",
        ("model",),
    ),
    Metric(
        "agentd_forced_tokens_total",
        "counter",
        "Tokens that a schema left no choice in, and that were not decoded.",
        ("model",),
    ),
    Metric("agentd_step_seconds", "histogram", "Duration of a step.", ("model",)),
    Metric("agentd_step_tokens", "histogram", "Tokens in the batch of a step.", ("model",)),
    Metric(
        "agentd_inter_token_latency_seconds",
        "histogram",
        "From one token of a request to its next.",
        ("model", "priority"),
    ),
    Metric("agentd_engine_threads", "gauge", "Threads that decode now.", ("model",)),
    Metric("agentd_model_loaded", "gauge", "1 if the model is loaded, else 0.", ("model",)),
    Metric(
        "agentd_model_memory_bytes",
        "gauge",
        "Memory that the model and its cache take on their devices.",
        ("model",),
    ),
)
"""Counted by the engines themselves; `engine_metrics` adds up what they report."""

_TABLE: Final = (*_OF_THE_DAEMON, *_OF_ENGINES)

METRICS: Final[Mapping[str, Metric]] = {metric.name: metric for metric in _TABLE}
assert len(METRICS) == len(_TABLE)

DAEMON_METRICS: Final = tuple(metric.name for metric in _OF_THE_DAEMON)
ENGINE_METRICS: Final = tuple(metric.name for metric in _OF_ENGINES)
