"""Go's text/template as ``--format`` is used with it.

Fields (``.Spec.Name``, ``(index .Tasks 0).ID``), pipes, parentheses, strings, numbers, variables (``$x := ...``), ``if``,
``else if``, ``else``, ``range`` (``range $i, $x := ...`` too) with ``break`` and ``continue``, ``with``, comments, ``-``
trimming, and the functions of ``template_functions``. ``define``, ``template`` and ``block`` are not there, and say so. Two
things are kinder than Go: a field that an object lacks is nothing instead of an error, because the API leaves empty ones out,
and names of fields are found in either case, because Id and ID are both in use. Source: Go's text/template documentation.

    scan: text -> texts and actions -> parse: actions -> nodes -> run: nodes and a value -> text
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from fleet import errors
from fleet.cli.template_functions import FUNCTIONS, HEADING_FUNCTIONS, shown

__all__ = ["Template"]

_TOKEN: Final = re.compile(
    r"""\s*(?:(?P<text>"(?:[^"\\\n]|\\.)*"|`[^`]*`)|(?P<number>-?\d+(?:\.\d+)?(?![\w.]))|(?P<var>\$\w*)"""
    r"""|(?P<field>\.(?:\w+(?:\.\w+)*)?)|(?P<name>[A-Za-z_]\w*)|(?P<sign>:=|[=|(),]))"""
)
_DEPTH_MAX: Final = 16
_LAZY: Final = ("and", "or")
_UNSUPPORTED: Final = ("define", "template", "block")


@dataclasses.dataclass(frozen=True, slots=True)
class _Text:
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class _Action:
    words: str


@dataclasses.dataclass(frozen=True, slots=True)
class _Constant:
    value: Any


@dataclasses.dataclass(frozen=True, slots=True)
class _Function:
    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class _Field:
    """``path`` below ``of``: None is the dot, a text a variable, a pipeline what parentheses hold."""

    of: str | _Pipeline | None
    path: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class _Pipeline:
    commands: list[list[Any]]
    variables: tuple[str, ...] = ()
    declares: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class _Print:
    pipeline: _Pipeline


@dataclasses.dataclass(frozen=True, slots=True)
class _Block:
    kind: str
    pipeline: _Pipeline
    body: list[Any]
    otherwise: list[Any]


@dataclasses.dataclass(frozen=True, slots=True)
class _Jump:
    kind: str


class _Jumped(Exception):
    def __init__(self, kind: str, out: list[str]) -> None:
        super().__init__(kind)
        self.kind = kind
        self.out = out


