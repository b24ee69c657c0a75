"""What the functions of WASI share, and what the host changes before each call."""

import os
from collections.abc import Callable
from typing import Any, TypeAlias

from agent_runtime.component.log import Log
from agent_runtime.component.wasi.handles import Handles
from agent_runtime.component.wasi.moment import Moment

Functions: TypeAlias = dict[str, Callable[..., Any]]
"""The functions of one interface by their names in WIT."""


class Surroundings:
    def __init__(self, log: Log, moment: Moment) -> None:
        self.log = log
        self.moment = moment
        self.handles = Handles()


def outside_moment(now_us: int) -> Moment:
    """For a call that is no delivery's: it is not repeated, so chance may be chance."""
    return Moment(now_us, os.urandom(32))
