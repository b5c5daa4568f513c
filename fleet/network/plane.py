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
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from fleet.errors import ConflictError, RuntimeFault, UnsupportedError, UserError
from fleet.network import desired
from fleet.network.addresses import Addresses
from fleet.network.cables import plug, set_default_route, unplug
from fleet.network.doctor.view import PlaneView
from fleet.network.host_side import HostSide
from fleet.network.ipv6 import Ipv6
from fleet.network.kernel import rtnetlink
from fleet.network.kernel.nft import NftCloser
from fleet.network.kernel.rtnetlink import Netlink
from fleet.network.kernel.thread import KernelThread
from fleet.network.known import Known, networks_of
from fleet.network.names import Names
from fleet.network.namespaces import (
    NamespacePool,
    bind_dns_sockets,
    bind_upstream_socket,
    close_namespace,
    is_open,
    open_namespace,
)
from fleet.network.naming import Owner
from fleet.network.network_side import NetworkSide
from fleet.network.sandbox_side import SandboxSide
from fleet.network.store import SandboxRecord, Store
from fleet.network.strays import Strays
from fleet.network.sweeper import FlowSweeper
from fleet.network.topology import (
    AttachmentSpec,
    Interface,
    NetworkSpec,
    NetworkState,
    PublishedPort,
    Sandbox,
    SandboxSpec,
)
from fleet.network.tunnel.keeper import TunnelKeeper

