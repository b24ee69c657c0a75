"""Tools for a model that was never taught any: described in its prompt, called by a JSON Schema.

An answer with tools is one JSON object: `{"answer": TEXT}`, or `{"tool": NAME, "arguments": {…}}`.
The schema is what makes it one, so that whatever the model is, a call names a tool that there is,
and its arguments are of the tool's own schema. One call at a time is made.
Pure.
"""

import json
import re
from typing import Any, Final

import msgspec

from orchestrator.gateway.openai_bodies import ChatBody, FunctionDefinition, ToolChoice
from orchestrator.gateway.openai_errors import ApiError, invalid

Schema = dict[str, Any]


class ToolUse(msgspec.Struct, frozen=True):
    """The tools that may be called now; `required` where an answer without one is none."""

    tools: tuple[FunctionDefinition, ...]
    required: bool


class Call(msgspec.Struct, frozen=True):
    """A tool and its arguments, as JSON."""

    name: str
    arguments: str


def tool_use(body: ChatBody) -> ToolUse | None:
    """What the body says of tools; None where none is to be called. Raises `ApiError`."""
    tools = _functions(body)
    choice = body.tool_choice or "auto"
    if not tools and body.tool_choice not in (None, "none"):
        raise invalid("'tool_choice' is only allowed with 'tools'.", "tool_choice")
    if isinstance(choice, ToolChoice):
        named = choice.function.name if choice.function is not None else ""
        chosen = tuple(tool for tool in tools if tool.name == named)
        if choice.type != "function" or not chosen:
            raise invalid("'tool_choice' names none of the 'tools'.", "tool_choice")
        return ToolUse(chosen, required=True)
    if choice not in ("auto", "none", "required"):
        raise invalid(
            f"Invalid value for 'tool_choice': '{choice}'. Expected 'auto', 'none', 'required' or "
            "a function by its name.",
            "tool_choice",
            "invalid_value",
        )
    if not tools or choice == "none":
        return None
    return ToolUse(tools, required=choice == "required")


def _functions(body: ChatBody) -> tuple[FunctionDefinition, ...]:
    functions = []
    for place, tool in enumerate(body.tools):
        if tool.type != "function" or tool.function is None:
            raise invalid("A tool is of type 'function', with a 'function'.", f"tools[{place}]")
        functions.append(tool.function)
    if len({function.name for function in functions}) < len(functions):
        raise invalid("Two tools have the same name.", "tools")
    return tuple(functions)


# ---- What the model is told ----------------------------------------------------------------------

_CALL_FORM: Final = '{"tool": NAME, "arguments": {...}}'


def instructions(use: ToolUse) -> str:
    """For the system message. The same tools make the same text, which the cache then knows."""
    described = "\n".join(map(_described, use.tools))
    if use.required:
        how = f"Call one of them. Answer with one JSON object: {_CALL_FORM}"
    else:
        how = (
            "Answer with one JSON object.\n"
            f"To call a tool: {_CALL_FORM}\n"
            'To answer without a tool, or from the results of tools: {"answer": TEXT}'
        )
    return f"You can call these tools:\n{described}\n\n{how}"


def _described(tool: FunctionDefinition) -> str:
    description = f": {tool.description}" if tool.description else ""
    return f"- {tool.name}{description}\n  arguments: {_json(_parameters(tool))}"


def called(name: str, arguments: str) -> str:
    """A call of an earlier turn, as the model has written it then.

    Arguments that are no JSON are shown as the text they are: it was not this server's answer.
    """
    try:
        written = _json({"tool": name, "arguments": json.loads(arguments or "{}")})
    except (ValueError, RecursionError):
        written = _json({"tool": name, "arguments": arguments})
    return _sendable(written)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# ---- What the model may write --------------------------------------------------------------------


