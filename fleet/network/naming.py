"""Names of kernel objects: how what this host's daemon made is told from everything else, also after a crash.

A link name has 15 characters. Ours are two letters for the kind, four hexadecimal digits for the owner, eight for the
object. The *owner* proof is the link's group number, which the kernel sets in the same message that creates the link: no
crash can leave a link of ours unmarked, and one message deletes a whole group. The alias is for people (``ip -d link``).
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

__all__ = ["Owner", "is_fleet_group"]

_GROUP_BASE = 0x66000000
"""High byte of our group numbers ('f'): the file /etc/iproute2/group and other tools use small ones."""


def is_fleet_group(group: int) -> bool:
    """Whether a link with this group number was made by some daemon of fleet."""
    return group & 0xFF000000 == _GROUP_BASE


@dataclass(frozen=True, slots=True)
class Owner:
    """A daemon's mark on kernel objects; one a data directory, so that several daemons on one kernel do not mix."""

    name: str

    @property
    def tag(self) -> str:
        """Six hexadecimal digits."""
        return hashlib.sha256(self.name.encode()).hexdigest()[:6]

    @property
    def group(self) -> int:
        """Link group number (IFLA_GROUP) of all links of this owner in the host's namespace."""
        return _GROUP_BASE | int(self.tag, 16)

    @property
    def table(self) -> str:
        """Name of this owner's nftables table in the host's namespace."""
        return f"fleet_{self.tag}"

    def bridge(self, network_id: str) -> str:
        """Name of a network's bridge."""
        return f"fb{self.tag[:4]}{_digest(network_id)}"

    def vxlan(self, network_id: str) -> str:
        """Name of a network's VXLAN device."""
        return f"fx{self.tag[:4]}{_digest(network_id)}"

    @property
    def tunnel(self) -> str:
        """Name of the host's end of the encrypted tunnel."""
        return f"ft{self.tag}"

    def new_veth(self) -> str:
        """A fresh name for the host's end of a cable.

        Random, because the kernel takes the cable of a closed namespace away in its own time; a name derived from the
        sandbox would collide when the same sandbox is made again at once.
        """
        return f"fv{self.tag[:4]}{secrets.token_hex(4)}"

    def alias(self, kind: str, *ids: str) -> str:
        """Text for IFLA_IFALIAS (at most 255 bytes)."""
        return ":".join(("fleet", self.tag, kind, *ids))[:255]

    def sandbox_of(self, alias: str) -> str:
        """The sandbox that a cable with this alias leads to; empty for other links."""
        parts = alias.split(":")
        return parts[3] if parts[:3] == ["fleet", self.tag, "veth"] and len(parts) > 3 else ""


def _digest(network_id: str) -> str:
    return hashlib.sha256(network_id.encode()).hexdigest()[:8]
