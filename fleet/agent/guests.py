"""Containers that no service made on networks of the cluster: asked for at their start, given back when they have ended.

Joining is a request to any manager over mutual TLS; the network itself comes with the assignments, as for tasks. Leaving is
level-triggered: what the managers hold for this node (it shows in the assignments) and no container uses is given back, by
whichever daemon lives then. So a crash at any moment costs an address for some seconds and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final, Protocol
from urllib.parse import quote

from fleet import errors
from fleet.agent.manager_calls import ManagerCalls
from fleet.clock import Clock
from fleet.containers.engine import ContainerEngine
from fleet.logs import get_logger
from fleet.network.topology import AttachmentSpec

__all__ = ["OverlayGuests", "WorkerNetworks"]

log = get_logger("guests")

_ARRIVAL_S: Final = 10.0
_LOOK_S: Final = 0.02
_QUIET_S: Final = 0.2
_AGAIN_S: Final = 10.0


class WorkerNetworks(Protocol):
    """What the worker knows of networks, as used here."""

    async def ensure_network(self, network_id: str) -> None:
        """On this host. Raises ``UnavailableError`` while it has not come."""
        ...

    def network_names(self) -> dict[str, str]:
        """Network id -> name, of those assigned."""
        ...

    def own_guests(self, node_id: str) -> set[tuple[str, str]]:
        """(container id, network id) that managers hold for this node."""
        ...


class OverlayGuests:
    """``run`` while this host is in a cluster. Fits ``fleet.containers.ports.Overlays``."""

    def __init__(
        self,
        *,
        engine: ContainerEngine,
        worker: WorkerNetworks,
        clock: Clock,
        calls: ManagerCalls,
        node_id: str,
    ) -> None:
        self._engine = engine
        self._worker = worker
        self._clock = clock
        self._calls = calls
        self._node_id = node_id
        self._changed = asyncio.Event()
        self._leaving: dict[str, asyncio.Event] = {}
        """Containers whose place is being given back, and what is set when that is over."""

    async def find(self, name: str) -> str:
        """See ``Overlays``."""
        return str((await self._calls.ask("GET", f"/cluster/v1/networks/{quote(name, safe='')}"))["id"])

    async def join(self, container_id: str, attachment: AttachmentSpec, *, names: Sequence[str]) -> AttachmentSpec:
        """See ``Overlays``."""
        while (gone := self._leaving.get(container_id)) is not None:
            await gone.wait()  # it ended and starts again: told the other way round, it would run without a place
        answer = await self._calls.ask(
            "POST",
            "/cluster/v1/guests",
            {
                "network": attachment.network_id,
                "container_id": container_id,
                "names": list(names),
                "aliases": list(attachment.aliases),
                "address": attachment.address or "",
                "address6": attachment.address6 or "",
            },
        )
        deadline = self._clock.monotonic() + _ARRIVAL_S
        while True:
            try:
                await self._worker.ensure_network(attachment.network_id)
                break
            except errors.UnavailableError:
                if self._clock.monotonic() > deadline:
                    raise
                await self._clock.sleep(_LOOK_S)
        return AttachmentSpec(
            network_id=attachment.network_id,
            address=str(answer["address"]).partition("/")[0],
            address6=str(answer.get("address6") or "").partition("/")[0] or None,
            mac=attachment.mac,
            aliases=attachment.aliases,
        )

    def left(self) -> None:
        """See ``Overlays``."""
        self._changed.set()

    def name_of(self, network_id: str) -> str | None:
        """See ``Overlays``."""
        return self._worker.network_names().get(network_id)

    async def run(self) -> None:
        """Until cancelled: be found by the engine, and give back what no container uses any more."""
        self._engine.overlays = self
        try:
            while True:
                await self._give_back()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_AGAIN_S):
                        await self._changed.wait()
                self._changed.clear()
                await self._clock.sleep(_QUIET_S)
        finally:
            self._engine.overlays = None

    async def _give_back(self) -> None:
        for container_id, network_id in self._worker.own_guests(self._node_id) - self._engine.guests():
            if (container_id, network_id) in self._engine.guests():
                continue  # it starts again meanwhile
            gone = self._leaving[container_id] = asyncio.Event()
            try:
                await self._calls.ask("DELETE", f"/cluster/v1/guests/{network_id}/{container_id}")
            except errors.FleetError as cause:
                log.warning("an address could not be given back yet", container=container_id[:12], cause=str(cause))
                return
            finally:
                del self._leaving[container_id]
                gone.set()
            log.info("left a network of the cluster", container=container_id[:12], network=network_id)
