"""What a model that does not count for much is offered, so that what it picks at random still fits.

A model of 135M parameters writes the JSON of a call without fault, and chooses the tool, the path
and the title in it by temperament: asked about a password it reads `https://example.com`. A large
one chooses better than any rule. So a configuration that lets its model count in triage gets all
tools at every step (`act.offered`), and any other is led by the words of the request:

1. What can be named is read: the options of a tool whose words are in the request, each once.
2. Else it begins with the tools that the request names, or with the agent's main tool.
3. Then it is offered what the request names and it has not used, and the end.

What such a call is about is settled too: the request stands for every free text but one that is
written plainly, since there a small model is at its best.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from agent_runtime.loop.decisions import Schema, text_parameter
from agent_runtime.loop.prompts import options_of, shorten
from agent_runtime.loop.state import Observation
from ipc_protocol.work import ToolDescription

_WORD: Final = re.compile(r"[^\W_]+")
_FILE_NAME: Final = re.compile(r"\b[\w-]{1,40}\.[a-z][a-z0-9]{0,4}\b")
_STEM_LETTERS_MIN: Final = 4
"""Words as long as this are the same when one begins the other: *login* and *logins*."""

_QUERY_WORDS_MAX: Final = 12
_NAME_WORDS: Final = 3
_TEXT_CHARS_MAX: Final = 160
"""A call has 170 tokens by default, and a text that is settled costs them as well."""

_EXTENSIONS: Final[Mapping[str, str]] = {
    "python": "py",
    "bash": "sh",
    "shell": "sh",
    "javascript": "js",
    "typescript": "ts",
    "java": "java",
    "rust": "rs",
    "golang": "go",
    "kotlin": "kt",
    "php": "php",
    "c++": "cpp",
    "sql": "sql",
    "html": "html",
    "css": "css",
    "json": "json",
    "csv": "csv",
    "yaml": "yaml",
    "toml": "toml",
}
_TEXT_EXTENSION: Final = "txt"
_COMMON: Final = frozenset(
    _WORD.findall(
        "a an and are as at by can could do does for from have how i in into is it me my not of on "
        "or our please should so some than that the there this to us was we what when which will "
        "with would you your "
        "code create file fix function implement make new older program script short simple small "
        "text write"
    )
)
"""Words that say nothing about a subject, and those with which work is asked for."""


def narrowed(
    tools: list[ToolDescription], request: str, observations: tuple[Observation, ...]
) -> tuple[list[ToolDescription], bool]:
    """The tools of this step, their arguments narrowed, and whether the end is offered too."""
    inward = [tool for tool in tools if not tool.outward]
    asked = words_of(request)
    options = [_hinted(tool, asked, _tried(tool.name, observations)) for tool in inward]
    hinted = [tool for tool in options if tool is not None]
    if hinted:
        return hinted, False
    used = {seen.call.tool for seen in observations}
    named = [tool for tool in tools if tool.name not in used and _is_named(tool.name, request)]
    if not observations and inward:
        named = named or inward[:1]
    return [_about(tool, request) for tool in named], bool(observations)


def is_relevant(text: str, request: str) -> bool:
    """Both are about the same: a small model repeats whatever it is reminded of."""
    asked = [word for word in words_of(request) if len(word) >= _STEM_LETTERS_MIN]
    shared = sum(_is_among(word, words_of(text)) for word in asked)
    return 2 * shared >= len(asked) > 0


def words_of(text: str) -> list[str]:
    """The telling words of a text, in order, each once."""
    words = (word.casefold() for word in _WORD.findall(text))
    return list(dict.fromkeys(word for word in words if word not in _COMMON))


def file_name(request: str) -> str:
    """A name for what is to be written: by its subject, with the extension of its language."""
    plain = request.casefold()
    kinds = (kind for word, kind in _EXTENSIONS.items() if _is_said(word, plain))
    kind = next(kinds, _TEXT_EXTENSION)
    subject = [word for word in words_of(request) if word not in _EXTENSIONS]
    stem = "-".join(word for word in subject if word.isascii())[:40]
    return f"{'-'.join(stem.split('-')[:_NAME_WORDS]) or 'note'}.{kind}"


# ---- What the request names ---------------------------------------------------------------------


def _hinted(tool: ToolDescription, asked: list[str], tried: set[str]) -> ToolDescription | None:
    """The tool with the options that the request names, if it has options and nothing else."""
    properties = tool.parameters.get("properties")
    if not isinstance(properties, dict) or len(properties) != 1:
        return None
    ((name, schema),) = properties.items()
    fitting = [
        {"const": value}
        for value, meaning in options_of(schema).items()
        if value not in tried and any(_is_among(word, asked) for word in words_of(meaning))
    ]
    if not fitting:
        return None
    return _with(tool, {**tool.parameters, "properties": {name: {"anyOf": fitting}}})


def _tried(tool: str, observations: tuple[Observation, ...]) -> set[str]:
    calls = (seen.call for seen in observations if seen.call.tool == tool)
    return {str(value) for call in calls for value in call.arguments.values()}


def _is_named(tool: str, request: str) -> bool:
    said = _WORD.findall(request.casefold())
    return all(_is_among(word, said) for word in _WORD.findall(tool))


def _is_among(word: str, words: list[str]) -> bool:
    return any(_is_same(word, other) for other in words)


def _is_same(word: str, other: str) -> bool:
    short, long = sorted((word, other), key=len)
    return word == other or (len(short) >= _STEM_LETTERS_MIN and long.startswith(short))


def _is_said(word: str, plain: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", plain) is not None


# ---- What the call is about ---------------------------------------------------------------------


def _about(tool: ToolDescription, request: str) -> ToolDescription:
    return _with(tool, _settled(tool.parameters, text_parameter(tool), request))


def _settled(parameters: Schema, text: str | None, request: str) -> Schema:
    """The schema of arguments, or of each way to give them, with its values settled."""
    ways = parameters.get("anyOf")
    if isinstance(ways, list):
        named = [way for way in ways if _names_a_value(way, request)]
        return {**parameters, "anyOf": [_settled(way, text, request) for way in named or ways]}
    properties = parameters.get("properties")
    if not isinstance(properties, dict):
        return parameters
    settled = {
        name: schema if name == text else _value(name, schema, request)
        for name, schema in properties.items()
    }
    return {**parameters, "properties": settled}


def _names_a_value(way: Schema, request: str) -> bool:
    schemas = way.get("properties", {}).values()
    return any(_named_values(schema, request) for schema in schemas)


def _named_values(schema: Any, request: str) -> list[Any]:
    values = schema.get("enum", ()) if isinstance(schema, dict) else ()
    return [value for value in values if str(value).casefold() in words_of(request)]


def _value(name: str, schema: Any, request: str) -> Any:
    if not isinstance(schema, dict) or schema.get("type") != "string":
        return schema
    if "enum" in schema:
        return {**schema, "enum": _named_values(schema, request) or schema["enum"]}
    if name == "path":
        known = _FILE_NAME.findall(request)
        return {"enum": list(dict.fromkeys(known)) or [file_name(request)]}
    subject = " ".join(words_of(request)[:_QUERY_WORDS_MAX]) if name == "query" else request
    about = shorten(subject, min(schema.get("maxLength", _TEXT_CHARS_MAX), _TEXT_CHARS_MAX))
    return {"const": about} if about else schema


def _with(tool: ToolDescription, parameters: Schema) -> ToolDescription:
    return ToolDescription(
        name=tool.name, purpose=tool.purpose, parameters=parameters, outward=tool.outward
    )
