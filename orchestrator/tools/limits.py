"""Every bound of the tools, each with its reason. Texts are in characters, the rest in bytes."""

from typing import Final

GRAMMAR_REPETITIONS_MAX: Final = 2000
"""Characters of a string in a tool's JSON Schema: each costs its grammar some states, and the
tokens of a delivery end before a longer one would."""

PATH_CHARACTERS_MAX: Final = 200
PATH_NAME_BYTES_MAX: Final = 255
"""One name in a path: NAME_MAX of Linux."""
PATH_DEPTH_MAX: Final = 8
"""Folders within folders. Each level costs a lookup, and a deeper tree is a mistake of a model."""
assert PATH_DEPTH_MAX <= PATH_CHARACTERS_MAX

WRITE_GENERATED_CHARACTERS_MAX: Final = 1600
"""What a constrained model may write at once: 500 tokens, a quarter of a delivery's budget."""
assert WRITE_GENERATED_CHARACTERS_MAX <= GRAMMAR_REPETITIONS_MAX
WRITE_CHARACTERS_MAX: Final = 65_536
"""What anybody may write at once; a component is not held to a grammar."""

FILE_READ_BYTES_MAX: Final = 64 * 1024
"""Read from one file, of which a fitting part is shown."""

FILE_OUTPUT_CHARACTERS_MAX: Final = 1500
"""Shown of a file of the work folder: about 400 tokens, two seconds of prefill on one thread."""
HOST_OUTPUT_CHARACTERS_MAX: Final = 400
"""Shown of a host file: about 130 tokens, since every later step carries it in its prompt."""
LISTED_ENTRIES_MAX: Final = 40
MEMORY_OUTPUT_CHARACTERS_MAX: Final = 600
MEMORIES_MAX: Final = 3

TEXT_CHARACTERS_MAX: Final = 600
"""A message or a question: a paragraph, about 150 tokens."""
TITLE_CHARACTERS_MAX: Final = 80
NOTE_CHARACTERS_MAX: Final = 200
QUERY_CHARACTERS_MAX: Final = 120
TOPIC_CHARACTERS_MAX: Final = 100

HOST_READ_SECONDS_MAX: Final = 5.0
"""A file system that does not answer by then is one that hangs, a network share most of all."""

FOLDER_BYTES_MAX: Final = 64 * 1024 * 1024
FOLDER_FILES_MAX: Final = 1000
"""Files and folders together. Every write measures the folder, which costs about 5 µs for each."""
FOLDER_DEPTH_MAX: Final = 2 * PATH_DEPTH_MAX
"""A person may have put deeper trees there than the tools make; beyond this they are refused."""
