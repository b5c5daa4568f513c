"""One host's data plane: desired state in, kernel changed, everything remembered. Synchronous; lives on the network thread.

Each public method moves the host from one complete state to another and may be repeated. What a crash leaves behind at any point:

- making a sandbox: the record is written last; a namespace without a record is closed at the next ``open``;
- removing one: the record goes first; the rest of it is found as a namespace without a record;
- joining or leaving a network: the record is written last. A cable that no record names is removed at the next ``open``, and a
  network that is in the record without its cable is left again without complaint;
- applying a network: its state is written before the kernel is changed; ``open`` applies it again from the file.

Order inside a change is chosen so that a packet meets either the old or the new way, not none: forwarding entries before virtual
addresses that need them, names last; when something goes, names first.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import msgspec

from fleet.errors import ConflictError, NotFoundError, RuntimeFault, UnsupportedError, UserError
from fleet.network import desired, rules
from fleet.network.cables import mend_routes, plug, set_default_route, unplug
from fleet.network.cardrules import Card
from fleet.network.direct import DirectLinks
from fleet.network.dns.keeper import DnsKeeper
from fleet.network.dns.records import Zone, zone_of
from fleet.network.doctor.view import PlaneView
from fleet.network.filters import HostFilter, SandboxFilters
from fleet.network.forwarding import enable_forwarding, restore_forwarding
from fleet.network.hostports import check_port_free
from fleet.network.ipam import is_ipv6, mac_for, next_address
from fleet.network.ipv6 import Ipv6
from fleet.network.kernel import rtnetlink
from fleet.network.kernel.nft import NftCloser, NftContext
from fleet.network.kernel.rtnetlink import Netlink
from fleet.network.kernel.thread import KernelThread
from fleet.network.links import NetworkLinks, Remotes, remotes_of
from fleet.network.namespaces import (
    NamespacePool,
    bind_dns_sockets,
    bind_upstream_socket,
    close_namespace,
    is_open,
    open_namespace,
)
from fleet.network.naming import Owner
from fleet.network.resolv import HostResolver, parse_resolv_conf, render_resolv_conf
from fleet.network.return_routes import NO_RETURNS, ReturnRoutes
from fleet.network.rules import Family, HostRules, SandboxRules
from fleet.network.store import SandboxRecord, Store
from fleet.network.sweeper import FlowSweeper
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
from fleet.network.tunnel.keeper import TunnelKeeper

__all__ = ["Plane"]

_LEAVING_S = 10.0
"""A closed namespace and its cables go within a second, when their last process has; later than this, something holds them."""


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
        pool_size: int,
    ) -> None:
        self._thread = thread
        self._store = store
        self._owner = owner
        self._underlay = underlay
        self._node_id = node_id
        self._resolv_conf = resolv_conf
        self._netlink = Netlink()
        self._closer = NftCloser()
        self._sweeper = FlowSweeper(host_netns=thread.home)
        self._host_filter = HostFilter(closer=self._closer, sweeper=self._sweeper, table=owner.table)
        self._sandbox_filters = SandboxFilters(
            closer=self._closer, sweeper=self._sweeper, thread=thread, path_of=store.netns_path
        )
        self._pool = NamespacePool(thread=thread, closer=self._closer, size=pool_size)
        self._links: dict[str, NetworkLinks] = {}
        self._states: dict[str, NetworkState] = {}  # the same keys as _links
        self._records: dict[str, SandboxRecord] = {}
        self._leaving: dict[str, float] = {}  # cables of closed sandboxes, and until when the kernel may take them away
        self._published: tuple[PublishedPort, ...] = ()
        self._returns_applied: dict[str, ReturnRoutes] = {}  # by sandbox; none: what is there is not known
        self._cursors: dict[str, str] = {}
        self._closed_router = False
        self._ipv6 = Ipv6(
            thread=thread, closer=self._closer, sweeper=self._sweeper, table=owner.table, run_dir=store.run_dir
        )
        self.tunnel = TunnelKeeper(netlink=self._netlink, owner=owner, run_dir=store.run_dir, state_dir=store.state_dir)
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
        self._closed_router = enable_forwarding(self._store.run_dir)
        done: list[str] = []
        for record in self._store.sandboxes():
            if is_open(self._store.netns_path(record.spec.id)):
                self._records[record.spec.id] = record
            else:
                self._store.drop_sandbox(record.spec.id)
                done.append(f"sandbox {record.spec.id}: its namespace is gone (reboot?), forgotten")
        for state in self._store.networks():
            self._admit(self._ipv6.fit(state, strict=False))
        for state in list(self._states.values()):  # when all are known: they have one tunnel
            done += self._attempt(state.network.name, partial(self._ensure, state.network.id))
        self._retire_tunnel()
        done += self._close_unfinished()
        done += self._remove_strays(of=self._records.keys())
        self.dns.open()
        for sandbox_id in list(self._records):
            self._reseat(sandbox_id)
        for sandbox_id in sorted(self.dns.strangers()):
            self.dns.leave(sandbox_id)
        for network_id, links in self._links.items():
            if not links.stale():  # what could not be made was said above, and is tried again when it is asked for
                self._apply(network_id)
        self._apply_host_rules()
        return done + self._obstacles() + [self._ipv6.fault] * bool(self._ipv6.fault)

    def close(self) -> None:
        """Let go of the thread's resources; the data plane and the DNS process stay."""
        self._pool.close()
        self._sweeper.stop()
        self.tunnel.close()
        self.dns.close()
        self._host_filter.close()
        self._ipv6.close()
        self._closer.stop()
        self._netlink.close()

    def destroy(self) -> None:
        """Remove everything this owner made: sandboxes, networks, rules, the DNS process, files."""
        self._pool.close()
        for sandbox_id in list(self._records):
            self.remove_sandbox(sandbox_id)
        self._close_unfinished()
        self.dns.destroy()
        self.tunnel.destroy()
        if any(link.group == self._owner.group for link in self._netlink.links()):
            self._netlink.send(rtnetlink.delete_group(self._owner.group))
        self._links.clear()
        self._states.clear()
        self._host_filter.remove()
        self._ipv6.remove()
        restore_forwarding(self._store.run_dir)
        self._store.destroy()

    def refill(self) -> bool:
        """Prepare one more namespace; returns whether the stock has room for more."""
        return self._pool.refill()

    def lacking(self) -> tuple[int, int] | None:
        """The ids of the user namespaces whose network namespaces the stock has room for one more of."""
        return self._pool.lacking()

    def put_owned(self, ids: tuple[int, int], *, netns: int) -> None:
        """Prepare an empty namespace that belongs to such a one; ``netns`` stays the caller's."""
        self._pool.put_owned(ids, netns)

    # --- networks -------------------------------------------------------------------------------------------------

    def ensure_network(self, spec: NetworkSpec) -> None:
        """Make a network's devices and rules; keeps endpoints and services it was told before."""
        known = self._states.get(spec.id) or NetworkState(network=spec)
        self.apply_state(
            NetworkState(network=spec, endpoints=known.endpoints, services=known.services, nodes=known.nodes)
        )

    def remove_network(self, network_id: str) -> None:
        """Remove a network; unknown is fine. Raises ``ConflictError`` while a sandbox is on it."""
        users = sorted(record.spec.id for record in self._on(network_id))
        if users:
            raise ConflictError(
                f"network {network_id}: still used by {len(users)} containers on this host ({', '.join(users[:3])})"
            )
        if network_id not in self._states:
            return
        self.dns.drop_zone(network_id)
        del self._states[network_id]
        links = self._links.pop(network_id)
        self._apply_host_rules()
        links.remove()
        self._retire_tunnel()
        self._store.drop_network(network_id)

    def apply_state(self, state: NetworkState) -> None:
        """Bring one network to a complete state, touching only what changed."""
        state = self._ipv6.fit(state)
        known = self._states.get(state.network.id)
        stale = known is None or known.network != state.network or self._links[state.network.id].stale()
        if known == state and not stale:
            return
        self._check_vni(state.network)
        self._store.put_network(state)
        self._admit(state)
        if stale:
            self._ensure(state.network.id)
        dead = _addresses_of(known) - _addresses_of(state) if known is not None else set()
        self._apply(state.network.id, dead=dead)
        self._apply_host_rules(dead=dead)

    def apply_published(self, ports: Sequence[PublishedPort]) -> None:
        """Open exactly these ingress ports. Raises ``UserError`` if one is given twice."""
        seen: set[tuple[str, int]] = set()
        for port in ports:
            key = (port.protocol, port.published_port)
            if key in seen:
                raise UserError(f"published port {port.published_port}/{port.protocol}: given to two services")
            seen.add(key)
        if tuple(ports) != self._published:
            before, self._published = self._published, tuple(ports)
            self._store.put_published(self._published)
            ingress = self._ingress()
            if ingress is not None and desired.showing_clients(before) != desired.showing_clients(ports):
                for record in self._on(ingress.network.id):
                    self._apply_sandbox_rules(record)
            self._apply_host_rules()

    # --- sandboxes ------------------------------------------------------------------------------------------------

    def create_sandbox(self, spec: SandboxSpec, *, netns: int = -1) -> Sandbox | None:
        """Make a sandbox with all its attachments, or return the one that is there after attaching what it lacks.

        None: it is to belong to a user namespace, and none is in stock; ask again with ``netns``, an empty one, which stays the
        caller's.
        """
        if spec.id in self._records:
            for attachment in spec.attachments:
                if attachment.network_id not in _networks_of(self._records[spec.id]):
                    self.connect(spec.id, attachment)
            return self.sandbox(spec.id)
        bare = not spec.attachments
        prepared = self._pool.take_owned(spec.ids, bare=bare, netns=netns) if spec.ids else self._pool.take(bare=bare)
        if prepared is None:
            return None
        with ExitStack() as undo:
            undo.callback(prepared.close)
            interfaces = self._plan_interfaces(spec)
            self._check_host_ports(spec, interfaces)
            path = self._store.netns_path(spec.id)
            close_namespace(path)  # left by a crash, if at all
            sockets = prepared.sockets
            undo.callback(close_namespace, path)
            prepared.hold_at(path)
            port = prepared.rules.dns_port if prepared.rules is not None else 0
            with self._thread.inside(prepared.descriptor):
                veths = self._plug(spec, interfaces, prepared.descriptor)
                if spec.dns_servers and sockets:
                    sockets.append(bind_upstream_socket())
                if prepared.rules is not None:
                    wanted = self._sandbox_rules(spec.id, interfaces, port=port)
                    text = rules.plan_sandbox(prepared.rules, wanted)
                    if text:
                        with NftContext(self._closer) as nft:
                            nft.run(text)
                    self._sandbox_filters.adopt(spec.id, wanted)
                    undo.callback(self._sandbox_filters.forget, spec.id)
                    mend_routes(wanted.returns, before=NO_RETURNS)
                    self._returns_applied[spec.id] = wanted.returns
                    undo.callback(self._returns_applied.pop, spec.id, None)
            record = SandboxRecord(spec=spec, interfaces=interfaces, veths=veths, dns_port=port)
            self._records[spec.id] = record
            undo.callback(self._records.pop, spec.id, None)
            if sockets:
                undo.callback(self.dns.leave, spec.id)
                self._seat(record, sockets)
            self._apply_host_rules()
            self._store.put_sandbox(record)
            undo.pop_all()
        os.close(prepared.descriptor)
        self._put_local_zones(interfaces)
        return self._describe(record)

    def remove_sandbox(self, sandbox_id: str) -> None:
        """Close a sandbox; unknown is fine. Its namespace ends when the last process in it does."""
        self._store.drop_sandbox(sandbox_id)
        record = self._records.pop(sandbox_id, None)
        if record is not None:
            self._leaving |= dict.fromkeys(record.veths, time.monotonic() + _LEAVING_S)
            self._put_local_zones(record.interfaces)
            if record.dns_port:
                self.dns.leave(sandbox_id)
            self._sandbox_filters.forget(sandbox_id)
            self._returns_applied.pop(sandbox_id, None)
            cards = record.interfaces
            self._apply_host_rules(dead=[a for card in cards for a in (card.address, card.address6) if a])
        close_namespace(self._store.netns_path(sandbox_id))

    def connect(self, sandbox_id: str, attachment: AttachmentSpec) -> Interface:
        """Attach a running sandbox to one more network. Raises ``ConflictError`` if it is on it already."""
        record = self._record(sandbox_id)
        if attachment.network_id in _networks_of(record):
            raise ConflictError(f"sandbox {sandbox_id}: already connected to network {attachment.network_id}")
        spec = desired.with_attachments(record.spec, (*record.spec.attachments, attachment))
        added = self._interface(attachment, name=desired.free_name(record.interfaces), taken=record.interfaces)
        interfaces = self._with_gateway((*record.interfaces, added))
        sockets: list[socket.socket] = []
        with self._inside(sandbox_id) as netns:
            unplug(added.name)  # left by an attempt that failed half-way, if at all
            try:
                veths = (*record.veths, *self._plug(spec, interfaces[-1:], netns))
                set_default_route(interfaces)
                if not record.dns_port:
                    sockets = bind_dns_sockets(port=0, upstream=bool(spec.dns_servers))
            except BaseException:
                unplug(added.name)
                raise
        port = sockets[1].getsockname()[1] if sockets else record.dns_port
        self._rewire(SandboxRecord(spec=spec, interfaces=interfaces, veths=veths, dns_port=port), sockets)
        return interfaces[-1]

    def disconnect(self, sandbox_id: str, network_id: str) -> None:
        """Detach a running sandbox from a network; not attached is fine."""
        record = self._record(sandbox_id)
        if network_id not in _networks_of(record):
            return
        kept = [
            (i, veth) for i, veth in zip(record.interfaces, record.veths, strict=True) if i.network_id != network_id
        ]
        gone = [veth for i, veth in zip(record.interfaces, record.veths, strict=True) if i.network_id == network_id]
        interfaces = self._with_gateway([interface for interface, _ in kept])
        cables = [veth for veth in gone if veth and self._netlink.link(veth) is not None]
        self._netlink.send_all([rtnetlink.delete_link(veth) for veth in cables])
        with self._inside(sandbox_id):
            if not all(gone):
                unplug(next(i.name for i in record.interfaces if i.network_id == network_id))
            set_default_route(interfaces)
        self._returns_applied.pop(sandbox_id, None)  # routes went with the card
        attachments = tuple(attachment for attachment in record.spec.attachments if attachment.network_id != network_id)
        self._rewire(
            SandboxRecord(
                spec=desired.with_attachments(record.spec, attachments),
                interfaces=interfaces,
                veths=tuple(veth for _, veth in kept),
                dns_port=record.dns_port,
            ),
            [],
        )
        self._put_local_zones(record.interfaces)

    def sandboxes(self) -> list[str]:
        """Ids of all finished sandboxes."""
        return sorted(self._records)

    def sandbox(self, sandbox_id: str) -> Sandbox:
        """Describe a sandbox. Raises ``NotFoundError``."""
        return self._describe(self._record(sandbox_id))

    def netns_of(self, sandbox_id: str) -> int:
        """Open a sandbox's namespace; the caller closes the descriptor. Raises ``NotFoundError``."""
        self._record(sandbox_id)
        return open_namespace(self._store.netns_path(sandbox_id))

    # --- mending --------------------------------------------------------------------------------------------------

    def reconcile(self, *, keep_sandboxes: Collection[str], keep_networks: Collection[str]) -> list[str]:
        """Remove what nothing uses, mend the host's part where it differs from what was ordered; a sentence for each.

        The sandboxes themselves are mended one by one with ``mend_sandbox``, so that others need not wait for all of them.
        """
        done: list[str] = []
        for sandbox_id in [sandbox_id for sandbox_id in self._records if sandbox_id not in keep_sandboxes]:
            self.remove_sandbox(sandbox_id)
            done.append(f"sandbox {sandbox_id}: nothing uses it, removed")
        done += self._close_unfinished()
        for network_id in [network_id for network_id in self._states if network_id not in keep_networks]:
            self.remove_network(network_id)
            done.append(f"network {network_id}: nothing uses it, removed")
        done += self._remove_strays()
        for network_id, links in self._links.items():
            done += self._attempt(links.spec.name, partial(self._mend_network, network_id))
        if self._host_filter.mend(self._host_rules()):
            done.append("host rules: differed from what was ordered, replaced")
        done += self._ipv6.mend(self._host_rules6(), self._cards())
        self._allow_loopback()
        if not self.dns.alive():
            self.dns.restart()
            done.append("DNS process: did not answer, replaced")
        return done + self._sweeper.faults()

    def mend_sandbox(self, sandbox_id: str) -> list[str]:
        """Replace a sandbox's rules if they differ from what was ordered; a sandbox that is gone is fine."""
        record = self._records.get(sandbox_id)
        if record is None or not record.dns_port:
            return []
        wanted = self._sandbox_rules(sandbox_id, record.interfaces, port=record.dns_port)
        differed = self._sandbox_filters.mend(sandbox_id, wanted)
        self._returns_applied.pop(sandbox_id, None)
        if not (self._apply_returns(sandbox_id, wanted.returns) or differed):
            return []
        return [f"sandbox {sandbox_id}: rules differed from what was ordered, replaced"]

    def revive_dns(self, pid: int) -> None:
        """Replace the DNS process if it is still the dead one ``pid``."""
        if self.dns.pid == pid:
            self.dns.restart()

    def revive_tunnel(self, pid: int) -> None:
        """Replace the tunnel process if it is still the dead one ``pid``, and the device if that is gone."""
        if self.tunnel.pid == pid and (pid or not self.tunnel.is_kept()):
            for network_id, state in self._states.items():
                if state.network.encrypted:
                    self._mend_network(network_id)

    def view(self) -> PlaneView:
        """What the doctor may see."""
        return PlaneView(
            thread=self._thread,
            netlink=self._netlink,
            closer=self._closer,
            table=self._owner.table,
            underlay=self._underlay(),
            states=self._states,
            links=self._links,
            records=self._records,
            published=self._published,
            remotes=self._remotes,
            host_rules=self._host_rules,
            host_rules6=self._host_rules6,
            cards=self._cards,
            ipv6_fault=self._ipv6.fault,
            sandbox_rules=lambda r: self._sandbox_rules(r.spec.id, r.interfaces, port=r.dns_port),
            asking_order=self._asking_order,
            zone=self._zone,
            obstacles=self._obstacles,
            netns_path=self._store.netns_path,
            tunnel=self.tunnel,
        )

    # --- inside: networks -----------------------------------------------------------------------------------------

    def _admit(self, state: NetworkState) -> None:
        """Know a network from now on."""
        spec = state.network
        if spec.id not in self._links:
            kind = DirectLinks if spec.is_direct else NetworkLinks
            self._links[spec.id] = kind(
                spec=spec,
                owner=self._owner,
                netlink=self._netlink,
                underlay=self._underlay,
                tunnel=self.tunnel,
                peers_at=lambda at: desired.tunnel_peers(self._states.values(), node_id=self._node_id, underlay=at),
            )
        self._links[spec.id].spec = spec
        self._states[spec.id] = state

    def _ensure(self, network_id: str) -> list[str]:
        return self._links[network_id].ensure(veths=partial(self._veths_of, network_id))

    def _attempt(self, name: str, action: Callable[[], list[str]]) -> list[str]:
        """Do what can be done; a network that cannot be made must not keep the others from working."""
        try:
            return action()
        except (RuntimeFault, UnsupportedError, UserError) as error:
            return [f"network {name}: {error}"]

    def _check_vni(self, spec: NetworkSpec) -> None:
        for other in (state.network for state in self._states.values()):
            if other.id != spec.id and spec.vni and (other.vni, other.vxlan_port) == (spec.vni, spec.vxlan_port):
                raise ConflictError(f"network {spec.name}: VNI {spec.vni} is used by network {other.name}")
            if other.id != spec.id and spec.parent and other.parent == spec.parent:
                raise ConflictError(
                    f"network {spec.name}: link {spec.parent} is already the parent of network {other.name}"
                )

    def _retire_tunnel(self) -> None:
        """End the tunnel when no encrypted network is left."""
        if not any(state.network.encrypted for state in self._states.values()):
            self.tunnel.remove()

    def _apply(self, network_id: str, *, dead: Collection[str] = ()) -> None:
        links = self._links[network_id]
        links.apply_peers()
        links.apply_remotes(self._remotes(network_id))
        for record in self._on(network_id):
            self._apply_sandbox_rules(record, dead=dead)
        self._put_zone(network_id)

    def _remotes(self, network_id: str) -> Remotes:
        links = self._links[network_id]
        return remotes_of(
            self._states[network_id], node_id=self._node_id, underlay=links.underlay, link=links.tunnel_link
        )

    def _put_zone(self, network_id: str) -> None:
        self.dns.put_zone(self._zone(network_id))

    def _zone(self, network_id: str) -> Zone:
        state = self._states[network_id]
        local: list[Endpoint] = []
        if state.network.is_local:
            for record in self._on(network_id):
                local += desired.local_endpoints(record, network_id)
        return zone_of(state, local)

    def _put_local_zones(self, interfaces: Iterable[Interface]) -> None:
        for interface in interfaces:
            if self._states[interface.network_id].network.is_local:
                self._put_zone(interface.network_id)

    def _on(self, network_id: str) -> list[SandboxRecord]:
        return [record for record in self._records.values() if network_id in _networks_of(record)]

    def _veths_of(self, network_id: str) -> list[str]:
        return [
            veth
            for record in self._records.values()
            for interface, veth in zip(record.interfaces, record.veths, strict=True)
            if interface.network_id == network_id
        ]

    # --- inside: sandboxes ----------------------------------------------------------------------------------------

    def _record(self, sandbox_id: str) -> SandboxRecord:
        record = self._records.get(sandbox_id)
        if record is None:
            raise NotFoundError(f"no sandbox {sandbox_id} on this host")
        return record

    @contextmanager
    def _inside(self, sandbox_id: str) -> Iterator[int]:
        netns = open_namespace(self._store.netns_path(sandbox_id))
        try:
            with self._thread.inside(netns):
                yield netns
        finally:
            os.close(netns)

    def _plan_interfaces(self, spec: SandboxSpec) -> tuple[Interface, ...]:
        planned: list[Interface] = []
        for number, attachment in enumerate(spec.attachments):
            planned.append(self._interface(attachment, name=f"eth{number}", taken=planned))
        return self._with_gateway(planned)

    def _interface(self, attachment: AttachmentSpec, *, name: str, taken: Sequence[Interface]) -> Interface:
        state = self._states.get(attachment.network_id)
        if state is None:
            raise NotFoundError(
                f"network {attachment.network_id} is not on this host; it must be made before containers join it"
            )
        spec = state.network
        address = attachment.address
        if spec.is_local:
            address = self._address4(spec, attachment)
        elif address is None:
            raise UserError(f"network {spec.name}: an overlay attachment needs the address its managers gave it")
        address6 = self._address6(spec, attachment)
        for one in filter(None, (address, address6)):
            if any(one in (interface.address, interface.address6) for interface in taken):
                raise ConflictError(f"network {spec.name}: the container has address {one} already, on another network")
        return Interface(
            network_id=spec.id,
            name=name,
            address=address,
            prefix_len=spec.prefix_len,
            mac=attachment.mac or mac_for(address or address6),
            address6=address6,
            prefix_len6=spec.prefix_len6,
        )

    def _address4(self, spec: NetworkSpec, attachment: AttachmentSpec) -> str:
        """The card's IPv4 address on a network of this host; empty when that has none."""
        if spec.subnet:
            return self._allocate(spec, requested=attachment.address)
        if attachment.address:
            raise UserError(f"network {spec.name} has no IPv4: address {attachment.address} cannot be had there")
        return ""

    def _address6(self, spec: NetworkSpec, attachment: AttachmentSpec) -> str:
        """The card's IPv6 address; empty on a network that has none here."""
        if spec.is_local:
            if spec.subnet6:
                return self._allocate(spec, requested=attachment.address6, family="ip6")
            if attachment.address6:
                raise UserError(f"network {spec.name} has no IPv6: address {attachment.address6} cannot be had there")
        return attachment.address6 or "" if spec.subnet6 else ""

    def _allocate(self, spec: NetworkSpec, *, requested: str | None, family: Family = "ip") -> str:
        is_v4 = family == "ip"
        cards = [i for record in self._records.values() for i in record.interfaces if i.network_id == spec.id]
        used = {i.address if is_v4 else i.address6 for i in cards} - {""}
        used.update(address for address in spec.reserved if is_ipv6(address) is not is_v4)
        cursor = spec.id if is_v4 else f"{spec.id} {family}"
        address = next_address(
            spec.subnet if is_v4 else spec.subnet6,
            spec.gateway if is_v4 else spec.gateway6,
            used,
            (spec.ip_range if is_v4 else spec.ip_range6) or None,
            requested=requested,
            after=self._cursors.get(cursor),
            network=spec.name,
        )
        if requested is None:
            self._cursors[cursor] = address
            self._store.put_cursors(self._cursors)
        return address

    def _with_gateway(self, interfaces: Sequence[Interface]) -> tuple[Interface, ...]:
        networks = {key: state.network for key, state in self._states.items()}
        return desired.with_gateway(interfaces, networks, ingress_first=bool(self._returns(interfaces).routes))

    def _plug(self, spec: SandboxSpec, interfaces: Sequence[Interface], netns: int) -> tuple[str, ...]:
        """Make the cables; returns the names of the host's ends."""
        direct = [self._states[interface.network_id].network.is_direct for interface in interfaces]
        veths = tuple("" if is_direct else self._owner.new_veth() for is_direct in direct)
        if coming := desired.cards_of(
            interfaces, veths, guarded=self._guarded()
        ):  # watched before there is anything to watch: the container may be running
            self._ipv6.watch(self._cards() | coming)
        plug(
            spec,
            interfaces,
            veths=veths,
            host=self._netlink,
            owner=self._owner,
            links=self._links,
            netns=netns,
        )
        return veths

    def _rewire(self, record: SandboxRecord, sockets: list[socket.socket]) -> None:
        """A sandbox's networks changed: names, rules and host ports follow."""
        self._records[record.spec.id] = record
        if sockets:
            self._seat(record, sockets)
        elif record.dns_port:
            self.dns.move_seat(record.spec.id, networks=self._asking_order(record), forward=self._may_forward(record))
        self._apply_sandbox_rules(record)
        self._apply_host_rules()
        self._store.put_sandbox(record)
        self._put_local_zones(record.interfaces)

    def _seat(self, record: SandboxRecord, sockets: list[socket.socket]) -> None:
        self.dns.put_seat(
            record.spec.id,
            networks=self._asking_order(record),
            forward=self._may_forward(record),
            servers=record.spec.dns_servers,
            sockets=sockets,
        )

    def _reseat(self, sandbox_id: str) -> None:
        """Give an adopted sandbox its place in the DNS process back, with new sockets if nobody has the old ones."""
        record = self._records[sandbox_id]
        if not record.dns_port:
            return
        sockets = self.dns.borrow(sandbox_id)
        if not sockets:
            with self._inside(sandbox_id):
                sockets = bind_dns_sockets(port=record.dns_port, upstream=bool(record.spec.dns_servers))
            port = sockets[1].getsockname()[1]
            record = SandboxRecord(spec=record.spec, interfaces=record.interfaces, veths=record.veths, dns_port=port)
            self._records[sandbox_id] = record
            self._store.put_sandbox(record)
        self._seat(record, sockets)

    def _asking_order(self, record: SandboxRecord) -> list[str]:
        """Networks whose names a sandbox sees, the ingress network's last: services meet on their own networks."""
        return sorted(_networks_of(record), key=lambda network_id: self._states[network_id].network.ingress)

    def _may_forward(self, record: SandboxRecord) -> bool:
        """Whether a sandbox may ask the outside: one on internal networks only must not leak by DNS (CVE-2024-29018)."""
        return any(not self._states[i.network_id].network.internal for i in record.interfaces)

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

    def _sandbox_rules(self, sandbox_id: str, interfaces: Sequence[Interface], *, port: int) -> SandboxRules:
        states = (self._states[interface.network_id] for interface in interfaces)
        return desired.sandbox_rules(states, seed=sandbox_id, port=port, returns=self._returns(interfaces))

    def _apply_sandbox_rules(self, record: SandboxRecord, *, dead: Collection[str] = ()) -> None:
        if record.dns_port:
            wanted = self._sandbox_rules(record.spec.id, record.interfaces, port=record.dns_port)
            self._apply_returns(record.spec.id, wanted.returns)
            self._sandbox_filters.apply(record.spec.id, wanted, dead=dead)
            interfaces = self._with_gateway(record.interfaces)
            if interfaces != record.interfaces:
                with self._inside(record.spec.id):
                    set_default_route(interfaces)
                record = msgspec.structs.replace(record, interfaces=interfaces)
                self._records[record.spec.id] = record
                self._store.put_sandbox(record)

    def _apply_returns(self, sandbox_id: str, wanted: ReturnRoutes) -> bool:
        """Bring a sandbox's ways back to ``wanted``; returns whether its routing rules had to change."""
        before = self._returns_applied.get(sandbox_id)
        if before == wanted:
            return False
        self._returns_applied.pop(sandbox_id, None)
        with self._inside(sandbox_id):
            changed = mend_routes(wanted, before=before)
        self._returns_applied[sandbox_id] = wanted
        return changed

    def _returns(self, interfaces: Iterable[Interface]) -> ReturnRoutes:
        return desired.returns_of(interfaces, ingress=self._ingress(), published=self._published)

    def _ingress(self) -> NetworkState | None:
        return next((state for state in self._states.values() if state.network.ingress), None)

    def _cards(self) -> frozenset[Card]:
        return desired.cards(self._records.values(), guarded=self._guarded())

    def _guarded(self) -> str:
        """The network whose containers' IPv4 addresses are watched too: the ingress network, once a port shows its clients."""
        ingress = self._ingress()
        if ingress is None or not desired.showing_clients(self._published) or not self._ipv6.can_watch():
            return ""
        return ingress.network.id

    def _obstacles(self) -> list[str]:
        """What on this host stands in the way, in sentences."""
        found = self._host_filter.obstacles()
        if desired.showing_clients(self._published) and not self._ipv6.can_watch():
            found.append(
                "published ports show their clients' addresses, and this host's kernel cannot filter on bridges (module "
                "nf_tables_bridge): a container here that is on the ingress network could pretend to be a client"
            )
        return found

    def _apply_host_rules(self, *, dead: Collection[str] = ()) -> None:
        if self._host_filter.apply(self._host_rules(), dead=dead):
            self._allow_loopback()
        self._ipv6.apply(self._host_rules6(), self._cards(), dead=dead)

    def _allow_loopback(self) -> None:
        """Host ports work from 127.0.0.1 too. After the rules, because these contain the guard that makes it safe."""
        for record in self._records.values():
            way_out = next((interface for interface in record.interfaces if interface.gateway), None)
            if record.spec.host_ports and way_out is not None:
                self._links[way_out.network_id].allow_loopback_routes()

    def _host_rules(self) -> HostRules:
        wanted = desired.host_rules(
            self._bridged(),
            bridges=self._bridges(),
            records=self._records.values(),
            published=self._published,
            seed=self._node_id,
            closed_router=self._closed_router,
            tunnel=self.tunnel.name,
        )
        assert wanted is not None  # of IPv4 there always are some
        return wanted

    def _host_rules6(self) -> HostRules | None:
        return self._ipv6.host_rules(
            self._bridged(),
            bridges=self._bridges(),
            records=self._records.values(),
            published=self._published,
            seed=self._node_id,
        )

    def _bridged(self) -> dict[str, NetworkState]:
        """Networks that the host's rules are about: the others' packets never pass it."""
        return {network_id: state for network_id, state in self._states.items() if not state.network.is_direct}

    def _bridges(self) -> dict[str, str]:
        return {network_id: links.bridge for network_id, links in self._links.items()}

    def _check_host_ports(self, spec: SandboxSpec, interfaces: Sequence[Interface]) -> None:
        ipv6 = any(interface.address6 for interface in interfaces)
        for interface in interfaces if spec.host_ports else ():
            network = self._states[interface.network_id].network
            if network.is_direct and (interface.gateway or interface.gateway6):
                raise UserError(
                    f"ports cannot be published on network {network.name} ({network.driver}), for nothing of it passes this "
                    "host: the container is reached at its own address there"
                )
        taken = [(port, record.spec.id) for record in self._records.values() for port in record.spec.host_ports]
        for port in spec.host_ports:
            for other, sandbox_id in taken:
                if other.overlaps(port):
                    raise ConflictError(
                        f"host port {port.host_port}/{port.protocol} is already used by container {sandbox_id}"
                    )
            taken.append((port, spec.id))
            check_port_free(port, ipv6=ipv6)

    # --- inside: mending ------------------------------------------------------------------------------------------

    def _mend_network(self, network_id: str) -> list[str]:
        done = self._ensure(network_id)
        links = self._links[network_id]
        links.forget_remotes()
        changes = links.apply_remotes(self._remotes(network_id))
        return [*done, f"network {links.spec.name}: mended {changes} forwarding and ARP entries"] if changes else done

    def _close_unfinished(self) -> list[str]:
        done: list[str] = []
        for sandbox_id in self._store.netns_ids():
            if sandbox_id not in self._records:
                close_namespace(self._store.netns_path(sandbox_id))
                done.append(f"sandbox {sandbox_id}: was never finished, removed")
        return done

    def _remove_strays(self, *, of: Collection[str] | None = None) -> list[str]:
        """Links that belong to nothing; with ``of`` only cables into these sandboxes, as the kernel may still be taking others
        away with their namespaces."""
        known = {veth for record in self._records.values() for veth in record.veths}
        now = time.monotonic()
        self._leaving = {veth: until for veth, until in self._leaving.items() if until > now}
        known |= self._leaving.keys()
        known |= {name for links in self._links.values() for name in links.devices}
        known.add(self.tunnel.name)
        strays = [link for link in self._netlink.links() if link.group == self._owner.group and link.name not in known]
        if of is not None:
            strays = [link for link in strays if self._owner.sandbox_of(link.alias) in of]
        self._netlink.send_all([rtnetlink.delete_link(link.name) for link in strays])
        return [f"link {link.name} ({link.alias or 'no alias'}): belongs to nothing, removed" for link in strays]


def _addresses_of(state: NetworkState) -> set[str]:
    return {address for each in state.endpoints for address in (each.address, each.address6) if address}


def _networks_of(record: SandboxRecord) -> tuple[str, ...]:
    return tuple(interface.network_id for interface in record.interfaces)
