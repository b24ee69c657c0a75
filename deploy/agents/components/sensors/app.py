"""Aggregates readings, and raises an alert when a sensor leaves its range.

A reading is `{"sensor": "hall", "value": 31.5}`. The state has an entry for each sensor: how many
readings there were, their mean, minimum and maximum, the last one, and whether it was out of range.
An alert is raised once, when a sensor leaves its range, and again only after it had come back.
"""

import json
from math import isfinite
from typing import Any

from componentize_py_types import Err
from wit_world import exports
from wit_world.imports import health, logging, state
from wit_world.imports.bus import Envelope
from wit_world.imports.health import Condition
from wit_world.imports.logging import Level

ALERTS = "ops.alert"

MALFORMED_MAX = 3
"""Readings in a row that are none, after which something is wrong with whoever sends them."""

OPENED_MAX = 10
"""Brackets in one reading. A parser goes down a level at each, and the stack has an end."""

RANGES: dict[str, dict[str, float]] = {}
"""By sensor: `min`, `max` or both."""

malformed = 0
"""Readings in a row that were none. What is in the module is lost with a restart."""


class Lifecycle(exports.Lifecycle):
    def init(self, agent_id: str, config: bytes) -> None:
        RANGES.update(json.loads(config or b"{}").get("ranges", {}))

    def handle(self, msg: Envelope) -> list[Envelope]:
        sensor, value = read(msg.payload)
        key = f"sensor/{sensor}"
        kept = state.get(key)
        summary = add(json.loads(kept) if kept else None, value)
        fault = out_of_range(sensor, value)
        left = bool(fault) and not summary["alerting"]
        summary["alerting"] = bool(fault)
        state.put(key, json.dumps(summary).encode())
        if not left:
            return []
        logging.log(Level.WARNING, f"{sensor} {fault}")
        counted = f"{summary['count']} readings, mean {summary['mean']:.4g}"
        text = f"Monitoring alert: the sensor {sensor} {fault}. {counted}."
        return [Envelope(ALERTS, "", text.encode(), msg.correlation_id)]

    def shutdown(self) -> None:
        pass


def read(payload: bytes) -> tuple[str, float]:
    """The sensor and the value of a reading. One that is none is refused."""
    global malformed
    try:
        if payload.count(b"[") + payload.count(b"{") > OPENED_MAX:
            raise ValueError("it is nested too deeply")
        reading = json.loads(payload)
        sensor, value = reading["sensor"], reading["value"]
        if not (isinstance(sensor, str) and sensor.isprintable() and 0 < len(sensor) <= 100):
            raise ValueError("its sensor has no name")
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            raise ValueError("its value is not a number")
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        malformed += 1
        if malformed == MALFORMED_MAX:
            health.emit(Condition.DEGRADED, f"{malformed} readings in a row were none")
        raise Err(f"This is not a reading: {type(error).__name__}, {error}") from None
    if malformed >= MALFORMED_MAX:
        health.emit(Condition.HEALTHY, "readings come again")
    malformed = 0
    return sensor, float(value)


def add(summary: dict[str, Any] | None, value: float) -> dict[str, Any]:
    """The summary with one more reading in it."""
    if summary is None:
        summary = {"count": 0, "mean": 0.0, "min": value, "max": value, "alerting": False}
    count = summary["count"] + 1
    return {
        "count": count,
        # Without a sum, which would lose digits as it grows.
        "mean": summary["mean"] + (value - summary["mean"]) / count,
        "min": min(summary["min"], value),
        "max": max(summary["max"], value),
        "last": value,
        "alerting": summary["alerting"],
    }


def out_of_range(sensor: str, value: float) -> str:
    """How the value leaves the sensor's range, or nothing."""
    allowed = RANGES.get(sensor, {})
    if value > allowed.get("max", value):
        return f"exceeds its threshold: {value:g}, over {allowed['max']:g}"
    if value < allowed.get("min", value):
        return f"falls below its threshold: {value:g}, under {allowed['min']:g}"
    return ""
