"""What a layer says about itself: its report when it was settled, its error when it was refused.

Nothing here applies a layer. Every layer module returns one `LayerReport` or raises one
`LayerUnavailable`; `apply` alone decides which of them a mode can live with.
"""

import os
from typing import Literal

import msgspec

SandboxMode = Literal["strict", "standard", "off"]
LayerState = Literal["enforced", "missing", "not-applicable"]

CURE_UNKNOWN = 'see "What the sandbox needs" in README.md'


class LayerReport(msgspec.Struct, frozen=True):
    """What became of one layer for one worker."""

    layer: str
    state: LayerState
    detail: str  # what is in force, or what was refused and by whom
    cure: str = ""  # what an operator can do; empty where nothing needs doing


class LayerUnavailable(Exception):
    """The host refused a layer. `errno` is 0 where no system call was to blame."""

    def __init__(self, layer: str, errno: int, detail: str, cure: str) -> None:
        self.layer = layer
        self.errno = errno
        self.detail = detail
        self.cure = cure
        super().__init__(f"{layer}: {detail}")

    @classmethod
    def of(cls, layer: str, action: str, error: OSError, cure: str) -> "LayerUnavailable":
        """The error of a system call, with the action that it was part of."""
        number = error.errno or 0
        return cls(layer, number, f"{action}: {os.strerror(number)}", cure)

    @property
    def report(self) -> LayerReport:
        return LayerReport(self.layer, "missing", self.detail, self.cure)


class SandboxRefusal(Exception):
    """Strict confinement is not to be had here, so the worker may not start.

    `failure` is the layer to blame, `reports` everything that was settled up to it and itself.
    """

    def __init__(self, failure: LayerUnavailable, reports: tuple[LayerReport, ...]) -> None:
        self.failure = failure
        self.reports = reports
        super().__init__(f"sandbox refused at {failure}. {failure.cure}")
