"""The folder of tasks' moves: ``out-<task>.json`` and ``in-<task>.json`` are notes, ``<task>/`` holds files. All blocks.

A task's note stays until a manager has told what became of the task; files stay until they are the container's.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from fleet.containers.record import remove_tree
from fleet.daemon.moves.note_folder import NoteFolder
from fleet.errors import RuntimeFault
from fleet.model.ids import TaskId
from fleet.model.wire import Value

__all__ = ["FetchNote", "OfferNote", "TaskNotes"]


class OfferNote(Value, frozen=True, kw_only=True):
    """This host has given, or is giving, ``from_task``'s data to ``task``. ``volumes``: the named ones."""

    task: TaskId
    from_task: TaskId
    volumes: tuple[str, ...]


class FetchNote(Value, frozen=True, kw_only=True):
    """``task`` takes data over here. ``name``: its container's. ``volumes``: named ones that are made for it, so they go if it
    never runs. ``placed``: its container has everything."""

    task: TaskId
    name: str
    volumes: tuple[str, ...]
    placed: bool = False


class TaskNotes:
    """See the module. ``RuntimeFault`` when the disk refuses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._notes = NoteFolder(folder, what="a task's move", logger="task-moves")

    def open(self) -> tuple[list[OfferNote], list[FetchNote]]:
        """What a former daemon left. Files that had come are removed: they come again."""
        self._notes.prepare()
        for entry in self.folder.iterdir():
            if entry.is_dir():
                remove_tree(entry)
        return self._notes.read("out-*.json", OfferNote), self._notes.read("in-*.json", FetchNote)

    def _path(self, note: OfferNote | FetchNote) -> Path:
        return self.folder / f"{'out' if isinstance(note, OfferNote) else 'in'}-{note.task}.json"

    def write(self, note: OfferNote | FetchNote) -> None:
        """Durable when it returns."""
        self._notes.write(self._path(note).name, note, about=f"task {note.task}")

    def forget(self, note: OfferNote | FetchNote) -> None:
        """Idempotent."""
        self._path(note).unlink(missing_ok=True)

    def staging(self, task_id: TaskId) -> Path:
        """Where its files come to."""
        return self.folder / task_id

    def make_staging(self, task_id: TaskId, trees: int) -> None:
        """Empty, with a directory for each tree."""
        self.clear_staging(task_id)
        try:
            for number in range(trees):
                (self.staging(task_id) / str(number)).mkdir(mode=0o755, parents=True)
            self.staging(task_id).chmod(0o700)
        except OSError as cause:
            raise RuntimeFault(f"make room for the files: {cause.strerror}") from cause

    def clear_staging(self, task_id: TaskId) -> None:
        """Idempotent."""
        with contextlib.suppress(FileNotFoundError):
            remove_tree(self.staging(task_id))
