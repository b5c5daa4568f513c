"""Assignments -> the host's network: networks, endpoints, names, virtual addresses, published ports.

Level-triggered with one worker: items change the wanted picture at once, ``run`` brings the host to it, network by network,
and takes whatever changed meanwhile with the next round. A fault is logged and tried again; it does not stop others.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache
from typing import Final, Protocol

from fleet import errors
from fleet.api import dispatch
from fleet.clock import Clock
from fleet.logs import get_logger
from fleet.model.network import Network
from fleet.network.ipam import mac_for
from fleet.network.topology import Endpoint, NetworkSpec, NetworkState, NodeRecord, PublishedPort, ServiceRecord

__all__ = ["HostNetworkLike", "NetworkSync"]

log = get_logger("network-sync")

_RETRY_S: Final = 1.0
_ENDPOINTS_KEPT: Final = 4096


class HostNetworkLike(Protocol):
    """The part of ``fleet.network.HostNetwork`` used here."""

    async def ensure_network(self, network: NetworkSpec) -> None: ...
    async def remove_network(self, network_id: str) -> None: ...
    async def apply_state(self, state: NetworkState) -> None: ...
    async def apply_published(self, ports: tuple[PublishedPort, ...]) -> None: ...


class NetworkSync:
    """``update`` with the complete item set after each assignment; ``ensure`` before a task starts on a network."""

    def __init__(self, network: HostNetworkLike, clock: Clock) -> None:
        self._network = network
        self._clock = clock
        self._wanted: dict[str, NetworkState] = {}
        self._applied: dict[str, NetworkState] = {}
        self._published: tuple[PublishedPort, ...] = ()
        self._published_applied: tuple[PublishedPort, ...] | None = None
        self._changed = asyncio.Event()
        self._lock = asyncio.Lock()
        self._number = self._number_applied = 0
        """Of pictures: the newest, and the newest that the kernel has."""
        self._round_ended = asyncio.Condition()

    def update(self, items: Mapping[str, dispatch.Item]) -> None:
        """The new complete picture."""
        self._wanted, self._published = _picture(items)
        self._number += 1
        self._changed.set()

    async def applied(self) -> None:
        """Returns once the host is as the present picture says, or a newer one."""
        number = self._number
        async with self._round_ended:
            await self._round_ended.wait_for(lambda: self._number_applied >= number)

    async def ensure(self, network_id: str) -> None:
        """The network exists on this host with its present state. Raises ``UnavailableError`` when it is not assigned."""
        state = self._wanted.get(network_id)
        if state is None:
            raise errors.UnavailableError(f"network {network_id} is not known on this node yet")
        async with self._lock:  # a removal that is under way ends first
            if network_id not in self._applied:
                await self._apply(state)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            number = self._number
            if await self._round():
                async with self._round_ended:
                    self._number_applied = number
                    self._round_ended.notify_all()
            else:
                await self._clock.sleep(_RETRY_S)
                self._changed.set()

    async def _round(self) -> bool:
        good = True
        async with self._lock:
            for network_id, state in list(self._wanted.items()):
                if self._applied.get(network_id) == state:
                    continue
                good &= await self._try(self._apply(state), f"network {state.network.name}")
            for network_id in [n for n in self._applied if n not in self._wanted]:
                if network_id in self._wanted:
                    continue  # wanted again meanwhile
                if await self._try(self._network.remove_network(network_id), f"removal of network {network_id}"):
                    del self._applied[network_id]
                else:
                    good = False
            if self._published_applied != self._published:
                published = self._published
                if await self._try(self._network.apply_published(published), "published ports"):
                    self._published_applied = published
                else:
                    good = False
        return good

    async def _apply(self, state: NetworkState) -> None:
        if state.network.id not in self._applied:
            await self._network.ensure_network(state.network)
        await self._network.apply_state(state)
        self._applied[state.network.id] = state

    async def _try(self, work: object, what: str) -> bool:
        try:
            await work  # type: ignore[misc]
        except (errors.FleetError, OSError) as cause:
            log.warning("network state not applied; it is tried again", what=what, cause=str(cause))
            return False
        return True


def network_spec(network: Network, *, vxlan_port: int, node_address: str, node_address6: str = "") -> NetworkSpec:
    """The host's view of a cluster network."""
    config, config6 = network.ipv4, network.ipv6
    return NetworkSpec(
        id=network.id,
        name=network.spec.name,
        driver="overlay",
        subnet=config.subnet,
        gateway=config.gateway,
        vni=network.vni,
        internal=network.spec.internal,
        mtu=int(network.spec.options.get("com.docker.network.driver.mtu", "0") or 0),
        vxlan_port=vxlan_port,
        ingress=network.spec.ingress,
        node_address=node_address,
        subnet6=config6.subnet,
        gateway6=config6.gateway,
        node_address6=node_address6 if config6.subnet else "",
        encrypted=network.spec.is_encrypted,
    )


@lru_cache(maxsize=_ENDPOINTS_KEPT)
def _endpoint(item: dispatch.EndpointItem) -> Endpoint:
    """Remembered, because a picture of hundreds is made anew for each that changes, and addresses are checked when made."""
    return Endpoint(
        id=item.task_id,
        service_id=item.service_id,
        names=item.names,
        aliases=item.aliases,
        address=item.address,
        address6=item.address6,
        mac=mac_for(item.address),
        node_id=item.node_id,
        underlay=item.underlay,
        ready=item.ready,
        tunnel_key=item.tunnel_key,
    )


def _picture(items: Mapping[str, dispatch.Item]) -> tuple[dict[str, NetworkState], tuple[PublishedPort, ...]]:
    endpoints: defaultdict[str, list[Endpoint]] = defaultdict(list)
    services: defaultdict[str, list[ServiceRecord]] = defaultdict(list)
    nodes: defaultdict[str, list[NodeRecord]] = defaultdict(list)
    networks: list[dispatch.NetworkItem] = []
    published: list[PublishedPort] = []
    for item in items.values():
        match item:
            case dispatch.NetworkItem():
                networks.append(item)
            case dispatch.EndpointItem():
                endpoints[item.network_id].append(_endpoint(item))
            case dispatch.ServiceItem():
                services[item.network_id].append(
                    ServiceRecord(
                        id=item.service_id,
                        name=item.name,
                        aliases=item.aliases,
                        vip=item.vip or None,
                        vip6=item.vip6 or None,
                    )
                )
            case dispatch.NodeItem():
                nodes[item.network_id].append(
                    NodeRecord(
                        node_id=item.node_id,
                        underlay=item.underlay,
                        address=item.address,
                        address6=item.address6,
                        mac=mac_for(item.address),
                    )
                )
            case dispatch.PublishedItem():
                published.append(
                    PublishedPort(
                        protocol=item.protocol.value,
                        published_port=item.published_port,
                        target_port=item.target_port,
                        service_id=item.service_id,
                        source=item.source,
                    )
                )
            case _:
                pass
    states: dict[str, NetworkState] = {
        item.network.id: NetworkState(
            network=network_spec(
                item.network,
                vxlan_port=item.vxlan_port,
                node_address=item.node_address,
                node_address6=item.node_address6,
            ),
            endpoints=tuple(sorted(endpoints[item.network.id], key=lambda e: e.id)),
            services=tuple(sorted(services[item.network.id], key=lambda s: s.id)),
            nodes=tuple(sorted(nodes[item.network.id], key=lambda n: n.node_id)),
        )
        for item in networks
    }
    return states, tuple(sorted(published, key=lambda p: (p.protocol, p.published_port)))
