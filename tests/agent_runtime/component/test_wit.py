"""The parser of WIT: every construct of the subset, every way to leave it, and types both ways."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runtime.component.types import (
    BYTES,
    STRING,
    Enum,
    Flags,
    Function,
    Handle,
    Interface,
    ListOf,
    OptionOf,
    Primitive,
    Record,
    ResultOf,
    TupleOf,
    Type,
    Unsupported,
    Variant,
)
from agent_runtime.component.wit import (
    KEYWORDS,
    PRIMITIVES,
    Package,
    WitError,
    World,
    canonical,
    parse,
    spell,
    spell_function,
)

U32 = Primitive("u32")


def package_of(items: str) -> Package:
    return parse(f"package a:b@1.2.3;\n{items}")


def type_of(written: str) -> Type:
    return package_of(f"interface i {{ {written} }}").interfaces["i"].types["t"]


def function_of(written: str) -> Function:
    return package_of(f"interface i {{ f: {written}; }}").interfaces["i"].functions["f"]


# ---- Packages, interfaces, worlds ----------------------------------------------------------------


def test_a_package_has_a_name_and_a_version() -> None:
    package = parse("package some-body:some-thing@10.20.30;")
    assert (package.name, package.version) == ("some-body:some-thing", "10.20.30")
    assert package.full_name("bus") == "some-body:some-thing/bus@10.20.30"


def test_an_interface_holds_functions_and_what_they_are_made_of() -> None:
    package = package_of("interface i { record r { a: u32 } f: func(x: r) -> string; }")
    declared = package.interfaces["i"]
    r = Record((("a", U32),))
    assert declared.types == {"r": r}
    assert declared.interface == Interface(functions={"f": Function((("x", r),), STRING)})


def test_a_used_type_is_the_type_itself() -> None:
    package = package_of(
        "interface i { type a = u32; enum b { x } }"
        "interface j { use i.{a, b}; f: func(x: a) -> b; }"
    )
    declared = package.interfaces["j"]
    assert declared.functions["f"] == Function((("x", U32),), Enum(("x",)))
    assert declared.uses == {"a": "i", "b": "i"}
    assert declared.types == {}


def test_interfaces_do_not_see_each_others_types_without_use() -> None:
    with pytest.raises(WitError, match="expected a known type, found 'a'"):
        package_of("interface i { type a = u32; } interface j { f: func(x: a); }")


def test_a_used_type_is_not_the_interfaces_to_lend() -> None:
    with pytest.raises(WitError, match="expected a known type of j, found 'a'"):
        package_of(
            "interface i { type a = u32; } interface j { use i.{a}; } interface k { use j.{a}; }"
        )


def test_a_world_imports_exports_and_includes() -> None:
    package = package_of(
        "interface i {} interface j {} interface k {}"
        "world w { import i; export j; } world v { include w; import k; } world none {}"
    )
    assert package.worlds == {
        "w": World(frozenset("i"), frozenset("j")),
        "v": World(frozenset("ik"), frozenset("j")),
        "none": World(frozenset(), frozenset()),
    }


def test_docs_are_kept_by_what_they_stand_above() -> None:
    package = parse(
        """
        /// The package.
        package a:b@1.2.3;
        /// An interface,
        /// in two lines.
        interface i {
          /// A record.
          record r {
            a: u32,  // no docs
            /// A field.
            b: u32,
          }
          /// A function.
          f: func();
          /// A variant.
          variant v {
            /// A case.
            %case(u32),
            other
          }
          enum e {
            /// A label.
            x
          }
          // A comment.
          g: func();
        }
        /// A world.
        world w { import i; }
        """
    )
    assert package.docs == {
        "": "The package.",
        "i": "An interface,\nin two lines.",
        "i.r": "A record.",
        "i.r.b": "A field.",
        "i.f": "A function.",
        "i.v": "A variant.",
        "i.v.case": "A case.",
        "i.e.x": "A label.",
        "w": "A world.",
    }


# ---- Types ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("type t = list<u8>;", BYTES),
        ("type t = option<list<string>>;", OptionOf(ListOf(STRING))),
        ("type t = tuple<u32, string>;", TupleOf((U32, STRING))),
        ("type t = tuple<u32,>;", TupleOf((U32,))),
        ("type t = result;", ResultOf(None, None)),
        ("type t = result<u32>;", ResultOf(U32, None)),
        ("type t = result<_, u32>;", ResultOf(None, U32)),
        ("type t = result<u32, string>;", ResultOf(U32, STRING)),
        ("record t { a: u32 }", Record((("a", U32),))),
        ("record t { b-c: u32, a: string, }", Record((("b-c", U32), ("a", STRING)))),
        ("record t { %record: u32 }", Record((("record", U32),))),
        ("variant t { a, b(u32) }", Variant((("a", None), ("b", U32)))),
        ("enum t { b, a, }", Enum(("b", "a"))),
        ("flags t { b, a }", Flags(("b", "a"))),
        ("type s = u32; type t = s;", U32),
        ("record s { a: u32 } type t = list<s>;", ListOf(Record((("a", U32),)))),
        ("enum %enum { a } type t = %enum;", Enum(("a",))),
    ],
)
def test_a_type_is_read(written: str, expected: Type) -> None:
    assert type_of(written) == expected


@pytest.mark.parametrize("name", sorted(PRIMITIVES))
def test_a_primitive_type_is_read(name: str) -> None:
    assert type_of(f"type t = {name};") == Primitive(name)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("func()", Function((), None)),
        ("func() -> u32", Function((), U32)),
        ("func(b: u32, a: string,)", Function((("b", U32), ("a", STRING)), None)),
    ],
)
def test_a_function_is_read(written: str, expected: Function) -> None:
    assert function_of(written) == expected


# ---- Mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "expected 'package', found 'the end of the text'"),
        ("package a:b;", 1, "expected a version such as '@0.1.0', found ';'"),
        ("package a@1.0.0;", 1, "expected ':', found '@1.0.0'"),
        ("package a:b@1.0;", 1, "'@' is not expected anywhere"),
        ("package a:b@1.0.0;\n\ninterfaces i {}", 3, "expected 'interface' or 'world'"),
        ("package a:b@1.0.0;\ninterface i {", 2, "expected a name, found 'the end of the text'"),
        ("package a:b@1.0.0;\ninterface i {}\nworld i {}", 3, "i is declared twice"),
        ("package a:b@1.0.0;\nworld w { use x; }", 2, "expected 'import' or 'export' or 'include'"),
        ("package a:b@1.0.0;\nworld w { import x; }", 2, "expected a known interface, found 'x'"),
        ("package a:b@1.0.0;\nworld w { include w; }", 2, "expected a known world, found 'w'"),
        ("package a:b@1.0.0;\n/* no */", 2, "'/' is not expected anywhere"),
        ("package a:b@1.0.0;\ninterface Ab {}", 2, "expected '{', found 'b'"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_package_names_its_line(text: str, line: int, message: str) -> None:
    with pytest.raises(WitError, match=re.escape(message)) as raised:
        parse(text)
    assert raised.value.line == line


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ("record r { a: u32, a: u32 }", "a is declared twice"),
        ("variant r { a, a(u32) }", "a is declared twice"),
        ("enum r { a, %a }", "%a is declared twice"),
        ("record r { a: u32 } f: func(); r: func();", "r is declared twice"),
        ("f: func(); type f = u32;", "f is declared twice"),
        ("type a = u32; use j.{a};", "a is declared twice"),
        ("f: func(a: u32, a: u32);", "a is declared twice"),
        ("record r {}", "expected a name, found '}'"),
        ("record r { a: u32 b: u32 }", "expected ',', found 'b'"),
        ("record r { list: u32 }", "expected a name, found 'list'"),
        ("record r { a: r }", "expected a known type, found 'r'"),
        ("type t = tuple<>;", "expected a known type, found '>'"),
        ("type t = result<_>;", "expected ',', found '>'"),
        ("type t = %list;", "expected a known type, found '%list'"),
        ("type t = enum;", "expected a known type, found 'enum'"),
        ("resource r { f: func(); }", "expected a name, found 'resource'"),
        ("f: async func();", "expected 'func', found 'async'"),
        ("f: func() -> (a: u32);", "expected a known type, found '('"),
        ("use j.{};", "expected a known type of j, found '}'"),
        ("use k.{a};", "expected a known interface, found 'k'"),
    ],
)
def test_a_mistake_in_an_interface_is_said(items: str, message: str) -> None:
    with pytest.raises(WitError, match=re.escape(message)) as raised:
        package_of(f"interface j {{ type a = u32; }}\ninterface i {{ {items} }}")
    assert raised.value.line == 3


@given(st.text(alphabet="abr{}()<>,;:=._%@/- \n1") | st.text())
def test_any_text_is_a_package_or_a_wit_error(text: str) -> None:
    for attempt in (text, f"package a:b@1.0.0; interface i {{ {text} }}"):
        try:
            assert isinstance(parse(attempt), Package)
        except WitError as error:
            assert 1 <= error.line <= attempt.count("\n") + 1


# ---- Notation ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_", "expected"),
    [
        (Record((("a", U32), ("list", BYTES))), "record { a: u32, %list: list<u8> }"),
        (Variant((("a", None), ("b", OptionOf(U32)))), "variant { a, b(option<u32>) }"),
        (Enum(("a", "b")), "enum { a, b }"),
        (Flags(("a", "b")), "flags { a, b }"),
        (TupleOf((U32, ResultOf(None, None))), "tuple<u32, result>"),
        (ResultOf(None, STRING), "result<_, string>"),
        (Handle(owned=True), "own<resource>"),
        (Handle(owned=False), "borrow<resource>"),
        (Unsupported("stream"), "stream"),
    ],
)
def test_a_type_is_spelled_as_wit_would(type_: Type, expected: str) -> None:
    assert spell(type_) == expected


NAMES = st.from_regex(r"[a-z][a-z0-9]{0,3}(-[a-z][a-z0-9]{0,3})?", fullmatch=True) | (
    st.sampled_from(sorted(KEYWORDS))
)


def named(kinds: st.SearchStrategy[Type], least: int) -> st.SearchStrategy[Type]:
    """Records, variants, enums and flags, whose members are of `kinds`."""
    labels = st.lists(NAMES, min_size=least, max_size=4, unique=True).map(tuple)
    fields = st.dictionaries(NAMES, kinds, min_size=least, max_size=4)
    cases = st.dictionaries(NAMES, st.none() | kinds, min_size=least, max_size=4)
    return (
        fields.map(lambda of: Record(tuple(of.items())))
        | cases.map(lambda of: Variant(tuple(of.items())))
        | labels.map(Enum)
        | labels.map(Flags)
    )


def composed(kinds: st.SearchStrategy[Type]) -> st.SearchStrategy[Type]:
    return (
        kinds.map(ListOf)
        | kinds.map(OptionOf)
        | st.lists(kinds, min_size=1, max_size=3).map(lambda of: TupleOf(tuple(of)))
        | st.builds(ResultOf, st.none() | kinds, st.none() | kinds)
        | named(kinds, least=1)
    )


TYPES = st.recursive(st.sampled_from(sorted(PRIMITIVES)).map(Primitive), composed, max_leaves=12)


class Declarations:
    """Writes types into an interface, innermost first: WIT has no records without a name."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def expression(self, type_: Type) -> str:
        match type_:
            case ListOf(element):
                return f"list<{self.expression(element)}>"
            case OptionOf(some):
                return f"option<{self.expression(some)}>"
            case TupleOf(elements):
                return f"tuple<{', '.join(map(self.expression, elements))}>"
            case ResultOf(None, None):
                return "result"
            case ResultOf(ok, None) if ok is not None:
                return f"result<{self.expression(ok)}>"
            case ResultOf(ok, err) if err is not None:
                return f"result<{self.expression(ok) if ok else '_'}, {self.expression(err)}>"
            case Record(fields):
                return self.declare(
                    "record", [f"%{name}: {self.expression(of)}" for name, of in fields]
                )
            case Variant(cases):
                return self.declare(
                    "variant",
                    [f"%{name}({self.expression(of)})" if of else f"%{name}" for name, of in cases],
                )
            case Enum(names):
                return self.declare("enum", [f"%{name}" for name in names])
            case Flags(names):
                return self.declare("flags", [f"%{name}" for name in names])
            case _:
                return spell(type_)

    def declare(self, kind: str, members: list[str]) -> str:
        name = f"named-n{len(self.lines)}"
        self.lines.append(f"{kind} {name} {{ {', '.join(members)} }}")
        return name


