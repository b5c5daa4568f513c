"""Networks that people make on one host (bridge, macvlan, ipvlan): which there are, durably, and that the kernel has them.

    <data>/networks/<id>.json      one each, written before its bridge is made and removed after that went
    <data>/networks/ula.seed       from which IPv6 subnets are derived that nobody chose

So a crash leaves a record whose bridge the next start makes: what was acknowledged is there, what was not may be.
A *configuration* (``--config-only``) is a record alone: what other networks are made from (``--config-from``), which remember
its name so that it stays while they do.

Addresses are given by ``fleet.network``, which remembers them with the sandboxes; a container that does not run holds none.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import secrets
from collections.abc import Callable, Collection
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from fleet.clock import Clock
from fleet.containers.events import Action, ContainerEvent, EventHub
from fleet.containers.ports import Networks
from fleet.durable import write_durably
from fleet.errors import ConflictError, FleetError, ForbiddenError, InvariantError, NotFoundError, UserError
from fleet.model import wire
from fleet.model.wire import Value
from fleet.network.ipam import SubnetPool, UlaPool, is_ipv6, next_address, parse_any_subnet, parse_subnet, parse_subnet6
from fleet.network.topology import DIRECT, Driver, NetworkSpec

__all__ = ["HostNetwork", "HostNetworks", "NetworkWish"]

POOLS: Final = (("172.16.0.0/12", 22), ("192.168.0.0/16", 24))
"""Where subnets come from: about a thousand of 1,021 containers each. Docker's /16 are used up after some thirty networks."""
NETWORKS_MAX: Final = 1024
_SEED: Final = "ula.seed"
_LABELS_MAX: Final = 64
_AUX_MAX: Final = 256
_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}")
_ROUTES: Final = Path("/proc/thread-self/net/route")
PARENT: Final = "parent"
_MTU: Final = "com.docker.network.driver.mtu"
_OF_CONFIGURATION: Final = (
    "subnet", "gateway", "ip_range", "aux_addresses", "internal", "enable_ipv4", "enable_ipv6", "subnet6", "gateway6",
    "ip_range6", "options",
)  # fmt: skip
_DEFAULTS: Final = {
    "com.docker.network.bridge.enable_icc": "true",
    "com.docker.network.bridge.enable_ip_masquerade": "true",
    "com.docker.network.bridge.host_binding_ipv4": "0.0.0.0",
    "com.docker.network.bridge.default_bridge": "false",
}
"""Options that may be given with what they are anyway; with anything else they would be promises."""


class NetworkWish(Value, frozen=True, kw_only=True):
    """What a network is to be like. An empty ``subnet`` is chosen from the pools, an empty ``gateway`` is its first address.

    ``enable_ipv6`` asks for a subnet of IPv6 as well, or alone with ``enable_ipv4`` false; what ends in ``6`` is about that.
    ``aux_addresses`` are of both families. ``config_from`` names the configuration that says all of it but the name, the driver
    and the labels.
    """

    name: str
    driver: Driver = "bridge"
    config_only: bool = False
    config_from: str = ""
    subnet: str = ""
    gateway: str = ""
    ip_range: str = ""
    aux_addresses: dict[str, str] = msgspec.field(default_factory=dict)
    internal: bool = False
    enable_ipv4: bool = True
    enable_ipv6: bool = False
    subnet6: str = ""
    gateway6: str = ""
    ip_range6: str = ""
    options: dict[str, str] = msgspec.field(default_factory=dict)
    labels: dict[str, str] = msgspec.field(default_factory=dict)


class HostNetwork(NetworkWish, frozen=True, kw_only=True):
    """A network of this host, made by somebody."""

    id: str
    created_at: datetime

    @property
    def spec(self) -> NetworkSpec:
        """The same as ``fleet.network`` takes it."""
        return NetworkSpec(
            id=self.id,
            name=self.name,
            driver=self.driver,
            subnet=self.subnet,
            gateway=self.gateway,
            internal=self.internal,
            mtu=int(self.options.get(_MTU, 0)),
            ip_range=self.ip_range,
            reserved=tuple(self.aux_addresses.values()),
            subnet6=self.subnet6,
            gateway6=self.gateway6,
            ip_range6=self.ip_range6,
            parent=self.options.get(PARENT, "") if self.driver in DIRECT else "",
            mode=self.options.get(f"{self.driver}_mode", "") if self.driver in DIRECT else "",
        )


