"""Networks as container routes see them: a name in requests, a name again in answers."""

from __future__ import annotations

from fleet.errors import UnsupportedError
from fleet.network.topology import AttachmentSpec

__all__ = ["NetworkNames"]


class NetworkNames:
    """Knows bridge, host and none only: overlay networks are for services' tasks, *attachable* or not."""

    async def attach(
        self, name: str, *, address: str | None, mac: str | None, aliases: tuple[str, ...]
    ) -> AttachmentSpec:
        """A place on the network called ``name`` (or with that id). Raises ``NotFoundError``, ``UnsupportedError``."""
        raise UnsupportedError(
            f"network {name}: containers started by hand can join bridge, host and none on this host"
        )

    def name(self, network_id: str) -> str:
        """What people call the network; the id when nobody knows."""
        return network_id