@given(TYPES)
def test_what_is_written_is_what_is_read(type_: Type) -> None:
    declarations = Declarations()
    expression = declarations.expression(type_)
    assert type_of("\n".join([*declarations.lines, f"type t = {expression};"])) == type_


@given(TYPES, TYPES)
def test_different_types_are_spelled_differently(one: Type, other: Type) -> None:
    assert (spell(one) == spell(other)) == (one == other)


@given(named(TYPES, least=1))
def test_what_is_spelled_is_read_back(type_: Type) -> None:
    """What is inside of a record needs names of its own, which are put in from the inside out."""
    spelled = spell(type_)
    declared: list[str] = []
    innermost = re.compile(r"(record|variant|enum|flags) (\{[^{}]*\})")
    while found := innermost.search(spelled):
        name = "t" if found.span() == (0, len(spelled)) else f"inner-n{len(declared)}"
        declared.append(f"{found[1]} {name} {found[2]}")
        spelled = spelled[: found.start()] + name + spelled[found.end() :]
    assert type_of("\n".join(declared)) == type_


def test_a_function_is_spelled_as_it_is_written() -> None:
    for written in ("func()", "func(%from: string, b: u32) -> result<_, string>"):
        assert spell_function(function_of(written)) == written


# ---- The canonical form --------------------------------------------------------------------------

