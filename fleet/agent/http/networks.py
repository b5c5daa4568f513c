"""Networks as container routes see them: a name in requests, a name again in answers."""

from __future__ import annotations

from fleet.containers.networks import HostNetworks
from fleet.errors import NotFoundError, UserError
from fleet.network.topology import AttachmentSpec

__all__ = ["NetworkNames"]

_DEFAULT = ("bridge", "default")


class NetworkNames:
    """Knows the default bridge and the networks of this host; overlays are for services' tasks, *attachable* or not."""

    def __init__(self, networks: HostNetworks, *, default_network: str = "bridge") -> None:
        self._networks = networks
        self._default = default_network

    def attach(self, name: str, *, address: str | None, mac: str | None, aliases: tuple[str, ...]) -> AttachmentSpec:
        """A place on the network called ``name`` (or with that id). Raises ``NotFoundError``, ``UserError``."""
        if name in (*_DEFAULT, self._default):
            if address:
                raise UserError("user specified IP address is supported on user defined networks only")
            if aliases:
                raise UserError("network-scoped alias is supported only for containers in user defined networks")
            return AttachmentSpec(network_id=self._default, mac=mac)
        try:
            network = self._networks.find(name)
        except NotFoundError as cause:
            raise NotFoundError(
                f"network {name} not found on this host; overlay networks of the swarm take services, not single containers"
            ) from cause
        return AttachmentSpec(network_id=network.id, address=address, mac=mac, aliases=aliases)

    def name(self, network_id: str) -> str:
        """What people call the network; the id when nobody knows."""
        return self._networks.name_of(network_id) or network_id
