"""What a manager and the hosts say to each other when networks are examined, and the report that comes of it."""

from __future__ import annotations

import re
from typing import Final

from fleet import errors
from fleet.model.wire import Value
from fleet.network.doctor.finding import Finding

__all__ = [
    "EarWord",
    "HeardAnswer",
    "HeardWord",
    "HostWord",
    "ListenAnswer",
    "ListenRequest",
    "LookAnswer",
    "LookRequest",
    "Report",
    "Target",
    "TooBig",
    "check_run",
]

_RUN: Final = re.compile(r"[0-9a-f]{32}")


def check_run(text: str) -> bytes:
    """A run's id as the bytes its packets carry. Raises ``UserError``."""
    if _RUN.fullmatch(text) is None:
        raise errors.UserError("an examination's id is 32 hexadecimal digits")
    return bytes.fromhex(text)


class ListenRequest(Value, frozen=True, kw_only=True):
    """``networks`` are ids, none meaning all; ``vxlan_port`` the cluster's, for hosts that have no overlay yet."""

    networks: tuple[str, ...] = ()
    vxlan_port: int = 0


class EarWord(Value, frozen=True, kw_only=True):
    """Where a host listens. ``network`` (an id) is empty where it has no overlay and listens on the VXLAN port itself."""

    network: str = ""
    name: str = ""
    vni: int = 0
    port: int = 0
    mac: str = ""
    mtu: int = 0
    peers: tuple[str, ...] = ()
    """Hosts whose packets this host lets in on that network."""
    encrypted: bool = False


class ListenAnswer(Value, frozen=True, kw_only=True):
    """``underlay`` is the address VXLAN packets go to."""

    underlay: str
    ears: tuple[EarWord, ...] = ()


class Target(Value, frozen=True, kw_only=True):
    """Another host, whose ears are to be sent to."""

    number: int
    name: str
    underlay: str
    ears: tuple[EarWord, ...] = ()


class LookRequest(Value, frozen=True, kw_only=True):
    """``number`` is the asked host's own. ``examine`` false: it only sends. ``doors``: where else to try published ports."""

    number: int
    networks: tuple[str, ...] = ()
    examine: bool = True
    targets: tuple[Target, ...] = ()
    doors: tuple[Target, ...] = ()


class TooBig(Value, frozen=True, kw_only=True):
    """A packet of ``size`` bytes did not leave this host for that target."""

    target: int
    network: str = ""
    size: int = 0


class LookAnswer(Value, frozen=True, kw_only=True):
    """``pinged`` are the targets that answered; ``suspects`` rules of others on this host that drop packets to the VXLAN port."""

    findings: tuple[Finding, ...] = ()
    too_big: tuple[TooBig, ...] = ()
    pinged: tuple[int, ...] = ()
    suspects: tuple[str, ...] = ()


class HeardWord(Value, frozen=True, kw_only=True):
    """Outer sizes in bytes that arrived from host ``sender`` on a network."""

    sender: int = 0
    network: str = ""
    sizes: tuple[int, ...] = ()


class HeardAnswer(Value, frozen=True, kw_only=True):
    heard: tuple[HeardWord, ...] = ()


class HostWord(Value, frozen=True, kw_only=True, omit_defaults=False):
    """A host that was examined."""

    id: str = ""
    hostname: str = ""
    address: str = ""


class Report(Value, frozen=True, kw_only=True, omit_defaults=False):
    """The answer of ``GET /fleet/v1/networks/doctor``. ``healthy``: nothing is wrong."""

    healthy: bool
    hosts: tuple[HostWord, ...] = ()
    findings: tuple[Finding, ...] = ()
