"""What the parts of the engine share: the packages below, the containers known, the tasks and threads the engine owns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

from fleet.cancellation import cancel_and_wait
from fleet.clock import Clock
from fleet.containers import cdi
from fleet.containers.apparmor import AppArmor
from fleet.containers.entry import Entry
from fleet.containers.events import Action, ContainerEvent, EventHub
from fleet.containers.ports import Images, Networks, Overlays, Runtime
from fleet.containers.record import Container, RecordStore
from fleet.containers.secretfs import SecretFiles
from fleet.containers.user_namespaces import UserNamespaces
from fleet.errors import ConflictError, FleetError, NotFoundError, UserError
from fleet.logs import get_logger

__all__ = ["Core"]

_THREADS: Final = 8
"""Threads that wait for the disk; fsync of several files at once shares the journal's commits."""
_STARTS_AT_ONCE: Final = 8
"""Starts in flight; more would only queue in the supervisor and the network thread, and hold descriptors."""
_ID_MIN: Final = 2

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Core:
    """Shared state of one engine. Lives on one event loop."""

    def __init__(
        self,
        *,
        data_root: Path,
        exec_root: Path,
        runtime: Runtime,
        images: Images,
        network: Networks,
        clock: Clock,
        default_network: str,
        host_files: Path,
        rootless: bool,
        apparmor: AppArmor,
        controllers: frozenset[str],
    ) -> None:
        self.runtime = runtime
        self.images = images
        self.network = network
        self.clock = clock
        self.default_network = default_network
        self.overlays: Overlays | None = None
        """Set while this host is in a cluster."""
        self.host_files = host_files
        self.records = RecordStore(data_root)
        self.files = SecretFiles(exec_root)
        self.hub = EventHub()
        self.cdi_directories = cdi.DIRECTORIES
        self.user_namespaces = UserNamespaces(runtime)
        self.apparmor = apparmor
        self.rootless = rootless
        """Root here is that of a user namespace; see ``without_root``."""
        self.controllers = controllers
        """Then: the cgroup controllers there are for limits."""
        self.entries: dict[str, Entry] = {}
        self.names: dict[str, str] = {}
        """name -> id; also holds names of containers being made."""
        self.starts = asyncio.Semaphore(_STARTS_AT_ONCE)
        self.log = get_logger("fleet.containers")
        self._threads = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="containers")
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    async def in_thread(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run blocking file work on the engine's threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: call(*args, **kwargs))

    def spawn(self, work: Coroutine[Any, Any, None], *, what: str) -> asyncio.Task[None]:
        """A task the engine owns: awaited or cancelled by ``close``; its failure is logged, never lost."""
        task = asyncio.get_running_loop().create_task(self._watched(work, what), name=what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _task: work.close())  # cancelled before its first step, it never began
        return task

    async def _watched(self, work: Coroutine[Any, Any, None], what: str) -> None:
        try:
            await work
        except FleetError as cause:
            self.log.error("background work failed", work=what, cause=str(cause))
        except Exception:  # a loop supervisor: one container's trouble must not end the engine
            self.log.exception("background work failed", work=what)

    async def close(self) -> None:
        """Cancel the engine's tasks and wait for its threads. Containers go on."""
        if self._closed:
            return
        self._closed = True
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        await cancel_and_wait(*tasks)
        self.hub.close()
        self.user_namespaces.close()
        await asyncio.to_thread(self._threads.shutdown)

    async def save(self, entry: Entry) -> None:
        """Make the entry's record durable. A cancelled caller does not cancel the write: two writes of one file must
        not overlap.
        """

        async def write(record: Container) -> None:
            await self.in_thread(self.records.save, record)

        task = asyncio.get_running_loop().create_task(entry.save(write), name=f"save container {entry.id[:12]}")
        self._tasks.add(task)
        task.add_done_callback(self._saved)
        await asyncio.shield(task)

    def _saved(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (cause := task.exception()) is not None:
            self.log.error("record not saved", work=task.get_name(), cause=str(cause))

    def emit(self, action: Action, record: Container, **attributes: str) -> None:
        """Tell listeners what happened to a container."""
        self.hub.send(
            ContainerEvent(
                action=action,
                id=record.id,
                time=self.clock.now(),
                attributes={"image": record.config.image, "name": record.name, **record.labels, **attributes},
            )
        )

    def find(self, name_or_id: str) -> Entry:
        """By full id, name (a leading slash is allowed), or a prefix of the id that fits one container.

        Raises ``NotFoundError`` and, for a prefix of several, ``UserError``.
        """
        entry = self.entries.get(name_or_id)
        if entry is not None:
            return entry
        named = self.names.get(name_or_id.removeprefix("/"))
        if named in self.entries:
            return self.entries[named]
        if len(name_or_id) >= _ID_MIN:
            fits = [entry for key, entry in self.entries.items() if key.startswith(name_or_id)]
            if len(fits) == 1:
                return fits[0]
            if fits:
                raise UserError(f"multiple IDs found with provided prefix: {name_or_id}")
        raise NotFoundError(f"No such container: {name_or_id}")

    def reserve_name(self, name: str, container_id: str) -> None:
        """Raises ``ConflictError`` when another container has the name."""
        holder = self.names.setdefault(name, container_id)
        if holder != container_id:
            raise ConflictError(
                f'Conflict. The container name "/{name}" is already in use by container "{holder}". '
                "You have to remove (or rename) that container to be able to reuse that name."
            )
