"""What a request's words mean: an object's full id and its labels, wherever it is kept.

Labels of a task and of its container are those of its service: what a grant's scope is about. Whoever asks gets the same answer
for what is not there and for what is not theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fleet import errors
from fleet.containers import Container, ContainerEngine
from fleet.containers.host_access import host_access_of
from fleet.daemon.access.host_access import wishes_of_task
from fleet.daemon.access.principal import Principal
from fleet.daemon.access.table import Object
from fleet.model.service import Service
from fleet.model.task import Task
from fleet.store import Store

if TYPE_CHECKING:
    from fleet.daemon.remote import RemoteTasks

__all__ = ["Found", "Objects"]

_SERVICE_LABEL = "com.docker.swarm.service.id"


@dataclass(frozen=True, slots=True)
class Found:
    """An object: its full id, or name where that identifies it, and its labels; of a container, what it has of its host."""

    id: str
    labels: Mapping[str, str]
    host_access: tuple[str, ...] = ()


class Objects:
    """``store`` raises ``UnavailableError`` where this host is no manager."""

    def __init__(
        self,
        *,
        store: Callable[[], Store],
        has_control: Callable[[], bool],
        engine: ContainerEngine,
        remote: RemoteTasks,
    ) -> None:
        self.store = store
        self._has_control = has_control
        self._engine = engine
        self._remote = remote

    def within(self, principal: Principal, about: Object, name: str) -> Found:
        """The object, if it is within what was granted. Raises ``NotFoundError``."""
        try:
            found = self.find(about, name)
        except (errors.UserError, errors.ConflictError):  # an ambiguous name, too, would tell of what is not theirs
            found = None
        if found is None or not principal.sees(found.labels):
            raise errors.NotFoundError(f"{about} {name} not found")
        return found

    def find(self, about: Object, name: str) -> Found | None:
        """None for what is of no scope: nodes, predefined networks. Raises ``NotFoundError``, ``UserError``,
        ``ConflictError``."""
        match about:
            case Object.SERVICE:
                service = self.store().services.find(name)
                return Found(service.id, service.spec.labels)
            case Object.TASK:
                task = self.store().tasks.find(name)
                return Found(task.id, self.labels_of_task(task))
            case Object.SECRET:
                secret = self.store().secrets.find(name)
                return Found(secret.id, secret.spec.labels)
            case Object.CONFIG:
                config = self.store().configs.find(name)
                return Found(config.id, config.spec.labels)
            case Object.NETWORK:
                return self._network(name)
            case Object.VOLUME:
                return Found(name, self._engine.volumes.get(name).labels)
            case Object.CONTAINER:
                return self._container(name)
            case Object.EXEC:
                far = self._remote.container_of_session(name)
                owner = self._container(far or self._engine.execs.inspect(name).container_id)
                return Found(name, owner.labels, owner.host_access)
            case _:
                return None

    def labels_of_task(self, task: Task) -> Mapping[str, str]:
        """Those of its service, as it is or as it was."""
        service = self.store().services.get(task.service_id)
        return service.spec.labels if service is not None else task.service_labels

    def labels_of_container(self, container: Container) -> Mapping[str, str]:
        """Those of its service if a task made it, else its own."""
        service = self._service(container)
        return service.spec.labels if service is not None else container.config.labels

    def _service(self, container: Container) -> Service | None:
        id_ = container.config.labels.get(_SERVICE_LABEL, "")
        return self.store().services.get(id_) if id_ and self._has_control() else None

    def _network(self, name: str) -> Found | None:
        if name in ("bridge", "host", "none"):
            return None
        try:
            network = self._engine.networks.find(name)
        except errors.NotFoundError:
            found = self.store().networks.find(name)
            return Found(found.id, found.spec.labels)
        return Found(network.id, network.labels)

    def _container(self, name: str) -> Found:
        far = self._remote.find_task(name)
        if far is not None:
            container_id, task = far
            return Found(container_id, self.labels_of_task(task), tuple(wishes_of_task(task.spec)))
        container = self._engine.get(name)
        return Found(container.id, self.labels_of_container(container), tuple(host_access_of(container.config)))