__all__ = ["Plane"]


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
        self._netlink = Netlink()
        self._closer = NftCloser()
        self._sweeper = FlowSweeper(host_netns=thread.home)
        self._pool = NamespacePool(thread=thread, closer=self._closer, size=pool_size)
        self._known = Known(node_id=node_id)
        self._ipv6 = Ipv6(
            thread=thread, closer=self._closer, sweeper=self._sweeper, table=owner.table, run_dir=store.run_dir
        )
        self.tunnel = TunnelKeeper(netlink=self._netlink, owner=owner, run_dir=store.run_dir, state_dir=store.state_dir)
        self._networks = NetworkSide(
            known=self._known, netlink=self._netlink, owner=owner, underlay=underlay, tunnel=self.tunnel
        )
        self._host = HostSide(
            known=self._known,
            store=store,
            closer=self._closer,
            sweeper=self._sweeper,
            ipv6=self._ipv6,
            tunnel=self.tunnel,
            table=owner.table,
        )
        self._sandboxes = SandboxSide(
            known=self._known, store=store, thread=thread, closer=self._closer, sweeper=self._sweeper
        )
        self._strays = Strays(known=self._known, store=store, netlink=self._netlink, owner=owner, tunnel=self.tunnel)
        self._addresses = Addresses(known=self._known, store=store)
        self._names = Names(known=self._known, store=store, sandboxes=self._sandboxes, resolv_conf=resolv_conf)
        self.dns = self._names.dns

    # --- life -----------------------------------------------------------------------------------------------------

    def open(self) -> list[str]:
        """Adopt what is there, finish or remove what a crash left, and bring the kernel to the last known state."""
        self._store.open()
        self._addresses.open()
        self._known.published = self._store.published()
        self._host.open()
        done: list[str] = []
        for record in self._store.sandboxes():
            if is_open(self._store.netns_path(record.spec.id)):
                self._known.records[record.spec.id] = record
            else:
                self._store.drop_sandbox(record.spec.id)
                done.append(f"sandbox {record.spec.id}: its namespace is gone (reboot?), forgotten")
        for state in self._store.networks():
            self._networks.admit(self._ipv6.fit(state, strict=False))
        for state in list(self._known.states.values()):  # when all are known: they have one tunnel
            done += self._attempt(state.network.name, partial(self._networks.ensure, state.network.id))
        self._networks.retire_tunnel()
        done += self._strays.close_unfinished()
        done += self._strays.remove(of=self._known.records.keys())
        self._names.open()
        for network_id, links in self._known.links.items():
            if not links.stale():  # what could not be made was said above, and is tried again when it is asked for
                self._apply(network_id)
        self._host.apply()
        return done + self._host.obstacles() + [self._ipv6.fault] * bool(self._ipv6.fault)

    def close(self) -> None:
        """Let go of the thread's resources; the data plane and the DNS process stay."""
        self._pool.close()
        self._sweeper.stop()
        self.tunnel.close()
        self.dns.close()
        self._host.close()
        self._closer.stop()
        self._netlink.close()

    def destroy(self) -> None:
        """Remove everything this owner made: sandboxes, networks, rules, the DNS process, files."""
        self._pool.close()
        for sandbox_id in list(self._known.records):
            self.remove_sandbox(sandbox_id)
        self._strays.close_unfinished()
        self.dns.destroy()
        self.tunnel.destroy()
        if any(link.group == self._owner.group for link in self._netlink.links()):
            self._netlink.send(rtnetlink.delete_group(self._owner.group))
        self._known.links.clear()
        self._known.states.clear()
        self._host.remove()
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
        known = self._known.states.get(spec.id) or NetworkState(network=spec)
        self.apply_state(
            NetworkState(network=spec, endpoints=known.endpoints, services=known.services, nodes=known.nodes)
        )

    def remove_network(self, network_id: str) -> None:
        """Remove a network; unknown is fine. Raises ``ConflictError`` while a sandbox is on it."""
        users = sorted(record.spec.id for record in self._known.on(network_id))
        if users:
            raise ConflictError(
                f"network {network_id}: still used by {len(users)} containers on this host ({', '.join(users[:3])})"
            )
        if network_id not in self._known.states:
            return
        self.dns.drop_zone(network_id)
        del self._known.states[network_id]
        links = self._known.links.pop(network_id)
        self._host.apply()
        links.remove()
        self._networks.retire_tunnel()
        self._store.drop_network(network_id)

    def apply_state(self, state: NetworkState) -> None:
        """Bring one network to a complete state, touching only what changed."""
        state = self._ipv6.fit(state)
        known = self._known.states.get(state.network.id)
        stale = known is None or known.network != state.network or self._known.links[state.network.id].stale()
        if known == state and not stale:
            return
        self._known.check_alone(state.network)
        self._store.put_network(state)
        self._networks.admit(state)
        if stale:
            self._networks.ensure(state.network.id)
        dead = _addresses_of(known) - _addresses_of(state) if known is not None else set()
        self._apply(state.network.id, dead=dead)
        self._host.apply(dead=dead)

    def apply_published(self, ports: Sequence[PublishedPort]) -> None:
        """Open exactly these ingress ports. Raises ``UserError`` if one is given twice."""
        seen: set[tuple[str, int]] = set()
        for port in ports:
            key = (port.protocol, port.published_port)
            if key in seen:
                raise UserError(f"published port {port.published_port}/{port.protocol}: given to two services")
            seen.add(key)
        if tuple(ports) != self._known.published:
            before, self._known.published = self._known.published, tuple(ports)
            self._store.put_published(self._known.published)
            ingress = self._known.ingress()
            if ingress is not None and desired.showing_clients(before) != desired.showing_clients(ports):
                for record in self._known.on(ingress.network.id):
                    self._sandboxes.apply(record)
            self._host.apply()

    # --- sandboxes ------------------------------------------------------------------------------------------------

    def create_sandbox(self, spec: SandboxSpec, *, netns: int = -1) -> Sandbox | None:
        """Make a sandbox with all its attachments, or return the one that is there after attaching what it lacks.

        None: it is to belong to a user namespace, and none is in stock; ask again with ``netns``, an empty one, which stays the
        caller's.
        """
        if spec.id in self._known.records:
            for attachment in spec.attachments:
                if attachment.network_id not in networks_of(self._known.records[spec.id]):
                    self.connect(spec.id, attachment)
            return self.sandbox(spec.id)
        bare = not spec.attachments
        prepared = self._pool.take_owned(spec.ids, bare=bare, netns=netns) if spec.ids else self._pool.take(bare=bare)
        if prepared is None:
            return None
        with ExitStack() as undo:
            undo.callback(prepared.close)
            interfaces = self._addresses.plan(spec)
            self._host.check_ports(spec, interfaces)
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
                    undo.callback(self._sandboxes.forget, spec.id)
                    wanted = self._known.sandbox_rules(spec.id, interfaces, port=port)
                    self._sandboxes.begin(spec.id, wanted, prepared=prepared.rules)
            record = SandboxRecord(spec=spec, interfaces=interfaces, veths=veths, dns_port=port)
            self._known.records[spec.id] = record
            undo.callback(self._known.records.pop, spec.id, None)
            if sockets:
                undo.callback(self.dns.leave, spec.id)
                self._names.seat(record, sockets)
            self._host.apply()
            self._store.put_sandbox(record)
            undo.pop_all()
        os.close(prepared.descriptor)
        self._names.put_local_zones(interfaces)
        return self._describe(record)

    def remove_sandbox(self, sandbox_id: str) -> None:
        """Close a sandbox; unknown is fine. Its namespace ends when the last process in it does."""
        self._store.drop_sandbox(sandbox_id)
        record = self._known.records.pop(sandbox_id, None)
        if record is not None:
            self._strays.leaving(record.veths)
            self._names.put_local_zones(record.interfaces)
            if record.dns_port:
                self.dns.leave(sandbox_id)
            self._sandboxes.forget(sandbox_id)
            cards = record.interfaces
            self._host.apply(dead=[a for card in cards for a in (card.address, card.address6) if a])
        close_namespace(self._store.netns_path(sandbox_id))

    def connect(self, sandbox_id: str, attachment: AttachmentSpec) -> Interface:
        """Attach a running sandbox to one more network. Raises ``ConflictError`` if it is on it already."""
        record = self._known.record(sandbox_id)
        if attachment.network_id in networks_of(record):
            raise ConflictError(f"sandbox {sandbox_id}: already connected to network {attachment.network_id}")
        spec = desired.with_attachments(record.spec, (*record.spec.attachments, attachment))
        added = self._addresses.card(attachment, name=desired.free_name(record.interfaces), taken=record.interfaces)
        interfaces = self._known.with_gateway((*record.interfaces, added))
        sockets: list[socket.socket] = []
        with self._sandboxes.inside(sandbox_id) as netns:
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
        record = self._known.record(sandbox_id)
        if network_id not in networks_of(record):
            return
        kept = [
            (i, veth) for i, veth in zip(record.interfaces, record.veths, strict=True) if i.network_id != network_id
        ]
        gone = [veth for i, veth in zip(record.interfaces, record.veths, strict=True) if i.network_id == network_id]
        interfaces = self._known.with_gateway([interface for interface, _ in kept])
        cables = [veth for veth in gone if veth and self._netlink.link(veth) is not None]
        self._netlink.send_all([rtnetlink.delete_link(veth) for veth in cables])
        with self._sandboxes.inside(sandbox_id):
            if not all(gone):
                unplug(next(i.name for i in record.interfaces if i.network_id == network_id))
            set_default_route(interfaces)
        self._sandboxes.card_gone(sandbox_id)
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
        self._names.put_local_zones(record.interfaces)

    def sandboxes(self) -> list[str]:
        """Ids of all finished sandboxes."""
        return sorted(self._known.records)

    def sandbox(self, sandbox_id: str) -> Sandbox:
        """Describe a sandbox. Raises ``NotFoundError``."""
        return self._describe(self._known.record(sandbox_id))

    def netns_of(self, sandbox_id: str) -> int:
        """Open a sandbox's namespace; the caller closes the descriptor. Raises ``NotFoundError``."""
        self._known.record(sandbox_id)
        return open_namespace(self._store.netns_path(sandbox_id))

    # --- mending --------------------------------------------------------------------------------------------------

    def reconcile(self, *, keep_sandboxes: Collection[str], keep_networks: Collection[str]) -> list[str]:
        """Remove what nothing uses, mend the host's part where it differs from what was ordered; a sentence for each.

        The sandboxes themselves are mended one by one with ``mend_sandbox``, so that others need not wait for all of them.
        """
        done: list[str] = []
        for sandbox_id in [sandbox_id for sandbox_id in self._known.records if sandbox_id not in keep_sandboxes]:
            self.remove_sandbox(sandbox_id)
            done.append(f"sandbox {sandbox_id}: nothing uses it, removed")
        done += self._strays.close_unfinished()
        for network_id in [network_id for network_id in self._known.states if network_id not in keep_networks]:
            self.remove_network(network_id)
            done.append(f"network {network_id}: nothing uses it, removed")
        done += self._strays.remove()
        for network_id, links in self._known.links.items():
            done += self._attempt(links.spec.name, partial(self._networks.mend, network_id))
        done += self._host.mend()
        if not self.dns.alive():
            self.dns.restart()
            done.append("DNS process: did not answer, replaced")
        return done + self._sweeper.faults()

    def mend_sandbox(self, sandbox_id: str) -> list[str]:
        """Replace a sandbox's rules if they differ from what was ordered; a sandbox that is gone is fine."""
        return self._sandboxes.mend(sandbox_id)

    def revive_dns(self, pid: int) -> None:
        """Replace the DNS process if it is still the dead one ``pid``."""
        if self.dns.pid == pid:
            self.dns.restart()

    def revive_tunnel(self, pid: int) -> None:
        """Replace the tunnel process if it is still the dead one ``pid``, and the device if that is gone."""
        if self.tunnel.pid == pid and (pid or not self.tunnel.is_kept()):
            for network_id, state in self._known.states.items():
                if state.network.encrypted:
                    self._networks.mend(network_id)

    def view(self) -> PlaneView:
        """What the doctor may see."""
        return PlaneView(
            thread=self._thread,
            netlink=self._netlink,
            closer=self._closer,
            table=self._owner.table,
            underlay=self._underlay(),
            states=self._known.states,
            links=self._known.links,
            records=self._known.records,
            published=self._known.published,
            remotes=self._known.remotes,
            host_rules=self._host.rules,
            host_rules6=self._host.rules6,
            cards=self._host.cards,
            ipv6_fault=self._ipv6.fault,
            sandbox_rules=lambda r: self._known.sandbox_rules(r.spec.id, r.interfaces, port=r.dns_port),
            asking_order=self._known.asking_order,
            zone=self._known.zone,
            obstacles=self._host.obstacles,
            netns_path=self._store.netns_path,
            tunnel=self.tunnel,
        )

    # --- inside: networks -----------------------------------------------------------------------------------------

    def _attempt(self, name: str, action: Callable[[], list[str]]) -> list[str]:
        """Do what can be done; a network that cannot be made must not keep the others from working."""
        try:
            return action()
        except (RuntimeFault, UnsupportedError, UserError) as error:
            return [f"network {name}: {error}"]

    def _apply(self, network_id: str, *, dead: Collection[str] = ()) -> None:
        self._networks.apply(network_id)
        for record in self._known.on(network_id):
            self._sandboxes.apply(record, dead=dead)
        self._names.put_zone(network_id)

    # --- inside: sandboxes ----------------------------------------------------------------------------------------

    def _plug(self, spec: SandboxSpec, interfaces: Sequence[Interface], netns: int) -> tuple[str, ...]:
        """Make the cables; returns the names of the host's ends."""
        direct = [self._known.states[interface.network_id].network.is_direct for interface in interfaces]
        veths = tuple("" if is_direct else self._owner.new_veth() for is_direct in direct)
        self._host.watch(interfaces, veths)
        plug(
            spec,
            interfaces,
            veths=veths,
            host=self._netlink,
            owner=self._owner,
            links=self._known.links,
            netns=netns,
        )
        return veths

    def _rewire(self, record: SandboxRecord, sockets: list[socket.socket]) -> None:
        """A sandbox's networks changed: names, rules and host ports follow."""
        self._known.records[record.spec.id] = record
        if sockets:
            self._names.seat(record, sockets)
        elif record.dns_port:
            self._names.move(record)
        self._sandboxes.apply(record)
        self._host.apply()
        self._store.put_sandbox(record)
        self._names.put_local_zones(record.interfaces)

    def _describe(self, record: SandboxRecord) -> Sandbox:
        path = os.fspath(self._store.netns_path(record.spec.id))
        return Sandbox(
            id=record.spec.id,
            netns_path=path,
            interfaces=record.interfaces,
            resolv_conf=self._names.resolv_conf(record),
        )


def _addresses_of(state: NetworkState) -> set[str]:
    return {address for each in state.endpoints for address in (each.address, each.address6) if address}
