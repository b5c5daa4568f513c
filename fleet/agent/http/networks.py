"""Networks as container routes see them: a name in requests, a name again in answers."""

from __future__ import annotations

from dataclasses import dataclass

from fleet.containers.engine import ContainerEngine
from fleet.errors import NotFoundError, UserError
from fleet.network.topology import AttachmentSpec

__all__ = ["NetworkNames", "Place"]

_DEFAULT = ("bridge", "default")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A place on a network; ``is_overlay``: of the cluster, whose managers will give the address."""

    attachment: AttachmentSpec
    is_overlay: bool = False


class NetworkNames:
    """Knows the default bridge, the networks of this host, and through a manager the attachable ones of the cluster."""

    def __init__(self, engine: ContainerEngine, *, default_network: str = "bridge") -> None:
        self._engine = engine
        self._default = default_network

    async def attach(
        self,
        name: str,
        *,
        address: str | None,
        mac: str | None,
        aliases: tuple[str, ...],
        address6: str | None = None,
    ) -> Place:
        """A place on the network called ``name`` (or with that id). Raises ``NotFoundError``, ``ForbiddenError``, ``UserError``,
        ``UnavailableError``."""
        if name in (*_DEFAULT, self._default):
            if address or address6:
                raise UserError("user specified IP address is supported on user defined networks only")
            if aliases:
                raise UserError("network-scoped alias is supported only for containers in user defined networks")
            return Place(attachment=AttachmentSpec(network_id=self._default, mac=mac))
        network_id, is_overlay = await self.find(name)
        attachment = AttachmentSpec(network_id=network_id, address=address, address6=address6, mac=mac, aliases=aliases)
        return Place(attachment=attachment, is_overlay=is_overlay)

    async def find(self, name: str) -> tuple[str, bool]:
        """(id, whether it is the cluster's) of a network besides the predefined ones. Raises as ``attach``."""
        try:
            found = self._engine.networks.find(name)
            if found.config_only:
                raise UserError(
                    f"configuration network {found.name} holds no containers: make a network from it (--config-from)"
                )
            return found.id, False
        except NotFoundError as cause:
            if self._engine.overlays is None:
                raise NotFoundError(f"network {name} not found on this host") from cause
        try:
            return await self._engine.overlays.find(name), True
        except NotFoundError as cause:
            raise NotFoundError(f"network {name} not found, neither on this host nor in the swarm") from cause

    def name(self, network_id: str) -> str:
        """What people call the network; the id when nobody knows."""
        found = self._engine.networks.name_of(network_id)
        if found is None and self._engine.overlays is not None:
            found = self._engine.overlays.name_of(network_id)
        return found or network_id