class Template:
    """A parsed template. Raises ``UserError`` for what it does not know."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._pieces = _scan(text, self._bad)
        self._at = 0
        self._nodes = self._block(depth=0, inside="")

    def render(self, value: object, *, strict: bool = False, zeros: Mapping[str, Any] | None = None) -> str:
        """The text for one value (dicts, lists, scalars). ``strict``: a field that ``value`` itself lacks is an error.

        ``zeros``: what such a field is instead, by its name in lower case.
        """
        return "".join(_Run(self._bad, value, FUNCTIONS, strict=strict, zeros=zeros or {}).nodes(self._nodes, value))

    def heading(self, headings: Mapping[str, Any]) -> str:
        """The line above a table: headings for fields; a field without one is its name."""
        run = _Run(self._bad, headings, HEADING_FUNCTIONS, heading=True)
        try:
            return "".join(run.nodes(self._nodes, headings))
        except errors.UserError:  # values have lists or numbers where a heading is a word
            return ""

    def _bad(self, why: str) -> errors.UserError:
        return errors.UserError(f"--format {self._text!r}: {why}")

    # --- parsing ---

    def _block(self, *, depth: int, inside: str) -> list[Any]:
        if depth > _DEPTH_MAX:
            raise self._bad(f"nested deeper than {_DEPTH_MAX}")
        nodes: list[Any] = []
        while self._at < len(self._pieces):
            piece = self._pieces[self._at]
            if isinstance(piece, _Text):
                nodes.append(piece)
                self._at += 1
                continue
            word, _, rest = piece.words.replace("\n", " ").replace("\t", " ").partition(" ")
            if word in ("end", "else"):
                if not inside:
                    raise self._bad(f"'{word}' outside of range, if or with")
                return nodes
            self._at += 1
            if word in ("range", "if", "with"):
                nodes.append(self._control(word, rest, depth=depth, inside=inside))
            elif word in ("break", "continue"):
                if "range" not in inside:
                    raise self._bad(f"'{word}' outside of range")
                nodes.append(_Jump(word))
            elif word in _UNSUPPORTED:
                raise self._bad(f"'{word}' is not supported")
            else:
                nodes.append(_Print(self._pipeline(piece.words)))
        if inside:
            raise self._bad(f"'{inside.rpartition(' ')[2]}' has no {{{{end}}}}")
        return nodes

    def _control(self, word: str, rest: str, *, depth: int, inside: str) -> _Block:
        pipeline = self._pipeline(rest, variables_max=2 if word == "range" else 1)
        within = f"{inside} {word}".strip()
        body = self._block(depth=depth + 1, inside=within)
        otherwise: list[Any] = []
        closing = self._pieces[self._at]
        assert isinstance(closing, _Action), "a block ends at an action"
        first, _, more = closing.words.partition(" ")
        if first == "else":
            self._at += 1
            again, _, condition = more.strip().partition(" ")
            if again:
                if again not in ("if", "with") or again != word:
                    raise self._bad(f"'else {more.strip()}' does not follow '{word}'")
                return _Block(
                    word, pipeline, body, [self._control(word, condition, depth=depth + 1, inside=inside or word)]
                )
            otherwise = self._block(depth=depth + 1, inside=f"{inside} else" if word == "range" else within)
            closing = self._pieces[self._at]
        if closing != _Action("end"):
            raise self._bad(
                f"expected {{{{end}}}} of '{word}', not {closing.words if isinstance(closing, _Action) else ''!r}"
            )
        self._at += 1
        return _Block(word, pipeline, body, otherwise)

    def _pipeline(self, words: str, *, variables_max: int = 1) -> _Pipeline:
        tokens, at = [], 0
        words = words.strip()
        while at < len(words):
            found = _TOKEN.match(words, at)
            if found is None:
                raise self._bad(f"cannot read {words[at:].strip()!r}")
            tokens.append((str(found.lastgroup), found[str(found.lastgroup)], found.start(found.lastgroup or 0)))
            at = found.end()
        variables, declares, tokens = self._declaration(tokens, variables_max)
        commands, rest = self._commands(tokens, depth=0)
        if rest:
            raise self._bad(f"unexpected {rest[0][1]!r}")
        return _Pipeline(commands, variables, declares)

    def _declaration(
        self, tokens: list[tuple[str, str, int]], most: int
    ) -> tuple[tuple[str, ...], bool, list[tuple[str, str, int]]]:
        for count in range(1, most + 1):
            head = [token[1] for token in tokens[: 2 * count]]
            names = tuple(head[0:-1:2])
            if len(head) == 2 * count and head[-1] in (":=", "=") and all(h == "," for h in head[1:-1:2]):
                if not all(name.startswith("$") and len(name) > 1 for name in names):
                    raise self._bad(f"{names[0]!r} is no variable; expected a name such as $x")
                return names, head[-1] == ":=", tokens[2 * count :]
        return (), False, tokens

    def _commands(
        self, tokens: list[tuple[str, str, int]], *, depth: int
    ) -> tuple[list[list[Any]], list[tuple[str, str, int]]]:
        """Commands up to the closing parenthesis, or the end; and the tokens after them."""
        if depth > _DEPTH_MAX:
            raise self._bad(f"nested deeper than {_DEPTH_MAX}")
        commands: list[list[Any]] = [[]]
        while tokens and tokens[0][1] != ")":
            (kind, text, start), tokens = tokens[0], tokens[1:]
            if kind == "sign" and text == "(":
                inner, tokens = self._commands(tokens, depth=depth + 1)
                if not tokens:
                    raise self._bad("'(' without ')'")
                end = tokens[0][2] + 1
                tokens = tokens[1:]
                path, tokens = _path_at(tokens, end)
                commands[-1].append(_Field(_Pipeline(inner), path))
            elif kind == "sign" and text == "|":
                commands.append([])
            elif kind == "sign":
                raise self._bad(f"unexpected {text!r}")
            elif kind == "var":
                path, tokens = _path_at(tokens, start + len(text))
                commands[-1].append(_Field(text, path))
            else:
                commands[-1].append(self._operand(kind, text))
        if not all(commands):
            raise self._bad("an empty action")
        return commands, tokens

    def _operand(self, kind: str, text: str) -> Any:
        if kind == "text":
            try:
                return _Constant(json.loads(text, strict=False) if text[0] == '"' else text[1:-1])
            except ValueError as cause:
                raise self._bad(f"{text} has an escape that is not known") from cause
        if kind == "number":
            return _Constant(float(text) if "." in text else int(text))
        if kind == "field":
            return _Field(None, _path(text))
        if text in ("true", "false", "nil"):
            return _Constant({"true": True, "false": False}.get(text))
        if text not in FUNCTIONS and text not in _LAZY:
            raise self._bad(f"unknown function {text!r}; known: {', '.join(sorted((*FUNCTIONS, *_LAZY)))}")
        return _Function(text)


def _path(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(".") if part)


def _path_at(tokens: list[tuple[str, str, int]], place: int) -> tuple[tuple[str, ...], list[tuple[str, str, int]]]:
    """``.A.B`` that follows without a space belongs to what is before it."""
    if tokens and tokens[0][0] == "field" and tokens[0][2] == place and len(tokens[0][1]) > 1:
        return _path(tokens[0][1]), tokens[1:]
    return (), tokens


def _scan(text: str, bad: Callable[[str], errors.UserError]) -> list[_Text | _Action]:
    """Texts and actions in turn, trimmed where ``-`` asks for it; comments are left out."""
    pieces: list[_Text | _Action] = []
    at, trim = 0, False
    while (start := text.find("{{", at)) >= 0:
        before = text[at:start].lstrip() if trim else text[at:start]
        inside = start + 2
        if text[inside : inside + 1] == "-" and text[inside + 1 : inside + 2].isspace():
            before, inside = before.rstrip(), inside + 1
        pieces.append(_Text(before))
        end = _end(text, inside)
        if end < 0:
            raise bad("'{{' without '}}'")
        words, at, trim = text[inside:end], end + 2, False
        if words.endswith("-") and words[-2:-1].isspace():
            words, trim = words[:-1], True
        if not words.strip().startswith("/*"):
            pieces.append(_Action(words.strip()))
    pieces.append(_Text(text[at:].lstrip() if trim else text[at:]))
    return pieces


def _end(text: str, at: int) -> int:
    """Where the ``}}`` of an action is, strings and comments stepped over; -1 when there is none."""
    body = text[at:].lstrip("- \t\n")
    if body.startswith("/*"):
        closed = text.find("*/", at)
        return text.find("}}", closed) if closed >= 0 else -1
    quote = ""
    while at < len(text):
        sign = text[at]
        if quote:
            if sign == "\\" and quote == '"':
                at += 1
            elif sign == quote:
                quote = ""
        elif sign in '"`':
            quote = sign
        elif text.startswith("}}", at):
            return at
        at += 1
    return -1


class _Run:
    """One rendering: the variables, and how strict it is."""

    def __init__(
        self,
        bad: Callable[[str], errors.UserError],
        root: object,
        functions: Mapping[str, Callable[..., Any]],
        *,
        strict: bool = False,
        heading: bool = False,
        zeros: Mapping[str, Any] | None = None,
    ) -> None:
        self._bad = bad
        self._root = root
        self._functions = functions
        self._strict = strict
        self._heading = heading
        self._zeros = zeros or {}
        self._variables: list[tuple[str, Any]] = [("$", root)]

    def nodes(self, nodes: Sequence[Any], dot: Any) -> list[str]:
        """The texts of ``nodes``; variables declared among them end with them."""
        out: list[str] = []
        scope = len(self._variables)
        for node in nodes:
            match node:
                case _Text(text):
                    out.append(text)
                case _Print(pipeline):
                    value = self._pipe(pipeline, dot)
                    if not pipeline.variables:
                        out.append(shown(value))
                case _Block():
                    try:
                        out += self._control(node, dot)
                    except _Jumped as jump:
                        jump.out[:0] = out
                        raise
                case _Jump(kind):
                    raise _Jumped(kind, out)
        del self._variables[scope:]
        return out

    def _control(self, block: _Block, dot: Any) -> list[str]:
        scope = len(self._variables)
        value = self._pipe(block.pipeline, dot, assigns=block.kind != "range")
        if block.kind == "range":
            out = self._range(block, value, dot)
        else:
            inner = value if block.kind == "with" and value else dot
            out = self.nodes(block.body if value else block.otherwise, inner)
        del self._variables[scope:]
        return out

    def _range(self, block: _Block, value: Any, dot: Any) -> list[str]:
        pairs = self._pairs(value)
        if not pairs:
            return self.nodes(block.otherwise, dot)
        out: list[str] = []
        names = block.pipeline.variables
        for key, item in pairs:
            scope = len(self._variables)
            if names:
                for name, found in zip(names, (key, item) if len(names) == 2 else (item,), strict=True):
                    self._set(name, found, declares=block.pipeline.declares)
            try:
                out += self.nodes(block.body, item)
            except _Jumped as jump:
                out += jump.out
                if jump.kind == "break":
                    break
            finally:
                del self._variables[scope:]
        return out

    def _pairs(self, value: Any) -> Sequence[tuple[Any, Any]]:
        match value:
            case None:
                return ()
            case dict():
                return [(key, item) for key, item in sorted(value.items()) if not callable(item)]
            case list() | tuple():
                return list(enumerate(value))
            case _:
                raise self._bad(f"range can't iterate over {shown(value)!r}")

    def _pipe(self, pipeline: _Pipeline, dot: Any, *, assigns: bool = True) -> Any:
        result: Any = None
        for position, command in enumerate(pipeline.commands):
            result = self._command(command, dot, [result] if position else [])
        if assigns:
            for name in pipeline.variables:
                self._set(name, result, declares=pipeline.declares)
        return result

    def _set(self, name: str, value: Any, *, declares: bool) -> None:
        if declares:
            self._variables.append((name, value))
            return
        for position in range(len(self._variables) - 1, -1, -1):
            if self._variables[position][0] == name:
                self._variables[position] = (name, value)
                return
        raise self._bad(f"there is no variable {name}")

    def _command(self, command: list[Any], dot: Any, piped: list[Any]) -> Any:
        first, *rest = command
        if isinstance(first, _Function) and first.name in _LAZY:
            return self._lazy(first.name, rest, dot, piped)
        arguments = [*(self._value(item, dot) for item in rest), *piped]
        called = self._functions[first.name] if isinstance(first, _Function) else self._value(first, dot)
        if callable(called):
            return self._call(called, arguments)
        if arguments:
            raise self._bad(f"{shown(called)!r} is a value and takes no arguments")
        return called

    def _lazy(self, name: str, rest: list[Any], dot: Any, piped: list[Any]) -> Any:
        if not rest and not piped:
            raise self._bad(f"{name} takes one value or more")
        value: Any = None
        for item in rest:
            value = self._value(item, dot)
            if bool(value) is (name == "or"):
                return value
        return piped[0] if piped else value

    def _value(self, item: Any, dot: Any) -> Any:
        match item:
            case _Constant(value):
                return value
            case _Function(name):
                if name in _LAZY:
                    raise self._bad(f"{name} takes one value or more")
                return self._call(self._functions[name], [])
            case _:
                return self._field(item, dot)

    def _call(self, function: Callable[..., Any], arguments: list[Any]) -> Any:
        try:
            return function(*arguments)
        except (TypeError, ValueError, KeyError, OverflowError, RecursionError) as cause:
            raise self._bad(f"cannot evaluate: {cause}") from cause

    def _field(self, item: _Field, dot: Any) -> Any:
        match item.of:
            case None:
                place = dot
            case str():
                place = next((value for name, value in reversed(self._variables) if name == item.of), self)
                if place is self:
                    raise self._bad(f"there is no variable {item.of}")
            case _:
                place = self._pipe(item.of, dot)
        for name in item.path:
            if place is None or (self._heading and not isinstance(place, dict)):
                return place
            if not isinstance(place, dict):
                raise self._bad(f"there is no field .{name} in {shown(place)!r}")
            place = self._member(place, name)
        return place

    def _member(self, place: dict[str, Any], name: str) -> Any:
        if name in place:
            return place[name]
        for key, value in place.items():
            if str(key).lower() == name.lower():
                return value
        if self._heading:
            return name.upper()
        if self._strict and place is self._root:
            known = ", ".join(f".{key}" for key in place)
            raise self._bad(f"there is no field .{name}; known: {known}")
        return self._zeros.get(name.lower()) if place is self._root else None
