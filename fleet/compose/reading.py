"""Compose's either-or forms: mapping or ``k=v`` list, one value or a list, command string or list of words."""

from __future__ import annotations

import shlex

from fleet import errors
from fleet.compose import values
from fleet.compose.document import Node

__all__ = ["listed", "string_map", "strings", "words"]


def string_map(node: Node | None) -> dict[str, str]:
    """``{a: 1}`` or ``[a=1]`` -> ``{"a": "1"}``; no value is the empty string."""
    if node is None:
        return {}
    if node.kind == "list":
        return dict(item.apply(lambda text: values.parse_pair(text, what="name=value")) for item in node.items)
    return {key: "" if child.kind == "null" else child.scalar() for key, child in node.mapping().items()}


def strings(node: Node | None) -> tuple[str, ...]:
    """A string or a list of strings."""
    if node is None or node.kind == "null":
        return ()
    return tuple(item.string() for item in node.sequence()) if node.kind == "list" else (node.string(),)


def words(node: Node | None) -> tuple[str, ...]:
    """A command: a list of words, or a string split as a shell would (no shell runs it)."""
    if node is None or node.kind in ("list", "null"):
        return strings(node)
    try:
        return tuple(shlex.split(node.string()))
    except ValueError as cause:
        raise errors.UserError(f"{node.mark}: {node.path}: {str(cause).lower()} in {node.text!r}") from cause


def listed(node: Node | None) -> tuple[Node, ...]:
    """A value or a list of values."""
    if node is None or node.kind == "null":
        return ()
    return node.items if node.kind == "list" else (node,)
