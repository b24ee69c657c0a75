"""Short readings of host files, since every character of a tool's answer is paid for in prefill.

Pure: the text of a file in, at most `HOST_OUTPUT_CHARACTERS_MAX` characters out. A file whose form
is not the expected one is shown as it is.
"""

import re
from collections.abc import Callable, Mapping
from typing import Final

from orchestrator.tools import limits

_LISTED_MAX: Final = 6
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


_LOGIN_SHELL: Final = re.compile(r"/(?:ba|da|z|fi|k|c|tc)?sh$")
_ADMIN_GROUPS: Final = ("root", "sudo", "wheel", "adm", "docker")


def _accounts(content: str, _: int) -> str | None:
    lines = [line.split(":") for line in content.splitlines()]
    accounts = [fields for fields in lines if len(fields) == 7]
    if not accounts:
        return None
    able = [fields[0] for fields in accounts if _LOGIN_SHELL.search(fields[6])]
    rooted = [fields[0] for fields in accounts if fields[2] == "0"]
    return (
        f"{len(able)} of {len(accounts)} accounts have a login shell: {_listed(able)}. "
        f"User id 0: {_listed(rooted)}."
    )


def _admins(content: str, _: int) -> str | None:
    lines = [line.split(":") for line in content.splitlines()]
    groups = {fields[0]: fields[3] for fields in lines if len(fields) == 4}
    found = [f"{name}: {groups[name] or 'nobody'}" for name in _ADMIN_GROUPS if name in groups]
    return f"Members of the groups with power: {'; '.join(found)}." if found else None


def _remote_login(content: str, _: int) -> str | None:
    fields = (line.split(None, 1) for line in content.splitlines())
    said: dict[str, str] = {}
    for field in fields:
        if len(field) == 2:
            said.setdefault(field[0].casefold(), field[1].strip())  # sshd takes the first
    root = said.get("permitrootlogin", "prohibit-password by default")
    password = said.get("passwordauthentication", "yes by default")
    return f"Root may log in by ssh: {root}. Passwords are accepted: {password}."


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_LISTED_MAX]) or "none"
    return shown if len(names) <= _LISTED_MAX else f"{shown} and {len(names) - _LISTED_MAX} more"


_READINGS: Final[Mapping[str, Callable[[str, int], str | None]]] = {
    "/proc/meminfo": _memory,
    "/proc/loadavg": _load,
    "/proc/uptime": _uptime,
    "/etc/passwd": _accounts,
    "/etc/group": _admins,
    "/etc/ssh/sshd_config": _remote_login,
}


def _ends(content: str) -> str:
    """The beginning and, since logs say the newest last, the end."""
    if len(content) <= limits.HOST_OUTPUT_CHARACTERS_MAX:
        return content
    gap = f"\n[… {len(content)} characters in all …]\n"
    kept = (limits.HOST_OUTPUT_CHARACTERS_MAX - len(gap)) // 2
    return content[:kept] + gap + content[-kept:]