def answer_schema(use: ToolUse, answer: Schema | None) -> Schema:
    """The schema of the whole answer; `answer` is that of the text, where it is to be JSON itself.

    Each schema that came from outside stands below `$defs`, with its references moved there.
    """
    definitions: Schema = {}
    choices = []
    if not use.required:
        if answer is not None:
            definitions["answer"] = _moved(answer, "#/$defs/answer")
        free = {"type": "string"} if answer is None else {"$ref": "#/$defs/answer"}
        choices.append(_object(answer=free))
    for number, tool in enumerate(use.tools):
        place = f"tool{number}"
        definitions[place] = _moved(_parameters(tool), f"#/$defs/{place}")
        choices.append(_object(tool={"const": tool.name}, arguments={"$ref": f"#/$defs/{place}"}))
    whole = choices[0] if len(choices) == 1 else {"anyOf": choices}
    return {**whole, "$defs": definitions}


def _parameters(tool: FunctionDefinition) -> Schema:
    if not tool.parameters:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    return {"type": "object", **tool.parameters}


def _object(**properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _moved(node: Any, place: str) -> Any:
    """The schema with its references to itself (`#/…`) as they are below `place`."""
    if isinstance(node, list):
        return [_moved(item, place) for item in node]
    if not isinstance(node, dict):
        return node
    moved = {key: _moved(value, place) for key, value in node.items()}
    reference = moved.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = place + reference[1:]
    return moved


# ---- What the model has written ------------------------------------------------------------------


def written_answer(text: str) -> str:
    """A text as an answer that `read_answer` reads."""
    return _json({"answer": text})


def read_answer(text: str) -> str | Call:
    """The text of an answer, or the call that it is.

    The schema says that it is one of the two; a remote server may have ignored the schema, and then
    this raises `ApiError`.
    """
    try:
        written = json.loads(text)
        if "tool" in written:
            return Call(written["tool"], _sendable(_json(written["arguments"])))
        answer = written["answer"]
        return _sendable(answer if isinstance(answer, str) else _json(answer))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ApiError(
            502, "The model's answer is neither an answer nor a call.", kind="server_error"
        ) from error


_OPENING: Final = re.compile(r'\s*\{\s*"answer"\s*:\s*"')
_DECIDED: Final = re.compile(r'\s*\{\s*"(?:tool"|answer"\s*:\s*[^"\s])')
_UNITS: Final = re.compile(
    r'(?:[^"\\]'  # a character
    r'|\\["\\/bfnrt]'  # an escape
    r"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # a pair of surrogates
    r"|\\u(?![dD][89a-fA-F])[0-9a-fA-F]{4}"  # any other code unit
    r")*"
)
"""Of a JSON string, what can be read without what follows. A surrogate alone ends it: it is not
text, and comes with the rest, as the character for what cannot be shown."""


class AnswerReader:
    """Finds the text of an answer while the JSON object around it is still being written.

    What `feed` and `rest` return is, put together, the text that `read_answer` finds.
    """

    def __init__(self) -> None:
        self._unread = ""
        self._begun = False
        self._decided = False
        self.text = ""
        """What has been returned."""

    def feed(self, text: str) -> str:
        """The text that is certain now and was not before; none of a call."""
        if self._decided:
            return ""
        self._unread += text
        if not self._begun:
            opening = _OPENING.match(self._unread)
            if opening is None:
                self._decided = _DECIDED.match(self._unread) is not None
                return ""
            self._begun, self._unread = True, self._unread[opening.end() :]
        units = _UNITS.match(self._unread)
        assert units is not None  # it matches nothing at all as well
        end = units.end()
        found: str = json.loads(f'"{self._unread[:end]}"', strict=False)
        self._unread = self._unread[end:]
        self._decided = self._unread.startswith('"')
        self.text += found
        return found

    def rest(self, content: str) -> str:
        """What of the whole text has not been returned yet."""
        return content[len(self.text) :]


def _sendable(text: str) -> str:
    """Surrogates that are no pair have no UTF-8."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
