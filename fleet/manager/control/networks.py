"""Networks of the cluster (swarm scope): create, list, inspect, remove."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterator
from typing import Final

import msgspec

from fleet import errors
from fleet.manager.control.context import Context
from fleet.manager.control.service_refs import LOCAL_NETWORKS
from fleet.manager.control.service_spec import check_labels
from fleet.model.ids import NetworkId
from fleet.model.names import network_name_fault
from fleet.model.network import ENCRYPTED_OPTION, IpamConfig, Network, NetworkSpec
from fleet.model.node import NodeState
from fleet.model.task import Task, TaskState
from fleet.network.ipam import IpNetwork, is_ipv6, parse_any_subnet
from fleet.store import Kind, Transaction

__all__ = ["MTU_OPTION", "NetworkControl", "check_families"]

MTU_OPTION: Final = "com.docker.network.driver.mtu"

_MTU: Final = range(1280, 65536)
_TRUTHS: Final = ("", "true", "1", "false", "0")
_STOPPING_WAIT_S: Final = 30.0
"""How long a removal waits for tasks that are being stopped: the default stop grace is 10 s."""


class NetworkControl:
    """See the module. Subnets, gateways and VNIs that are left open are the allocator's to fill."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store

    def find(self, text: str) -> Network:
        """By id, name or unique prefix of the id."""
        return self._store.networks.find(text)

    def list(self) -> list[Network]:
        """All; filtering is done on rendered networks, together with the host's own."""
        return list(self._store.networks.all())

    def is_used(self, network: Network) -> bool:
        """Whether a service or a task is on it (the filter ``dangling`` asks)."""
        return next(self._services_on(network), None) is not None or next(self._tasks_on(network), None) is not None

    async def create(self, spec: NetworkSpec) -> Network:
        """Raises ``UserError``, ``UnsupportedError``, ``ForbiddenError`` (predefined), ``ConflictError`` (name or subnet)."""
        spec = msgspec.structs.replace(spec, driver=spec.driver or "overlay", scope="swarm")
        _check(spec)
        now = self._context.now()
        network = Network(id=NetworkId(self._context.new_id()), created_at=now, updated_at=now, spec=spec)

        def attempt() -> Transaction:
            self._check_conflicts(spec)
            return Transaction().create(network)

        await self._context.guarded(attempt)
        return self.find(network.id)

    async def remove(self, text: str) -> None:
        """Remove a network nobody uses. Tasks that are being stopped are waited for, so that ``stack rm`` works in one go.

        Raises ``ForbiddenError`` (ingress), ``UserError`` (in use by a service, or by tasks that do not end in time).
        """
        found = self.find(text)
        if found.spec.ingress:
            raise errors.ForbiddenError(f"network {found.spec.name} is the ingress network and cannot be removed")
        self._refuse_services(found)
        try:
            async with asyncio.timeout(_STOPPING_WAIT_S):
                await self._wait_unused(found)
        except TimeoutError:
            pass  # the check under the lock says what is in the way

        def attempt() -> Transaction:
            network = self.find(found.id)
            self._refuse_services(network)
            task = next(self._tasks_on(network), None)
            if task is not None:
                raise errors.UserError(
                    f"network {network.spec.name} is in use by task {task.id}, which is being stopped"
                )
            return Transaction().delete(network)

        await self._context.guarded(attempt)

    async def _wait_unused(self, network: Network) -> None:
        with self._store.subscribe(Kind.TASK, Kind.SERVICE) as changes:
            while next(self._tasks_on(network), None) is not None:
                self._refuse_services(network)
                await changes.wait()

    def _refuse_services(self, network: Network) -> None:
        names = sorted(self._services_on(network))
        if names:
            word = "service" if len(names) == 1 else "services"
            raise errors.UserError(f"network {network.spec.name} is in use by {word} {', '.join(names)}")
        guests = sorted(guest.names[0] for guest in self._store.guests.all() if guest.network_id == network.id)
        if guests:
            word = "container" if len(guests) == 1 else "containers"
            raise errors.UserError(f"network {network.spec.name} is in use by {word} {', '.join(guests[:10])}")

    def _services_on(self, network: Network) -> Iterator[str]:
        for service in self._store.services.all():
            if not service.pending_delete and any(t.target == network.id for t in service.spec.all_networks):
                yield service.spec.name

    def _tasks_on(self, network: Network) -> Iterator[Task]:
        """Tasks that may hold an address on it: not ended, unless they are unwanted and their node is gone."""
        for task in self._store.tasks.all():
            if task.status.state.is_terminal or not any(a.network_id == network.id for a in task.network_attachments):
                continue
            node = self._store.nodes.get(task.node_id) if task.node_id else None
            is_lost = task.node_id != "" and (node is None or node.status.state is NodeState.DOWN)
            if not (is_lost and task.desired_state.rank > TaskState.RUNNING.rank):
                yield task

    def _check_conflicts(self, spec: NetworkSpec) -> None:
        networks = self._store.networks.all()
        if spec.ingress and (other := next((n for n in networks if n.spec.ingress), None)) is not None:
            raise errors.ConflictError(f"ingress network ({other.spec.name}) is already present")
        for wanted in _subnets(spec):
            for network in networks:
                for taken in (*network.ipam.config, *(network.spec.ipam.config if network.spec.ipam else ())):
                    if taken.subnet and _overlap(taken.subnet, wanted):
                        raise errors.ConflictError(
                            f"subnet {wanted} overlaps {taken.subnet} of network {network.spec.name}: choose another"
                        )


