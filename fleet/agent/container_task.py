"""A task as a container of this host: the ``TaskRuntime`` that controllers drive.

The container bears the task's name (``web.1.<id>``), so that after any crash the next daemon finds it by the task alone.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import msgspec

from fleet import errors
from fleet.agent.controller import Exit, Progress
from fleet.agent.image_sources import ImageLocator, close_all
from fleet.agent.manager_calls import ManagerCalls
from fleet.agent.payload_files import Payloads, payload_files
from fleet.agent.templates import expand, placeholders
from fleet.api.dispatch import ConfigItem, LoginItem, SecretItem
from fleet.containers import (
    Container,
    ContainerConfig,
    ContainerEngine,
    ExitStatus,
    FileMount,
    LogConfig,
    NetworkMode,
    Status,
)
from fleet.containers.apparmor import UNCONFINED
from fleet.containers.logs import log_config
from fleet.containers.subids import IdRange
from fleet.images import Credentials, ImageStore, parse_registry_auth
from fleet.logs import get_logger
from fleet.model.defaults import stop_grace
from fleet.model.ids import TaskId
from fleet.model.node import NodeDescription
from fleet.model.service import Mount, PublishMode, TaskSpec, userns_mode
from fleet.model.task import ContainerStatus, Task, task_name
from fleet.network.ipam import mac_for
from fleet.network.topology import AttachmentSpec, HostPort
from fleet.node_runtime.spec import ResourceLimits

__all__ = ["ContainerTasks", "TaskData", "TaskSupplies", "container_config"]

log = get_logger("container-task")

_FETCH_RETRY_S: Final = 0.5
_LABEL: Final = "com.docker.swarm."


class TaskData(Protocol):
    """What tasks take over from others; the daemon's, which talks to the hosts that have it."""

    async def fetch(self, task: Task, *, image_id: str, ids: IdRange | None, progress: Progress) -> None:
        """Everything is on this host, complete. ``ids``: those the task's container will have. Raises a transient ``FleetError``
        for what passes."""
        ...

    def is_placed(self, task: Task) -> bool:
        """Whether the task's container has it."""
        ...

    async def place(self, task: Task, container: Container) -> None:
        """Give the fetched data to the container, which was made and not started."""
        ...

    async def discard(self, task: Task) -> None:
        """The task will not start: nothing of what was fetched is left, and no volume that was made for it. Idempotent."""
        ...


class TaskSupplies(Payloads, Protocol):
    """What the worker holds for tasks."""

    async def ensure_network(self, network_id: str) -> None: ...

    def login(self, login_id: str) -> LoginItem: ...


