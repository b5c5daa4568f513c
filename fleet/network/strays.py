"""What a crash left behind: namespaces without a record, links of ours that belong to nothing. Used on the network thread."""

from __future__ import annotations

import time
from collections.abc import Collection

from fleet.network.kernel import rtnetlink
from fleet.network.kernel.rtnetlink import Netlink
from fleet.network.known import Known
from fleet.network.namespaces import close_namespace
from fleet.network.naming import Owner
from fleet.network.store import Store
from fleet.network.tunnel.keeper import TunnelKeeper

__all__ = ["Strays"]

_LEAVING_S = 10.0
"""A closed namespace and its cables go within a second, when their last process has; later than this, something holds them."""


class Strays:
    """Each removal returns a sentence for what it removed."""

    def __init__(self, *, known: Known, store: Store, netlink: Netlink, owner: Owner, tunnel: TunnelKeeper) -> None:
        self._known = known
        self._store = store
        self._netlink = netlink
        self._owner = owner
        self._tunnel = tunnel
        self._leaving: dict[str, float] = {}
        """Cables of closed sandboxes, and until when the kernel may take them away."""

    def leaving(self, veths: Collection[str]) -> None:
        """A sandbox with these cables is being closed."""
        self._leaving |= dict.fromkeys(veths, time.monotonic() + _LEAVING_S)

    def close_unfinished(self) -> list[str]:
        """Namespaces of sandboxes that were never finished, or are being removed."""
        done: list[str] = []
        for sandbox_id in self._store.netns_ids():
            if sandbox_id not in self._known.records:
                close_namespace(self._store.netns_path(sandbox_id))
                done.append(f"sandbox {sandbox_id}: was never finished, removed")
        return done

    def remove(self, *, of: Collection[str] | None = None) -> list[str]:
        """Links that belong to nothing; with ``of`` only cables into these sandboxes, as the kernel may still be taking others
        away with their namespaces."""
        known = {veth for record in self._known.records.values() for veth in record.veths}
        now = time.monotonic()
        self._leaving = {veth: until for veth, until in self._leaving.items() if until > now}
        known |= self._leaving.keys()
        known |= {name for links in self._known.links.values() for name in links.devices}
        known.add(self._tunnel.name)
        strays = [link for link in self._netlink.links() if link.group == self._owner.group and link.name not in known]
        if of is not None:
            strays = [link for link in strays if self._owner.sandbox_of(link.alias) in of]
        self._netlink.send_all([rtnetlink.delete_link(link.name) for link in strays])
        return [f"link {link.name} ({link.alias or 'no alias'}): belongs to nothing, removed" for link in strays]
