"""Serves the methods of the control socket. Thin: reads views, applies reducers, asks the daemon."""

import os
import time
from collections.abc import Awaitable, Callable
from difflib import get_close_matches
from typing import Final, Protocol

from ipc_protocol import control
from ipc_protocol.aio import Call, Handlers
from ipc_protocol.errors import Failure
from ipc_protocol.inference import Nothing
from ipc_protocol.methods import (
    AGENTS,
    ANSWER,
    ASK,
    ATTENTION_ANSWER,
    ATTENTION_LIST,
    MEMORY,
    SEND,
    SLOTS,
    STATUS,
    TASKS,
    TRACE,
    WATCH,
)
from ipc_protocol.values import Receipt
