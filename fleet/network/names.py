"""Names on this host: which zones the DNS process knows, whose seat sees which, and what a container's resolv.conf says."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from pathlib import Path

from fleet.network.dns.keeper import DnsKeeper
from fleet.network.known import Known
from fleet.network.namespaces import bind_dns_sockets
from fleet.network.resolv import HostResolver, parse_resolv_conf, render_resolv_conf
from fleet.network.sandbox_side import SandboxSide
from fleet.network.store import SandboxRecord, Store
from fleet.network.topology import Interface

__all__ = ["Names"]


class Names:
    """Over the process that ``dns`` keeps."""

    def __init__(self, *, known: Known, store: Store, sandboxes: SandboxSide, resolv_conf: Path) -> None:
        self._known = known
        self._store = store
        self._sandboxes = sandboxes
        self._resolv_conf = resolv_conf
        self.dns = DnsKeeper(
            socket_path=store.run_dir / "dns.sock",
            log=store.run_dir / "dns.log",
            upstream=lambda: self._host_resolver().servers,
        )

    def open(self) -> None:
        """Adopt or start the process, and give every known sandbox its place back; strangers lose theirs."""
        self.dns.open()
        for sandbox_id in list(self._known.records):
            self._reseat(sandbox_id)
        for sandbox_id in sorted(self.dns.strangers()):
            self.dns.leave(sandbox_id)

    def seat(self, record: SandboxRecord, sockets: list[socket.socket]) -> None:
        """Give a sandbox its place."""
        self.dns.put_seat(
            record.spec.id,
            networks=self._known.asking_order(record),
            forward=self._known.may_forward(record),
            servers=record.spec.dns_servers,
            sockets=sockets,
        )

    def move(self, record: SandboxRecord) -> None:
        """The sandbox that has a place is on other networks now."""
        self.dns.move_seat(
            record.spec.id, networks=self._known.asking_order(record), forward=self._known.may_forward(record)
        )

    def put_zone(self, network_id: str) -> None:
        """Tell the DNS process a network's names."""
        self.dns.put_zone(self._known.zone(network_id))

    def put_local_zones(self, interfaces: Iterable[Interface]) -> None:
        """The same for those of the cards' networks whose names are of this host's sandboxes."""
        for interface in interfaces:
            if self._known.states[interface.network_id].network.is_local:
                self.put_zone(interface.network_id)

    def resolv_conf(self, record: SandboxRecord) -> str:
        """What a container's resolv.conf says."""
        return render_resolv_conf(
            search=record.spec.dns_search,
            options=record.spec.dns_options,
            host=self._host_resolver(),
            embedded=bool(record.dns_port),
        )

    def _reseat(self, sandbox_id: str) -> None:
        """Give an adopted sandbox its place in the DNS process back, with new sockets if nobody has the old ones."""
        record = self._known.records[sandbox_id]
        if not record.dns_port:
            return
        sockets = self.dns.borrow(sandbox_id)
        if not sockets:
            with self._sandboxes.inside(sandbox_id):
                sockets = bind_dns_sockets(port=record.dns_port, upstream=bool(record.spec.dns_servers))
            port = sockets[1].getsockname()[1]
            record = SandboxRecord(spec=record.spec, interfaces=record.interfaces, veths=record.veths, dns_port=port)
            self._known.records[sandbox_id] = record
            self._store.put_sandbox(record)
        self.seat(record, sockets)

    def _host_resolver(self) -> HostResolver:
        try:
            return parse_resolv_conf(self._resolv_conf.read_text())
        except OSError:
            return HostResolver()  # a host without resolv.conf has no resolvers
