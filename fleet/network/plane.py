"""One host's data plane: desired state in, kernel changed, everything remembered. Synchronous; lives on the network thread.

Each public method moves the host from one complete state to another and may be repeated. What a crash leaves behind at any point:

- making a sandbox: the record is written last; a namespace without a record is closed at the next ``open``;
- removing one: the record goes first; the rest of it is found as a namespace without a record;
- applying a network: its state is written before the kernel is changed; ``open`` applies it again from the file.

Order inside a change is chosen so that a packet meets either the old or the new way, not none: forwarding entries before virtual
addresses that need them, names last; when something goes, names first.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from fleet.errors import ConflictError, NotFoundError, RuntimeFault, UserError
from fleet.network import rules
from fleet.network.dns.keeper import DnsKeeper
from fleet.network.dns.records import zone_of
from fleet.network.ipam import mac_for, next_address
from fleet.network.kernel import rtnetlink
from fleet.network.kernel.nft import NftCloser, NftContext
from fleet.network.kernel.rtnetlink import Netlink
from fleet.network.kernel.thread import KernelThread
from fleet.network.links import NetworkLinks, Remotes, remotes_of, write_sysctl
from fleet.network.namespaces import bind_dns_sockets, close_namespace, is_open, new_namespace, open_namespace
from fleet.network.naming import Owner
from fleet.network.resolv import HostResolver, parse_resolv_conf, render_resolv_conf
from fleet.network.rules import Backend, HostPortRule, HostRules, NetworkRule, SandboxRules
from fleet.network.store import SandboxRecord, Store
from fleet.network.topology import (
    AttachmentSpec,
    Endpoint,
    Interface,
    NetworkSpec,
    NetworkState,
    PublishedPort,
    Sandbox,
    SandboxSpec,
)

__all__ = ["Plane"]


class _Network:
    """A network on this host: its devices and the last state given."""

    def __init__(self, links: NetworkLinks, state: NetworkState) -> None:
        self.links = links
        self.state = state

    @property
    def spec(self) -> NetworkSpec:
        return self.state.network


class _Seat:
    """A finished sandbox and the rules it has; ``None`` means unknown."""

    def __init__(self, record: SandboxRecord, applied: SandboxRules | None) -> None:
        self.record = record
        self.applied = applied

    def networks(self) -> tuple[str, ...]:
        return tuple(interface.network_id for interface in self.record.interfaces)


class Plane:
    """Everything this host's network is. Not thread-safe: construct and call it on the network thread only."""

    def __init__(
        self,
        *,
        thread: KernelThread,
        store: Store,
        owner: Owner,
        underlay: Callable[[], str],
        node_id: str,
        resolv_conf: Path,
    ) -> None:
        self._thread = thread
        self._store = store
        self._owner = owner
        self._underlay = underlay
        self._node_id = node_id
        self._resolv_conf = resolv_conf
        self._netlink = Netlink()
        self._closer = NftCloser()
        self._host_nft = NftContext(self._closer)
        self._networks: dict[str, _Network] = {}
        self._seats: dict[str, _Seat] = {}
        self._published: tuple[PublishedPort, ...] = ()
        self._host_rules: HostRules | None = None
        self._cursors: dict[str, str] = {}
        self._closed_router = False
        self.dns = DnsKeeper(
            socket_path=store.run_dir / "dns.sock",
            log=store.run_dir / "dns.log",
            upstream=lambda: self._host_resolver().servers,
        )

    # --- life -----------------------------------------------------------------------------------------------------

    def open(self) -> list[str]:
        """Adopt what is there, finish or remove what a crash left, and bring the kernel to the last known state."""
        self._store.open()
        self._cursors = self._store.cursors()
        self._published = self._store.published()
        self._closed_router = self._enable_forwarding()
        done: list[str] = []
        records = self._store.sandboxes()
        states = self._store.networks()
        for record in records:
            if is_open(self._store.netns_path(record.spec.id)):
                self._seats[record.spec.id] = _Seat(record, None)
            else:
                self._store.drop_sandbox(record.spec.id)
                done.append(f"sandbox {record.spec.id}: its namespace is gone (reboot?), forgotten")
        for state in states:
            done += self._ensure(state)
        for sandbox_id in self._store.netns_ids():
            if sandbox_id not in self._seats:
                close_namespace(self._store.netns_path(sandbox_id))
                done.append(f"sandbox {sandbox_id}: was never finished, removed")
        self.dns.open()
        for sandbox_id in list(self._seats):
            self._reseat(sandbox_id)
        for sandbox_id in sorted(self.dns.strangers()):
            self.dns.leave(sandbox_id)
        for network in self._networks.values():
            self._apply(network)
        self._apply_host_rules()
        return done

    def close(self) -> None:
        """Let go of the thread's resources; the data plane and the DNS process stay."""
        self.dns.close()
        self._host_nft.close()
        self._closer.stop()
        self._netlink.close()

    def destroy(self) -> None:
        """Remove everything this owner made: sandboxes, networks, rules, the DNS process, files."""
        for sandbox_id in list(self._seats):
            self.remove_sandbox(sandbox_id)
        for sandbox_id in self._store.netns_ids():
            close_namespace(self._store.netns_path(sandbox_id))
        self.dns.destroy()
        if any(link.group == self._owner.group for link in self._netlink.links()):
            self._netlink.send(rtnetlink.delete_group(self._owner.group))
        self._networks.clear()
        self._host_nft.run(f"add table ip {self._owner.table}\ndelete table ip {self._owner.table}\n")
        self._restore_forwarding()
        self._store.destroy()

    # --- networks -------------------------------------------------------------------------------------------------

    def ensure_network(self, spec: NetworkSpec) -> None:
        """Make a network's devices and rules; keeps endpoints and services it was told before."""
        known = self._networks.get(spec.id)
        if known is not None and known.spec == spec:
            return
        state = NetworkState(network=spec) if known is None else _with_spec(known.state, spec)
        self._store.put_network(state)
        self._ensure(state)
        self._apply(self._networks[spec.id])
        self._apply_host_rules()

    def remove_network(self, network_id: str) -> None:
        """Remove a network; unknown is fine. Raises ``ConflictError`` while a sandbox is on it."""
        users = sorted(sandbox_id for sandbox_id, seat in self._seats.items() if network_id in seat.networks())
        if users:
            raise ConflictError(
                f"network {network_id}: still used by {len(users)} containers on this host ({', '.join(users[:3])})"
            )
        network = self._networks.pop(network_id, None)
        if network is None:
            return
        self.dns.drop_zone(network_id)
        self._apply_host_rules()
        network.links.remove()
        self._store.drop_network(network_id)

    def apply_state(self, state: NetworkState) -> None:
        """Bring one network to a complete state, touching only what changed."""
        known = self._networks.get(state.network.id)
        if known is not None and known.state == state:
            return
        self._store.put_network(state)
        if known is None or known.spec != state.network:
            self._ensure(state)
        network = self._networks[state.network.id]
        network.state = state
        self._apply(network)
        self._apply_host_rules()

    def apply_published(self, ports: Sequence[PublishedPort]) -> None:
        """Open exactly these ingress ports. Raises ``UserError`` if one is given twice."""
        seen: set[tuple[str, int]] = set()
        for port in ports:
            key = (port.protocol, port.published_port)
            if key in seen:
                raise UserError(f"published port {port.published_port}/{port.protocol}: given to two services")
            seen.add(key)
        if tuple(ports) == self._published:
            return
        self._published = tuple(ports)
        self._store.put_published(self._published)
        self._apply_host_rules()

    # --- sandboxes ------------------------------------------------------------------------------------------------

    def create_sandbox(self, spec: SandboxSpec) -> Sandbox:
        """Make a sandbox with all its attachments, or return the one that is there after attaching what it lacks."""
        seat = self._seats.get(spec.id)
        if seat is not None:
            for attachment in spec.attachments:
                if attachment.network_id not in seat.networks():
                    self.connect(spec.id, attachment)
            return self._describe(self._seats[spec.id].record)
        interfaces = self._plan_interfaces(spec)
        self._check_host_ports(spec)
        path = self._store.netns_path(spec.id)
        if path.exists():
            close_namespace(path)  # left by a crash
        desired = SandboxRules(dns_port=0)
        with ExitStack() as undo:
            undo.callback(close_namespace, path)
            with new_namespace(self._thread, path) as netns:
                veths = self._plug(spec, interfaces, netns)
                sockets: list[socket.socket] = []
                if interfaces:
                    sockets = bind_dns_sockets(port=0, upstream=bool(spec.dns_servers))
                    for sock in sockets:
                        undo.callback(sock.close)
                    desired = self._sandbox_rules(
                        spec.id, [i.network_id for i in interfaces], port=sockets[1].getsockname()[1]
                    )
                    with NftContext(self._closer) as nft:
                        nft.run(rules.plan_sandbox(None, desired))
            record = SandboxRecord(spec=spec, interfaces=interfaces, veths=veths, dns_port=desired.dns_port)
            self._seats[spec.id] = _Seat(record, desired)
            undo.callback(self._seats.pop, spec.id, None)
            if interfaces:
                self.dns.put_seat(
                    spec.id,
                    networks=[i.network_id for i in interfaces],
                    forward=self._may_forward(interfaces),
                    servers=spec.dns_servers,
                    sockets=sockets,
                )
                undo.callback(self.dns.leave, spec.id)
            self._apply_host_rules()
            self._store.put_sandbox(record)
            undo.pop_all()
        self._publish_local(interfaces)
        return self._describe(record)

    def remove_sandbox(self, sandbox_id: str) -> None:
        """Close a sandbox; unknown is fine. Its namespace ends when the last process in it does."""
        self._store.drop_sandbox(sandbox_id)
        seat = self._seats.pop(sandbox_id, None)
        if seat is not None:
            self._publish_local(seat.record.interfaces)
            if seat.record.interfaces:
                self.dns.leave(sandbox_id)
            self._apply_host_rules()
        close_namespace(self._store.netns_path(sandbox_id))

    def connect(self, sandbox_id: str, attachment: AttachmentSpec) -> Interface:
        """Attach a running sandbox to one more network. Raises ``ConflictError`` if it is on it already."""
        seat = self._seat(sandbox_id)
        record = seat.record
        if attachment.network_id in seat.networks():
            raise ConflictError(f"sandbox {sandbox_id}: already connected to network {attachment.network_id}")
        spec = _replace_spec(record.spec, (*record.spec.attachments, attachment))
        added = self._interface(attachment, name=_free_name(record.interfaces), taken=())
        interfaces = self._with_gateway((*record.interfaces, added))
        netns = open_namespace(self._store.netns_path(sandbox_id))
        try:
            with self._thread.inside(netns):
                veths = (*record.veths, *self._plug(spec, interfaces[-1:], netns))
                self._route(interfaces)
                sockets = [] if record.interfaces else bind_dns_sockets(port=0, upstream=bool(spec.dns_servers))
        finally:
            os.close(netns)
        port = record.dns_port if record.interfaces else sockets[1].getsockname()[1]
        self._replace(sandbox_id, SandboxRecord(spec=spec, interfaces=interfaces, veths=veths, dns_port=port), sockets)
        return interfaces[-1]

    def disconnect(self, sandbox_id: str, network_id: str) -> None:
        """Detach a running sandbox from a network; not attached is fine."""
        seat = self._seat(sandbox_id)
        record = seat.record
        gone = next(
            (index for index, interface in enumerate(record.interfaces) if interface.network_id == network_id), None
        )
        if gone is None:
            return
        kept = tuple(interface for index, interface in enumerate(record.interfaces) if index != gone)
        interfaces = self._with_gateway(kept)
        self._netlink.send(rtnetlink.delete_link(record.veths[gone]))
        netns = open_namespace(self._store.netns_path(sandbox_id))
        try:
            with self._thread.inside(netns):
                self._route(interfaces)
        finally:
            os.close(netns)
        veths = tuple(name for index, name in enumerate(record.veths) if index != gone)
        attachments = tuple(attachment for attachment in record.spec.attachments if attachment.network_id != network_id)
        spec = _replace_spec(record.spec, attachments)
        self._replace(
            sandbox_id, SandboxRecord(spec=spec, interfaces=interfaces, veths=veths, dns_port=record.dns_port), []
        )
        self._publish_local(record.interfaces)

    def sandboxes(self) -> list[str]:
        """Ids of all finished sandboxes."""
        return sorted(self._seats)

    def sandbox(self, sandbox_id: str) -> Sandbox:
        """Describe a sandbox. Raises ``NotFoundError``."""
        return self._describe(self._seat(sandbox_id).record)

    def open_netns(self, sandbox_id: str) -> int:
        """Open a sandbox's namespace; the caller closes the descriptor. Raises ``NotFoundError``."""
        self._seat(sandbox_id)
        return open_namespace(self._store.netns_path(sandbox_id))

    # --- mending --------------------------------------------------------------------------------------------------

    def reconcile(self, *, keep_sandboxes: Collection[str], keep_networks: Collection[str]) -> list[str]:
        """Remove what nothing uses, mend what differs from what was ordered; returns a sentence for each."""
        done: list[str] = []
        for sandbox_id in [sandbox_id for sandbox_id in self._seats if sandbox_id not in keep_sandboxes]:
            self.remove_sandbox(sandbox_id)
            done.append(f"sandbox {sandbox_id}: nothing uses it, removed")
        for sandbox_id in self._store.netns_ids():
            if sandbox_id not in self._seats:
                close_namespace(self._store.netns_path(sandbox_id))
                done.append(f"sandbox {sandbox_id}: was never finished, removed")
        for network_id in [network_id for network_id in self._networks if network_id not in keep_networks]:
            self.remove_network(network_id)
            done.append(f"network {network_id}: nothing uses it, removed")
        done += self._remove_strays()
        for network in self._networks.values():
            done += network.links.ensure(veths=partial(self._veths_of, network.spec.id))
            network.links.forget_remotes()
            changes = network.links.apply_remotes(self._remotes(network))
            if changes:
                done.append(f"network {network.spec.name}: mended {changes} forwarding and ARP entries")
        done += self._mend_host_rules()
        for sandbox_id in list(self._seats):
            done += self._mend_sandbox(sandbox_id)
        if not self.dns.alive():
            self.dns.restart()
            done.append("DNS process: did not answer, replaced")
        return done

    def revive_dns(self, pid: int) -> bool:
        """Replace the DNS process if it is still the dead one ``pid``; returns whether it was."""
        if self.dns.pid != pid:
            return False
        self.dns.restart()
        return True

    # --- inside: networks -----------------------------------------------------------------------------------------

    def _ensure(self, state: NetworkState) -> list[str]:
        spec = state.network
        known = self._networks.get(spec.id)
        links = known.links if known is not None else self._new_links(spec)
        links.spec = spec
        done = links.ensure(veths=lambda: self._veths_of(spec.id))
        if known is None:
            self._networks[spec.id] = _Network(links, state)
        else:
            known.state = state
        return done

    def _new_links(self, spec: NetworkSpec) -> NetworkLinks:
        for other in self._networks.values():
            if spec.driver == "overlay" and (other.spec.vni, other.spec.vxlan_port) == (spec.vni, spec.vxlan_port):
                raise ConflictError(f"network {spec.name}: VNI {spec.vni} is used by network {other.spec.name}")
        return NetworkLinks(spec=spec, owner=self._owner, netlink=self._netlink, underlay=self._underlay)

    def _apply(self, network: _Network) -> None:
        network.links.apply_remotes(self._remotes(network))
        for sandbox_id, seat in self._seats.items():
            if network.spec.id in seat.networks():
                self._apply_sandbox_rules(sandbox_id, seat)
        self._put_zone(network)

    def _remotes(self, network: _Network) -> Remotes:
        underlay = self._underlay() if network.spec.driver == "overlay" else ""
        return remotes_of(network.state, node_id=self._node_id, underlay=underlay)

    def _put_zone(self, network: _Network) -> None:
        local: list[Endpoint] = []
        if network.spec.driver == "bridge":
            for sandbox_id, seat in self._seats.items():
                local += _local_endpoints(sandbox_id, seat.record, network.spec.id)
        self.dns.put_zone(zone_of(network.state, local))

    def _publish_local(self, interfaces: Iterable[Interface]) -> None:
        for interface in interfaces:
            network = self._networks.get(interface.network_id)
            if network is not None and network.spec.driver == "bridge":
                self._put_zone(network)

    def _veths_of(self, network_id: str) -> list[str]:
        return [
            veth
            for seat in self._seats.values()
            for interface, veth in zip(seat.record.interfaces, seat.record.veths, strict=True)
            if interface.network_id == network_id
        ]

    # --- inside: sandboxes ----------------------------------------------------------------------------------------

    def _seat(self, sandbox_id: str) -> _Seat:
        seat = self._seats.get(sandbox_id)
        if seat is None:
            raise NotFoundError(f"no sandbox {sandbox_id} on this host")
        return seat

    def _plan_interfaces(self, spec: SandboxSpec) -> tuple[Interface, ...]:
        planned: list[Interface] = []
        for number, attachment in enumerate(spec.attachments):
            planned.append(self._interface(attachment, name=f"eth{number}", taken=planned))
        return self._with_gateway(planned)

    def _interface(self, attachment: AttachmentSpec, *, name: str, taken: Sequence[Interface]) -> Interface:
        network = self._networks.get(attachment.network_id)
        if network is None:
            raise NotFoundError(
                f"network {attachment.network_id} is not on this host; it must be made before containers join it"
            )
        spec = network.spec
        address = attachment.address
        if spec.driver == "bridge":
            address = self._allocate(spec, requested=address)
        elif address is None:
            raise UserError(f"network {spec.name}: an overlay attachment needs the address its managers gave it")
        return Interface(
            network_id=spec.id,
            name=name,
            address=address,
            prefix_len=spec.prefix_len,
            mac=attachment.mac or mac_for(address),
        )

    def _allocate(self, spec: NetworkSpec, *, requested: str | None) -> str:
        used = {i.address for seat in self._seats.values() for i in seat.record.interfaces if i.network_id == spec.id}
        cursor = self._cursors.get(spec.id)
        address = next_address(spec.subnet, spec.gateway, used, requested=requested, after=cursor, network=spec.name)
        if requested is None:
            self._cursors[spec.id] = address
            self._store.put_cursors(self._cursors)
        return address

    def _with_gateway(self, interfaces: Sequence[Interface]) -> tuple[Interface, ...]:
        """Give the gateway to the first network with a way out; the ingress network only if there is no other."""
        ways_out = [i for i in interfaces if not self._networks[i.network_id].spec.internal]
        ways_out.sort(key=lambda i: self._networks[i.network_id].spec.ingress)
        chosen = ways_out[0].network_id if ways_out else ""
        return tuple(
            Interface(
                network_id=i.network_id,
                name=i.name,
                address=i.address,
                prefix_len=i.prefix_len,
                mac=i.mac,
                gateway=self._networks[i.network_id].spec.gateway if i.network_id == chosen else "",
            )
            for i in interfaces
        )

    def _plug(self, spec: SandboxSpec, interfaces: Sequence[Interface], netns: int) -> tuple[str, ...]:
        """Make the cables and set up their inner ends. Runs inside the sandbox; the host's socket works from here too."""
        veths: list[str] = []
        outer: list[rtnetlink.Message] = []
        for interface in interfaces:
            links = self._networks[interface.network_id].links
            veth = self._owner.new_veth()
            veths.append(veth)
            outer.append(
                rtnetlink.add_veth(
                    veth,
                    mtu=links.mtu,
                    group=self._owner.group,
                    master=links.bridge_index,
                    peer=interface.name,
                    peer_mac=interface.mac,
                    peer_netns=netns,
                )
            )
            outer.append(rtnetlink.set_alias(veth, self._owner.alias("veth", spec.id, interface.network_id)))
            if spec.host_ports or self._networks[interface.network_id].spec.ingress:
                # A container asking for itself through a port of the host: with br_netfilter loaded, the kernel does not route
                # that packet but bridges it back ("bridged DNAT"), to the port it came from.
                outer.append(rtnetlink.set_bridge_port(veth, hairpin=True))
        self._netlink.send_all(outer)
        with Netlink() as netlink:
            inner: list[rtnetlink.Message] = []
            for interface in interfaces:
                link = netlink.link(interface.name)
                if link is None:
                    raise RuntimeFault(f"sandbox {spec.id}: card {interface.name} did not arrive in its namespace")
                inner.append(rtnetlink.add_address(link.index, interface.address, interface.prefix_len))
                inner.append(rtnetlink.link_up(link.index))
                if interface.gateway:
                    inner.append(rtnetlink.add_default_route(link.index, interface.gateway))
            netlink.send_all(inner)
        return tuple(veths)

    def _route(self, interfaces: Sequence[Interface]) -> None:
        """Set the default route again after networks came or went. Runs inside the sandbox."""
        with Netlink() as netlink:
            for interface in interfaces:
                link = netlink.link(interface.name)
                if interface.gateway and link is not None:
                    netlink.send(rtnetlink.add_default_route(link.index, interface.gateway))

    def _replace(self, sandbox_id: str, record: SandboxRecord, sockets: list[socket.socket]) -> None:
        """A sandbox's networks changed: rules, names and host ports follow."""
        seat = self._seats[sandbox_id]
        seat.record = record
        networks = seat.networks()
        if sockets:
            self.dns.put_seat(
                sandbox_id,
                networks=networks,
                forward=self._may_forward(record.interfaces),
                servers=record.spec.dns_servers,
                sockets=sockets,
            )
        elif record.dns_port:
            self.dns.move_seat(sandbox_id, networks=networks, forward=self._may_forward(record.interfaces))
        self._apply_sandbox_rules(sandbox_id, seat)
        self._apply_host_rules()
        self._store.put_sandbox(record)
        self._publish_local(record.interfaces)

    def _reseat(self, sandbox_id: str) -> None:
        """Give an adopted sandbox its place in the DNS process back, with new sockets if nobody has the old ones."""
        seat = self._seats[sandbox_id]
        record = seat.record
        if not record.dns_port:
            return
        sockets = self.dns.borrow(sandbox_id)
        if not sockets:
            netns = open_namespace(self._store.netns_path(sandbox_id))
            try:
                with self._thread.inside(netns):
                    sockets = bind_dns_sockets(port=record.dns_port, upstream=bool(record.spec.dns_servers))
            finally:
                os.close(netns)
            port = sockets[1].getsockname()[1]
            seat.record = SandboxRecord(
                spec=record.spec, interfaces=record.interfaces, veths=record.veths, dns_port=port
            )
            self._store.put_sandbox(seat.record)
        self.dns.put_seat(
            sandbox_id,
            networks=seat.networks(),
            forward=self._may_forward(record.interfaces),
            servers=record.spec.dns_servers,
            sockets=sockets,
        )

    def _may_forward(self, interfaces: Iterable[Interface]) -> bool:
        """Whether a sandbox may ask the outside: one on internal networks only must not leak by DNS (CVE-2024-29018)."""
        return any(not self._networks[i.network_id].spec.internal for i in interfaces)

    def _describe(self, record: SandboxRecord) -> Sandbox:
        text = render_resolv_conf(
            search=record.spec.dns_search,
            options=record.spec.dns_options,
            host=self._host_resolver(),
            embedded=bool(record.dns_port),
        )
        path = os.fspath(self._store.netns_path(record.spec.id))
        return Sandbox(id=record.spec.id, netns_path=path, interfaces=record.interfaces, resolv_conf=text)

    def _host_resolver(self) -> HostResolver:
        try:
            return parse_resolv_conf(self._resolv_conf.read_text())
        except OSError:
            return HostResolver()  # a host without resolv.conf has no resolvers

    # --- inside: rules --------------------------------------------------------------------------------------------

    def _sandbox_rules(self, sandbox_id: str, networks: Sequence[str], *, port: int) -> SandboxRules:
        vips: dict[str, tuple[str, ...]] = {}
        for network_id in networks:
            state = self._networks[network_id].state
            ready = _ready(state)
            for service in state.services:
                if service.vip is not None:
                    backends = [endpoint.address for endpoint in ready.get(service.id, [])]
                    vips[service.vip] = _shuffled(backends, seed=sandbox_id)
        return SandboxRules(dns_port=port, vips=vips)

    def _apply_sandbox_rules(self, sandbox_id: str, seat: _Seat) -> None:
        if not seat.record.dns_port:
            return
        desired = self._sandbox_rules(sandbox_id, seat.networks(), port=seat.record.dns_port)
        text = rules.plan_sandbox(seat.applied, desired)
        if not text:
            return
        seat.applied = None
        netns = open_namespace(self._store.netns_path(sandbox_id))
        try:
            with self._thread.inside(netns), NftContext(self._closer) as nft:
                nft.run(text)
        finally:
            os.close(netns)
        seat.applied = desired

    def _apply_host_rules(self) -> None:
        desired = self._desired_host_rules()
        text = rules.plan_host(self._host_rules, desired, table=self._owner.table)
        if not text:
            return
        self._host_rules = None
        self._host_nft.run(text)
        self._host_rules = desired
        for port in desired.host_ports:
            network = self._network_of_address(port.target[0])
            if network is not None:
                network.links.allow_loopback_routes()

    def _desired_host_rules(self) -> HostRules:
        ingress = next((network for network in self._networks.values() if network.spec.ingress), None)
        published: dict[tuple[str, int], tuple[Backend, ...]] = {}
        if ingress is not None:
            ready = _ready(ingress.state)
            for port in self._published:
                addresses = _shuffled([e.address for e in ready.get(port.service_id, [])], seed=self._node_id)
                published[port.protocol, port.published_port] = tuple(
                    (address, port.target_port) for address in addresses
                )
        return HostRules(
            networks=frozenset(
                NetworkRule(
                    bridge=network.links.bridge,
                    subnet=network.spec.subnet,
                    internal=network.spec.internal,
                    node_address=network.spec.node_address if network.spec.ingress else "",
                )
                for network in self._networks.values()
            ),
            host_ports=frozenset(self._host_port_rules()),
            published=published,
            vxlan_ports=frozenset(n.spec.vxlan_port for n in self._networks.values() if n.spec.driver == "overlay"),
            closed_router=self._closed_router,
        )

    def _host_port_rules(self) -> list[HostPortRule]:
        found: list[HostPortRule] = []
        for seat in self._seats.values():
            way_out = next((interface for interface in seat.record.interfaces if interface.gateway), None)
            if way_out is None:
                continue
            found += [
                HostPortRule(
                    protocol=port.protocol,
                    host_address=port.host_address,
                    host_port=port.host_port,
                    target=(way_out.address, port.target_port),
                )
                for port in seat.record.spec.host_ports
            ]
        return found

    def _check_host_ports(self, spec: SandboxSpec) -> None:
        taken = {
            (port.protocol, port.host_port, port.host_address): sandbox_id
            for sandbox_id, seat in self._seats.items()
            for port in seat.record.spec.host_ports
        }
        for port in spec.host_ports:
            for (protocol, number, address), sandbox_id in taken.items():
                same = address == port.host_address or "0.0.0.0" in (address, port.host_address)
                if (protocol, number) == (port.protocol, port.host_port) and same:
                    raise ConflictError(f"host port {number}/{protocol} is already used by container {sandbox_id}")
            taken[port.protocol, port.host_port, port.host_address] = spec.id

    def _network_of_address(self, address: str) -> _Network | None:
        for seat in self._seats.values():
            for interface in seat.record.interfaces:
                if interface.address == address and interface.gateway:
                    return self._networks.get(interface.network_id)
        return None

    # --- inside: mending ------------------------------------------------------------------------------------------

    def _remove_strays(self) -> list[str]:
        known = {veth for seat in self._seats.values() for veth in seat.record.veths}
        for network in self._networks.values():
            known |= {network.links.bridge, network.links.vxlan}
        strays = [link for link in self._netlink.links() if link.group == self._owner.group and link.name not in known]
        self._netlink.send_all([rtnetlink.delete_link(link.name) for link in strays])
        return [f"link {link.name} ({link.alias or 'no alias'}): belongs to nothing, removed" for link in strays]

    def _mend_host_rules(self) -> list[str]:
        before = _listing(self._host_nft, self._owner.table)
        self._host_rules = None
        self._apply_host_rules()
        if before == _listing(self._host_nft, self._owner.table):
            return []
        return ["host rules: differed from what was ordered, replaced"]

    def _mend_sandbox(self, sandbox_id: str) -> list[str]:
        seat = self._seats[sandbox_id]
        if not seat.record.dns_port:
            return []
        desired = self._sandbox_rules(sandbox_id, seat.networks(), port=seat.record.dns_port)
        netns = open_namespace(self._store.netns_path(sandbox_id))
        try:
            with self._thread.inside(netns), NftContext(self._closer) as nft:
                before = _listing(nft, rules.SANDBOX_TABLE)
                nft.run(rules.plan_sandbox(None, desired))
                after = _listing(nft, rules.SANDBOX_TABLE)
        finally:
            os.close(netns)
        seat.applied = desired
        return [] if before == after else [f"sandbox {sandbox_id}: rules differed from what was ordered, replaced"]

    # --- inside: forwarding ---------------------------------------------------------------------------------------

    def _enable_forwarding(self) -> bool:
        """Turn IPv4 forwarding on; returns whether it was us, now or earlier in this boot.

        A host that was no router must not become one for others: then our rules drop what is not ours (``closed_router``).
        """
        path = Path("/proc/sys/net/ipv4/ip_forward")
        marker = self._store.run_dir / "forwarding"
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        if path.read_text().strip() == "1":
            return marker.exists() and marker.read_text() == boot_id
        marker.write_text(boot_id)
        write_sysctl("net/ipv4/ip_forward", "1")
        return True

    def _restore_forwarding(self) -> None:
        if self._closed_router:
            write_sysctl("net/ipv4/ip_forward", "0")


