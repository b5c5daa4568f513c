"""A folder of notes that outlive the daemon, one file each, written whole or not at all. All blocks."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from fleet.durable import write_durably
from fleet.errors import InvariantError, RuntimeFault
from fleet.logs import get_logger
from fleet.model import wire
from fleet.model.wire import Value

__all__ = ["NoteFolder"]

N = TypeVar("N", bound=Value)


class NoteFolder:
    """``what`` the notes are of, for the log."""

    def __init__(self, folder: Path, *, what: str, logger: str) -> None:
        self.folder = folder
        self._what = what
        self._log = get_logger(logger)

    def prepare(self) -> None:
        """Make the folder; notes half written are removed."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for half in self.folder.glob("*.tmp"):
            half.unlink(missing_ok=True)

    def read(self, pattern: str, kind: type[N]) -> list[N]:
        """The notes whose file names fit; one that is not readable is told and left alone."""
        found = []
        for path in sorted(self.folder.glob(pattern)):
            try:
                found.append(wire.decode(path.read_bytes(), kind))
            except (OSError, InvariantError) as cause:
                self._log.error(f"note of {self._what} not readable; left alone", path=str(path), cause=str(cause))
        return found

    def write(self, name: str, note: Value, *, about: str) -> None:
        """Durable when it returns. Raises ``RuntimeFault`` when the disk refuses, saying what it is ``about``."""
        try:
            write_durably(self.folder / name, wire.encode(note))
        except OSError as cause:
            raise RuntimeFault(f"note the move of {about}: {cause.strerror}") from cause
