"""What several tables have in common: names, lists, and addresses to listen on."""

import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path

from orchestrator.config.positions import KeyPath
from orchestrator.config.reader import Findings
from orchestrator.config.types import AGENT_NAME, AGENT_NAME_EXPECTED, AGENT_NAMES_RESERVED
from orchestrator.config.wording import quoted
from orchestrator.sockets import PATH_BYTES_MAX

_HOST_AND_PORT = re.compile(r"(?:\[([0-9a-fA-F:]+)\]|([A-Za-z0-9.]+)):([0-9]{1,5})")


def check_name(path: KeyPath, name: str, findings: Findings) -> None:
    """A name that messages, accounts and metrics go by."""
    if AGENT_NAME.fullmatch(name) is None:
        findings.problem(path, quoted(name), AGENT_NAME_EXPECTED)
    elif name in AGENT_NAMES_RESERVED:
        findings.problem(path, "a name that the daemon uses itself", "another name")


def check_list(values: Sequence[str], path: KeyPath, findings: Findings) -> None:
    """Nothing in it is empty or stands twice."""
    for index, value in enumerate(values):
        if not value.strip():
            findings.problem((*path, index), quoted(value), "a string that is not empty")
        elif value in values[:index]:
            findings.problem((*path, index), f"{quoted(value)} a second time", "it once")


def check_listen(path: KeyPath, listen: str, findings: Findings) -> None:
    """An address that this machine alone can reach, or none."""
    if listen.startswith("unix:"):
        check_socket_path(path, Path(listen.removeprefix("unix:")), findings)
    elif listen and not _is_loopback(listen):
        findings.problem(
            path,
            quoted(listen),
            '"127.0.0.1:PORT", "[::1]:PORT", "unix:PATH" or "" (nothing is served)',
            "For other machines, put a proxy with authentication before it.",
        )


def check_socket_path(key: KeyPath, path: Path, findings: Findings) -> None:
    if not socket_path_fits(path):
        findings.problem(
            key,
            f"a path of {len(os.fsencode(path))} bytes ({path})",
            f"at most {PATH_BYTES_MAX}, the limit of Unix sockets",
            "Choose a shorter one, for instance in /run.",
        )


def socket_path_fits(path: Path) -> bool:
    return len(os.fsencode(path)) <= PATH_BYTES_MAX


def _is_loopback(listen: str) -> bool:
    match = _HOST_AND_PORT.fullmatch(listen)
    if match is None or int(match[3]) > 65535:
        return False
    host = match[1] or match[2]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
