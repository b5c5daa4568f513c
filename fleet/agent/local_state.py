"""What the agent keeps on disk: its assignments and the last status of each task.

With it an agent that is cut off, or restarted while no manager answers, keeps its tasks running and its names resolving.
Secrets and registry logins are left out: they live in memory only, and a container that already runs needs them no more.

Written as one file by rename, without fsync: after a power loss no container survived either, and the manager's complete
assignment is the truth again. A file that does not decode is set aside, not trusted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from fleet.api.dispatch import (
    ConfigItem,
    EndpointItem,
    Item,
    LoginItem,
    NetworkItem,
    NodeItem,
    PublishedItem,
    SecretItem,
    ServiceItem,
    TaskItem,
)
from fleet.logs import get_logger
from fleet.model.ids import TaskId
from fleet.model.task import TaskStatus

__all__ = ["LocalState"]

log = get_logger("local-state")

_FILE_MAX: Final = 256 * 1024 * 1024


class _Contents(msgspec.Struct, frozen=True, kw_only=True):
    format: int = 1
    items: tuple[TaskItem | NetworkItem | NodeItem | EndpointItem | ServiceItem | PublishedItem | ConfigItem, ...]
    statuses: dict[TaskId, TaskStatus]


class LocalState:
    """The file ``assignments.msgpack`` in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "assignments.msgpack"

    def load(self) -> tuple[list[Item], dict[TaskId, TaskStatus]]:
        """The last saved assignments and statuses; empty when there are none."""
        try:
            if self._path.stat().st_size > _FILE_MAX:
                raise msgspec.DecodeError(f"larger than {_FILE_MAX} bytes")
            contents = msgspec.msgpack.decode(self._path.read_bytes(), type=_Contents)
        except FileNotFoundError:
            return [], {}
        except msgspec.DecodeError as cause:
            aside = self._path.with_suffix(".unreadable")
            self._path.rename(aside)
            log.warning("kept assignments do not decode; set aside", file=str(aside), cause=str(cause))
            return [], {}
        return list(contents.items), contents.statuses

    def save(self, items: Iterable[Item], statuses: dict[TaskId, TaskStatus]) -> None:
        """Blocking (a few ms for hundreds of tasks). Raises ``OSError``."""
        kept = tuple(item for item in items if not isinstance(item, SecretItem | LoginItem))
        data = msgspec.msgpack.encode(_Contents(items=kept, statuses=statuses))
        temporary = self._path.with_suffix(".new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        temporary.replace(self._path)

    def clear(self) -> None:
        """Forget everything; idempotent."""
        self._path.unlink(missing_ok=True)
