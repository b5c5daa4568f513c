"""What the kernel can, asked by doing it in a namespace that ends with the question; and the host's switches."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from fleet.errors import FleetError
from fleet.network.doctor.finding import Check, Finding, right, wrong
from fleet.network.doctor.view import PlaneView
from fleet.network.kernel import rtnetlink
from fleet.network.kernel.nft import NftContext
from fleet.network.kernel.rtnetlink import Netlink

__all__ = ["kernel_findings"]

_TRY = "02:42:00:00:00:01"
_NFT_TRY = (
    "add table ip try\n"
    "add map ip try m { type inet_proto . inet_service : verdict; }\n"
    "add chain ip try nat { type nat hook prerouting priority -100; }\n"
    "add rule ip try nat fib daddr type local meta l4proto . th dport vmap @m\n"
    "add rule ip try nat ip daddr 192.0.2.1 dnat to numgen inc mod 2 map { 0 : 192.0.2.2, 1 : 192.0.2.3 }\n"
    "add chain ip try out { type nat hook postrouting priority 100; }\n"
    "add rule ip try out ct status dnat masquerade\n"
)
_FULL = 0.95


def kernel_findings(view: PlaneView) -> list[Finding]:
    """On the network thread, at home."""
    found = [*_links(view), *_nftables(view), *_forwarding(view), *_tracking()]
    if view.ipv6_fault:
        what = f"networks with IPv6 have only their IPv4 half on this host: {view.ipv6_fault}"
        found.append(wrong(Check.KERNEL, what, "boot without ipv6.disable=1, or load the modules"))
    for obstacle in view.obstacles():
        what, _, remedy = obstacle.partition("; ")
        found.append(wrong(Check.KERNEL, what, remedy))
    return found or [right(Check.KERNEL, "bridges, VXLAN, nftables and forwarding are there")]


def _links(view: PlaneView) -> list[Finding]:
    modules = "load it (modprobe {0}); on Ubuntu and in clouds it is in the package linux-modules-extra-$(uname -r)"
    with view.thread.inside_new(), Netlink() as netlink:
        bridge = rtnetlink.add_bridge("fb", mac=_TRY, mtu=1400, group=0)
        try:
            netlink.send(bridge)
        except FleetError as cause:
            return [wrong(Check.KERNEL, f"this kernel makes no bridges: {cause}", modules.format("bridge"))]
        made = netlink.link("fb")
        master = made.index if made is not None else 0
        vxlan = rtnetlink.add_vxlan("fx", vni=1, local="127.0.0.1", port=4789, mtu=1400, group=0, master=master)
        try:
            netlink.send(vxlan)
        except FleetError as cause:
            return [wrong(Check.KERNEL, f"this kernel makes no VXLAN devices: {cause}", modules.format("vxlan"))]
    return []


def _nftables(view: PlaneView) -> list[Finding]:
    try:
        with view.thread.inside_new(), NftContext(view.closer) as nft:
            nft.run(_NFT_TRY)
    except FleetError as cause:
        return [
            wrong(
                Check.KERNEL,
                f"this kernel refuses rules that virtual addresses and published ports need: {cause}",
                "load the modules (modprobe -a nf_tables nft_chain_nat nft_fib_ipv4 nft_numgen nft_masq nft_reject_ipv4)",
            )
        ]
    return []


def _forwarding(view: PlaneView) -> list[Finding]:
    routed = {key: state.network for key, state in view.states.items() if not state.network.internal}
    bridges = [view.links[network_id].bridge for network_id in routed]
    switches = {"net.ipv4.ip_forward": Path("/proc/sys/net/ipv4/ip_forward")}
    switches |= {
        f"net.ipv4.conf.{bridge}.forwarding": Path(f"/proc/sys/net/ipv4/conf/{bridge}/forwarding") for bridge in bridges
    }
    if any(network.subnet6 for network in routed.values()):
        switches["net.ipv6.conf.all.forwarding"] = Path("/proc/sys/net/ipv6/conf/all/forwarding")
    found: list[Finding] = []
    for name, path in switches.items():
        with suppress(OSError):
            is_v6 = ".ipv6." in name
            if path.read_text().strip() == "0" and (is_v6 or not found):  # the first of IPv4 turns the others off
                found.append(
                    wrong(
                        Check.KERNEL,
                        f"{name} is 0: this host forwards no{' IPv6' if is_v6 else 'thing'}, so containers reach nothing "
                        "outside and published ports lead nowhere",
                        f"sysctl -w {name}=1, and see what sets it to 0 (files in /etc/sysctl.d)",
                    )
                )
    return found


def _tracking() -> list[Finding]:
    folder = Path("/proc/sys/net/netfilter")
    try:
        count, limit = (int((folder / name).read_text()) for name in ("nf_conntrack_count", "nf_conntrack_max"))
    except (OSError, ValueError):
        return []
    if count < limit * _FULL:
        return []
    return [
        wrong(
            Check.KERNEL,
            f"the table of tracked connections is full ({count} of {limit}): new connections are dropped",
            f"sysctl -w net.netfilter.nf_conntrack_max={limit * 2}",
        )
    ]
