"""A Compose file as a tree whose every value knows its line: ``parse`` makes it from YAML, ``Node`` reads it.

YAML is read as version 1.2 has it where 1.1 surprises people: ``no`` and ``22:22`` are strings, ``true`` is a boolean,
and a scalar keeps its text, so a version ``1.10`` stays ``1.10``. Bounds: text, number of values (aliases counted each
time they are used, so "billion laughs" ends early), nesting. Duplicate keys are errors.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Literal, NoReturn, TypeVar

import yaml

from fleet import errors

__all__ = ["Kind", "Mark", "Node", "hint", "parse"]

TEXT_MAX: Final = 1024 * 1024
"""Characters of one file."""
NODES_MAX: Final = 50_000
"""Values in one file, aliases expanded."""
DEPTH_MAX: Final = 40
_SHOWN_MAX: Final = 60
"""Characters of a wrong value that are repeated in the error."""
_HINTED_MAX: Final = 12
_INTEGER_MAX: Final = 1000
"""Characters; Python refuses to print numbers of more than 4300 digits."""
_UNFIT: Final = re.compile("[\0\ud800-\udfff]")
"""What no path, variable or argument of a process may hold, and what no UTF-8 text can."""

Kind = Literal["mapping", "list", "string", "integer", "number", "boolean", "null"]

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class Mark:
    """A place in a file; line and column count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One value. ``path`` says where it is in words (``services.web.ports``), ``mark`` where in the file."""

    kind: Kind
    mark: Mark
    path: str
    text: str = ""
    entries: dict[str, Node] = dataclasses.field(default_factory=dict)
    items: tuple[Node, ...] = ()
    key_mark: Mark | None = None
    merging: Literal["", "reset", "override"] = ""
    """By the tags ``!reset`` and ``!override``: what an earlier file says is taken away, or replaced whole."""

    @property
    def place(self) -> Mark:
        """Where a person looks for it: the text itself, of everything else its key."""
        is_text = self.kind not in ("mapping", "list", "null")
        return self.mark if is_text or self.key_mark is None else self.key_mark

    def fail(self, message: str) -> NoReturn:
        """Raise ``UserError`` with file, line, column and path in front."""
        raise errors.UserError(f"{self.place}: {self.path or 'the document'}: {message}")

    def _expected(self, what: str) -> NoReturn:
        text = self.text if len(self.text) <= _SHOWN_MAX else f"{self.text[:_SHOWN_MAX]}..."
        shown = f" {text!r}" if text else ""
        self.fail(f"expected {what}, got {_article(self.kind)}{shown}")

    def apply(self, convert: Callable[[str], T]) -> T:
        """``convert`` of the scalar's text, with the place added to its ``UserError``."""
        text = self.scalar()
        return self.apply_check(lambda: convert(text))

    def apply_check(self, check: Callable[[], T]) -> T:
        """``check()``, with the place added to its ``UserError``."""
        try:
            return check()
        except errors.UserError as cause:
            raise errors.UserError(f"{self.place}: {self.path}: {cause}") from cause

    def scalar(self) -> str:
        """Text of a string, number or boolean."""
        if self.kind in ("mapping", "list", "null"):
            self._expected("a string")
        return self.text

    def string(self) -> str:
        """Text; numbers are taken as written, booleans are refused because their spelling is ambiguous."""
        if self.kind == "boolean":
            self._expected("a string (put it in quotes)")
        return self.scalar()

    def integer(self) -> int:
        """A whole number; octal as YAML writes it (``0444``, ``0o444``)."""
        try:
            value = _integer(self.scalar())
        except ValueError:
            self._expected("a whole number")
        if not -(2**63) <= value < 2**63:
            self._expected("a whole number of at most 64 bits")
        return value

    def number(self) -> float:
        """Any finite number."""
        try:
            value = float(self.scalar())
        except ValueError:
            self._expected("a number")
        if not -1e300 < value < 1e300:
            self._expected("a finite number")
        return value

    def boolean(self) -> bool:
        """true/false, and the older yes/no/on/off."""
        lowered = self.scalar().lower()
        if lowered in ("true", "yes", "on", "y", "1"):
            return True
        if lowered not in ("false", "no", "off", "n", "0"):
            self._expected("true or false")
        return False

    def mapping(self) -> dict[str, Node]:
        """Entries; an empty value is an empty mapping."""
        if self.kind == "null":
            return {}
        if self.kind != "mapping":
            self._expected("a mapping")
        return self.entries

    def sequence(self) -> tuple[Node, ...]:
        """Items; an empty value is an empty list."""
        if self.kind == "null":
            return ()
        if self.kind != "list":
            self._expected("a list")
        return self.items

    def walk(self) -> Iterator[Node]:
        """This value and all below it, in the file's order."""
        yield self
        for child in (*self.entries.values(), *self.items):
            yield from child.walk()

    def plain(self) -> Any:
        """Dicts, lists and Python scalars, for printing the file again."""
        match self.kind:
            case "mapping":
                return {key: child.plain() for key, child in self.entries.items()}
            case "list":
                return [child.plain() for child in self.items]
            case "null":
                return None
            case "boolean":
                return self.text.lower() == "true"
            case "integer":
                return _plain_integer(self.text)
            case "number":
                return float(self.text)
            case "string":
                return self.text


