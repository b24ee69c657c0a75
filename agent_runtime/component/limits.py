"""Every bound on what a component may ask of its host, each with its reason. Sizes are bytes.

What a component costs beside them (fuel, time, memory) comes with its `ComponentStart`.
"""

from typing import Final

from ipc_protocol.limits import BODY_DEPTH_MAX, FRAME_BODY_BYTES_MAX, PAYLOAD_BYTES_MAX

# ---- The store ----------------------------------------------------------------------------------

INSTANCES_MAX: Final = 256
"""Core instances of one component: one for each module and each adapter of its toolchain, of which
the largest we know makes 30."""
TABLES_MAX: Final = 64
MEMORIES_MAX: Final = 16
"""Linear memories, each limited to the agent's memory. A component has one, or one for each of the
components that it is made of; the address space of the process bounds their sum."""

# ---- What is staged for a completion ------------------------------------------------------------

OUTPUTS_SENT_MAX: Final = 64
"""Messages of one completion that the bus sends. What is beyond becomes dead letters."""
OUTPUTS_KEPT_MAX: Final = 1024
"""Messages that are passed on, to be sent or buried: dead letters are to be read by a person, who
learns no more from the next thousand."""
assert OUTPUTS_SENT_MAX <= OUTPUTS_KEPT_MAX

MEMORIES_NOTED_MAX: Final = 7
"""The bus takes 8 with a completion, and reflection may add one."""
MEMORY_CHARS_MAX: Final = 4096
TASK_CHANGES_MAX: Final = 64
TASK_CHARS_MAX: Final = 4096
"""As the bus takes them."""

STATE_KEY_BYTES_MAX: Final = 256
STATE_VALUE_BYTES_MAX: Final = PAYLOAD_BYTES_MAX
STATE_CHANGES_MAX: Final = 256

STAGED_BYTES_MAX: Final = FRAME_BODY_BYTES_MAX - 1024 * 1024
"""All that one delivery stages, in one frame. What is left of the frame is for what surrounds each
of the `OUTPUTS_KEPT_MAX` messages, and for what the loop adds."""
STAGED_OVERHEAD_BYTES: Final = 128
"""Counted for each: names of fields, and numbers."""
assert STAGED_BYTES_MAX >= OUTPUTS_KEPT_MAX * (STAGED_OVERHEAD_BYTES + 128)

# ---- What is asked ------------------------------------------------------------------------------

TOPIC_CHARS_MAX: Final = 128
"""As the bus takes it."""
QUERY_CHARS_MAX: Final = 4096
RECALLED_MAX: Final = 8
JSON_BYTES_MAX: Final = 96 * 1024
"""Of a tool's arguments, or of a schema, which goes with a prompt."""
JSON_DEPTH_MAX: Final = BODY_DEPTH_MAX - 8
"""A request wraps its arguments four levels deep, its journal entry twice that."""
PROMPT_BYTES_MAX: Final = 96 * 1024
"""With a schema and what surrounds both, within the 256 KiB that an effect may have."""
PROMPT_MESSAGES_MAX: Final = 64
QUESTION_CHARS_MAX: Final = 600
"""As the tool `attention.request` takes it."""
HEALTH_DETAIL_CHARS_MAX: Final = 500
DEFERRAL_SECONDS_MAX: Final = 366 * 24 * 3600
"""As the bus takes it."""
REASON_CHARS_MAX: Final = 500
"""Of what a component says when it refuses a message, or why it decided so."""
LESSON_CHARS_MAX: Final = 2000

# ---- The log ------------------------------------------------------------------------------------

LOG_BYTES_PER_CALL_MAX: Final = 1024 * 1024
"""A flood would bury what the others say, and fill the disk of the journal."""
LOG_LINES_PER_CALL_MAX: Final = 4096
"""Each costs some microseconds, also an empty one, and they are outside of fuel and deadline."""
LOG_LINE_CHARS_MAX: Final = 4096

# ---- WASI ---------------------------------------------------------------------------------------

HANDLES_MAX: Final = 1024
"""Resources held at once. A toolchain holds a dozen; a loop that leaks them ends here."""
TRANSFER_BYTES_MAX: Final = 64 * 1024
"""What one call reads or may write at once; more takes more calls, as with any stream."""
RANDOM_BYTES_MAX: Final = 256 * 1024
"""Of one call. The library converts each byte into 32."""
FILES_OPEN_MAX: Final = 32
"""Half of the descriptors of a worker, which needs about 12 for itself."""
PATH_BYTES_MAX: Final = 4096
PATH_DEPTH_MAX: Final = 32
"""Folders within folders: each costs an `openat`, and a component could ask for nothing else."""
BACKTRACE_CHARS_MAX: Final = 8192
"""Of a trap, for the log and the trace. Unbounded recursion has ten thousand frames alike."""
