"""A container that no service made, on an attachable network of the cluster (TSK-16).

Swarm makes a task of a kind of its own for it. Here it is an object of its own: nobody orchestrates or schedules it, it only
needs an address that nobody else gets and a name that the others know.
"""

from __future__ import annotations

from datetime import datetime

from fleet.model.common import Version
from fleet.model.ids import NetworkId, NodeId
from fleet.model.wire import Value

__all__ = ["Guest", "guest_id"]


def guest_id(container_id: str, network_id: str) -> str:
    """One container is on one network once."""
    return f"{network_id}.{container_id}"


class Guest(Value, frozen=True, kw_only=True):
    """``address`` is CIDR, empty until the allocator has chosen; ``wanted_address`` what the user asked for; ``err`` why there
    is none. ``address6`` and ``wanted_address6`` are the same for IPv6, on networks that have it."""

    id: str
    version: Version = Version()
    created_at: datetime
    updated_at: datetime
    node_id: NodeId
    network_id: NetworkId
    container_id: str
    names: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    wanted_address: str = ""
    wanted_address6: str = ""
    address: str = ""
    address6: str = ""
    err: str = ""
