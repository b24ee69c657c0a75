"""How a delivery's token budget is shared among what it is spent on. Pure arithmetic.

Everything is a share of `tokens_max` of the agent, so that one number in its configuration fits the
loop to its model. The comments give the result for 2,048 tokens, the default: with a model of 135M
parameters on one core (80 tokens/s generated, 170 tokens/s read) a delivery then takes about 10 s.
"""

from typing import Final

CALL_SHARE: Final = 1 / 12  # 170: a tool and its arguments
WRITE_SHARE: Final = 1 / 10  # 204: a page of text, a small script
ANSWER_SHARE: Final = 1 / 25  # 81: two or three sentences
COMPOSE_SHARE: Final = 1 / 10  # 204; 102 for a conductor with half of the default
TRIAGE_SHARE: Final = 1 / 32  # 64: four short fields
REFLECT_SHARE: Final = 1 / 16  # 128: a sentence, a word and a number

TOKENS_MIN: Final = 8
"""Less than this holds no answer at all: do without the model."""

OBSERVATION_SHARE: Final = 1 / 5  # 409 characters: what a tool's output costs to read again
REQUEST_SHARE: Final = 1 / 3  # 682 characters
CHARS_MIN: Final = 200

MEMORIES: Final = 2
MEMORY_CHARS: Final = 120
"""What is shown of each of the recalled memories: 30 tokens."""


ARGUMENT_CHARS_PER_TOKEN: Final = 1 / 2
"""How long an argument may be, of the tokens of its call. A digit is a token, so that a model which
counts to infinity in a path is stopped by the schema, and the call still fits."""


def share(tokens_max: int, part: float) -> int:
    return max(TOKENS_MIN, int(tokens_max * part))


def reserve(tokens_max: int) -> int:
    """What is kept for an answer and for the reflection, whatever the tools cost."""
    return share(tokens_max, ANSWER_SHARE) + share(tokens_max, REFLECT_SHARE)


def chars(tokens_max: int, part: float) -> int:
    return max(CHARS_MIN, int(tokens_max * part))
