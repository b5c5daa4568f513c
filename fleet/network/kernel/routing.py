"""rtnetlink(7), the messages about addresses, routes and routing rules."""

from __future__ import annotations

import errno
import socket
import struct

from fleet.network.kernel.netlink import Message, attribute, u32
from fleet.network.kernel.rtnetlink import (
    FRA_FWMARK,
    IFA_ADDRESS,
    IFA_LOCAL,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    packed_address,
)

__all__ = [
    "SCOPE_HOST",
    "add_address",
    "add_default_route",
    "add_loopback_route6",
    "add_mark_rule",
    "add_table_route",
    "delete_mark_rule",
]

# linux/rtnetlink.h, linux/if_addr.h, linux/fib_rules.h
RTM_NEWADDR, RTM_NEWROUTE, RTM_NEWRULE, RTM_DELRULE = 20, 24, 32, 33
IFA_F_NODAD = 0x02
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_TABLE = 1, 4, 5, 6, 15
FRA_PRIORITY, FRA_TABLE, FRA_FWMASK = 6, 15, 16
FR_ACT_TO_TBL = 1
SCOPE_HOST = 254
_MARK_RULES_PRIORITY = 100
"""Before the tables every namespace has (32766 main), after its own addresses (0)."""
_LAST_METRIC = 0x7FFFFFFF


def add_address(index: int, address: str, prefix_len: int, *, scope: int = 0) -> Message:
    """Give a link an address of either family; having it already is fine. ``scope`` as in rtnetlink(7), 0 is everywhere.

    An IPv6 address is usable at once: managers see to it that nobody else has it, and detecting that by asking around (DAD, RFC
    4862 section 5.4) takes a second.
    """
    family, packed = packed_address(address)
    body = struct.pack("=BBBBI", family, prefix_len, IFA_F_NODAD if family == socket.AF_INET6 else 0, scope, index)
    body += attribute(IFA_LOCAL, packed) + attribute(IFA_ADDRESS, packed)
    flags = NLM_F_CREATE | NLM_F_EXCL
    return Message(
        kind=RTM_NEWADDR,
        flags=flags,
        body=body,
        describe=f"add address {address}/{prefix_len}",
        tolerate=(errno.EEXIST,),
    )


def add_default_route(index: int, gateway: str) -> Message:
    """Replace the default route of the gateway's family."""
    family, packed = packed_address(gateway)
    # rtmsg: family, dst_len, src_len, tos, table main 254, protocol boot 3, scope universe 0, type unicast 1
    body = struct.pack("=BBBBBBBBI", family, 0, 0, 0, 254, 3, 0, 1, 0)
    body += attribute(RTA_GATEWAY, packed) + u32(RTA_OIF, index)
    return Message(
        kind=RTM_NEWROUTE, flags=NLM_F_CREATE | NLM_F_REPLACE, body=body, describe=f"add default route via {gateway}"
    )


def add_table_route(index: int, gateway: str, table: int) -> Message:
    """Replace the default route of the gateway's family in a table of its own; the gateway must be on the link."""
    family, packed = packed_address(gateway)
    # rtmsg as above; table 0 (unspecified) because the number is in an attribute, having more than 8 bits
    body = struct.pack("=BBBBBBBBI", family, 0, 0, 0, 0, 3, 0, 1, 0)
    body += attribute(RTA_GATEWAY, packed) + u32(RTA_OIF, index) + u32(RTA_TABLE, table)
    return Message(
        kind=RTM_NEWROUTE,
        flags=NLM_F_CREATE | NLM_F_REPLACE,
        body=body,
        describe=f"add route via {gateway} to table {table:#x}",
    )


def add_mark_rule(family: int, mark: int) -> Message:
    """Packets with this mark use the table of the same number; having it already is fine."""
    return Message(
        kind=RTM_NEWRULE,
        flags=NLM_F_CREATE | NLM_F_EXCL,
        body=_mark_rule(family, mark),
        describe=f"add rule for mark {mark:#x}",
        tolerate=(errno.EEXIST,),
    )


def delete_mark_rule(family: int, mark: int) -> Message:
    """Remove such a rule; absent is fine. Its table's routes stay, unused."""
    return Message(
        kind=RTM_DELRULE,
        flags=0,
        body=_mark_rule(family, mark),
        describe=f"delete rule for mark {mark:#x}",
        tolerate=(errno.ENOENT,),
    )


def _mark_rule(family: int, mark: int) -> bytes:
    # fib_rule_hdr: family, dst_len, src_len, tos, table, 2 reserved, action, flags
    body = struct.pack("=BBBBBBBBI", family, 0, 0, 0, 0, 0, 0, FR_ACT_TO_TBL, 0)
    body += u32(FRA_PRIORITY, _MARK_RULES_PRIORITY) + u32(FRA_TABLE, mark)
    return body + u32(FRA_FWMARK, mark) + u32(FRA_FWMASK, 0xFFFFFFFF)


def add_loopback_route6(index: int) -> Message:
    """Let answers to ::1 come in by a link; having it already is fine.

    IPv6 has no ``route_localnet``: for a loopback address the kernel takes only a route of the very link a packet came by.
    The link's own, last of all by its metric, is never used for sending.
    """
    # rtmsg: table local 255, protocol boot 3, scope host 254, type local 2
    body = struct.pack("=BBBBBBBBI", socket.AF_INET6, 128, 0, 0, 255, 3, 254, 2, 0)
    body += attribute(RTA_DST, socket.inet_pton(socket.AF_INET6, "::1")) + u32(RTA_OIF, index)
    body += u32(RTA_PRIORITY, _LAST_METRIC)
    return Message(
        kind=RTM_NEWROUTE,
        flags=NLM_F_CREATE | NLM_F_EXCL,
        body=body,
        describe="let ::1 be answered",
        tolerate=(errno.EEXIST,),
    )