def _ready(state: NetworkState) -> dict[str, list[Endpoint]]:
    found: dict[str, list[Endpoint]] = {}
    for endpoint in state.endpoints:
        if endpoint.ready and endpoint.service_id:
            found.setdefault(endpoint.service_id, []).append(endpoint)
    return found


def _shuffled(addresses: Iterable[str], *, seed: str) -> tuple[str, ...]:
    """An order that differs from sandbox to sandbox and stays the same in each.

    Round robin starts at the first backend; with one order for all, every short-lived client would go to the same one.
    """
    return tuple(
        sorted(addresses, key=lambda address: hashlib.blake2b(f"{seed} {address}".encode(), digest_size=8).digest())
    )


def _local_endpoints(sandbox_id: str, record: SandboxRecord, network_id: str) -> list[Endpoint]:
    aliases = next((a.aliases for a in record.spec.attachments if a.network_id == network_id), ())
    return [
        Endpoint(id=sandbox_id, names=record.spec.names, aliases=aliases, address=i.address, mac=i.mac)
        for i in record.interfaces
        if i.network_id == network_id
    ]


def _free_name(interfaces: Sequence[Interface]) -> str:
    taken = {interface.name for interface in interfaces}
    return next(name for number in range(len(taken) + 1) if (name := f"eth{number}") not in taken)


def _with_spec(state: NetworkState, spec: NetworkSpec) -> NetworkState:
    return NetworkState(network=spec, endpoints=state.endpoints, services=state.services, nodes=state.nodes)


def _replace_spec(spec: SandboxSpec, attachments: tuple[AttachmentSpec, ...]) -> SandboxSpec:
    return SandboxSpec(
        id=spec.id,
        attachments=attachments,
        host_ports=spec.host_ports,
        dns_servers=spec.dns_servers,
        dns_search=spec.dns_search,
        dns_options=spec.dns_options,
        names=spec.names,
    )


def _listing(nft: NftContext, table: str) -> tuple[str, ...]:
    """A table's rules as sorted words (the kernel lists the elements of a set in no particular order); empty if there is none."""
    try:
        return tuple(sorted(nft.run(f"list table ip {table}\n").replace(",", " ").split()))
    except RuntimeFault:
        return ()
