"""The folder of tasks' moves: ``out-<task>.json`` and ``in-<task>.json`` are notes, ``<task>/`` holds files. All blocks.

A task's note stays until a manager has told what became of the task; files stay until they are the container's.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TypeVar

from fleet.containers.record import remove_tree, write_durably
from fleet.errors import InvariantError, RuntimeFault
from fleet.logs import get_logger
from fleet.model import wire
from fleet.model.ids import TaskId
from fleet.model.wire import Value

__all__ = ["FetchNote", "OfferNote", "TaskNotes"]

log = get_logger("task-moves")


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


N = TypeVar("N", OfferNote, FetchNote)


class TaskNotes:
    """See the module. ``RuntimeFault`` when the disk refuses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self) -> tuple[list[OfferNote], list[FetchNote]]:
        """What a former daemon left. Files that had come are removed: they come again."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for half in self.folder.glob("*.tmp"):
            half.unlink(missing_ok=True)
        for entry in self.folder.iterdir():
            if entry.is_dir():
                remove_tree(entry)
        return self._read("out-*.json", OfferNote), self._read("in-*.json", FetchNote)

    def _read(self, pattern: str, kind: type[N]) -> list[N]:
        found = []
        for path in sorted(self.folder.glob(pattern)):
            try:
                found.append(wire.decode(path.read_bytes(), kind))
            except (OSError, InvariantError) as cause:
                log.error("note of a task's move not readable; left alone", path=str(path), cause=str(cause))
        return found

    def _path(self, note: OfferNote | FetchNote) -> Path:
        return self.folder / f"{'out' if isinstance(note, OfferNote) else 'in'}-{note.task}.json"

    def write(self, note: OfferNote | FetchNote) -> None:
        """Durable when it returns."""
        try:
            write_durably(self._path(note), wire.encode(note))
        except OSError as cause:
            raise RuntimeFault(f"note the move of task {note.task}: {cause.strerror}") from cause

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