class HostNetworks:
    """``open`` first, ``ensure`` before containers start. ``others`` are subnets in use that are not these networks';
    ``users`` gives the names of running containers on a network."""

    def __init__(
        self,
        root: Path,
        *,
        network: Networks,
        clock: Clock,
        hub: EventHub,
        predefined: Collection[str],
        users: Callable[[str], Collection[str]],
        routes: Path = _ROUTES,
    ) -> None:
        self._root = root
        self._network = network
        self._clock = clock
        self._hub = hub
        self._predefined = predefined
        self._users = users
        self._routes = routes
        self._known: dict[str, HostNetwork] = {}
        self._changing = asyncio.Lock()

    def open(self) -> list[str]:
        """Read the records; sentences about those that cannot be read, which are left alone. Blocks. Raises ``OSError``."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        problems = []
        for path in sorted(self._root.glob("*.json")):
            try:
                found = wire.decode(path.read_bytes(), HostNetwork)
                assert found.id == path.stem and (found.config_only or found.spec)
            except (FleetError, InvariantError, AssertionError) as cause:
                problems.append(f"{path}: {cause or 'holds another network'}; left alone")
                continue
            self._known[found.id] = found
        return problems

    async def ensure(self) -> list[str]:
        """Make what a boot or a crash took away; sentences about what could not be made."""
        problems = []
        for network in self.all():
            if network.config_only:
                continue
            try:
                await self._network.ensure_network(network.spec)
            except FleetError as cause:
                problems.append(f"network {network.name}: {cause}")
        return problems

    def all(self) -> list[HostNetwork]:
        """In the order they were made."""
        return sorted(self._known.values(), key=lambda network: (network.created_at, network.id))

    def find(self, name_or_id: str) -> HostNetwork:
        """By name, id, or a beginning of the id that fits one only. Raises ``NotFoundError``, ``UserError``."""
        for network in self._known.values():
            if name_or_id in (network.name, network.id):
                return network
        found = [n for n in self._known.values() if name_or_id and n.id.startswith(name_or_id)]
        if len(found) > 1:
            raise UserError(f"network {name_or_id} is ambiguous ({len(found)} matches found on id prefix)")
        if not found:
            raise NotFoundError(f"network {name_or_id} not found")
        return found[0]

    def name_of(self, network_id: str) -> str | None:
        """What people call it; None when it is none of these."""
        network = self._known.get(network_id)
        return network.name if network is not None else None

    async def create(self, wish: NetworkWish) -> HostNetwork:
        """Make one; durable when this returns. Raises ``UserError`` for what cannot be, ``ConflictError`` for a taken name or
        subnet."""
        async with self._changing:
            self._check_name(wish.name)
            if len(self._known) >= NETWORKS_MAX:
                raise ConflictError(f"this host has {NETWORKS_MAX} networks: remove some (fleet network prune)")
            wish = self._configured(wish)
            _check_sizes(wish)
            if wish.config_only:
                return await self._keep(wish)
            # the subnet of a network without a bridge is the host's own network's, which it has a route to
            routed = () if wish.driver in DIRECT else await asyncio.to_thread(_routed, self._routes)
            taken = [network.subnet for network in self._known.values() if network.subnet and not network.config_only]
            taken += routed
            subnet = _choose_subnet(wish, taken)
            gateway = wish.gateway or next_address(subnet, "", (), network=wish.name) if subnet else ""
            subnet6 = await asyncio.to_thread(self._choose_subnet6, wish)
            gateway6 = _canonical(wish.gateway6) or next_address(subnet6, "", (), network=wish.name) if subnet6 else ""
            network = HostNetwork(
                id=secrets.token_hex(32),
                created_at=self._clock.now(),
                name=wish.name,
                driver=wish.driver,
                config_from=wish.config_from,
                subnet=subnet,
                gateway=gateway,
                ip_range=wish.ip_range,
                aux_addresses={name: _canonical(address) for name, address in wish.aux_addresses.items()},
                internal=wish.internal,
                enable_ipv4=wish.enable_ipv4,
                enable_ipv6=wish.enable_ipv6,
                subnet6=subnet6,
                gateway6=gateway6,
                ip_range6=wish.ip_range6,
                options=wish.options,
                labels=wish.labels,
            )
            spec = network.spec  # what does not fit is said here
            for each in {network.gateway, network.gateway6} & set(network.aux_addresses.values()):
                raise UserError(f"network {wish.name}: {each} is the gateway and an auxiliary address")
            reserved, reserved6 = ([a for a in spec.reserved if is_ipv6(a) is wanted] for wanted in (False, True))
            if subnet:
                next_address(subnet, gateway, reserved, wish.ip_range or None, network=wish.name)
            if subnet6:
                next_address(subnet6, gateway6, reserved6, wish.ip_range6 or None, network=wish.name)
            path = self._path(network.id)
            await asyncio.to_thread(write_durably, path, wire.encode(network))
            self._known[network.id] = network  # before it is made: upkeep removes what is not known
            try:
                await self._network.ensure_network(spec)
            except BaseException:
                del self._known[network.id]
                path.unlink(missing_ok=True)
                with contextlib.suppress(FleetError):  # else upkeep removes what there is of it
                    await self._network.remove_network(network.id)
                raise
        self._tell(Action.NETWORK_CREATE, network)
        return network

    async def remove(self, name_or_id: str) -> HostNetwork:
        """Remove one that no running container is on. Raises ``NotFoundError``, ``ForbiddenError``."""
        async with self._changing:
            network = self.find(name_or_id)
            if network.config_only:
                if made := sorted(n.name for n in self._known.values() if n.config_from == network.name):
                    raise ForbiddenError(
                        f"configuration network {network.name} is in use by network {', '.join(made[:5])}"
                    )
                del self._known[network.id]
                await asyncio.to_thread(self._path(network.id).unlink, missing_ok=True)
                self._tell(Action.NETWORK_DESTROY, network)
                return network
            if users := sorted(self._users(network.id)):
                named = ", ".join(users[:5]) + (" ..." if len(users) > 5 else "")
                raise ForbiddenError(
                    f"error while removing network: network {network.name} has active endpoints: {named}; stop those "
                    "containers or disconnect them first (network disconnect)"
                )
            await self._network.remove_network(network.id)
            del self._known[network.id]
            await asyncio.to_thread(self._path(network.id).unlink, missing_ok=True)
        self._tell(Action.NETWORK_DESTROY, network)
        return network

    def _configured(self, wish: NetworkWish) -> NetworkWish:
        """With what the configuration says that it was to be made from."""
        if not wish.config_from:
            return wish
        config = next((n for n in self._known.values() if n.config_only and n.name == wish.config_from), None)
        if config is None:
            raise NotFoundError(
                f"network {wish.name}: there is no configuration network {wish.config_from} on this host"
            )
        own = NetworkWish(name=wish.name, driver=wish.driver, labels=wish.labels, config_from=wish.config_from)
        if wish != own:
            raise ForbiddenError(
                f"network {wish.name}: user specified configurations are not supported if the network depends on a configuration "
                f"network ({wish.config_from})"
            )
        settings = {name: getattr(config, name) for name in _OF_CONFIGURATION}
        return msgspec.structs.replace(own, **settings)

    async def _keep(self, wish: NetworkWish) -> HostNetwork:
        """A configuration: nothing is made of it here."""
        for subnet, parse in ((wish.subnet, parse_subnet), (wish.subnet6, parse_subnet6)):
            if subnet:
                parse(subnet)
        wished = {name: getattr(wish, name) for name in wish.__struct_fields__}
        network = HostNetwork(id=secrets.token_hex(32), created_at=self._clock.now(), **wished)
        await asyncio.to_thread(write_durably, self._path(network.id), wire.encode(network))
        self._known[network.id] = network
        self._tell(Action.NETWORK_CREATE, network)
        return network

    def _path(self, network_id: str) -> Path:
        return self._root / f"{network_id}.json"

    def _check_name(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise UserError(f"invalid network name {name[:80]!r}: only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")
        if name in self._predefined:
            raise ForbiddenError(f"operation is not permitted on predefined {name} network")
        if any(network.name == name for network in self._known.values()):
            raise ConflictError(f"network with name {name} already exists")

    def _seed(self) -> str:
        """This host's own random name, from which IPv6 subnets are derived that nobody chose; made when first needed. Blocks."""
        path = self._root / _SEED
        try:
            return path.read_text()
        except FileNotFoundError:
            write_durably(path, secrets.token_hex(16).encode())
            return path.read_text()

    def _choose_subnet6(self, wish: NetworkWish) -> str:
        """Blocks. Routes of the host are not asked: its prefix is its own, and what a user chooses may be part of what is routed
        to this host, so that containers are reached from outside."""
        if not wish.enable_ipv6:
            return ""
        taken = [network.subnet6 for network in self._known.values() if network.subnet6 and not network.config_only]
        if not wish.subnet6:
            if wish.gateway6 or wish.ip_range6:
                raise UserError(f"network {wish.name}: an IPv6 gateway and range need a subnet they belong to")
            return UlaPool(self._seed(), taken).next_subnet()
        wanted = parse_subnet6(wish.subnet6)
        for other in taken:
            if wanted.overlaps(ipaddress.IPv6Network(other)):
                raise ForbiddenError(
                    f"invalid pool request: Pool overlaps with other one on this address space: {wanted} and {other}, which this "
                    "host uses already (another network)"
                )
        return str(wanted)

    def _tell(self, action: Action, network: HostNetwork, **attributes: str) -> None:
        self._hub.send(
            ContainerEvent(
                action=action,
                id=network.id,
                time=self._clock.now(),
                attributes={"name": network.name, "type": network.driver, **attributes},
            )
        )