class ContainerTasks:
    """See ``TaskRuntime``; idempotent per task, as asked there."""

    def __init__(
        self,
        *,
        supplies: TaskSupplies,
        engine: ContainerEngine,
        images: ImageStore,
        locator: ImageLocator,
        description: Callable[[], NodeDescription],
        calls: ManagerCalls | None = None,
        data: TaskData | None = None,
    ) -> None:
        self._supplies = supplies
        self._data = data
        self._calls = calls
        self._driven: dict[TaskId, dict[str, bytes]] = {}
        """Values that drivers gave, from a task's preparation until it has started or is removed."""
        self._engine = engine
        self._images = images
        self._locator = locator
        self._description = description
        self._fetching: dict[str, asyncio.Lock] = {}

    def _find(self, task: Task) -> Container | None:
        try:
            return self._engine.get(task_name(task))
        except errors.NotFoundError:
            return None

    async def fetch_data(self, task: Task, progress: Progress) -> None:
        data = self._data_for(task)
        if data.is_placed(task):
            return
        half = self._find(task)
        if half is not None:  # a former daemon made it, and did not come to give it all of the data
            await self._engine.remove(half.id, force=True, volumes=True)
        await data.discard(task)
        image_id = await self._ensure_image(task.spec)
        config = container_config(task, await self._payloads(task), self._description())
        await data.fetch(task, image_id=image_id, ids=await self._engine.ids_of(config), progress=progress)

    def _data_for(self, task: Task) -> TaskData:
        if self._data is None:
            raise errors.RejectedFault(f"task {task.id} is to take data over, which this host cannot fetch")
        return self._data

    async def prepare(self, task: Task) -> str:
        known = self._find(task)
        if known is not None and (task.moved_from is None or self._data_for(task).is_placed(task)):
            return known.id
        with self._images.holding() as hold:  # until a container has it
            hold(await self._ensure_image(task.spec))
            for attachment in task.network_attachments:
                await self._supplies.ensure_network(attachment.network_id)
            config = container_config(task, await self._payloads(task), self._description())
            container = await self._engine.create(config)
            if task.moved_from is not None:
                await self._data_for(task).place(task, container)
        return container.id

    async def _ensure_image(self, spec: TaskSpec) -> str:
        """Its id."""
        reference = spec.container_spec.image
        lock = self._fetching.setdefault(reference, asyncio.Lock())
        async with lock:
            try:
                image_id = self._images.get(reference).id
            except errors.NotFoundError:
                image_id = await self._fetch(reference, self._credentials(spec))
        if not lock.locked():
            self._fetching.pop(reference, None)
        return image_id

    def _credentials(self, spec: TaskSpec) -> Credentials | None:
        """Of the service (``--with-registry-auth``); raises ``UnavailableError`` while they have not come."""
        return parse_registry_auth(self._supplies.login(spec.registry_login).header) if spec.registry_login else None

    async def _fetch(self, reference: str, credentials: Credentials | None) -> str:
        for last in (False, True):
            sources = await self._locator.sources_for(reference, credentials)
            try:
                image = await self._images.fetch(reference, sources)
            except errors.FleetError as cause:
                if last or not cause.transient:
                    raise errors.RejectedFault(f"no such image: {reference}: {cause}") from cause
                await asyncio.sleep(_FETCH_RETRY_S)
            else:
                return image.id
            finally:
                await close_all(sources)
        raise AssertionError("unreachable")

    async def start(self, task: Task) -> ContainerStatus:
        container = self._find(task)
        if container is None:
            raise errors.RuntimeFault(f"container of task {task.id} is gone; it was removed by somebody else")
        if container.state.status is Status.CREATED:
            for attachment in task.network_attachments:
                await self._supplies.ensure_network(attachment.network_id)
            await self._engine.start(container.id, files=self._files(task, await self._payloads(task)))
            self._driven.pop(task.id, None)
            container = self._engine.get(container.id)
        return ContainerStatus(container_id=container.id, pid=container.state.pid)

    async def _payloads(self, task: Task) -> Payloads:
        """The task's secrets and configs, those of drivers included. Raises ``UnavailableError`` while one has not come."""
        given = self._driven.setdefault(task.id, {})
        for reference in task.spec.container_spec.secrets:
            item = self._supplies.secret(reference.secret_id)
            if not item.driven or reference.secret_id in given:
                continue
            if self._calls is None:
                raise errors.UnavailableError(f"secret {reference.secret_name}: no manager can be asked for it")
            try:
                answer = await self._calls.ask("GET", f"/cluster/v1/secrets/{reference.secret_id}/value/{task.id}")
            except (errors.ForbiddenError, errors.NotFoundError) as cause:
                raise errors.UnavailableError(str(cause), retry_after_s=1) from cause
            given[reference.secret_id] = base64.b64decode(answer["value"])
        if not given:
            del self._driven[task.id]
            return self._supplies
        return _Given(self._supplies, given)

    def _files(self, task: Task, payloads: Payloads) -> tuple[FileMount, ...]:
        description = self._description()
        values = placeholders(task, hostname=description.hostname, description=description)
        return payload_files(task.spec.container_spec, payloads, values)

    async def wait_healthy(self, task: Task) -> bool:
        container = self._find(task)
        if container is None:
            return False
        return await self._engine.wait_healthy(container.id)

    async def watch(self, task: Task) -> Exit:
        container = self._find(task)
        if container is None:
            return Exit(code=0, unhealthy=True, detail="the container was lost")
        if container.state.health is None:
            return _exit(await self._engine.wait(container.id))
        ended = asyncio.ensure_future(self._engine.wait(container.id))
        unhealthy = asyncio.ensure_future(self._engine.wait_unhealthy(container.id))
        try:
            await asyncio.wait((unhealthy, ended), return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                await self._engine.stop(container.id, grace_s=stop_grace(task.spec).total_seconds())
                return Exit(code=(await ended).code, unhealthy=True, detail="its health check failed")
            return _exit(await ended)
        finally:
            unhealthy.cancel()
            ended.cancel()

    async def stop(self, task: Task) -> Exit | None:
        container = self._find(task)
        if task.moved_from is not None and (container is None or container.state.status is Status.CREATED):
            if container is not None:
                await self._engine.remove(container.id, force=True, volumes=True)
            if self._data is not None:
                await self._data.discard(task)
            return None
        if container is None:
            return None
        if container.state.status not in (Status.RUNNING, Status.PAUSED, Status.RESTARTING):
            return Exit(code=container.state.exit.code) if container.state.exit else None
        await self._engine.stop(container.id, grace_s=stop_grace(task.spec).total_seconds())
        return _exit(await self._engine.wait(container.id))

    async def remove(self, task: Task) -> None:
        self._driven.pop(task.id, None)
        container = self._find(task)
        if container is not None:
            await self._engine.remove(container.id, force=True, volumes=True)


def _exit(status: ExitStatus) -> Exit:
    return Exit(code=status.code, oom_killed=status.oom_killed, detail=status.error)


class _Given:
    """``Payloads`` with what drivers gave for one task."""

    def __init__(self, payloads: Payloads, given: Mapping[str, bytes]) -> None:
        self._payloads = payloads
        self._given = given

    def secret(self, secret_id: str) -> SecretItem:
        item = self._payloads.secret(secret_id)
        return msgspec.structs.replace(item, data=self._given[secret_id]) if secret_id in self._given else item

    def config(self, config_id: str) -> ConfigItem:
        return self._payloads.config(config_id)


def container_config(task: Task, supplies: Payloads, description: NodeDescription) -> ContainerConfig:
    """The container a task asks for. Raises ``RejectedFault`` for what this host can not do, ``UserError`` for nonsense."""
    spec = task.spec.container_spec
    values = placeholders(task, hostname=description.hostname, description=description)
    mode, attachments = _networks(task)
    return ContainerConfig(
        name=task_name(task),
        image=spec.image,
        entrypoint=spec.command or None,
        command=spec.args or None,
        env=tuple(expand(text, values) for text in spec.env),
        labels={**spec.labels, **_labels(task)},
        working_dir=spec.dir,
        user=spec.user,
        groups=spec.groups,
        hostname=expand(spec.hostname, values),
        mounts=tuple(_mount(mount, values) for mount in spec.mounts),
        files=payload_files(spec, supplies, values),
        network_mode=mode,
        networks=attachments,
        network_names=(task_name(task), f"{task.service_name}.{task.slot or task.node_id}"),
        host_ports=tuple(
            HostPort(protocol=p.protocol.value, host_port=p.published_port or p.target_port, target_port=p.target_port)
            for p in task.ports
            if p.publish_mode is PublishMode.HOST
        ),
        dns_servers=spec.dns_config.nameservers if spec.dns_config else (),
        dns_search=spec.dns_config.search if spec.dns_config else (),
        dns_options=spec.dns_config.options if spec.dns_config else (),
        extra_hosts=tuple(_extra_hosts(spec.hosts)),
        resources=_limits(task.spec),
        ulimits=spec.ulimits,
        capabilities_add=spec.capability_add,
        capabilities_drop=spec.capability_drop,
        userns_mode=userns_mode(spec.labels),
        apparmor=UNCONFINED if spec.privileges and spec.privileges.declines_apparmor else "",
        read_only=spec.read_only,
        init=bool(spec.init),
        tty=spec.tty,
        open_stdin=spec.open_stdin,
        stop_signal=spec.stop_signal,
        stop_grace_s=stop_grace(task.spec).total_seconds(),
        healthcheck=spec.healthcheck,
        sysctls=spec.sysctls,
        oom_score_adj=spec.oom_score_adj,
        log=_log(task.spec),
    )


def _labels(task: Task) -> dict[str, str]:
    return {
        f"{_LABEL}node.id": task.node_id,
        f"{_LABEL}service.id": task.service_id,
        f"{_LABEL}service.name": task.service_name,
        f"{_LABEL}task": "",
        f"{_LABEL}task.id": task.id,
        f"{_LABEL}task.name": task_name(task),
    }


def _networks(task: Task) -> tuple[NetworkMode, tuple[AttachmentSpec, ...]]:
    attachments = []
    for attachment in task.network_attachments:
        address = attachment.address
        attachments.append(
            AttachmentSpec(
                network_id=attachment.network_id,
                address=address,
                address6=attachment.address6 or None,
                mac=mac_for(address),
            )
        )
    if attachments:
        return NetworkMode.NETWORKS, tuple(attachments)
    targets = {target.target for target in task.spec.networks}
    if "host" in targets:
        return NetworkMode.HOST, ()
    if "none" in targets:
        return NetworkMode.NONE, ()
    return NetworkMode.BRIDGE, ()


def _mount(mount: Mount, values: Mapping[str, str]) -> Mount:
    return msgspec.structs.replace(mount, source=expand(mount.source, values))


def _extra_hosts(hosts: tuple[str, ...]) -> list[str]:
    """Services say "address name [name...]" (hosts(5)); containers "name:address"."""
    result: list[str] = []
    for line in hosts:
        address, *names = line.split()
        result.extend(f"{name}:{address}" for name in names)
    return result


def _limits(spec: TaskSpec) -> ResourceLimits:
    limits = spec.resources.limits
    swap = spec.resources.swap_bytes
    return ResourceLimits(
        nano_cpus=limits.nano_cpus,
        memory_bytes=limits.memory_bytes,
        memory_swap_bytes=0 if swap is None else (-1 if swap < 0 else limits.memory_bytes + swap),
        pids_limit=limits.pids,
    )


def _log(spec: TaskSpec) -> LogConfig:
    driver = spec.log_driver
    if driver is None or not driver.name:
        return LogConfig()
    try:
        return log_config(driver.name, driver.options)
    except errors.UserError as cause:
        raise errors.RejectedFault(str(cause)) from cause
