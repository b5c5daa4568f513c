"""The part of Go's text/template that ``--format`` is used with.

``{{.Name}}``, ``{{.Spec.Name}}``, ``{{json .}}``, ``{{index .Labels "k"}}``, ``{{len .X}}``, ``{{upper .X}}``, ``lower``,
``title``, ``join``, ``println``, ``{{range .X}}..{{else}}..{{end}}``, ``{{if .X}}..{{else}}..{{end}}``, ``{{with .X}}``,
pipes, strings, and ``-`` trimming. Anything else is an error that says so. Source: Go's text/template documentation.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from fleet import errors

__all__ = ["Template", "fields_used"]

_ACTION: Final = re.compile(r"\{\{(-\s)?\s*(.*?)\s*(\s-)?\}\}", re.DOTALL)
_TOKEN: Final = re.compile(r'\s*(?:("(?:[^"\\]|\\.)*"|`[^`]*`)|(\.[\w.]*|\$[\w.]*)|(-?\d+)|([A-Za-z_]\w*)|(\|))')
_DEPTH_MAX: Final = 16


@dataclasses.dataclass(frozen=True, slots=True)
class _Text:
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class _Print:
    pipeline: list[list[Any]]


@dataclasses.dataclass(frozen=True, slots=True)
class _Block:
    kind: str
    pipeline: list[list[Any]]
    body: list[Any]
    otherwise: list[Any]


@dataclasses.dataclass(frozen=True, slots=True)
class _Field:
    path: tuple[str, ...]
    root: bool


class Template:
    """A parsed template. Raises ``UserError`` for what it does not know."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._pieces = self._lex(text)
        self._at = 0
        self._nodes = self._block(depth=0, inside="")

    def render(self, value: object) -> str:
        """The text for one value (dicts, lists, scalars)."""
        return "".join(self._run(self._nodes, value, value))

    def _bad(self, why: str) -> errors.UserError:
        return errors.UserError(f"--format {self._text!r}: {why}")

    def _lex(self, text: str) -> list[str | tuple[str]]:
        pieces: list[str | tuple[str]] = []
        end = 0
        trim = False
        for found in _ACTION.finditer(text):
            before = text[end : found.start()]
            before = before.lstrip() if trim else before
            pieces.append(before.rstrip() if found[1] else before)
            pieces.append((found[2],))
            trim, end = bool(found[3]), found.end()
        rest = text[end:].lstrip() if trim else text[end:]
        if "{{" in rest:
            raise self._bad("'{{' without '}}'")
        return [*pieces, rest]

    def _block(self, *, depth: int, inside: str) -> list[Any]:
        if depth > _DEPTH_MAX:
            raise self._bad(f"nested deeper than {_DEPTH_MAX}")
        nodes: list[Any] = []
        while self._at < len(self._pieces):
            piece = self._pieces[self._at]
            if isinstance(piece, str):
                nodes.append(_Text(piece))
                self._at += 1
                continue
            action = piece[0]
            word, _, rest = action.partition(" ")
            if word in ("end", "else"):
                if not inside:
                    raise self._bad(f"'{word}' outside of range, if or with")
                return nodes
            self._at += 1
            if action.startswith("/*"):
                continue
            if word in ("range", "if", "with"):
                nodes.append(self._control(word, rest, depth=depth))
            else:
                nodes.append(_Print(self._pipeline(action)))
        if inside:
            raise self._bad(f"'{inside}' has no {{{{end}}}}")
        return nodes

    def _control(self, word: str, rest: str, *, depth: int) -> _Block:
        pipeline = self._pipeline(rest)
        body = self._block(depth=depth + 1, inside=word)
        otherwise: list[Any] = []
        if self._pieces[self._at] == ("else",):
            self._at += 1
            otherwise = self._block(depth=depth + 1, inside=word)
        if self._pieces[self._at] != ("end",):
            raise self._bad(f"'{self._pieces[self._at][0]}' is not supported here")
        self._at += 1
        return _Block(word, pipeline, body, otherwise)

    def _pipeline(self, text: str) -> list[list[Any]]:
        commands: list[list[Any]] = [[]]
        at = 0
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None:
                raise self._bad(f"cannot read {text[at:].strip()!r}")
            at = found.end()
            string, field, number, name, pipe = found.groups()
            if pipe:
                commands.append([])
            elif string:
                commands[-1].append(json.loads(string) if string[0] == '"' else string[1:-1])
            elif number:
                commands[-1].append(int(number))
            elif field:
                if field.startswith("$") and not field.startswith("$.") and field != "$":
                    raise self._bad("variables are not supported")
                path = tuple(part for part in field.lstrip("$").split(".") if part)
                commands[-1].append(_Field(path, root=field.startswith("$")))
            elif name in ("true", "false", "nil"):
                commands[-1].append({"true": True, "false": False}.get(name))
            else:
                if commands[-1] or name not in _FUNCTIONS:
                    raise self._bad(f"unknown function {name!r}; known: {', '.join(_FUNCTIONS)}")
                commands[-1].append(_FUNCTIONS[name])
        if not all(commands):
            raise self._bad("an empty action")
        return commands

    def _run(self, nodes: Sequence[Any], value: Any, root: Any) -> list[str]:
        out: list[str] = []
        for node in nodes:
            match node:
                case _Text(text):
                    out.append(text)
                case _Print(pipeline):
                    out.append(_shown(self._evaluate(pipeline, value, root)))
                case _Block(kind, pipeline, body, otherwise):
                    found = self._evaluate(pipeline, value, root)
                    if not found:
                        out += self._run(otherwise, value, root)
                    elif kind == "range":
                        for item in found.values() if isinstance(found, dict) else found:
                            out += self._run(body, item, root)
                    else:
                        out += self._run(body, found if kind == "with" else value, root)
        return out

    def _evaluate(self, pipeline: list[list[Any]], value: Any, root: Any) -> Any:
        result: Any = None
        for position, command in enumerate(pipeline):
            arguments = [self._argument(item, value, root) for item in command]
            if position:
                arguments.append(result)
            if callable(arguments[0]):
                try:
                    result = arguments[0](*arguments[1:])
                except (TypeError, KeyError, IndexError) as cause:
                    raise self._bad(f"cannot evaluate: {cause}") from cause
            elif len(arguments) == 1:
                result = arguments[0]
            else:
                raise self._bad("a value takes no arguments")
        return result

    def _argument(self, item: Any, value: Any, root: Any) -> Any:
        if not isinstance(item, _Field):
            return item
        place = root if item.root else value
        for name in item.path:
            if place is None:
                return None
            if not isinstance(place, dict):
                raise self._bad(f"there is no field .{name} in {_shown(place)!r}")
            if name not in place:
                lowered = {str(key).lower(): key for key in place}
                if name.lower() not in lowered:
                    return self._absent(name, place)
                name = lowered[name.lower()]  # noqa: PLW2901 - Id and ID are both in use in the API
            place = place[name]
        return place

    def _absent(self, name: str, place: dict[str, Any]) -> None:
        """The API leaves empty fields out, so an absent field of an object is nothing; of a table row it is a mistake."""
        if place.get("_row"):
            known = ", ".join(f".{key}" for key in place if not key.startswith("_"))
            raise self._bad(f"there is no field .{name}; known: {known}")