def _choose_subnet(wish: NetworkWish, taken: Collection[str]) -> str:
    if not wish.enable_ipv4:
        if not wish.enable_ipv6:
            raise UserError(f"network {wish.name}: IPv4 or IPv6 must be enabled")
        if wish.subnet or wish.gateway or wish.ip_range:
            raise UserError(f"network {wish.name}: IPv4 addresses were given but IPv4 is not enabled")
        return ""
    if not wish.subnet and wish.driver in DIRECT:
        raise UserError(
            f"network {wish.name}: {wish.driver} needs --subnet, which is that of the network its parent is on, and --gateway, "
            "its router; with --ip-range for the part that is nobody else's"
        )
    if not wish.subnet:
        if wish.gateway or wish.ip_range or any(not is_ipv6(address) for address in wish.aux_addresses.values()):
            raise UserError(f"network {wish.name}: gateway, range and auxiliary addresses need a subnet they belong to")
        return SubnetPool(POOLS).next_subnet(avoid=taken)
    subnet = str(parse_subnet(wish.subnet))
    wanted = ipaddress.IPv4Network(subnet)
    for other in taken:
        if wanted.overlaps(ipaddress.IPv4Network(other)):
            raise ForbiddenError(
                f"invalid pool request: Pool overlaps with other one on this address space: {subnet} and {other}, which this "
                "host uses already (another network, or a route)"
            )
    return subnet


