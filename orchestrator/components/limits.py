"""Every bound of keeping and compiling components, each with its reason.

Sizes are bytes, times are seconds unless the name ends in another unit.
"""

from typing import Final

COMPONENT_BYTES_MAX: Final = 64 * 1024 * 1024
"""A component with a whole Python in it has 18 MB, and this is three times that."""

PIECE_BYTES: Final = 1024 * 1024
"""Read, hashed, copied or uploaded at once; a quarter of the largest frame."""

UPLOADS_MAX: Final = 4
"""Half-done uploads. Operators add components one by one; their files are 256 MiB at most."""
UPLOAD_IDLE_SECONDS_MAX: Final = 600.0
"""An upload that got nothing for so long was given up by whoever began it."""

NATIVE_BYTES_MAX: Final = 4 * COMPONENT_BYTES_MAX
"""Native code. What compiles in practice has 2.2 times the size of its component. The confinement
of a compiler has the same limit (`agent_runtime.sandbox.limits`)."""

SIDECAR_BYTES_MAX: Final = 1024 * 1024
"""What is known of a component: its types (256 KiB, and a third more in base64), its functions for
people (64 KiB), and four lists of at most 256 names of 256 characters. An honest one has 80 kB."""

KEY_BYTES: Final = 32
"""As long as a digest of SHA-256; a longer key would be hashed down to that (RFC 2104)."""

UNUSED_DAYS_MAX: Final = 30
"""Native code that no agent has used for so long costs 10 s to make again."""
UNUSED_BYTES_MAX: Final = 1024 * 1024 * 1024
"""Native code that no agent uses now: 25 versions with a whole Python in them."""

COMPILERS_MAX: Final = 2
"""At once, so that a hostile component which uses up its limits does not hold an honest one up. A
compiler takes one processor; the others wait."""

COMPILE_CPU_SECONDS_MAX: Final = 120
"""A component with a whole Python takes 9 s, and a tenth of the processor must be enough too."""
COMPILE_SECONDS_MAX: Final = 300.0
"""By the clock: the processor time on a machine that has half of it to spare."""
assert COMPILE_SECONDS_MAX >= 2 * COMPILE_CPU_SECONDS_MAX

COMPILE_MEMORY_BYTES_MAX: Final = 2 * 1024 * 1024 * 1024
"""A component with a whole Python takes 400 MB; 22 KB that were made to hurt took 1.6 GiB."""

COMPILE_SCRATCH_BYTES_MAX: Final = 1024 * 1024
"""A compiler keeps nothing in files but its result."""

COMPILE_BYTES_PER_SECOND: Final = 2_000_000
"""For estimates: 18 MB of component take 9 s on one processor."""

PROGRESS_SECONDS: Final = 0.25
"""Between two tellings of how far a compilation is: a person sees it move."""

ZYGOTE_DEATHS_MAX: Final = 3
"""Of zygotes that died under one compilation. Something else is wrong after that."""
