"""What a worker would otherwise import, open or start after there is no file left to open.

Python imports lazily in more places than one sees: a codec at its first use, a part of asyncio at
the first task group. The zygote calls `preload` once; the workers inherit the result.
"""

import contextlib
import importlib
import time

from agent_runtime.sandbox import limits, seccomp, syscalls
from agent_runtime.sandbox.report import LayerUnavailable

_MODULES = (
    # the loop; `uvloop` imports parts of asyncio when a loop is made
    *("asyncio", "asyncio.runners", "asyncio.taskgroups", "asyncio.timeouts", "uvloop", "ssl"),
    # the wire
    *("msgpack", "msgspec", "msgspec.json", "msgspec.msgpack", "json", "base64", "hashlib"),
    # codecs are modules that `str.encode` imports by name
    *("encodings.utf_8", "encodings.ascii", "encodings.latin_1", "encodings.idna"),
    *("encodings.unicode_escape", "encodings.raw_unicode_escape", "encodings.punycode"),
    # what a traceback, a warning or a date drags in while it is shown
    *("traceback", "linecache", "tokenize", "warnings", "tracemalloc", "logging", "_strptime"),
    *("stringprep", "unicodedata", "random", "secrets", "tempfile", "decimal", "statistics"),
)


def preload() -> None:
    """Import them, and generate the filters. Starts no thread and makes no loop.

    A loop made here would leave libuv's process-wide descriptors behind, which confinement closes:
    the worker's first signal would abort it.
    """
    for name in _MODULES:
        importlib.import_module(name)
    time.tzset()  # reads the host's time zone; a worker that asks again gets this one or UTC
    syscalls.limit_malloc_arenas(limits.MALLOC_ARENAS_MAX)
    # Without the library each worker is refused (or reports it) on its own, with the cure.
    with contextlib.suppress(LayerUnavailable):
        seccomp.filters()
