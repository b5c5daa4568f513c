"""Networks whose containers have cards on the host's own network (macvlan, ipvlan): no bridge, no translation, no rules.

    container eth0 -- macvlan or ipvlan device -- parent (eth1, or VLAN 10 of it: eth1.10) -- the network the host is on

Each card is a device of its parent that moves into the sandbox when it is made and ends with it, so nothing of a container stays
on the host. What the network has here is its parent; a VLAN device that is asked for by name (``eth1.10``) and not there is made,
marked with the owner's link group as everything else, and removed with the network.

What people must know: the kernel does not let such containers and their own host talk to each other; the switch must allow
several MAC addresses at the port (macvlan), wireless networks do not. Ports cannot be published, for nothing passes the host's
rules. Names of other containers on the same network resolve on this host only.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from typing import Final

from fleet.errors import RuntimeFault, UnsupportedError, UserError
from fleet.network.kernel import rtnetlink
from fleet.network.kernel.netlink import Message, NetlinkError
from fleet.network.kernel.rtnetlink import Link
from fleet.network.links import NetworkLinks

__all__ = ["DirectLinks", "add_direct", "explain_direct"]

_VLAN: Final = re.compile(r"(.+)\.(\d{1,4})")
_VLAN_MAX: Final = 4094  # IEEE 802.1Q: 0 and 4095 are reserved


class DirectLinks(NetworkLinks):
    """The parent of one network. Used on the network thread, in the host's namespace."""

    @property
    def devices(self) -> tuple[str, ...]:
        """Links of the host that are this network's, if they are ours at all."""
        return (self.spec.parent,)

    def ensure(self, *, veths: Callable[[], list[str]]) -> list[str]:
        """See ``NetworkLinks``. Raises ``UserError`` when there is no such parent, ``UnsupportedError`` when the kernel lacks
        what it takes."""
        done: list[str] = []
        parent = self._netlink.link(self.spec.parent)
        if parent is None:
            parent = self._make_vlan()
            done.append(f"network {self.spec.name}: made VLAN device {parent.name}")
        elif parent.name == "lo" or (parent.kind in ("bridge", "vxlan") and parent.group == self._owner.group):
            raise UserError(
                f"network {self.spec.name}: link {parent.name} cannot be a parent: it leads to no other host"
            )
        if not parent.up and parent.group == self._owner.group:
            self._netlink.send(rtnetlink.link_up(parent.index))
            done.append(f"network {self.spec.name}: brought {parent.name} up")
        if parent.index != self.bridge_index and not veths():  # with a container on it, it works
            self._try_out(parent)
        self.bridge_index, self.mtu = parent.index, self.spec.mtu or parent.mtu
        return done

    def stale(self) -> bool:
        """Whether the parent is not there, or another one than it was."""
        parent = self._netlink.link(self.spec.parent)
        return parent is None or parent.index != self.bridge_index

    def remove(self) -> None:
        """Delete the VLAN device if it was made here; absent is fine."""
        parent = self._netlink.link(self.spec.parent)
        if parent is not None and parent.group == self._owner.group:
            self._netlink.send(rtnetlink.delete_link(parent.name))

    def allow_loopback_routes(self) -> None:
        """Nothing passes the host here."""

    def bridge_addresses(self) -> set[tuple[str, int]]:
        """There is no bridge."""
        return set()

    def _make_vlan(self) -> Link:
        spec, found = self.spec, _VLAN.fullmatch(self.spec.parent)
        below = self._netlink.link(found[1]) if found is not None else None
        if found is None or below is None:
            raise UserError(
                f"network {spec.name}: this host has no link {found[1] if found else spec.parent} to be the parent (ip link "
                "shows those it has)"
            )
        if not 1 <= int(found[2]) <= _VLAN_MAX:
            raise UserError(f"network {spec.name}: VLAN {found[2]} is not between 1 and {_VLAN_MAX}")
        message = rtnetlink.add_vlan(spec.parent, parent=below.index, vlan=int(found[2]), group=self._owner.group)
        alias = rtnetlink.set_alias(spec.parent, self._owner.alias("vlan", spec.id))
        self._send(message, alias, lacking="VLANs (module 8021q)")
        parent = self._netlink.link(spec.parent)
        if parent is None:
            raise RuntimeFault(f"VLAN device {spec.parent} vanished while it was made")
        return parent

    def _try_out(self, parent: Link) -> None:
        """Make a device of the parent and remove it, so that who makes the network is told what will not work."""
        trial = self._owner.new_veth()
        message = add_direct(self.spec.driver, self.spec.mode, name=trial, parent=parent.index, mtu=self.spec.mtu)
        self._send(message, rtnetlink.delete_link(trial), lacking=f"{self.spec.driver} (module {self.spec.driver})")

    def _send(self, *messages: Message, lacking: str) -> None:
        try:
            self._netlink.send(*messages)
        except NetlinkError as error:
            if error.number == errno.EOPNOTSUPP:
                raise UnsupportedError(f"network {self.spec.name}: this host's kernel has no {lacking}") from error
            raise explain_direct(error, network=self.spec.name, parent=self.spec.parent, mode=self.spec.mode) from error


def add_direct(
    driver: str, mode: str, *, name: str, parent: int, mtu: int, mac: str = "", netns: int | None = None
) -> Message:
    """A card of the parent; up only when it is in the sandbox and has its address."""
    if driver == "ipvlan":
        return rtnetlink.add_ipvlan(name, parent=parent, mtu=mtu, netns=netns)
    return rtnetlink.add_macvlan(name, parent=parent, mode=mode or "bridge", mac=mac, mtu=mtu, netns=netns)


def explain_direct(error: NetlinkError, *, network: str, parent: str, mode: str) -> RuntimeFault:
    """Why the kernel refused a card, as far as its number tells."""
    if error.number == errno.EBUSY:
        return RuntimeFault(
            f"network {network}: {parent} is in use otherwise (in a bridge or bond, or by another driver): {error}"
        )
    if error.number == errno.EINVAL and mode == "passthru":
        return RuntimeFault(
            f"network {network}: {parent} serves one container in mode passthru, and it has one: {error}"
        )
    return RuntimeFault(f"network {network}: no card of {parent} can be made: {error}")
