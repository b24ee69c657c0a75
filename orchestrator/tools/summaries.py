"""Short readings of host files, since every character of a tool's answer is paid for in prefill.

Pure: the text of a file in, at most `HOST_OUTPUT_CHARACTERS_MAX` characters out. A file whose form
is not the expected one is shown as it is.
"""

import re
from collections.abc import Callable, Mapping
from typing import Final

from orchestrator.tools import limits

_MEMORY_LINE: Final = re.compile(r"^(\w+):\s+(\d+) kB$", re.MULTILINE)


def summarise(path: str, content: str, cores: int) -> str:
    """What `content` of the host file `path` says; `cores` is the number of processors."""
    reading = _READINGS.get(path)
    summary = reading(content, cores) if reading is not None else None
    return summary or _ends(content.strip()) or "The file is empty."


def _memory(content: str, _: int) -> str | None:
    kilobytes = {name: int(value) for name, value in _MEMORY_LINE.findall(content)}
    total, available = kilobytes.get("MemTotal", 0), kilobytes.get("MemAvailable")
    if not total or available is None:
        return None
    used = 100 * (total - available) // total
    lines = [f"Memory: {used}% of {_size(total)} used, {_size(available)} available."]
    lines.append(_swap(kilobytes))
    if kilobytes.get("Dirty", 0) > total // 20:
        lines.append(f"{_size(kilobytes['Dirty'])} wait to be written to disk.")
    return " ".join(lines)


def _swap(kilobytes: Mapping[str, int]) -> str:
    total, free = kilobytes.get("SwapTotal", 0), kilobytes.get("SwapFree", 0)
    if not total:
        return "No swap."
    return f"Swap: {100 * (total - free) // total}% of {_size(total)} used."


def _size(kilobytes: int) -> str:
    return f"{kilobytes / 1024**2:.1f} GiB" if kilobytes >= 1024**2 else f"{kilobytes // 1024} MiB"


def _load(content: str, cores: int) -> str | None:
    fields = content.split()
    try:
        one, five, fifteen = (float(field) for field in fields[:3])
        running, _, tasks = fields[3].partition("/")
    except (ValueError, IndexError):
        return None
    share = round(100 * one / cores)
    verdict = "overloaded" if share > 100 else "busy" if share > 70 else "fine"
    return (
        f"Load: {one:g} over 1 minute, {five:g} over 5, {fifteen:g} over 15, on {cores} cores: "
        f"{share}% now, {verdict}. {running} of {tasks} tasks run."
    )


def _uptime(content: str, _: int) -> str | None:
    try:
        seconds = int(float(content.split()[0]))
    except (ValueError, IndexError):
        return None
    days, rest = divmod(seconds, 86_400)
    return f"Up for {days} days, {rest // 3600} hours, {rest % 3600 // 60} minutes."


_READINGS: Final[Mapping[str, Callable[[str, int], str | None]]] = {
    "/proc/meminfo": _memory,
    "/proc/loadavg": _load,
    "/proc/uptime": _uptime,
}


def _ends(content: str) -> str:
    """The beginning and, since logs say the newest last, the end."""
    if len(content) <= limits.HOST_OUTPUT_CHARACTERS_MAX:
        return content
    gap = f"\n[… {len(content)} characters in all …]\n"
    kept = (limits.HOST_OUTPUT_CHARACTERS_MAX - len(gap)) // 2
    return content[:kept] + gap + content[-kept:]
