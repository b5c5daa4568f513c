"""Texts of Compose files -> the checked, merged document: parse, interpolate, diagnose, merge, in this order."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from fleet import errors
from fleet.compose.diagnose import Diagnosis, diagnose
from fleet.compose.document import Node, parse
from fleet.compose.merge import interpolate_tree, merge

__all__ = ["Loaded", "load"]

FILES_MAX = 32


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """``document`` is one tree; ``warnings`` are sentences with file and line."""

    document: Node
    warnings: tuple[str, ...]


def load(
    files: Sequence[tuple[str, str]], *, environment: Mapping[str, str], interpolate_variables: bool = True
) -> Loaded:
    """``files`` are (name, text), the strongest last. Raises ``UserError`` with file and line."""
    if not files:
        raise errors.UserError("no Compose file given")
    if len(files) > FILES_MAX:
        raise errors.UserError(f"{len(files)} Compose files; at most {FILES_MAX}")
    documents = []
    warnings: list[Diagnosis] = []
    unset: dict[str, str] = {}

    def note_unset(node: Node, variable: str) -> None:
        unset.setdefault(variable, str(node.mark))

    for name, text in files:
        tree = parse(text, file=name)
        if tree.kind != "mapping":
            tree.fail("the document is not a mapping; expected 'services:' at the top level")
        if interpolate_variables:
            tree = interpolate_tree(tree, environment, on_unset=note_unset)
        warnings += diagnose(tree)
        documents.append(tree)
    notes = [f"{mark}: the variable {variable} is not set; an empty string is used" for variable, mark in unset.items()]
    return Loaded(document=merge(documents), warnings=(*notes, *map(str, warnings)))
