"""How fast an answer may come: a bucket of bytes that fills at a rate. Pure."""


class ByteRate:
    """`burst` bytes at once, `per_second` in the long run. Times are microseconds."""

    def __init__(self, *, per_second: int, burst: int, now_us: int) -> None:
        assert per_second > 0
        assert burst > 0
        self._per_second = per_second
        self._burst = burst
        self._room = float(burst)
        self._filled_us = now_us

    def take(self, count: int, now_us: int) -> int:
        """`count` bytes have come: how many microseconds to wait before more are read."""
        gained = (now_us - self._filled_us) * self._per_second / 1e6
        self._room = min(float(self._burst), self._room + gained) - count
        self._filled_us = now_us
        return max(0, round(-self._room * 1e6 / self._per_second))
