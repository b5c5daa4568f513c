"""The folder of moves: ``out-<id>.json`` and ``in-<id>.json`` are notes, ``<id>/`` holds files that are arriving. All blocks."""

from __future__ import annotations

from pathlib import Path

from fleet.containers.record import remove_tree
from fleet.daemon.moves.note_folder import NoteFolder
from fleet.daemon.moves.words import Incoming, Outgoing

__all__ = ["Notes"]


class Notes:
    """See the module. ``RuntimeFault`` when the disk refuses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._notes = NoteFolder(folder, what="a move", logger="moves")

    def open(self) -> tuple[list[Outgoing], list[Incoming]]:
        """What a former daemon left; folders of files without a note, and notes half written, are removed."""
        self._notes.prepare()
        leaving = self._notes.read("out-*.json", Outgoing)
        coming = self._notes.read("in-*.json", Incoming)
        known = {note.id for note in coming}
        for entry in self.folder.iterdir():
            if entry.is_dir() and entry.name not in known:
                remove_tree(entry)
        return leaving, coming

    def _path(self, note: Incoming | Outgoing) -> Path:
        return self.folder / f"{'in' if isinstance(note, Incoming) else 'out'}-{note.id}.json"

    def write(self, note: Incoming | Outgoing) -> None:
        """Durable when it returns."""
        self._notes.write(self._path(note).name, note, about=f"container {note.name}")

    def forget(self, note: Incoming | Outgoing) -> None:
        """Idempotent; with the files that came."""
        self._path(note).unlink(missing_ok=True)
        if isinstance(note, Incoming):
            remove_tree(self.folder / note.id)

    def staging(self, move_id: str) -> Path:
        return self.folder / move_id