def fields_used(text: str) -> list[str]:
    """The first field of each action, for the headings of ``table`` formats."""
    return [
        next((part.lstrip(".") for part in found[2].split() if part.startswith(".")), "")
        for found in _ACTION.finditer(text)
    ]


def _shown(value: Any) -> str:
    match value:
        case None:
            return "<no value>"
        case bool():
            return "true" if value else "false"
        case dict():
            inside = " ".join(f"{key}:{_shown(item)}" for key, item in sorted(value.items()) if key != "_row")
            return f"map[{inside}]"
        case list():
            return f"[{' '.join(_shown(item) for item in value)}]"
        case _:
            return str(value)


def _json(value: Any) -> str:
    if isinstance(value, dict):
        value = {key: item for key, item in value.items() if key != "_row"}
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if value is None:
            return ""
        value = value.get(key, "") if isinstance(value, dict) else value[key]
    return value


_FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    "json": _json,
    "index": _index,
    "len": len,
    "upper": lambda text: str(text).upper(),
    "lower": lambda text: str(text).lower(),
    "title": lambda text: str(text).title(),
    "join": lambda items, separator: separator.join(map(str, items or ())),
    "println": lambda *items: " ".join(_shown(item) for item in items) + "\n",
    "print": lambda *items: "".join(_shown(item) for item in items),
    "not": lambda value: not value,
    "eq": lambda first, *others: any(first == other for other in others),
    "ne": lambda first, second: first != second,
}
