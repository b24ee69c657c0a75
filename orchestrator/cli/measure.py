"""The one shape in which all of `agentd bench` report: a public interface, as its fields are."""

import msgspec


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """One measured value. `peer` is what it is compared with, `expected` what is promised."""

    measure: str
    value: float
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    ratio: float | None = None
    """`value` to `peer_value`."""
    expected: float | None = None
    met: bool | None = None
