"""Where a member of a cluster listens, and where the others find it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from fleet.daemon.addresses import CLUSTER_PORT, choose_address, host_addresses, split_address
from fleet.daemon.listeners import tcp_socket
from fleet.daemon.swarm_state import SwarmState
from fleet.identity.keys import NodeIdentity

__all__ = ["Place", "choose_place", "listen_host"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a member listens and is found: ``listen`` and ``port``, ``address`` and ``advertised_port``."""

    listen: str
    port: int
    address: str
    advertised_port: int
    data_path: str

    @property
    def cluster_addr(self) -> str:
        """host:port of the cluster listener for the others."""
        return f"{self.address}:{self.advertised_port}"

    def probe(self) -> None:
        """Raises ``ConflictError`` when the port is taken."""
        tcp_socket(listen_host(self.listen), self.port).close()

    def state(self, identity: NodeIdentity, *, managers: tuple[str, ...]) -> SwarmState:
        """The membership of ``identity`` at this place."""
        return SwarmState(
            cluster_id=identity.cluster_id,
            node_id=identity.node_id,
            role=identity.role,
            listen_address=f"{self.listen}:{self.port}",
            advertise_address=self.address,
            data_path_address=self.data_path,
            cluster_port=self.advertised_port,
            managers=managers,
        )


async def choose_place(listen_addr: str, advertise_addr: str, data_path_addr: str) -> Place:
    """From what init, join and restore were told, which may be nothing. Raises ``UserError``."""
    candidates = await asyncio.to_thread(host_addresses)
    listen, port = split_address(listen_addr or "0.0.0.0", default_port=CLUSTER_PORT, what="--listen-addr")
    wanted, advertised_port = split_address(advertise_addr or "-", default_port=port, what="--advertise-addr")
    address = choose_address("" if wanted == "-" else wanted, candidates=candidates, what="--advertise-addr")
    data_path = ""
    if data_path_addr:
        data_path = choose_address(data_path_addr, candidates=candidates, what="--data-path-addr")
    return Place(listen=listen, port=port, address=address, advertised_port=advertised_port, data_path=data_path)


def listen_host(text: str) -> str:
    """The address to bind: every one of this host where no address is given."""
    return text if text and text[0].isdigit() else "0.0.0.0"