def _subnets(spec: NetworkSpec) -> list[IpNetwork]:
    return [parse_any_subnet(config.subnet) for config in (spec.ipam.config if spec.ipam else ()) if config.subnet]


def _overlap(subnet: str, other: IpNetwork) -> bool:
    return is_ipv6(subnet) == (other.version == 6) and ipaddress.ip_network(subnet).overlaps(other)


def _check(spec: NetworkSpec) -> None:
    if spec.name in LOCAL_NETWORKS:
        raise errors.ForbiddenError(f"operation is not permitted on predefined {spec.name} network")
    if fault := network_name_fault(spec.name):
        raise errors.UserError(fault)
    check_labels(spec.labels, what="network")
    if spec.driver != "overlay":
        raise errors.UnsupportedError(f"network driver {spec.driver!r} is not supported in swarm scope: use overlay")
    if spec.enable_ipv4 is False:
        raise errors.UnsupportedError(
            f"network {spec.name}: IPv4 cannot be disabled in a Swarm scoped network; with --ipv6 it has both"
        )
    if spec.config_only or (spec.config_from is not None and spec.config_from.network):
        raise errors.UnsupportedError("config-only networks are not supported")
    if spec.ingress and (spec.attachable or spec.internal):
        raise errors.UserError("the ingress network can be neither attachable nor internal")
    _check_options(spec)
    _check_ipam(spec)


def _check_options(spec: NetworkSpec) -> None:
    for name, value in spec.options.items():
        if name == ENCRYPTED_OPTION:
            _check_encrypted(spec, value)
            continue
        if name != MTU_OPTION:
            raise errors.UnsupportedError(
                f"network option {name!r} is not supported: known are {MTU_OPTION} and {ENCRYPTED_OPTION}"
            )
        if not value.isdigit() or int(value) not in _MTU:
            raise errors.UserError(f"network option {name}: {value!r} is not between {_MTU.start} and {_MTU.stop - 1}")


def _check_encrypted(spec: NetworkSpec, value: str) -> None:
    if value.lower() not in _TRUTHS:
        raise errors.UserError(
            f"network option {ENCRYPTED_OPTION}: {value!r} is neither true nor false; without a value it is true"
        )
    if spec.ingress and spec.is_encrypted:
        raise errors.UnsupportedError(
            f"the ingress network cannot be encrypted: leave out --opt {ENCRYPTED_OPTION}, and put services that talk to each "
            "other on an encrypted network of their own"
        )


def _check_ipam(spec: NetworkSpec) -> None:
    if spec.ipam is None:
        return
    if spec.ipam.driver not in ("", "default"):
        raise errors.UnsupportedError(f"IPAM driver {spec.ipam.driver!r} is not supported: use default")
    if spec.ipam.options:
        raise errors.UnsupportedError(f"IPAM option {min(spec.ipam.options)!r} is not supported")
    check_families(spec)
    for config in spec.ipam.config:
        _check_ipam_config(config)


def check_families(spec: NetworkSpec) -> None:
    """Raises ``UserError`` unless there is at most one subnet of each family, and one of IPv6 only with ``enable_ipv6``."""
    configs = spec.ipam.config if spec.ipam else ()
    sixes = sum(config.is_ipv6 for config in configs)
    if sixes > 1 or len(configs) - sixes > 1:
        raise errors.UnsupportedError(
            f"network {spec.name}: a network has one subnet of IPv4 and one of IPv6: several IPAM configs of one are not "
            "supported"
        )
    if sixes and not spec.enable_ipv6:
        raise errors.UserError(f"network {spec.name}: an IPv6 subnet was given but IPv6 is not enabled: add --ipv6")


def _check_ipam_config(config: IpamConfig) -> None:
    if not config.subnet:
        if config.gateway or config.ip_range or config.auxiliary_addresses:
            raise errors.UserError("IPAM: a gateway, range or auxiliary address needs a subnet")
        return
    subnet = parse_any_subnet(config.subnet)
    is_shared = isinstance(subnet, ipaddress.IPv4Network) and subnet.overlaps(ipaddress.IPv4Network("100.64.0.0/10"))
    if subnet.version == 4 and not subnet.is_private and not is_shared:
        raise errors.UserError(f"IPAM: subnet {subnet} is not a private one (RFC 1918, RFC 6598)")
    ends = {subnet.network_address} | ({subnet.broadcast_address} if subnet.version == 4 else set())
    inside = {"gateway": config.gateway, **{f"auxiliary address {k}": v for k, v in config.auxiliary_addresses.items()}}
    for what, text in inside.items():
        if not text:
            continue
        try:
            address = type(subnet.network_address)(text)
        except ValueError as cause:
            raise errors.UserError(f"IPAM: {what} {text!r}: {cause}") from cause
        if address not in subnet or address in ends:
            raise errors.UserError(f"IPAM: {what} {text} is not a host address of {subnet}")
    if config.ip_range:
        try:
            is_within = type(subnet)(config.ip_range).subnet_of(subnet)  # type: ignore[arg-type]  # of one family
        except ValueError as cause:
            raise errors.UserError(f"IPAM: range {config.ip_range!r}: {cause}") from cause
        if not is_within:
            raise errors.UserError(f"IPAM: range {config.ip_range} is not within {subnet}")