def _check_sizes(wish: NetworkWish) -> None:
    if len(wish.labels) > _LABELS_MAX or len(wish.options) > _LABELS_MAX:
        raise UserError(f"network {wish.name}: more than {_LABELS_MAX} labels or options")
    if len(wish.aux_addresses) > _AUX_MAX:
        raise UserError(f"network {wish.name}: more than {_AUX_MAX} auxiliary addresses")
    known = _DEFAULTS if wish.driver == "bridge" and not wish.config_only else {}
    for key, value in wish.options.items():
        if key in _own_options(wish):
            continue  # its value is looked at where it is used
        if key == _MTU:
            if not value.isdecimal() or len(value) > 5:
                raise UserError(f"network {wish.name}: option {key}={value!r} is not a number of bytes")
        elif key not in known:
            raise UserError(f"network {wish.name}: option {key!r} is not known to the {wish.driver} driver of fleet")
        elif value.lower() != known[key]:
            raise UserError(f"network {wish.name}: option {key}={value} is not supported, it is {known[key]}")
    for name, address in wish.aux_addresses.items():
        text = wish.subnet6 if is_ipv6(address) else wish.subnet
        if text or is_ipv6(address):
            try:
                is_inside = bool(text) and ipaddress.ip_address(address) in parse_any_subnet(text)
            except ValueError:
                is_inside = False
            if not is_inside:
                raise UserError(
                    f"network {wish.name}: auxiliary address {name}={address} is not in {text or 'a subnet'}"
                )


def _own_options(wish: NetworkWish) -> tuple[str, ...]:
    """Options of the driver; a configuration may be for any of them."""
    drivers = DIRECT if wish.config_only else (wish.driver,) if wish.driver in DIRECT else ()
    return (PARENT, *(f"{driver}_mode" for driver in drivers)) if drivers else ()


def _canonical(address: str) -> str:
    """One form of each IPv6 address (RFC 5952), as addresses are compared as text; what is none is left for others to refuse."""
    try:
        return str(ipaddress.IPv6Address(address))
    except ValueError:
        return address


def _routed(path: Path) -> list[str]:
    """Destinations of this host's IPv4 routes but the default one; proc_net(5): hexadecimal in the machine's byte order."""
    try:
        lines = path.read_text().splitlines()[1:]
    except OSError:
        return []
    found = []
    for fields in (line.split() for line in lines):
        if len(fields) < 8:
            continue
        destination, mask = (int(fields[at], 16).to_bytes(4, "little") for at in (1, 7))
        if any(mask):
            prefix_len = int.from_bytes(mask).bit_count()
            found.append(str(ipaddress.IPv4Network((destination, prefix_len), strict=False)))
    return found
