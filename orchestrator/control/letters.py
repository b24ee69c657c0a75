"""The dead letters as operators see them. Reads only."""

from typing import Any, Final

import msgspec

from ipc_protocol.bus import (
    CausingMessage,
    DeadLetterDetail,
    DeadLetterFilter,
    DeadLetterLine,
    DeadLetters,
)
from ipc_protocol.errors import Failure
from ipc_protocol.limits import FRAME_BODY_BYTES_MAX, PAYLOAD_BYTES_MAX
from ipc_protocol.values import PRIORITIES
from orchestrator.bus import topics
from orchestrator.bus.replaying import LETTERS_PER_CALL_MAX, unknown_letter
from orchestrator.control.payloads import readable
from orchestrator.store.database import Query, Value
from orchestrator.store.reader import Reader

LINES_MAX: Final = 500
"""The longest page: ten screens."""

REASON_CHARS_MAX: Final = 1000
"""Of a reason in a list. The whole of it is shown with its dead letter alone."""

TEXT_CHARS_MAX: Final = 131_072
"""Of a reason and of a last error where one dead letter is shown: the end of a backtrace tells
little after so much of it."""

assert LINES_MAX * REASON_CHARS_MAX * 4 <= FRAME_BODY_BYTES_MAX // 2
assert 2 * TEXT_CHARS_MAX * 4 + PAYLOAD_BYTES_MAX <= FRAME_BODY_BYTES_MAX // 2

_LINE: Final = (
    "SELECT l.id, l.died_us, l.sender, l.receiver, l.topic, l.class, l.code,"
    " substr(l.reason, 1, ?), l.attempts,"
    " coalesce(c.correlation, ''), length(l.payload), l.replayed_as, l.replayed_us"
    " FROM dead_letter l LEFT JOIN conversation c ON c.id = l.conversation "
)


class Letters:
    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def page(self, chosen: DeadLetterFilter, limit: int) -> DeadLetters:
        """The newest of those that are `chosen`."""
        return await self._reader.view(_page, chosen, min(max(limit, 1), LINES_MAX))

    async def detail(self, number: int) -> DeadLetterDetail:
        """Raises `deadletter.unknown`."""
        return await self._reader.view(_detail, number)

    async def oldest(self, chosen: DeadLetterFilter, above: int) -> list[int]:
        """The numbers of those `chosen` that are greater than `above`, the oldest first; as many
        as one reducer takes."""
        return await self._reader.view(_oldest, chosen, above)


def _page(query: Query, chosen: DeadLetterFilter, limit: int) -> DeadLetters:
    where, bindings = _condition(query, chosen)
    rows = query.rows(
        f"{_LINE} WHERE {where} ORDER BY l.id DESC LIMIT ?",
        (REASON_CHARS_MAX, *bindings, limit + 1),
    )
    without_paging = msgspec.structs.replace(chosen, below=None)
    everywhere, all_bindings = _condition(query, without_paging)
    matching = query.row(f"SELECT count(*) FROM dead_letter l WHERE {everywhere}", all_bindings)
    assert matching is not None
    letters = [_line(row) for row in rows[:limit]]
    return DeadLetters(
        letters=letters,
        matching=matching[0],
        below=letters[-1].number if len(rows) > limit else None,
    )


def _oldest(query: Query, chosen: DeadLetterFilter, above: int) -> list[int]:
    where, bindings = _condition(query, chosen)
    sql = f"SELECT l.id FROM dead_letter l WHERE {where} AND l.id > ? ORDER BY l.id LIMIT ?"
    rows: list[Any] = query.rows(sql, (*bindings, above, LETTERS_PER_CALL_MAX))
    return [row[0] for row in rows]


def _condition(query: Query, chosen: DeadLetterFilter) -> tuple[str, tuple[Value, ...]]:
    """What holds for a row `l`. Raises `bus.invalid-topic`."""
    parts: list[str] = ["true"]
    bindings: list[Value] = []
    for part, value in (
        ("coalesce(l.receiver, l.sender) = ?", chosen.agent),
        ("l.topic IN (SELECT value FROM json_each(?))", _topics(query, chosen.topic)),
        ("l.code = ?", chosen.code),
        ("l.died_us >= ?", chosen.since_us),
        ("l.died_us < ?", chosen.before_us),
        ("l.id < ?", chosen.below),
        ("(l.replayed_as IS NOT NULL) = ?", chosen.replayed),
    ):
        if value is not None:
            parts.append(part)
            bindings.append(value)
    return " AND ".join(parts), tuple(bindings)


def _topics(query: Query, pattern: str | None) -> str | None:
    """The topics of dead letters that `pattern` matches, as JSON."""
    if pattern is None:
        return None
    require_pattern(pattern)
    rows = query.rows("SELECT DISTINCT topic FROM dead_letter WHERE topic <> ''")
    found = [topic for (topic,) in rows if topics.matches(pattern, topic)]
    return msgspec.json.encode(found).decode()


def require_pattern(pattern: str) -> None:
    """Raises `bus.invalid-topic`."""
    fault = topics.fault_of_pattern(pattern)
    if fault is not None:
        raise Failure(
            "bus.invalid-topic",
            f"The topic {pattern!r} {fault}.",
            "Topics are words and dots; `*` is one word, `>` the rest.",
            topic=pattern,
        )


def _detail(query: Query, number: int) -> DeadLetterDetail:
    found = query.row(f"{_LINE} WHERE l.id = ?", (TEXT_CHARS_MAX, number))
    rest = query.row(
        "SELECT substr(last_error, 1, ?), message, delivery, causes, payload FROM dead_letter"
        " WHERE id = ?",
        (TEXT_CHARS_MAX, number),
    )
    if found is None or rest is None:
        raise unknown_letter(number)
    last_error, message, delivery, causes, payload = rest
    return DeadLetterDetail(
        letter=_line(found),
        last_error=last_error,
        message=message,
        delivery=delivery,
        causes=msgspec.json.decode(causes, type=list[CausingMessage]),
        payload=readable(payload, len(payload)),
    )


def _line(row: tuple[Any, ...]) -> DeadLetterLine:
    (
        number,
        died_us,
        sender,
        receiver,
        topic,
        rank,
        code,
        reason,
        attempts,
        correlation,
        payload_bytes,
        replayed_as,
        replayed_us,
    ) = row
    return DeadLetterLine(
        number=number,
        died_us=died_us,
        sender=sender,
        receiver=receiver,
        topic=topic,
        priority=PRIORITIES[rank],
        code=code,
        reason=reason,
        attempts=attempts,
        correlation=correlation,
        payload_bytes=payload_bytes,
        replayed_as=replayed_as,
        replayed_us=replayed_us,
    )
