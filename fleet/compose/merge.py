"""Several Compose files into one: later files win, by the Compose specification's "Merge and override" rules.

Mappings are merged key by key; ``command``, ``entrypoint`` and a health check's ``test`` are replaced; lists that are
really mappings (environment, labels) are merged by name, ports and mounts by where they appear in the container; other
lists are joined without repeating. ``!override`` replaces what earlier files say whole, ``!reset`` takes it away.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from fleet.compose.document import Node
from fleet.compose.interpolate import interpolate

__all__ = ["interpolate_tree", "merge", "without_resets"]

_REPLACED: Final = frozenset({"command", "entrypoint", "test"})
_LISTED: Final = frozenset({"env_file", "dns", "dns_search", "tmpfs"})
"""One of them need not be written as a list, and is one all the same."""
_BY_NAME: Final = frozenset({"environment", "labels", "annotations", "sysctls", "options", "driver_opts"})


def interpolate_tree(
    node: Node, environment: Mapping[str, str], *, on_unset: Callable[[Node, str], None] | None = None
) -> Node:
    """The tree with variables in its strings replaced; keys are left as they are."""
    match node.kind:
        case "mapping":
            entries = {
                key: interpolate_tree(child, environment, on_unset=on_unset) for key, child in node.entries.items()
            }
            return dataclasses.replace(node, entries=entries)
        case "list":
            return dataclasses.replace(
                node, items=tuple(interpolate_tree(child, environment, on_unset=on_unset) for child in node.items)
            )
        case "string" if "$" in node.text:

            def unset(name: str) -> None:
                if on_unset is not None:
                    on_unset(node, name)

            return dataclasses.replace(
                node, text=node.apply(lambda text: interpolate(text, environment, on_unset=unset))
            )
        case _:
            return node


def merge(documents: Sequence[Node]) -> Node:
    """One document from several, the last the strongest. Raises ``UserError`` where their shapes cannot be joined."""
    result = documents[0]
    for override in documents[1:]:
        result = _merge(result, override, key="")
    return result


def without_resets(node: Node) -> Node:
    """The tree without what was tagged ``!reset``: for the end, since a reset must outlive each step of the merging."""
    match node.kind:
        case "mapping":
            kept = {key: without_resets(child) for key, child in node.entries.items() if child.merging != "reset"}
            return dataclasses.replace(node, entries=kept)
        case "list":
            items = tuple(without_resets(child) for child in node.items if child.merging != "reset")
            return dataclasses.replace(node, items=items)
        case _:
            return node


def _merge(base: Node, override: Node, *, key: str) -> Node:
    if override.merging or base.merging == "reset":
        return override
    if override.kind == "null":
        return base
    if base.kind == "null" or key in _REPLACED:
        return override
    if key in _BY_NAME:
        base, override = _as_mapping(base), _as_mapping(override)
    elif key == "networks":
        base, override = _names_as_mapping(base), _names_as_mapping(override)
    if key in _LISTED:
        return dataclasses.replace(
            base, kind="list", text="", entries={}, items=_join(_listed(base), _listed(override), key=key)
        )
    if base.kind == "mapping" and override.kind == "mapping":
        entries = dict(base.entries)
        for name, child in override.entries.items():
            entries[name] = _merge(entries[name], child, key=name) if name in entries else child
        return dataclasses.replace(base, entries=entries)
    if base.kind == "list" and override.kind == "list":
        return dataclasses.replace(base, items=_join(base.items, override.items, key=key))
    if base.kind in ("mapping", "list") or override.kind in ("mapping", "list"):
        override.fail(f"is {override.kind}, and {base.mark} has it as {base.kind}; the two cannot be merged")
    return override


def _listed(node: Node) -> tuple[Node, ...]:
    return node.items if node.kind == "list" else (node,)


def _as_mapping(node: Node) -> Node:
    if node.kind != "list":
        return node
    entries: dict[str, Node] = {}
    for item in node.items:
        name, separator, value = item.scalar().partition("=")
        entries[name] = dataclasses.replace(item, kind="string" if separator else "null", text=value)
    return dataclasses.replace(node, kind="mapping", items=(), entries=entries)


def _names_as_mapping(node: Node) -> Node:
    if node.kind != "list":
        return node
    entries = {item.scalar(): dataclasses.replace(item, kind="null", text="") for item in node.items}
    return dataclasses.replace(node, kind="mapping", items=(), entries=entries)


def _join(base: Sequence[Node], override: Sequence[Node], *, key: str) -> tuple[Node, ...]:
    joined: dict[str, Node] = {}
    for node in (*base, *override):
        joined[_identity(node, key=key)] = node
    return tuple(joined.values())


def _identity(node: Node, *, key: str) -> str:
    """What makes two entries of a list the same one."""
    if node.kind == "mapping":
        fields = {name: child.text for name, child in node.entries.items()}
        match key:
            case "volumes":
                return f"at {fields.get('target', '')}"
            case "ports":
                return f"{fields.get('published', '')}:{fields.get('target', '')}/{fields.get('protocol', 'tcp')}"
            case "secrets" | "configs":
                return f"to {fields.get('target') or fields.get('source', '')}"
            case _:
                return repr(node.plain())
    if node.kind == "list":
        return repr(node.plain())
    parts = node.text.split(":")
    match key:
        case "volumes":
            return f"at {parts[1] if len(parts) > 1 else parts[0]}"
        case "ports":
            return node.text if "/" in node.text else f"{node.text}/tcp"
        case "secrets" | "configs":
            return f"to {node.text}"
        case _:
            return node.text
