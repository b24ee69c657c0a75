"""GBNF as regular expressions, so that hypothesis can draw from a grammar.

Covers what `schema.py` writes. Recursion is unrolled to a depth; deeper, a rule matches nothing.
"""

import re

TOKEN = re.compile(
    r'\s+|(?P<literal>"(?:[^"\\]|\\.)*")|(?P<set>\[(?:[^\]\\]|\\.)*\])'
    r"|(?P<repeat>\{\d+(?:,\d*)?\})|(?P<name>[a-z][a-z0-9-]*)|(?P<mark>[()|?*+])"
)
ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}
NOTHING = "(?!)"


def regex_of(grammar: str, depth: int = 3) -> str:
    """An expression for the texts of a grammar, with at most `depth` nested uses of a rule."""
    rules = dict(line.split(" ::= ", 1) for line in grammar.splitlines())
    return _expand(rules, "root", {}, depth)


def _expand(rules: dict[str, str], name: str, used: dict[str, int], depth: int) -> str:
    if used.get(name, 0) >= depth:
        return NOTHING
    inside = used | {name: used.get(name, 0) + 1}
    out = []
    body = rules[name]
    at = 0
    while at < len(body):
        found = TOKEN.match(body, at)
        assert found, f"no GBNF at {body[at:]!r}"
        at = found.end()
        text = found.group()
        if found["literal"]:
            plain = re.sub(r"\\(.)", lambda m: ESCAPES.get(m[1], m[1]), text[1:-1])
            out.append(f"(?:{re.escape(plain)})")
        elif found["name"]:
            out.append(_expand(rules, text, inside, depth))
        elif text == "(":
            out.append("(?:")
        elif text.strip():
            out.append(text)
    return f"(?:{''.join(out)})"
