"""When the write-ahead log is copied into the database, and who has to let go of it. Pure.

A commit only appends to the log. A *pass* copies what the log holds into the database beside the
commits and makes nobody wait, but while commits come without a pause it never reaches the end of
the log, so the log grows. A *restart* copies the last piece between two commits, waits a moment for
readers, and lets the log begin anew; it holds commits up, so it comes after passes that have left
little of it to do. A reader keeps the log from beginning anew for as long as it reads, which is why
one of ours that reads too long is ended once the log is large.
"""

from typing import Final, Literal

import msgspec

MIB: Final = 1024 * 1024

PASS_BYTES: Final = 4 * MIB
"""Copied by one pass, at least: its two fsyncs are then a small part of it, and a page that was
written many times is copied once."""

TAIL_BYTES_MAX: Final = 2 * MIB
"""Left to a restart, at most: 500 pages, which are copied in a few milliseconds."""

LOG_BYTES_SOFT: Final = 2 * PASS_BYTES
"""From here on the log is to begin anew, which at 50 MB of commits a second is six times a second.
Writing over the file costs a commit half of what letting it grow costs, since then each fsync is a
change of the file system too."""

LOG_BYTES_KEPT: Final = 64 * MIB
"""What the file shrinks to after a burst: the next one need not let it grow again."""

LOG_BYTES_HARD: Final = 256 * MIB
"""From here on keeping the log bounded comes before not holding up commits and readers."""

READER_SECONDS_MAX: Final = 2.0
"""A read that has lasted this long, with a log beyond its hard bound, is ended. The longest of the
daemon's own, through a year's audit trail, takes a second."""

READS_HELD_SECONDS_MAX: Final = 2.0
"""Once a read was ended, new ones wait for the log to begin anew, but no longer than this: by then
those that had begun are over or were ended too. Without it the next read would be in the way."""

RESTART_MS_MAX: Final = 20
"""How long a restart of the log, and with it the commits, waits for readers: most take less."""

HARD_RESTART_MS_MAX: Final = 250
"""The same beyond the hard bound."""

ALARM_SECONDS: Final = 5.0
"""A log that is beyond its hard bound for longer is held there by something we cannot end."""

HELD_BACK_SECONDS: Final = 0.1
"""Between two passes while a reader is in the way: it may leave at any moment, and a pass that
copies nothing costs nobody anything."""

REFUSED_SECONDS: Final = 0.5
"""Between two restarts while somebody is in the way: each holds commits up for as long as it waits,
which so is 4 % of the time."""

assert PASS_BYTES >= TAIL_BYTES_MAX, "what a pass leaves alone must not keep a restart away"
assert READS_HELD_SECONDS_MAX >= READER_SECONDS_MAX, "or a read that goes on is in the way again"
assert LOG_BYTES_HARD > LOG_BYTES_KEPT > LOG_BYTES_SOFT > PASS_BYTES

Action = Literal["wait", "pass", "restart"]


class Log(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the log: `used` bytes since it began anew, `copied` of them are in the
    database. The last pass copied `worked` of them, and was `held_back` if a reader kept it
    from its end. `pass_from` and
    `restart_from` are when these may be tried again, and `over_since` the log has been beyond its
    hard bound; in seconds of the caller's clock."""

    used: int = 0
    copied: int = 0
    worked: int = 0
    held_back: bool = False
    pass_from: float = 0.0
    restart_from: float = 0.0
    over_since: float | None = None
    alarmed: bool = False


def observed(log: Log, used: int, now: float) -> Log:
    """The writer says how much is used. Less than before: the log has begun anew."""
    anew = used < log.used
    over_since = None
    if used >= LOG_BYTES_HARD:
        over_since = now if log.over_since is None else log.over_since
    alarmed = log.alarmed and used >= LOG_BYTES_SOFT
    if over_since is not None and now - over_since >= ALARM_SECONDS:
        alarmed = True
    return msgspec.structs.replace(
        log,
        used=used,
        copied=0 if anew else log.copied,
        worked=0 if anew else log.worked,
        held_back=log.held_back and not anew,
        over_since=over_since,
        alarmed=alarmed,
    )


def asks(log: Log, used: int) -> bool:
    """Is a look due, now that a commit has left `used` bytes in the log?"""
    return used < log.copied or used - log.copied >= PASS_BYTES


def next_action(log: Log, now: float) -> Action:
    left = log.used - log.copied
    if log.used >= LOG_BYTES_SOFT and now >= log.restart_from:
        # Each pass leaves what is committed meanwhile. Where that is not half of what it copied,
        # the next one will leave less; else passes are too slow, and that commits wait now is what
        # bounds the log. While a reader is in the way they would wait in vain.
        too_slow = 2 * left > log.worked and not log.held_back
        if left <= TAIL_BYTES_MAX or (log.used >= LOG_BYTES_HARD and too_slow):
            return "restart"
    return "pass" if left >= PASS_BYTES and now >= log.pass_from else "wait"


def pause(log: Log, now: float) -> float:
    """The seconds until what was put off may be done; 0 if nothing was."""
    return max(
        0.0, min((at for at in (log.pass_from, log.restart_from) if at > now), default=now) - now
    )


def patience_ms(log: Log) -> int:
    """How long a restart may wait for readers."""
    return RESTART_MS_MAX if log.used < LOG_BYTES_HARD else HARD_RESTART_MS_MAX


def after_pass(log: Log, held: int, copied: int, now: float) -> Log:
    """A pass found `held` bytes in the log, and `copied` of them are in the database now. Some are
    missing: a reader needs the database as it was before them."""
    held_back = copied < held
    pass_from = now + HELD_BACK_SECONDS if held_back else log.pass_from
    return msgspec.structs.replace(
        log,
        copied=copied,
        worked=copied - log.copied,
        held_back=held_back,
        pass_from=pass_from,
    )


def after_refused_pass(log: Log, now: float) -> Log:
    """A checkpoint of another program is under way."""
    return msgspec.structs.replace(log, pass_from=now + HELD_BACK_SECONDS)


def after_refused_restart(log: Log, now: float) -> Log:
    """A reader stayed for longer than a restart waits."""
    return msgspec.structs.replace(log, restart_from=now + REFUSED_SECONDS)


def after_restart(log: Log, now: float) -> Log:
    return observed(log, 0, now)


def holds_reads(log: Log, ended_at: float, now: float) -> bool:
    """Do new reads wait, after one was ended at `ended_at`?"""
    return log.used >= LOG_BYTES_HARD and now < ended_at + READS_HELD_SECONDS_MAX


def overstays(log: Log, reading_s: float) -> bool:
    """Is a read that has lasted `reading_s` to be ended?"""
    return log.used >= LOG_BYTES_HARD and reading_s >= READER_SECONDS_MAX
