"""What is wrong with a file's keys, and what in it will not be honoured: nothing is dropped in silence."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from fleet import errors
from fleet.compose.document import Mark, Node, hint
from fleet.compose.schema import DOCUMENT, Key, Keys

__all__ = ["Diagnosis", "diagnose"]


@dataclasses.dataclass(frozen=True, slots=True)
class Diagnosis:
    """A key that is understood and not honoured; ``text`` says why or what to use instead."""

    mark: Mark
    path: str
    text: str

    def __str__(self) -> str:
        return f"{self.mark}: {self.path} is not honoured: {self.text}"


def diagnose(document: Node) -> tuple[Diagnosis, ...]:
    """Warnings for keys that are not honoured. Raises ``UserError`` at the first key that is unknown or refused."""
    return tuple(_check(document, DOCUMENT))


def _check(node: Node, keys: Keys) -> Iterator[Diagnosis]:
    for name, child in node.mapping().items():
        if name.startswith("x-"):
            continue
        key = keys.get(name)
        if key is None:
            raise errors.UserError(f"{child.key_mark or child.mark}: {_unknown(node, name, keys)}")
        if key.verdict == "refused":
            raise errors.UserError(f"{child.key_mark or child.mark}: {child.path}: is refused: {key.note}")
        if key.verdict == "ignored":
            if not _says_nothing(child):
                yield Diagnosis(child.key_mark or child.mark, child.path, key.note)
            continue
        if key.below is not None:
            yield from _check_below(child, key, key.below)


def _check_below(node: Node, key: Key, below: Keys) -> Iterator[Diagnosis]:
    match key.of:
        case "value":
            yield from _check(node, below)
        case "either":
            if node.kind == "mapping":
                yield from _check(node, below)
        case "items":
            for item in node.items:
                if item.kind == "mapping":
                    yield from _check(item, below)
        case "entries":
            for entry in node.entries.values():
                if entry.kind != "null":
                    yield from _check(entry, below)


def _says_nothing(node: Node) -> bool:
    """``privileged: false`` and ``devices: []`` ask for nothing."""
    if node.kind in ("mapping", "list"):
        return not node.entries and not node.items
    return node.kind == "null" or (node.kind == "boolean" and node.text.lower() == "false")


def _unknown(node: Node, name: str, keys: Keys) -> str:
    return f"{node.path or 'the top level'}: unknown key {name!r}; {hint(name, keys)}"
