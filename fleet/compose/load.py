"""Texts of Compose files -> the checked, merged document: parse, interpolate, diagnose, expand, merge, choose profiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence

from fleet import errors
from fleet.compose.compound import FILES_MAX, Expander
from fleet.compose.diagnose import Diagnosis, diagnose
from fleet.compose.document import Node
from fleet.compose.merge import merge, without_resets
from fleet.compose.reading import listed

__all__ = ["Loaded", "load"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """``document`` is one tree; ``warnings`` are sentences with file and line."""

    document: Node
    warnings: tuple[str, ...]


def _no_files(path: str) -> str:
    raise FileNotFoundError(2, "no files can be read here", path)


def load(
    files: Sequence[tuple[str, str]],
    *,
    environment: Mapping[str, str],
    interpolate_variables: bool = True,
    read: Callable[[str], str] = _no_files,
    profiles: Collection[str] = (),
) -> Loaded:
    """``files`` are (name, text), the strongest last. Raises ``UserError`` with file and line.

    ``read``: text of a file that is included or extended, at a path relative to the stack's directory. Services with
    ``profiles`` are left out unless one of theirs is among ``profiles``; ``*`` is every one.
    """
    if not files:
        raise errors.UserError("no Compose file given")
    if len(files) > FILES_MAX:
        raise errors.UserError(f"{len(files)} Compose files; at most {FILES_MAX}")
    documents: list[Node] = []
    warnings: list[Diagnosis] = []
    unset: dict[str, str] = {}

    def note_unset(node: Node, variable: str) -> None:
        unset.setdefault(variable, str(node.mark))

    expander = Expander(
        environment=environment,
        read=read,
        check=lambda tree: warnings.extend(diagnose(tree)),
        on_unset=note_unset,
        interpolates=interpolate_variables,
    )
    for name, text in files:
        documents += expander.documents(name, text)
    notes = [f"{mark}: the variable {variable} is not set; an empty string is used" for variable, mark in unset.items()]
    warned = dict.fromkeys((*notes, *map(str, warnings)))
    return Loaded(document=_chosen(without_resets(merge(documents)), profiles), warnings=tuple(warned))


def _chosen(document: Node, profiles: Collection[str]) -> Node:
    """Without the services of profiles that were not asked for."""
    services = document.entries.get("services")
    if services is None or services.kind != "mapping" or "*" in profiles:
        return document
    entries = {}
    for key, service in services.entries.items():
        own = service.entries.get("profiles") if service.kind == "mapping" else None
        names = [node.string() for node in listed(own)]
        if not names or any(name in profiles for name in names):
            entries[key] = service
    if services.entries and not entries:
        services.fail(
            "every service has a profile, and none of them was asked for; use --profile NAME, or --profile '*'"
        )
    chosen = dataclasses.replace(services, entries=entries)
    return dataclasses.replace(document, entries={**document.entries, "services": chosen})
