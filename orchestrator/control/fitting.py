"""Cuts the texts of a trace so that it fits into one frame, whatever is in it. Pure.

The longest are cut first, all to the same length, and only if all together are too long: a trace of
ordinary size is never touched. What is cut says so in its place, and `Trace.cut` says it once more.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from ipc_protocol.control import JournalStep, Trace, TracedDelivery
from ipc_protocol.limits import BODY_DEPTH_MAX, BODY_ELEMENTS_MAX, FRAME_BODY_BYTES_MAX

TEXT_BYTES_MAX: Final = FRAME_BODY_BYTES_MAX // 2
"""All texts, requests and results together. The other half is for the rows they stand in."""

VALUES_MAX: Final = BODY_ELEMENTS_MAX // 2
"""All values in requests and results together; the other half, again, is for the rows."""

DEPTH_MAX: Final = BODY_DEPTH_MAX - 8
"""How deeply a request or a result may nest: it stands at the sixth level of a trace."""

ELLIPSIS: Final = "…"


class Size(msgspec.Struct, frozen=True):
    """What a request or a result costs in a frame: its bytes, its values, and how deep it is."""

    bytes: int
    values: int
    depth: int


def share(sizes: Sequence[int], total_max: int) -> int:
    """The largest size to which each may be cut so that their sum is at most `total_max`."""
    left = total_max
    for place, size in enumerate(sorted(sizes)):
        fair = left // (len(sizes) - place)
        if size > fair:
            return fair
        left -= size
    return max(sizes, default=0)


def size_of(value: dict[str, Any]) -> Size:
    values, depth = 0, 0
    nested: list[Any] = [value]
    while nested:
        inside = [inner for one in nested for inner in _inside(one)]
        values += len(inside)
        depth += 1
        nested = [one for one in inside if isinstance(one, dict | list)]
    return Size(len(msgspec.msgpack.encode(value)), values, depth)


def _inside(value: Any) -> Iterator[Any]:
    yield from value.values() if isinstance(value, dict) else value


def fit(trace: Trace, text_bytes_max: int = TEXT_BYTES_MAX, values_max: int = VALUES_MAX) -> Trace:
    """The trace, with as little cut as is needed."""
    sizes = [size_of(value) for value in _values(trace)]
    texts = [len(text.encode()) for text in _texts(trace)]
    knife = _Knife(
        share(texts + [size.bytes for size in sizes], text_bytes_max),
        share([size.values for size in sizes], values_max),
    )
    fitted = knife.trace(trace)
    if not knife.cuts:
        return trace
    what = "1 text is" if knife.cuts == 1 else f"{knife.cuts} texts are"
    remark = f"{what} cut, to {knife.bytes_max} bytes where they are too long."
    return msgspec.structs.replace(fitted, cut=f"{trace.cut} {remark}".strip())


def _values(trace: Trace) -> Iterator[dict[str, Any]]:
    for delivery in trace.deliveries:
        for step in delivery.steps:
            yield step.request
            yield step.result


def _texts(trace: Trace) -> Iterator[str]:
    yield trace.conversation.question
    yield trace.conversation.reply or ""
    for message in trace.messages:
        yield message.text
    for delivery in trace.deliveries:
        yield delivery.reason
        yield delivery.last_error
        yield delivery.parked_on
        for memory in delivery.memories:
            yield memory.text
        for trap in delivery.traps:
            yield trap.message
            yield trap.backtrace
    for letter in trace.dead_letters:
        yield letter.reason
        yield letter.last_error


class _Knife:
    """Cuts to fixed sizes, and counts its cuts."""

    def __init__(self, bytes_max: int, values_max: int) -> None:
        self.bytes_max = bytes_max
        self.cuts = 0
        self._values_max = values_max

    def trace(self, trace: Trace) -> Trace:
        replace = msgspec.structs.replace
        asked = trace.conversation
        reply = None if asked.reply is None else self._text(asked.reply)
        return replace(
            trace,
            conversation=replace(asked, question=self._text(asked.question), reply=reply),
            messages=[replace(one, text=self._text(one.text)) for one in trace.messages],
            deliveries=[self._delivery(one) for one in trace.deliveries],
            dead_letters=[
                replace(one, reason=self._text(one.reason), last_error=self._text(one.last_error))
                for one in trace.dead_letters
            ],
        )

    def _delivery(self, delivery: TracedDelivery) -> TracedDelivery:
        replace = msgspec.structs.replace
        return replace(
            delivery,
            reason=self._text(delivery.reason),
            last_error=self._text(delivery.last_error),
            parked_on=self._text(delivery.parked_on),
            steps=[self._step(step) for step in delivery.steps],
            memories=[replace(one, text=self._text(one.text)) for one in delivery.memories],
            traps=[
                replace(one, message=self._text(one.message), backtrace=self._text(one.backtrace))
                for one in delivery.traps
            ],
        )

    def _step(self, step: JournalStep) -> JournalStep:
        return msgspec.structs.replace(
            step, request=self._value(step.request), result=self._value(step.result)
        )

    def _text(self, text: str) -> str:
        encoded = text.encode()
        if len(encoded) <= self.bytes_max:
            return text
        return f"{self._beginning(encoded)} (cut: {len(encoded)} bytes in all)"

    def _value(self, value: dict[str, Any]) -> dict[str, Any]:
        """Where it does not fit, the beginning of its JSON stands for it."""
        size = size_of(value)
        fits = size.bytes <= self.bytes_max and size.values <= self._values_max
        if fits and size.depth <= DEPTH_MAX:
            return value
        encoded = msgspec.json.encode(value)
        return {"cut": self._beginning(encoded), "bytes": len(encoded)}

    def _beginning(self, encoded: bytes) -> str:
        self.cuts += 1
        return encoded[: self.bytes_max].decode(errors="ignore") + ELLIPSIS
