"""Files that bring others in: ``include`` and ``extends``, by the Compose specification.

An included file is a document of its own: its relative paths start from its own folder, it has its own ``.env``, and what it
defines must not be defined where it is included. A service that extends another begins as a copy of that one.
"""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Callable, Mapping
from typing import Final

from fleet import errors
from fleet.compose.document import NODES_MAX, Node, hint, parse
from fleet.compose.env_file import parse_env_file
from fleet.compose.merge import interpolate_tree, merge
from fleet.compose.reading import listed

__all__ = ["FILES_MAX", "Expander"]

FILES_MAX: Final = 32
"""All files of a stack together, however they come in."""
_DEPTH_MAX: Final = 8
_CHAIN_MAX: Final = 32
"""Services that one extends, by way of each other."""
_SECTIONS: Final = ("services", "networks", "volumes", "configs", "secrets", "models")
_ABSENT: Final = (FileNotFoundError, NotADirectoryError, IsADirectoryError)

ReadText = Callable[[str], str]


class Expander:
    """``read``: text of the file at a path relative to the stack's directory; raises ``OSError``, ``UserError``.

    ``check`` is called with every document as it was written; ``on_unset`` with every variable that is not set.
    """

    def __init__(
        self,
        *,
        environment: Mapping[str, str],
        read: ReadText,
        check: Callable[[Node], None],
        on_unset: Callable[[Node, str], None] | None,
        interpolates: bool = True,
    ) -> None:
        self._environment = environment
        self._read = read
        self._check = check
        self._on_unset = on_unset
        self._interpolates = interpolates
        self._count = 0
        self._copied = 0
        """Values that services got by extending others; bounded as those of a file are."""

    def documents(self, name: str, text: str) -> list[Node]:
        """The file and all that it brings in, the weakest first, with nothing of ``include`` and ``extends`` left."""
        return self._expanded(name, text, folder="", environment=self._environment, within=())

    def _expanded(
        self, name: str, text: str, *, folder: str, environment: Mapping[str, str], within: tuple[str, ...]
    ) -> list[Node]:
        tree = self._parsed(name, text, environment)
        result: list[Node] = []
        for entry in listed(tree.mapping().get("include")):
            found = self._included(entry, folder=folder, environment=environment, within=within)
            if result:
                _check_alike(merge(result), merge(found))
            result += found
        own = _without(tree, "include")
        if result:
            _check_apart(merge(result), own)
        own = self._extended(own, folder=folder, environment=environment)
        return [*result, own]

    def _parsed(self, name: str, text: str, environment: Mapping[str, str]) -> Node:
        self._count += 1
        if self._count > FILES_MAX:
            raise errors.UserError(f"{name}: more than {FILES_MAX} Compose files, with those that others bring in")
        tree = parse(text, file=name)
        if tree.kind != "mapping":
            tree.fail("the document is not a mapping; expected 'services:' at the top level")
        if self._interpolates:
            tree = interpolate_tree(tree, environment, on_unset=self._on_unset)
        self._check(tree)
        return tree

    def _text(self, node: Node, path: str, *, required: bool = True) -> str:
        try:
            return self._read(path)
        except OSError as cause:
            if not required and isinstance(cause, _ABSENT):
                return ""
            raise errors.UserError(
                f"{node.mark}: {node.path}: cannot read {path}: {cause.strerror or cause}"
            ) from cause

    # --- include

    def _included(
        self, entry: Node, *, folder: str, environment: Mapping[str, str], within: tuple[str, ...]
    ) -> list[Node]:
        fields = entry.mapping() if entry.kind == "mapping" else {"path": entry}
        if "path" not in fields:
            entry.fail("the key 'path' is missing")
        paths = [(node, _joined(folder, node.string())) for node in listed(fields["path"])]
        if not paths:
            entry.fail("no path given")
        home = _joined(folder, fields["project_directory"].string()) if "project_directory" in fields else ""
        home = home or posixpath.dirname(paths[0][1])
        variables = self._variables(entry, fields.get("env_file"), folder=folder, home=home, environment=environment)
        documents: list[Node] = []
        for node, path in paths:
            if path in within or len(within) >= _DEPTH_MAX:
                node.fail(f"{path} is included by itself" if path in within else f"included {_DEPTH_MAX} files deep")
            text = self._text(node, path)
            documents += self._expanded(path, text, folder=home, environment=variables, within=(*within, path))
        return [_rebased(merge(documents), _relative(home, folder))]

    def _variables(
        self, entry: Node, given: Node | None, *, folder: str, home: str, environment: Mapping[str, str]
    ) -> Mapping[str, str]:
        found: dict[str, str | None] = {}
        if given is None and (path := _joined(home, ".env")) != ".env":
            found = _parsed_variables(path, self._text(entry, path, required=False), environment)
        for node in listed(given):
            path = _joined(folder, node.string())
            found |= _parsed_variables(path, self._text(node, path), environment)
        return {**{name: value for name, value in found.items() if value is not None}, **environment}

    # --- extends

    def _extended(self, document: Node, *, folder: str, environment: Mapping[str, str]) -> Node:
        services = document.mapping().get("services")
        if services is None or services.kind != "mapping":
            return document
        if all("extends" not in child.entries for child in services.entries.values()):
            return document
        chain: dict[tuple[str, str], Document] = {}
        here = Document(document, folder)
        entries = {
            key: self._resolved(here, key, environment=environment, files=chain, within=()) for key in services.entries
        }
        return dataclasses.replace(
            document, entries={**document.entries, "services": dataclasses.replace(services, entries=entries)}
        )

    def _resolved(
        self,
        document: Document,
        key: str,
        *,
        environment: Mapping[str, str],
        files: dict[tuple[str, str], Document],
        within: tuple[tuple[str, str], ...],
    ) -> Node:
        service = document.services()[key]
        extends = service.entries.get("extends") if service.kind == "mapping" else None
        if extends is None:
            return service
        place = (document.tree.mark.file, key)
        if place in within:
            extends.fail(
                f"{key} extends itself, by way of {', '.join(name for _, name in within[within.index(place) :])}"
            )
        if len(within) >= _CHAIN_MAX:
            extends.fail(f"extended {_CHAIN_MAX} services deep")
        fields = extends.mapping() if extends.kind == "mapping" else {"service": extends}
        if "service" not in fields:
            extends.fail("the key 'service' is missing")
        other, base_key = document, fields["service"].string()
        if "file" in fields:
            path = _joined(document.folder, fields["file"].string())
            other = files.get((path, "")) or Document(
                _without(self._parsed(path, self._text(fields["file"], path), environment), "include"),
                posixpath.dirname(path),
            )
            files[path, ""] = other
        if base_key not in other.services():
            wanted = hint(base_key, other.services())
            fields["service"].fail(f"there is no service {base_key!r} in {other.tree.mark.file}; {wanted}")
        base = self._resolved(other, base_key, environment=environment, files=files, within=(*within, place))
        self._copied += sum(1 for _ in base.walk())
        if self._copied > NODES_MAX:
            extends.fail(f"more than {NODES_MAX} values with those of the services that are extended")
        if other is not document:
            base = _rebased_service(base, _relative(other.folder, document.folder))
        return merge([base, _without(service, "extends")])


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """A file whose services are extended, and the folder its paths start from."""

    tree: Node
    folder: str

    def services(self) -> dict[str, Node]:
        """By name."""
        found = self.tree.entries.get("services")
        return found.mapping() if found is not None else {}