def hint(name: str, known: Iterable[str]) -> str:
    """Which of the known names was probably meant, or which there are."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    more = ", ..." if len(names) > _HINTED_MAX else ""
    return f"known are {', '.join(names[:_HINTED_MAX])}{more}" if names else "there is none"


def _plain_integer(text: str) -> int | str:
    """As text when it is no number after all (``089``) or longer than Python prints."""
    try:
        return text if len(text) > _INTEGER_MAX else _integer(text)
    except ValueError:
        return text


def _integer(text: str) -> int:
    text = text.replace("_", "")
    return int(text, 8) if re.fullmatch(r"[-+]?0[0-7]+", text) else int(text, 0)


def _article(kind: str) -> str:
    return {"null": "nothing", "integer": "an integer"}.get(kind, f"a {kind}")


class _Loader(yaml.SafeLoader):
    """Resolves plain scalars by YAML 1.2's core schema, except octal ``0444``, which Compose files use for modes."""

    yaml_implicit_resolvers: Any = {}  # noqa: RUF012 - PyYAML's way


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), [*_first, ""] if _tag == "null" else [*_first]
    )
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile("^<<$"), ["<"])

_KINDS: Final[dict[str, Kind]] = {
    "tag:yaml.org,2002:bool": "boolean",
    "tag:yaml.org,2002:null": "null",
    "tag:yaml.org,2002:int": "integer",
    "tag:yaml.org,2002:float": "number",
    "tag:yaml.org,2002:str": "string",
}
_MERGING: Final[dict[str, Literal["", "reset", "override"]]] = {"!reset": "reset", "!override": "override"}
_COLLECTIONS: Final = frozenset({"tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"})


def parse(text: str, *, file: str) -> Node:
    """The document in ``text``. Raises ``UserError`` naming ``file`` and line for anything that is not one."""
    if len(text) > TEXT_MAX:
        raise errors.TooLargeError(f"{file}: {len(text)} characters; a Compose file has at most {TEXT_MAX}")
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as cause:
        mark = cause.problem_mark or cause.context_mark
        place = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else file
        raise errors.UserError(f"{place}: not valid YAML: {_said(cause)}") from cause
    except yaml.reader.ReaderError as cause:
        lines = text[: cause.position].split("\n")
        place = f"{file}:{len(lines)}:{len(lines[-1]) + 1}"
        raise errors.UserError(f"{place}: not valid YAML: the character U+{ord(text[cause.position]):04X}") from cause
    except yaml.YAMLError as cause:
        raise errors.UserError(f"{file}: not valid YAML: {' '.join(str(cause).split())}") from cause
    except RecursionError as cause:
        raise errors.UserError(f"{file}: nested deeper than {DEPTH_MAX} levels") from cause
    if root is None:
        raise errors.UserError(f"{file}: the file is empty; expected a Compose file with 'services:'")
    return _Builder(file).build(root, path="", depth=0)


def _said(cause: yaml.MarkedYAMLError) -> str:
    if "'\\t'" in (cause.problem or ""):
        return "a tab is here where spaces belong: YAML is indented with spaces alone"
    return ", ".join(filter(None, (cause.context, cause.problem)))


