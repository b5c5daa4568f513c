"""The way back to clients whose own address a service sees, through the node that they asked; pure.

    client -- entry node: port 80 -> task's address, the client's address stays -- ingress overlay --> task's node -- task
    client <-- entry node: translated back <----- ingress overlay, to that node's address there <----- task

Only the entry node can translate the reply back, so it has to go there, wherever the client is. Frames on the ingress network
come under the MAC address of the node that sent them. In the task's sandbox a rule marks the flow with the node's number
(``rules``, chains ``entered`` and ``back``), and each mark has a routing table whose only route leads to that node
(``cables.mend_routes``). The kernel does it all; nothing is learned, and what follows from the managers' state is exactly these
marks, rules and routes.

The default route of such a sandbox leads to the ingress network too: a UDP server that answers from "any" address gets the
address of the card by which the reply would go, and it must be the one that the client's packet was sent to.

What it cannot do: two connections from one client address and port through two nodes at the same moment look like one to the
task. And when a port stops showing its clients, connections that are open by another node break.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final

from fleet.network.ipam import mac_for
from fleet.network.topology import NetworkState

__all__ = ["MARK_BASE", "MARK_MASK", "NO_RETURNS", "ReturnRoute", "ReturnRoutes", "return_routes"]

MARK_BASE, MARK_MASK = 0x46000000, 0xFF000000
"""High byte of our marks and table numbers ('F'); the rest is the number of the node's address in its subnet."""


@dataclass(frozen=True, slots=True, order=True)
class ReturnRoute:
    """One node by which clients come: its mark, its MAC address and its addresses on the ingress network."""

    mark: int
    mac: str
    via: str
    via6: str = ""


@dataclass(frozen=True, slots=True)
class ReturnRoutes:
    """Those of one sandbox; ``card`` is its link on the ingress network. Empty where no port shows its clients."""

    card: str = ""
    routes: frozenset[ReturnRoute] = frozenset()


NO_RETURNS: Final = ReturnRoutes()


def return_routes(ingress: NetworkState, *, card: str, ipv6: bool) -> ReturnRoutes:
    """The way back to each node of the ingress network; ``ipv6`` if the card has an address of that family."""
    first = int(ipaddress.IPv4Network(ingress.network.subnet).network_address)
    found = {
        ReturnRoute(
            mark=MARK_BASE | (int(ipaddress.IPv4Address(node.address)) - first) & ~MARK_MASK,
            mac=node.mac or mac_for(node.address),
            via=node.address,
            via6=node.address6 if ipv6 else "",
        )
        for node in ingress.nodes
    }
    return ReturnRoutes(card=card, routes=frozenset(found))
