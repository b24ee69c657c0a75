"""Every bound of the bus, with its reason. The payload's stands in `ipc_protocol.limits`."""

from typing import Final

from ipc_protocol.limits import FRAME_BODY_BYTES_MAX, PAYLOAD_BYTES_MAX

TOPIC_CHARS_MAX: Final = 128
TOPIC_WORDS_MAX: Final = 8
"""A topic is a path for people to read. The router's work grows with the words, so they are few."""

AGENT_NAME_CHARS_MAX: Final = 32
"""A name is one word of a topic, a folder, a label of metrics and a column of tables."""

assert len("agent.") + AGENT_NAME_CHARS_MAX <= TOPIC_CHARS_MAX

HOPS_MAX: Final = 32
"""Messages in a chain of causes. Work that is handed on so often goes round in circles."""

OUTPUTS_MAX: Final = 64
"""Messages of one completion: as many as an ordinary inbox holds."""

MEMORIES_MAX: Final = 8
"""Memories of one completion: reflection writes one, a component perhaps one for each deed."""

MEMORY_CHARS_MAX: Final = 4096
"""Text and lesson of a memory: a page. What is recalled fills a prompt, where lines are dear."""

TASK_CHANGES_MAX: Final = 64
"""Task changes of one completion: as many as tool calls are allowed at the most."""

TASK_CHARS_MAX: Final = 4096
"""Title and note of a task."""

TASKS_LISTED_MAX: Final = 64
"""Tasks in an agent's own list of what is unfinished, the oldest first: 64 of the longest are
1 MiB at 4 bytes a character, a quarter of a frame. Who has more has to finish some."""

assert TASKS_LISTED_MAX * TASK_CHARS_MAX * 4 <= FRAME_BODY_BYTES_MAX // 4

STATE_CHANGES_MAX: Final = 256
"""Changes of state of one completion: an index and its pages, or a table of readings by sensor."""

STATE_KEY_BYTES_MAX: Final = 256
"""A key is a path, not a text."""

STATE_VALUE_BYTES_MAX: Final = PAYLOAD_BYTES_MAX
"""A value holds any message that was received. Reading it is a journal entry of that size."""

HEALTH_CHARS_MAX: Final = 1000
"""What is kept of the detail of an agent's health: a paragraph for the operator."""

DEATHS_MAX: Final = 5
"""Workers that may die of one delivery before it is given up."""

CONVERSATION_MESSAGES_MAX: Final = 4096
"""Messages of one conversation. Agents that answer each other with 64 outputs each have written
four thousand after the second hop."""

PAYLOADS_MAX: Final = 1024
"""Payloads of one request to publish, on average of 4 KiB. All are written in one commit, which
takes about 10 ms; more would keep the other publishers waiting."""

assert PAYLOADS_MAX <= CONVERSATION_MESSAGES_MAX

MESSAGE_ID_CHARS_MAX: Final = 128
"""A publisher's own id of a message: a UUID, a hash, or a path and a number."""

MESSAGE_TTL_US: Final = 7 * 24 * 3600 * 1_000_000
"""A message that nobody began to handle within a week (a daemon that was off over the holidays)
answers a question that nobody asks any more."""

BACKPRESSURE_RETRY_US: Final = 1_000_000
"""A completion that met a full inbox is tried again after a second: a model answers in about that
time, so a place has likely become free."""

DEFERRAL_US_MIN: Final = 1_000_000
DEFERRAL_US_MAX: Final = 366 * 24 * 3600 * 1_000_000
"""A deferral shorter than a second is a loop, one beyond a year is never."""

RUNS_MAX: Final = 8
"""How often one delivery may be deferred. The shipped loop acts on what was deferred once."""

RESUMED_PER_CALL_MAX: Final = 256
"""Parked deliveries resumed by one reducer: more would hold up the others of its commit."""

SUMMARY_CHARS_MAX: Final = 120
"""Text of a payload that a change carries: one line of a terminal."""