class _Builder:
    def __init__(self, file: str) -> None:
        self.file = file
        self.count = 0

    def mark(self, node: yaml.Node) -> Mark:
        return Mark(self.file, node.start_mark.line + 1, node.start_mark.column + 1)

    def build(self, node: yaml.Node, *, path: str, depth: int, key_mark: Mark | None = None) -> Node:
        mark = self.mark(node)
        self.count += 1
        if self.count > NODES_MAX:
            raise errors.TooLargeError(
                f"{mark}: more than {NODES_MAX} values (aliases are counted where they are used)"
            )
        if depth > DEPTH_MAX:
            raise errors.UserError(f"{mark}: nested deeper than {DEPTH_MAX} levels (or an alias that holds itself)")
        merging = _MERGING.get(node.tag, "")
        if isinstance(node, yaml.ScalarNode):
            kind = _KINDS.get(self.resolved(node) if merging else node.tag)
            if kind is None:
                raise errors.UserError(f"{mark}: the tag {node.tag} is not known in Compose files")
            text = self.fit(node.value, mark=mark, path=path)
            return Node(kind=kind, mark=mark, path=path, text=text, key_mark=key_mark, merging=merging)
        self.check_tag(node, mark)
        if isinstance(node, yaml.SequenceNode):
            items = tuple(
                self.build(child, path=f"{path}[{index}]", depth=depth + 1) for index, child in enumerate(node.value)
            )
            return Node(kind="list", mark=mark, path=path, items=items, key_mark=key_mark, merging=merging)
        entries = self.entries(node, path=path, depth=depth)
        return Node(kind="mapping", mark=mark, path=path, entries=entries, key_mark=key_mark, merging=merging)

    def resolved(self, node: yaml.ScalarNode) -> str:
        """The tag that the scalar would have without the one it was given."""
        resolver: Any = _Loader("")
        return str(resolver.resolve(yaml.ScalarNode, node.value, (node.style is None, node.style is not None)))

    def check_tag(self, node: yaml.Node, mark: Mark) -> None:
        if node.tag not in _MERGING and node.tag not in _COLLECTIONS:
            raise errors.UserError(f"{mark}: the tag {node.tag} is not known in Compose files")

    def fit(self, text: str, *, mark: Mark, path: str) -> str:
        found = _UNFIT.search(text)
        if found is not None:
            raise errors.UserError(
                f"{mark}: {path or 'the document'}: the character U+{ord(found[0]):04X} cannot be part of a text"
            )
        return text

    def entries(self, node: yaml.Node, *, path: str, depth: int) -> dict[str, Node]:
        if depth > DEPTH_MAX:
            raise errors.UserError(f"{self.mark(node)}: nested deeper than {DEPTH_MAX} levels")
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key_node, value_node in node.value:
            key_mark = self.mark(key_node)
            if key_node.tag == "tag:yaml.org,2002:merge":
                for base in self.bases(value_node, key_mark):
                    for key, value in self.entries(base, path=path, depth=depth + 1).items():
                        merged.setdefault(key, value)
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise errors.UserError(f"{key_mark}: {path or 'the document'}: a key must be a plain word")
            key = self.fit(str(key_node.value), mark=key_mark, path=path)
            if key in own:
                first = own[key].key_mark
                raise errors.UserError(
                    f"{key_mark}: {path or 'the document'}: the key {key!r} was given at {first} already"
                )
            below = f"{path}.{key}" if path else key
            own[key] = self.build(value_node, path=below, depth=depth + 1, key_mark=key_mark)
        return {**merged, **own}

    def bases(self, node: yaml.Node, mark: Mark) -> list[yaml.Node]:
        self.count += 1
        if self.count > NODES_MAX:
            raise errors.TooLargeError(
                f"{mark}: more than {NODES_MAX} values (aliases are counted where they are used)"
            )
        found = list(node.value) if isinstance(node, yaml.SequenceNode) else [node]
        if not all(isinstance(base, yaml.MappingNode) for base in found):
            raise errors.UserError(f"{mark}: '<<' merges mappings only")
        return found