CANONICAL = """
    interface i { record r { a: u32, b: u32 } type s = r; }
    interface j { use i.{r}; enum e { x, y } f: func(a: r, b: e) -> u32; g: func(); }
    world w { import i; export j; }
    world v { include w; }
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("a: u32, b: u32", "a: u32,\n  /// More.\n b: u32,"),
        ("interface j", "// Next.\n interface j"),
        ("use i.{r}; enum e { x, y }", "enum e { x, y } use i.{r};"),
        ("include w;", "import i; export j;"),
        ("type s = r;", "type s = %r;"),
    ],
)
def test_comments_layout_and_order_are_no_change(old: str, new: str) -> None:
    assert old in CANONICAL
    changed = CANONICAL.replace(old, new)
    assert canonical(package_of(changed)) == canonical(package_of(CANONICAL))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("a: u32, b: u32", "b: u32, a: u32"),
        ("a: u32, b: u32", "a: u32, b: u64"),
        ("a: u32, b: u32", "a: u32, c: u32"),
        ("type s = r;", "type z = r;"),
        ("type s = r;", "type s = u32;"),
        ("type s = r;", ""),
        ("use i.{r};", "record r { a: u32, b: u32 }"),
        ("{ x, y }", "{ y, x }"),
        ("func(a: r, b: e)", "func(b: e, a: r)"),
        ("-> u32", ""),
        ("g: func();", ""),
        ("g: func();", "g: func(); h: func();"),
        ("import i;", ""),
        ("world v { include w; }", ""),
        ("world v { include w; }", "world v {}"),
        ("world v", "interface k {} world v"),
    ],
)
def test_everything_else_is_a_change(old: str, new: str) -> None:
    assert old in CANONICAL
    changed = CANONICAL.replace(old, new)
    assert canonical(package_of(changed)) != canonical(package_of(CANONICAL))


def test_another_version_is_another_contract() -> None:
    assert canonical(parse("package a:b@1.0.0;")) != canonical(parse("package a:b@1.0.1;"))
