"""wasi:random: bytes from the seed of the delivery, as `moment` has them."""

from agent_runtime.component import limits
from agent_runtime.component.wasi.surroundings import Functions, Surroundings
from agent_runtime.component.wasi.trap import HostTrap


def random_functions(around: Surroundings) -> Functions:
    def random_bytes(length: int) -> bytes:
        if length > limits.RANDOM_BYTES_MAX:
            raise HostTrap(
                f"it asks for {length} random bytes at once; {limits.RANDOM_BYTES_MAX} can be had"
            )
        return around.moment.random(length)

    def random_u64() -> int:
        return int.from_bytes(around.moment.random(8), "little")

    return {
        "get-random-bytes": random_bytes,
        "get-random-u64": random_u64,
        "get-insecure-random-bytes": random_bytes,
        "get-insecure-random-u64": random_u64,
        "insecure-seed": lambda: (random_u64(), random_u64()),
    }
