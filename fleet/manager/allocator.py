"""The allocator: subnets and VNIs for networks, virtual addresses and ports for services, addresses for tasks and nodes.

A level-triggered loop. ``plan_allocation`` looks at the tables and returns the objects with what they lack filled in; the
loop writes them with the versions they were read at, so two allocators (or an allocator and the API) can never hand out one
address twice: the later write is refused and planned again. A task passes from *new* to *pending* when everything it needs
is there; while something can not be had the reason stands in its status.

An address is in use as long as its task may hold it: until the agent reported a terminal state, or the task is orphaned.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime
from socket import AF_INET, AF_INET6, inet_pton
from typing import Final

import msgspec

from fleet import errors
from fleet.clock import Clock
from fleet.logs import about_requests, get_logger
from fleet.manager.control.service_refs import LOCAL_NETWORKS
from fleet.model.cluster import Cluster
from fleet.model.guest import Guest
from fleet.model.ids import NetworkId, TaskId
from fleet.model.network import Ipam, IpamConfig, Network
from fleet.model.node import Node
from fleet.model.service import (
    Endpoint,
    EndpointMode,
    EndpointSpec,
    PortConfig,
    Protocol,
    PublishMode,
    Service,
    VirtualIp,
)
from fleet.model.task import Attachment, Task, TaskState, TaskStatus
from fleet.network.ipam import SubnetPool, UlaPool, is_ipv6, next_address
from fleet.store import Change, Changes, Kind, Store, Transaction

__all__ = ["Allocator", "plan_allocation"]

log = get_logger("allocator")

_DYNAMIC_PORTS: Final = range(30000, 32768)
_INGRESS_PREFIX_LENS: Final = ((16, 12), (20, 20))
"""Of the ingress network, and of the smallest pool that it may be taken from. 65,533 addresses, or 4,093 where pools are small:
one a node and one a task that publishes a port (Swarm's /24 ends at 253)."""
_FIRST_VNI: Final = 4097
"""Below are the numbers VLANs use; Docker begins here too."""

Changed = Network | Node | Service | Task | Guest


class Allocator:
    """The loop around ``plan_allocation``. It keeps which tasks are *new*, so that it need not look for them among all."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._new: dict[TaskId, None] = {}
        self._look_at_everything()

    async def run(self) -> None:
        """Until cancelled."""
        with self._store.subscribe(
            Kind.TASK, Kind.SERVICE, Kind.NETWORK, Kind.NODE, Kind.CLUSTER, Kind.GUEST
        ) as subscription:
            self._look_at_everything()
            while True:
                await self._allocate()
                while not self._note(await subscription.wait()):
                    pass

    async def _allocate(self) -> None:
        while True:
            tasks = [task for id_ in self._new if (task := self._store.tasks.get(id_)) is not None]
            changed = list(plan_allocation(self._store, now=self._clock.now(), tasks=tasks))
            if not changed:
                return
            results = await self._store.commit_all(Transaction().replace(item) for item in changed)
            for result in results:
                if isinstance(result, errors.FleetError) and not isinstance(result, errors.ConflictError):
                    raise result
            asked = [item.request for item in changed if isinstance(item, Task | Service)]
            log.info("allocated", objects=len(changed), **about_requests(asked))

    def _look_at_everything(self) -> None:
        self._new = {task.id: None for task in self._store.tasks.all() if task.status.state is TaskState.NEW}

    def _note(self, changes: Changes) -> bool:
        """Whether somebody may lack something now that did not, or may have what could not be had."""
        if changes.resync:
            self._look_at_everything()
            return True
        matters = False
        for change in changes:
            if change.kind is Kind.TASK:
                matters |= self._note_task(change)
            elif change.kind is Kind.NODE:
                matters |= _node_matters(change.old, change.new)
            else:
                matters = True
        return matters

    def _note_task(self, change: Change) -> bool:
        new = change.new
        if isinstance(new, Task) and new.status.state is TaskState.NEW:
            self._new[new.id] = None
            return True
        self._new.pop(TaskId(change.id), None)
        ended = not isinstance(new, Task) or new.status.state.is_terminal
        frees = ended and isinstance(change.old, Task) and bool(change.old.network_attachments)
        return frees and bool(self._new)


def _node_matters(old: object, new: object) -> bool:
    if not isinstance(old, Node) or not isinstance(new, Node):
        return True
    return (old.removed, old.attachments) != (new.removed, new.attachments)


class _Family:
    """One network's addresses of one family during a pass."""

    def __init__(self, config: IpamConfig, *, name: str, used: Collection[str]) -> None:
        self.subnet = config.subnet
        self.gateway = config.gateway
        self.name = name
        self._range = config.ip_range or None
        self._used = set(used) | {str(ipaddress.ip_address(a)) for a in config.auxiliary_addresses.values()}
        self._last: str | None = max(used, key=_packed, default=None)
        self._full: errors.ConflictError | None = None
        """Finding out that there is none left takes a look at all, and may be asked for thousands of times."""

    def take(self, *, wanted: str = "") -> str:
        """The next free address, or the one that is wanted, as CIDR. Raises ``ConflictError``, ``UserError``."""
        if self._full is not None and not wanted:
            raise self._full
        try:
            address = next_address(
                self.subnet,
                self.gateway,
                self._used,
                ip_range=self._range,
                requested=wanted or None,
                after=self._last,
                network=self.name,
            )
        except errors.ConflictError as cause:
            self._full = cause if not wanted else None
            raise
        self._used.add(address)
        if not wanted:
            self._last = address
        return f"{address}/{self.subnet.partition('/')[2]}"

    def give_back(self, address: str) -> None:
        """One that was taken in this pass and is not used after all."""
        self._used.discard(_bare(address))
        self._full = None


class _Space:
    """One network's addresses during a pass: of IPv4, and of IPv6 where the network has it."""

    def __init__(self, network: Network, used: Collection[str]) -> None:
        name = network.spec.name
        self._v4 = _Family(network.ipv4, name=name, used={a for a in used if not is_ipv6(a)})
        self._v6: _Family | None = None
        if network.ipv6.subnet:
            self._v6 = _Family(network.ipv6, name=name, used={a for a in used if is_ipv6(a)})

    def take(self, *, wanted: str = "", wanted6: str = "") -> tuple[str, ...]:
        """The next free address of each family, IPv4 first, or those that are wanted, as CIDR; both or none.

        Raises ``ConflictError``, ``UserError``.
        """
        if wanted6 and self._v6 is None:
            raise errors.UserError(f"network {self._v4.name} has no IPv6: address {wanted6} cannot be had there")
        address = self._v4.take(wanted=wanted)
        if self._v6 is None:
            return (address,)
        try:
            return (address, self._v6.take(wanted=wanted6))
        except errors.FleetError:
            self._v4.give_back(address)
            raise


def _packed(address: str) -> bytes:
    """To order addresses of one family by."""
    return inet_pton(AF_INET6 if is_ipv6(address) else AF_INET, address)


def _bare(address: str) -> str:
    return address.partition("/")[0]


def plan_allocation(store: Store, *, now: datetime, tasks: Iterable[Task] | None = None) -> Iterator[Changed]:
    """Objects as they should be written; nothing when all have what they need. Reads the tables, changes nothing.

    ``tasks``: among which the *new* ones are; all by default."""
    cluster = next(iter(store.clusters.all()), None)
    if cluster is None:
        return
    networks = {network.id: network for network in store.networks.all()}
    if any(not network.vni for network in networks.values()):
        for network in _plan_networks(cluster, networks.values(), now=now):
            networks[network.id] = network
            yield network
    ingress = next((n for n in networks.values() if n.spec.ingress and n.vni), None)
    needy = _Needs(store, ingress, store.tasks.all() if tasks is None else tasks)
    if needy.is_empty:
        return
    spaces = _Spaces(store, networks)
    services: dict[str, Service] = {service.id: service for service in store.services.all()}
    for node in needy.nodes:
        if ingress is not None and (space := spaces.find(ingress.id)) is not None:
            yield from _plan_node(node, ingress, space, now=now)
    ports = _ports_in_use(services.values())
    for service in needy.services:
        allocated = _plan_service(service, spaces, ports, now=now)
        if allocated is not None:
            services[service.id] = allocated
            yield allocated
    for task in needy.tasks:
        owner = services.get(task.service_id)
        planned = _plan_task(task, owner, networks, spaces, ingress, now=now)
        if planned is not None:
            yield planned
    for guest in needy.guests:
        yield _plan_guest(guest, spaces.find(guest.network_id), now=now)


class _Spaces:
    """Of the networks that have a subnet; what is taken of one is looked up when it is first asked for."""

    def __init__(self, store: Store, networks: Mapping[NetworkId, Network]) -> None:
        self._store = store
        self._networks = networks
        self._found: dict[NetworkId, _Space] = {}

    def find(self, network_id: NetworkId) -> _Space | None:
        """None where there is no such network, or no subnet yet."""
        network = self._networks.get(network_id)
        if network is None or not network.vni:
            return None
        if network_id not in self._found:
            self._found[network_id] = _Space(network, _used_addresses(self._store, network))
        return self._found[network_id]


class _Needs:
    """Who lacks something."""

    def __init__(self, store: Store, ingress: Network | None, tasks: Iterable[Task]) -> None:
        self.services = [s for s in store.services.all() if not s.pending_delete and _lacks(s)]
        self.tasks = [t for t in tasks if t.status.state is TaskState.NEW and not _unwanted(t)]
        self.guests = [g for g in store.guests.all() if not g.address and not g.err]
        self.nodes = [
            n
            for n in store.nodes.all()
            if ingress is not None and not n.removed and not any(a.network_id == ingress.id for a in n.attachments)
        ]

    @property
    def is_empty(self) -> bool:
        return not (self.services or self.tasks or self.nodes or self.guests)


def _unwanted(task: Task) -> bool:
    return task.desired_state.rank > TaskState.RUNNING.rank


def _wanted_ports(service: Service) -> tuple[PortConfig, ...]:
    return service.spec.endpoint_spec.ports if service.spec.endpoint_spec else ()


def _wants_vip(service: Service) -> bool:
    spec = service.spec.endpoint_spec
    return (spec.mode if spec else EndpointMode.VIP) is EndpointMode.VIP


def _vip_networks(service: Service) -> list[str]:
    if not _wants_vip(service):
        return []
    return [t.target for t in service.spec.all_networks if t.target not in LOCAL_NETWORKS]


def _lacks(service: Service) -> bool:
    """Whether the endpoint does not (yet) say what the spec asks for."""
    endpoint = service.endpoint
    if endpoint.spec != (service.spec.endpoint_spec or EndpointSpec()):
        return True
    return {v.network_id for v in endpoint.virtual_ips} != set(_vip_networks(service))


def _used_addresses(store: Store, network: Network) -> set[str]:
    used: set[str] = set()
    for service in store.services.all():
        used.update(_bare(v.addr) for v in service.endpoint.virtual_ips if v.network_id == network.id and v.addr)
    for task in store.tasks.by_network(network.id):
        if not task.status.state.is_terminal:
            used.update(_bare(x) for a in task.network_attachments if a.network_id == network.id for x in a.addresses)
    for guest in store.guests.all():
        if guest.network_id == network.id:
            used.update(_bare(address) for address in (guest.address, guest.address6) if address)
    for node in store.nodes.all():
        used.update(_bare(x) for a in node.attachments if a.network_id == network.id for x in a.addresses)
    return used


def _plan_guest(guest: Guest, space: _Space | None, *, now: datetime) -> Guest:
    try:
        if space is None:
            raise errors.ConflictError("the network was removed, or has no subnet yet")
        address, *more = space.take(wanted=guest.wanted_address, wanted6=guest.wanted_address6)
    except errors.FleetError as cause:
        return msgspec.structs.replace(guest, err=str(cause), updated_at=now)
    return msgspec.structs.replace(guest, address=address, address6=more[0] if more else "", updated_at=now)


def _plan_networks(cluster: Cluster, networks: Iterable[Network], *, now: datetime) -> Iterator[Network]:
    known = list(networks)
    every = [c.subnet for n in known for c in n.ipam.config if n.vni and c.subnet]
    wishes = [c.subnet for n in known if not n.vni and n.spec.ipam for c in n.spec.ipam.config if c.subnet]
    subnets, asked = ([s for s in some if not is_ipv6(s)] for some in (every, wishes))
    pool6 = UlaPool(cluster.id, [subnet for subnet in (*every, *wishes) if is_ipv6(subnet)])
    pool = SubnetPool([(cidr, cluster.subnet_size) for cidr in cluster.default_addr_pool], subnets)
    vnis = {n.vni for n in known}
    vni = _FIRST_VNI
    for network in sorted((n for n in known if not n.vni), key=lambda n: not n.spec.ingress):
        configs = network.spec.ipam.config if network.spec.ipam else ()
        wanted = next((config for config in configs if not config.is_ipv6), IpamConfig())
        wanted6 = next((config for config in configs if config.is_ipv6), IpamConfig())
        try:
            taken = [*asked, *subnets]
            subnet = wanted.subnet
            if not subnet and network.spec.ingress:
                subnet = _ingress_subnet(cluster, taken)
            subnet = subnet or pool.next_subnet(avoid=taken)
            subnet6 = (wanted6.subnet or pool6.next_subnet()) if network.spec.enable_ipv6 else ""
        except errors.ConflictError as cause:
            log.warning("no subnet", network=network.spec.name, cause=str(cause))
            continue
        subnets.append(subnet)
        gateway = wanted.gateway or next_address(subnet, "", ())
        while vni in vnis:
            vni += 1
        vnis.add(vni)
        settled = [msgspec.structs.replace(wanted, subnet=subnet, gateway=gateway)]
        if subnet6:
            subnet6 = str(ipaddress.IPv6Network(subnet6))  # hosts compare addresses as text: one form of each
            gateway6 = wanted6.gateway or next_address(subnet6, "", ())
            gateway6 = str(ipaddress.IPv6Address(gateway6))
            settled.append(msgspec.structs.replace(wanted6, subnet=subnet6, gateway=gateway6))
        yield msgspec.structs.replace(network, ipam=Ipam(config=tuple(settled)), vni=vni, updated_at=now)


def _ingress_subnet(cluster: Cluster, taken: Collection[str]) -> str:
    """At the far end of a pool, where nobody's own choice of subnet is in its way; "" when no pool has room for one."""
    used = [ipaddress.IPv4Network(subnet) for subnet in taken]
    for length, pool_length in _INGRESS_PREFIX_LENS:
        for cidr in reversed(cluster.default_addr_pool):
            pool = ipaddress.IPv4Network(cidr)
            if pool.prefixlen > pool_length:
                continue
            step = 1 << (32 - length)
            first = int(pool.broadcast_address) + 1 - step
            for start in range(first, int(pool.network_address) - 1, -step):
                subnet = ipaddress.IPv4Network((start, length))
                if not any(subnet.overlaps(other) for other in used):
                    return str(subnet)
    return ""


def _plan_node(node: Node, ingress: Network, space: _Space, *, now: datetime) -> Iterator[Node]:
    try:
        attachment = Attachment(network_id=ingress.id, addresses=space.take())
    except errors.ConflictError as cause:
        log.warning("node gets no address on the ingress network", node=node.id, cause=str(cause))
        return
    yield msgspec.structs.replace(node, attachments=(*node.attachments, attachment), updated_at=now)


PortKey = tuple[Protocol, int]


def _ports_in_use(services: Iterable[Service]) -> dict[PortKey, str]:
    return {
        (port.protocol, port.published_port): service.id
        for service in services
        if not service.pending_delete
        for port in service.endpoint.ports
        if port.publish_mode is PublishMode.INGRESS
    }


def _plan_service(
    service: Service,
    spaces: _Spaces,
    ports: dict[PortKey, str],
    *,
    now: datetime,
) -> Service | None:
    virtual_ips: list[VirtualIp] = []
    for target in _vip_networks(service):
        network_id = NetworkId(target)
        space = spaces.find(network_id)
        if space is None:
            return None
        try:
            had = tuple(v.addr for v in service.endpoint.virtual_ips if v.network_id == network_id)
            addresses = had or space.take()
        except errors.ConflictError as cause:
            log.warning("service gets no virtual address", service=service.spec.name, cause=str(cause))
            return None
        virtual_ips += (VirtualIp(network_id=network_id, addr=address) for address in addresses)
    before = {(p.protocol, p.target_port): p.published_port for p in service.endpoint.ports}
    allocated = []
    for port in _wanted_ports(service):
        number = port.published_port
        if not number and port.publish_mode is PublishMode.INGRESS:
            found = before.get((port.protocol, port.target_port)) or _free_port(port.protocol, ports)
            if found is None:
                log.warning("service gets no published port", service=service.spec.name, protocol=port.protocol.value)
                return None
            number = found
            ports[port.protocol, number] = service.id
        allocated.append(msgspec.structs.replace(port, published_port=number))
    endpoint = Endpoint(
        spec=service.spec.endpoint_spec or EndpointSpec(), ports=tuple(allocated), virtual_ips=tuple(virtual_ips)
    )
    if endpoint == service.endpoint:
        return None
    return msgspec.structs.replace(service, endpoint=endpoint, updated_at=now)


def _free_port(protocol: Protocol, ports: dict[PortKey, str]) -> int | None:
    return next((number for number in _DYNAMIC_PORTS if (protocol, number) not in ports), None)


def _plan_task(
    task: Task,
    service: Service | None,
    networks: dict[NetworkId, Network],
    spaces: _Spaces,
    ingress: Network | None,
    *,
    now: datetime,
) -> Task | None:
    if service is None or service.pending_delete or _lacks(service):
        return None
    targets = [
        NetworkId(t.target) for t in task.spec.networks or service.spec.networks if t.target not in LOCAL_NETWORKS
    ]
    if ingress is not None and any(p.publish_mode is PublishMode.INGRESS for p in service.endpoint.ports):
        targets.append(ingress.id)
    attachments = []
    try:
        for network_id in targets:
            if network_id not in networks:
                raise errors.NotFoundError(f"network {network_id} was removed")
            space = spaces.find(network_id)
            if space is None:
                raise errors.UnavailableError(f"network {networks[network_id].spec.name} has no subnet yet")
            attachments.append(Attachment(network_id=network_id, addresses=space.take()))
    except errors.FleetError as cause:
        return _waiting(task, str(cause), now=now)
    status = TaskStatus(timestamp=now, state=TaskState.PENDING, message="pending task scheduling")
    return msgspec.structs.replace(
        task, network_attachments=tuple(attachments), ports=service.endpoint.ports, status=status, updated_at=now
    )


def _waiting(task: Task, reason: str, *, now: datetime) -> Task | None:
    if task.status.err == reason:
        return None
    return msgspec.structs.replace(
        task, status=msgspec.structs.replace(task.status, err=reason, message="waiting for addresses"), updated_at=now
    )