def _parsed_variables(path: str, text: str, environment: Mapping[str, str]) -> dict[str, str | None]:
    try:
        return parse_env_file(text, environment=environment)
    except errors.UserError as cause:
        raise errors.UserError(f"{path}{cause}") from cause


def _without(node: Node, key: str) -> Node:
    return dataclasses.replace(node, entries={name: child for name, child in node.entries.items() if name != key})


def _check_apart(included: Node, own: Node) -> None:
    for section in _SECTIONS:
        theirs, ours = included.entries.get(section), own.entries.get(section)
        if theirs is None or ours is None or ours.kind != "mapping":
            continue
        for key, child in ours.entries.items():
            if key in theirs.entries:
                other = theirs.entries[key].key_mark
                child.fail(f"is defined at {other} too, which is included; put what differs into a further -c file")


def _check_alike(first: Node, second: Node) -> None:
    """Two included files may both bring in a third, and may not define the same thing in different ways."""
    for section in _SECTIONS:
        ours, theirs = first.entries.get(section), second.entries.get(section)
        if ours is None or theirs is None:
            continue
        for key in ours.entries.keys() & theirs.entries.keys():
            child, other = theirs.entries[key], ours.entries[key]
            if child.plain() != other.plain():
                child.fail(f"is defined differently at {other.key_mark}, which is included too")


