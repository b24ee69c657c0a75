"""The texts of the prompts, and how what is known is put into them.

The texts are the files of `agent_runtime/prompts`. They are read when this module is imported,
which is before the process is sealed. A delivery brings its own copies, pinned by the orchestrator,
with what the operator has overridden; a text that it does not bring is the file's.

Every chat has two messages. The system message holds who the agent is and its tools, and its bytes
are the same in all phases and deliveries of one agent. The user message is a transcript that only
grows, followed by one instruction. So consecutive requests share all but the instruction with their
predecessor, and that is what stays in the engine's KV cache. (Tool calls as assistant messages
would share as much, but a small model goes on imitating its own JSON where words are due.)
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from ipc_protocol.inference import ChatMessage
from ipc_protocol.work import AgentProfile, ToolDescription

DEFAULTS: Final[dict[str, str]] = {
    path.stem: path.read_text(encoding="utf-8").strip()
    for path in sorted((Path(__file__).parent.parent / "prompts").glob("*.md"))
}

PURPOSE_CHARS_MAX: Final = 40
"""What is shown of a tool's purpose: ten tools must fit into 150 tokens with the identity."""

_PLACEHOLDER: Final = re.compile(r"\{([a-z]+)\}")
_BARE_ITEM: Final = re.compile(r"\n\s*\d+\.$")
_SENTENCE_END: Final = re.compile(r"(?<=[.!?])\s+")
_BLANKS: Final = re.compile(r"(?<=\S)[ \t]{2,}")


def fill(template: str, values: Mapping[str, str]) -> str:
    """Put values into `{names}`, in one pass: braces in a value, or unknown names, stay."""
    return _PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), template)


def text_of(prompts: Mapping[str, str], name: str) -> str:
    return prompts.get(name, DEFAULTS[name]).strip()


def chat(system: str, transcript: str, instruction: str) -> list[ChatMessage]:
    return [
        ChatMessage(role="system", content=system),
        ChatMessage(role="user", content=f"{transcript}\n\n{instruction}"),
    ]


def preamble(
    profile: AgentProfile, prompts: Mapping[str, str], tools: Iterable[ToolDescription]
) -> str:
    filled = fill(
        text_of(prompts, "system"),
        {"identity": profile.identity.strip(), "tools": list_of(tools), "name": profile.name},
    )
    return filled.strip()


def list_of(tools: Iterable[ToolDescription]) -> str:
    """A line for each tool, and one for each value whose meaning is known; empty without tools."""
    lines = [_tool_line(tool) for tool in tools]
    return "\n".join(["Your tools:", *lines]) if lines else ""


def _tool_line(tool: ToolDescription) -> str:
    properties = tool.parameters.get("properties")
    names = f"({', '.join(properties)})" if isinstance(properties, dict) else ""
    line = f"{tool.name}{names}: {shorten(tool.purpose, PURPOSE_CHARS_MAX)}"
    schemas = properties.values() if isinstance(properties, dict) else ()
    meanings = [
        f"- {value}: {meaning}"
        for schema in schemas
        for value, meaning in options_of(schema).items()
        if meaning
    ]
    return "\n".join([line, *meanings])


def options_of(schema: Any) -> dict[str, str]:
    """The values that a parameter can have, each with its meaning if the schema says one."""
    options = schema.get("anyOf", ()) if isinstance(schema, dict) else ()
    return {
        str(option["const"]): str(option.get("description", ""))
        for option in options
        if isinstance(option, dict) and "const" in option
    }


def shorten(text: str, chars_max: int) -> str:
    """One line of at most `chars_max` characters."""
    line = " ".join(text.split())
    return line if len(line) <= chars_max else line[: chars_max - 1].rstrip() + "…"


def excerpt(text: str, chars_max: int) -> str:
    """The beginning of a text, lines kept, columns of blanks squeezed: each blank is a token."""
    squeezed = _BLANKS.sub(" ", text.strip())
    if len(squeezed) <= chars_max:
        return squeezed
    return squeezed[:chars_max].rstrip() + " …"


def unfenced(text: str) -> str:
    """The content of the first code block, if a model has put one around its text."""
    _, fence, rest = text.partition("```")
    if not fence:
        return text.strip()
    _, _, body = rest.partition("\n")
    return body.partition("```")[0].rstrip() or text.strip()


def whole_sentences(text: str) -> str:
    """What is left of a text that was cut off, up to the end of its last whole sentence."""
    end = max(text.rfind(mark) for mark in (". ", "! ", "? ", ".\n", "!\n", "?\n"))
    return _BARE_ITEM.sub("", text[: end + 1]) if end > 0 else text


def without_repeats(text: str) -> str:
    """Prose with each of its sentences once; a small model says the last one until it is stopped.

    A text with a code block stays as it is: there a line may well stand twice.
    """
    if "```" in text:
        return text
    said: set[str] = set()
    kept = []
    for line in text.split("\n"):
        fresh = [part for part in _SENTENCE_END.split(line) if _is_new(part, said)]
        if fresh or not line:
            kept.append(" ".join(fresh))
    return "\n".join(kept).strip()


def _is_new(sentence: str, said: set[str]) -> bool:
    plain = sentence.strip(" -*").casefold()
    fresh = plain not in said
    said.add(plain)
    return fresh
