"""Topics, patterns, and the router from a topic to its subscribers. Pure.

A topic is words with dots between them, a word is made of `a-z`, `0-9`, `_` and `-`. In a pattern
`*` stands for one word, and `>`, which only comes last, for all the rest, at least one. The rules
are those of NATS subjects.
"""

import functools
import re
from collections.abc import Iterable
from typing import Final

from orchestrator.bus.limits import AGENT_NAME_CHARS_MAX, TOPIC_CHARS_MAX, TOPIC_WORDS_MAX

USER_REQUEST: Final = "user.request"
"""Where `agentd ctl ask` publishes."""

USER_REPLY: Final = "user.reply"
"""Its subscriber is the conversation itself."""

AGENT_PREFIX: Final = "agent."
"""`agent.NAME` reaches that agent and nobody else."""

TOPICS_KEPT: Final = 4096
"""Topics of which is kept what was found out: many more than a machine's agents talk about."""

_WORD = re.compile(r"[a-z0-9_-]+")


def agent_topic(name: str) -> str:
    return AGENT_PREFIX + name


def addressed_agent(topic: str) -> str | None:
    """The agent that `topic` addresses directly, or None."""
    return topic.removeprefix(AGENT_PREFIX) if topic.startswith(AGENT_PREFIX) else None


def fault_of_name(name: str) -> str | None:
    """What is wrong with the name of an agent, or None."""
    if len(name) > AGENT_NAME_CHARS_MAX:
        return f"is longer than {AGENT_NAME_CHARS_MAX} characters"
    return None if _WORD.fullmatch(name) else "is not one word of a-z, 0-9, _ and -"


@functools.lru_cache(TOPICS_KEPT)
def fault_of_topic(topic: str) -> str | None:
    """What is wrong with `topic`, as the end of a sentence, or None."""
    words = topic.split(".")
    return _fault_of_length(topic, words) or _fault_of_words(words)


def fault_of_pattern(pattern: str) -> str | None:
    """What is wrong with `pattern`, as the end of a sentence, or None."""
    words = pattern.split(".")
    fault = _fault_of_length(pattern, words)
    if fault is None and ">" in words[:-1]:
        fault = "has something after `>`, which stands for all the rest"
    return fault or _fault_of_words([word for word in words if word not in ("*", ">")])


def _fault_of_length(text: str, words: list[str]) -> str | None:
    if len(text) > TOPIC_CHARS_MAX:
        return f"is longer than {TOPIC_CHARS_MAX} characters"
    if len(words) > TOPIC_WORDS_MAX:
        return f"has more than {TOPIC_WORDS_MAX} words"
    return None


def _fault_of_words(words: list[str]) -> str | None:
    for word in words:
        if not word:
            return "has an empty word"
        if not _WORD.fullmatch(word):
            return f"has the word {word!r}, which is not made of a-z, 0-9, _ and -"
    return None


def matches(pattern: str, topic: str) -> bool:
    """Does the valid `pattern` match the valid `topic`?"""
    wanted, words = pattern.split("."), topic.split(".")
    if wanted[-1] == ">":
        wanted.pop()
        if len(words) <= len(wanted):
            return False
        words = words[: len(wanted)]
    return len(wanted) == len(words) and all(
        want in ("*", word) for want, word in zip(wanted, words, strict=True)
    )


class Router:
    """All subscriptions as one tree of words: a lookup costs the topic's words, not the patterns.

    Immutable once made, but for what it has looked up. A topic of w words visits at most 2^w
    nodes, of which 2^8 are allowed.
    """

    def __init__(self, subscriptions: Iterable[tuple[str, str]]) -> None:
        """`subscriptions` are pairs of subscriber and valid pattern."""
        self._root = _Node()
        for subscriber, pattern in subscriptions:
            node = self._root
            for word in pattern.split("."):
                node = node.children.setdefault(word, _Node())
            node.subscribers.add(subscriber)
        self._found: dict[str, tuple[str, ...]] = {}

    def subscribers(self, topic: str) -> tuple[str, ...]:
        """Who subscribes to `topic`, each once, in the order of their names."""
        found = self._found.get(topic)
        if found is None:
            if len(self._found) >= TOPICS_KEPT:
                self._found.clear()
            found = self._found[topic] = tuple(self._subscribers(topic))
        return found

    def _subscribers(self, topic: str) -> list[str]:
        found: set[str] = set()
        nodes = [self._root]
        for word in topic.split("."):
            following: list[_Node] = []
            for node in nodes:
                if rest := node.children.get(">"):
                    found |= rest.subscribers
                following += [node.children[step] for step in (word, "*") if step in node.children]
            nodes = following
        for node in nodes:
            found |= node.subscribers
        return sorted(found)


class _Node:
    __slots__ = ("children", "subscribers")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.subscribers: set[str] = set()