# --- paths


def _joined(folder: str, path: str) -> str:
    return posixpath.normpath(posixpath.join(folder, path))


def _relative(there: str, here: str) -> str:
    """Folder ``there`` as seen from folder ``here``; empty when they are the same."""
    if posixpath.isabs(there) and not posixpath.isabs(here):
        return there
    found = posixpath.relpath(there or ".", here or ".")
    return "" if found == "." else found


def _rebased(document: Node, folder: str) -> Node:
    """Relative paths of files and binds, as seen from where the document is included."""
    if not folder:
        return document
    entries = dict(document.entries)
    for section, change in (("services", _rebased_service), ("configs", _rebased_file), ("secrets", _rebased_file)):
        if section in entries and entries[section].kind == "mapping":
            below = {key: change(child, folder) for key, child in entries[section].entries.items()}
            entries[section] = dataclasses.replace(entries[section], entries=below)
    return dataclasses.replace(document, entries=entries)


def _rebased_file(definition: Node, folder: str) -> Node:
    file = definition.entries.get("file")
    if file is None:
        return definition
    return dataclasses.replace(definition, entries={**definition.entries, "file": _moved(file, folder)})


def _rebased_service(service: Node, folder: str) -> Node:
    if not folder or service.kind != "mapping":
        return service
    entries = dict(service.entries)
    if "env_file" in entries:
        files = tuple(
            dataclasses.replace(node, entries={**node.entries, "path": _moved(node.entries["path"], folder)})
            if "path" in node.entries
            else _moved(node, folder)
            for node in listed(entries["env_file"])
        )
        entries["env_file"] = dataclasses.replace(entries["env_file"], kind="list", text="", items=files)
    if "volumes" in entries and entries["volumes"].kind == "list":
        volumes = tuple(_rebased_volume(node, folder) for node in entries["volumes"].items)
        entries["volumes"] = dataclasses.replace(entries["volumes"], items=volumes)
    return dataclasses.replace(service, entries=entries)


def _rebased_volume(node: Node, folder: str) -> Node:
    if node.kind == "mapping":
        kind, source = node.entries.get("type"), node.entries.get("source")
        if kind is None or kind.text != "bind" or source is None:
            return node
        return dataclasses.replace(node, entries={**node.entries, "source": _moved(source, folder)})
    source_text, colon, rest = node.text.partition(":")
    if not colon or not (source_text.startswith(("./", "../")) or source_text in (".", "..")):
        return node
    moved = _joined(folder, source_text)
    return dataclasses.replace(node, text=f"{moved if moved.startswith(('/', '..')) else f'./{moved}'}:{rest}")


def _moved(node: Node, folder: str) -> Node:
    if node.kind != "string" or node.text.startswith(("/", "~")):
        return node
    return dataclasses.replace(node, text=_joined(folder, node.text))
