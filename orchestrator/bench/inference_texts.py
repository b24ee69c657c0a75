"""Texts of a known number of tokens, the same for everybody who is measured. Pure.

Each word is one token, with the blank before it, in every byte-pair vocabulary that was looked at
(SmolLM2, Llama 3); what a text really costs is counted by the engine that reads it. Two texts from
different seeds have no common beginning worth a cache, and the same seed is always the same text.
"""

import hashlib
from typing import Final

WORDS: Final = (
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world",
    "school", "state", "family", "student", "group", "country", "problem", "hand", "part", "place",
    "case", "week", "company", "system", "program", "question", "work", "government", "number",
    "night", "point", "home", "water", "room", "mother", "area", "money", "story", "fact", "month",
    "lot", "right", "study", "book", "eye", "job", "word", "business", "issue", "side", "kind",
    "head", "house", "service", "friend", "father", "power", "hour", "game", "line", "end",
    "member", "law", "car", "city", "community", "name", "president", "team", "minute", "idea",
    "body", "information", "back", "parent", "face", "others", "level", "office", "door", "health",
    "person", "art", "war", "history", "party", "result", "change", "morning", "reason", "research",
    "girl", "guy", "moment", "air", "teacher", "force", "education", "age", "policy", "process",
    "music", "market", "sense", "nation", "plan", "college", "interest", "death", "experience",
    "effect", "use", "class", "control", "field", "development", "role", "effort", "rate", "heart",
    "drug", "show", "leader", "light", "voice", "wife", "police",
)  # fmt: skip
"""128, so that a byte of a digest picks each of them equally often."""


START: Final = "The"
"""A word at the very beginning has no blank before it, and then some are two tokens."""
ENDLESS: Final = " one two" * 5
"""A model goes on with this for ever, greedily: each answer is as long as it was asked for, without
a setting that only some servers have."""
ENDLESS_TOKENS: Final = 10


def opening(tokens: int, *seed: object) -> str:
    """The beginning of a text: so many tokens."""
    return " ".join((START, *_words(tokens - 1, seed)))


def going_on(tokens: int, *seed: object) -> str:
    """What stands behind an opening: so many tokens, at the end of which a model goes on for ever.

    `tokens` is more than `ENDLESS_TOKENS`.
    """
    return " " + " ".join(_words(tokens - ENDLESS_TOKENS, seed)) + ENDLESS


def endless(tokens: int, *seed: object) -> str:
    """A whole text of so many tokens, with which a model goes on for ever."""
    return opening(tokens - ENDLESS_TOKENS, *seed) + ENDLESS


def shuffled(count: int, *seed: object) -> list[int]:
    """The numbers below `count` in a mixed order."""
    keys = [_digest(8, (*seed, number)) for number in range(count)]
    return sorted(range(count), key=keys.__getitem__)


def _words(tokens: int, seed: tuple[object, ...]) -> list[str]:
    return [WORDS[byte % len(WORDS)] for byte in _digest(tokens, seed)]


def _digest(length: int, seed: tuple[object, ...]) -> bytes:
    return hashlib.shake_128(repr(seed).encode()).digest(length)
