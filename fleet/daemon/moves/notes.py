"""The folder of moves: ``out-<id>.json`` and ``in-<id>.json`` are notes, ``<id>/`` holds files that are arriving. All blocks."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from fleet.containers.record import remove_tree, write_durably
from fleet.daemon.moves.words import Incoming, Outgoing
from fleet.errors import InvariantError, RuntimeFault
from fleet.logs import get_logger
from fleet.model import wire

__all__ = ["Notes"]

log = get_logger("moves")

N = TypeVar("N", Incoming, Outgoing)


class Notes:
    """See the module. ``RuntimeFault`` when the disk refuses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self) -> tuple[list[Outgoing], list[Incoming]]:
        """What a former daemon left; folders of files without a note, and notes half written, are removed."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for half in self.folder.glob("*.tmp"):
            half.unlink(missing_ok=True)
        leaving = self._read("out-*.json", Outgoing)
        coming = self._read("in-*.json", Incoming)
        known = {note.id for note in coming}
        for entry in self.folder.iterdir():
            if entry.is_dir() and entry.name not in known:
                remove_tree(entry)
        return leaving, coming

    def _read(self, pattern: str, kind: type[N]) -> list[N]:
        found = []
        for path in sorted(self.folder.glob(pattern)):
            try:
                found.append(wire.decode(path.read_bytes(), kind))
            except (OSError, InvariantError) as cause:
                log.error("note of a move not readable; left alone", path=str(path), cause=str(cause))
        return found

    def _path(self, note: Incoming | Outgoing) -> Path:
        return self.folder / f"{'in' if isinstance(note, Incoming) else 'out'}-{note.id}.json"

    def write(self, note: Incoming | Outgoing) -> None:
        """Durable when it returns."""
        try:
            write_durably(self._path(note), wire.encode(note))
        except OSError as cause:
            raise RuntimeFault(f"note the move of container {note.name}: {cause.strerror}") from cause

    def forget(self, note: Incoming | Outgoing) -> None:
        """Idempotent; with the files that came."""
        self._path(note).unlink(missing_ok=True)
        if isinstance(note, Incoming):
            remove_tree(self.folder / note.id)

    def staging(self, move_id: str) -> Path:
        return self.folder / move_id
