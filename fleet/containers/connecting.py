"""Putting a container on one more network of its host, or taking it off one, while it runs or not.

What is wanted is in the container's configuration, durable before the kernel is touched; after a crash ``mend`` makes a running
container's cards agree with it.
"""

from __future__ import annotations

import msgspec

from fleet.containers.config import ContainerConfig, NetworkMode
from fleet.containers.core import Core
from fleet.containers.entry import Entry
from fleet.containers.events import Action, ContainerEvent
from fleet.containers.launch import addresses_of, hosts_of, joined
from fleet.errors import FleetError, ForbiddenError
from fleet.network.topology import AttachmentSpec

__all__ = ["Connecting", "attachments_of"]


def attachments_of(config: ContainerConfig, default_network: str) -> tuple[AttachmentSpec, ...]:
    """The networks a container is to be on; ``default_network`` is that of containers which name none."""
    if config.network_mode is NetworkMode.BRIDGE:
        return (AttachmentSpec(network_id=default_network),)
    return config.networks if config.network_mode is NetworkMode.NETWORKS else ()


class Connecting:
    """``network connect`` and ``disconnect``."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def connect(
        self, entry: Entry, attachment: AttachmentSpec, *, network: str, is_overlay: bool = False
    ) -> None:
        """Join; ``network`` is its name, ``is_overlay`` says that it is the cluster's.

        Raises ``ForbiddenError`` in Docker's words, ``ConflictError`` for a taken address.
        """
        async with entry.lock:
            config = entry.record.config
            _check_mode(config)
            before = attachments_of(config, self._core.default_network)
            if any(each.network_id == attachment.network_id for each in before):
                raise ForbiddenError(f"endpoint with name {entry.record.name} already exists in network {network}")
            guest_of = (*config.guest_of, attachment.network_id) if is_overlay else config.guest_of
            await self._decide(entry, (*before, attachment), guest_of)
            if entry.record.is_up:
                try:
                    await self._core.network.connect(entry.id, await joined(self._core, entry.record, attachment))
                except FleetError:
                    entry.change(config=config)
                    await self._core.save(entry)
                    raise
                await self._show(entry)
        self._tell(Action.NETWORK_CONNECT, entry, attachment.network_id, network)

    async def disconnect(self, entry: Entry, network_id: str, *, network: str) -> None:
        """Leave. Raises ``ForbiddenError`` if it is not on the network."""
        async with entry.lock:
            config = entry.record.config
            before = attachments_of(config, self._core.default_network)
            kept = tuple(each for each in before if each.network_id != network_id)
            if len(kept) == len(before):
                raise ForbiddenError(f"container {entry.record.name} is not connected to network {network}")
            await self._decide(entry, kept, tuple(each for each in config.guest_of if each != network_id))
            if entry.record.is_up:
                await self._core.network.disconnect(entry.id, network_id)
                await self._show(entry)
        if self._core.overlays is not None:
            self._core.overlays.left()
        self._tell(Action.NETWORK_DISCONNECT, entry, network_id, network)

    async def mend(self, entry: Entry) -> bool:
        """A running container whose change of networks was cut short: finish it. Whether there was anything to do. The caller
        holds the container's lock."""
        if not entry.record.is_up or not entry.record.config.network_mode.has_sandbox:
            return False
        wanted = {each.network_id: each for each in attachments_of(entry.record.config, self._core.default_network)}
        sandbox = await self._core.network.sandbox(entry.id)
        present = {card.network_id for card in sandbox.interfaces}
        if present == wanted.keys() and addresses_of(sandbox) == entry.record.networks:
            return False  # else it was cut short before the record, or before the kernel
        for network_id in present - wanted.keys():
            await self._core.network.disconnect(entry.id, network_id)
        for network_id in wanted.keys() - present:
            await self._core.network.connect(entry.id, await joined(self._core, entry.record, wanted[network_id]))
        await self._show(entry)
        return True

    async def _decide(self, entry: Entry, attachments: tuple[AttachmentSpec, ...], guest_of: tuple[str, ...]) -> None:
        config = msgspec.structs.replace(
            entry.record.config, network_mode=NetworkMode.NETWORKS, networks=attachments, guest_of=guest_of
        )
        entry.change(config=config)
        await self._core.save(entry)

    async def _show(self, entry: Entry) -> None:
        """Addresses changed: in the record, and in the container's /etc/hosts."""
        sandbox = await self._core.network.sandbox(entry.id)
        entry.change(networks=addresses_of(sandbox))
        await self._core.save(entry)
        path = self._core.records.directory(entry.id) / "hosts"
        text = hosts_of(entry.record, sandbox)
        await self._core.in_thread(path.write_text, text)  # in place: the container has it mounted

    def _tell(self, action: Action, entry: Entry, network_id: str, network: str) -> None:
        self._core.hub.send(
            ContainerEvent(
                action=action,
                id=network_id,
                time=self._core.clock.now(),
                attributes={"container": entry.id, "name": network, "type": "bridge"},
            )
        )


def _check_mode(config: ContainerConfig) -> None:
    if config.network_mode in (NetworkMode.HOST, NetworkMode.CONTAINER):
        raise ForbiddenError(
            "container sharing network namespace with another container or host cannot be connected to any other network"
        )
    if config.network_mode is NetworkMode.NONE:
        raise ForbiddenError(
            "container cannot be connected to multiple networks with one of the networks in private (none) mode"
        )
