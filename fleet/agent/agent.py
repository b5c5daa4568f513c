"""The agent of one host: worker, session and what they need, as one thing with a lifetime.

It runs from joining until leaving the cluster. Cancelling it (daemon stop) leaves containers, networks and names as they are.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from fleet.agent.container_task import ContainerTasks, TaskData
from fleet.agent.dialer import manager_dialer
from fleet.agent.guests import OverlayGuests
from fleet.agent.image_sources import ImageLocator
from fleet.agent.local_state import LocalState
from fleet.agent.manager_calls import ManagerCalls
from fleet.agent.network_sync import HostNetworkLike, NetworkSync
from fleet.agent.reporter import Reporter
from fleet.agent.session import Session
from fleet.agent.usage import UsageReporter, host_reader, usage_reader
from fleet.agent.worker import Worker
from fleet.api import dispatch
from fleet.cancellation import TaskGroup
from fleet.clock import Clock
from fleet.containers.engine import ContainerEngine
from fleet.images import ImageStore
from fleet.images.reference import parse_reference
from fleet.model.ids import ClusterId, NodeId
from fleet.model.node import NodeDescription

__all__ = ["Agent"]

_REFRESH_S: Final = 0.5
"""How often the image list is compared with what the manager knows; a loaded image is then found by others at once."""
_IMAGES_MAX: Final = 2_000


class Agent:
    """``run`` until cancelled."""

    def __init__(
        self,
        *,
        state_dir: Path,
        engine: ContainerEngine,
        images: ImageStore,
        network: HostNetworkLike,
        locator: ImageLocator,
        clock: Clock,
        tls: Callable[[], ssl.SSLContext],
        cluster_id: ClusterId,
        node_id: NodeId,
        address: str,
        cluster_port: int,
        managers: Sequence[str],
        managers_changed: Callable[[tuple[str, ...]], None],
        trust_changed: Callable[[dispatch.Trust], None],
        description: Callable[[], NodeDescription],
        data: TaskData | None = None,
    ) -> None:
        self._images = images
        self._locator = locator
        self._clock = clock
        self._description = description
        self._address = address
        self._cluster_port = cluster_port
        reporter = Reporter(clock)
        calls = ManagerCalls(tls=tls, managers=self._managers)
        self.worker = Worker(
            runtime=lambda worker: ContainerTasks(
                supplies=worker,
                engine=engine,
                images=images,
                locator=locator,
                description=description,
                calls=calls,
                data=data,
            ),
            network_sync=NetworkSync(network, clock),
            reporter=reporter,
            local_state=LocalState(state_dir),
            clock=clock,
        )
        self.session = Session(
            worker=self.worker,
            reporter=reporter,
            clock=clock,
            dial=manager_dialer(tls, cluster_id),
            managers=managers,
            managers_changed=managers_changed,
            trust_changed=trust_changed,
            hello=self._hello,
            usage=UsageReporter(clock, usage_reader(self.worker, engine), host_reader(engine)),
        )

        self._guests = OverlayGuests(
            engine=engine,
            worker=self.worker,
            clock=clock,
            calls=calls,
            node_id=node_id,
        )

    async def run(self) -> None:
        """Until cancelled."""
        async with TaskGroup() as group:
            group.create_task(self._guests.run())
            group.create_task(self.worker.run())
            group.create_task(self.session.run())
            group.create_task(self._refresh())

    def _managers(self) -> Sequence[str]:
        return self._locator.managers()  # asked anew each time: it is told of them after this is made

    def _hello(self) -> dispatch.Hello:
        return dispatch.Hello(
            description=self._description(),
            address=self._address,
            cluster_port=self._cluster_port,
            images=self._image_names(),
        )

    def _image_names(self) -> tuple[str, ...]:
        names: list[str] = []
        for image in self._images.list():
            names.extend(str(parse_reference(name)) for name in (*image.references, *image.repo_digests))
            names.append(image.manifest_digest)
        return tuple(names[:_IMAGES_MAX])

    async def _refresh(self) -> None:
        told = (self._description(), self._image_names())
        while True:
            await self._clock.sleep(_REFRESH_S)
            now = (self._description(), self._image_names())
            if now != told:
                told = now
                await self.session.describe(*now)
