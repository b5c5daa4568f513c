"""Keeps this host's end of the tunnel: key, device, and whoever does the work - the kernel, or the tunnel process.

On the network thread. One device a host, for all encrypted networks: their VXLAN devices send through it and nothing else.
There are no addresses inside: a packet in the tunnel has the same two underlay addresses as the datagram around it. So the
managers' state says all there is to say (which host has which key and address), and no route leads into the tunnel: only
a socket or VXLAN device that names it gets there.

Where the kernel has WireGuard, the device is one of those and there is no process; elsewhere it is a TUN device. Which of the two
does not matter to other hosts. A device that is there stays what it is.

A crash at any point leaves a device without a process, or a process whose device or key is not ours any more; ``ensure`` sees
both by asking, and replaces the process.
"""

from __future__ import annotations

import base64
import errno
import os
import secrets
import time
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet.errors import RuntimeFault
from fleet.network.kernel import routing, rtnetlink
from fleet.network.kernel.genetlink import WireGuard, WireGuardPeer
from fleet.network.kernel.netlink import NetlinkError
from fleet.network.kernel.rtnetlink import Link, Netlink
from fleet.network.namespaces import write_sysctl
from fleet.network.naming import Owner
from fleet.network.tunnel.control import TunnelControl
from fleet.network.tunnel.device import bind_socket, busy_port, can_open_devices, open_device
from fleet.network.tunnel.noise import KeyPair
from fleet.network.tunnel.peer import PERSISTENT_S
from fleet.network.tunnel.session import REJECT_AFTER_S
from fleet.network.tunnel.wire import OVERHEAD_BYTES

__all__ = ["Contact", "TunnelKeeper", "TunnelPeer", "parse_key", "tunnel_mtu"]

_QUEUE_PACKETS = 1000
_DUMMY = "192.0.0.8"
"""An address that means nothing and is never sent (RFC 7600, section 4.8)."""


@dataclass(frozen=True, slots=True, order=True)
class TunnelPeer:
    """Another host: its public key (base64) and its underlay address."""

    key: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Contact:
    """How it stands with a peer. ``handshake_s`` is the age of the last handshake; negative: there was none."""

    peer: TunnelPeer
    handshake_s: float
    sent_bytes: int
    received_bytes: int
    is_connected: bool


def parse_key(text: str) -> bytes:
    """The 32 bytes of a public key in base64. Raises ``ValueError``."""
    key = base64.b64decode(text, validate=True)
    if len(key) != 32:
        raise ValueError(f"a public key has 32 bytes, not {len(key)}")
    return key


def tunnel_mtu(underlay_mtu: int) -> int:
    """Bytes of a packet in the tunnel, so that the datagram around it fits the underlay."""
    return underlay_mtu - OVERHEAD_BYTES


class TunnelKeeper:
    """See the module. ``ensure`` and ``set_peers`` while there are encrypted networks, ``remove`` when the last has gone."""

    def __init__(self, *, netlink: Netlink, owner: Owner, run_dir: Path, state_dir: Path) -> None:
        self.name = owner.tunnel
        self._netlink = netlink
        self._owner = owner
        self._socket_path = run_dir / "tunnel.sock"
        self._log = run_dir / "tunnel.log"
        self._key_path = state_dir / "tunnel.key"
        self._key: bytes = b""
        self._control: TunnelControl | None = None
        self._kernel: WireGuard | None = None  # one of the two, while there is a tunnel
        self._peers: frozenset[TunnelPeer] = frozenset()
        self._port = 0
        self._mtu = 0
        self.index = 0
        """Of the device; 0 while there is none."""

    @property
    def pid(self) -> int:
        """The tunnel process; 0 while there is none."""
        return self._control.pid if self._control is not None else 0

    def public_key(self) -> str:
        """Base64. The private half is made when it is first needed, readable by root only, and never leaves this host."""
        return base64.b64encode(KeyPair(self._private()).public).decode()

    def ensure(self, *, port: int, mtu: int) -> list[str]:
        """The device is there, up, and somebody carries its packets. A sentence for each thing that was made or mended.

        Raises ``UnsupportedError`` where the kernel can do neither of the two ways, ``RuntimeFault`` for what went wrong.
        """
        self._port, self._mtu = port, mtu
        device = self._netlink.link(self.name)
        if device is None or device.kind == "wireguard":
            done = self._ensure_kernel(device)
            if done is not None:
                return done
        if device is not None and self._is_carried(device):
            done = self._mend(device)
            self.index = device.index
            return done
        was_there = device is not None and bool(self.index)
        self._start(device)
        return [f"tunnel: {'carried on' if was_there else 'made'} {self.name}"]

    def is_possible(self) -> bool:
        """Whether this host can have a tunnel at all."""
        return can_open_devices() or self._kernel_can()

    def is_kept(self) -> bool:
        """Whether the device is there and somebody is to carry its packets; a look."""
        return (self._kernel or self._control) is not None and self._netlink.link(self.name) is not None

    def set_peers(self, peers: Collection[TunnelPeer]) -> bool:
        """Exactly these. Returns whether anything changed. Raises ``RuntimeFault``."""
        own = self.public_key()  # a host that has moved may find itself among the others for a moment
        wanted = frozenset(peer for peer in peers if peer.key != own)
        if wanted == self._peers:
            return False
        self._peers = wanted
        if self.index:
            self._push()
        return True

    def contacts(self) -> list[Contact]:
        """How it stands with each peer. Raises ``RuntimeFault`` when nobody can say."""
        by_key = {parse_key(peer.key).hex(): peer for peer in self._peers}
        return [
            Contact(
                peer=by_key[each["public"]],
                handshake_s=each["handshake_s"],
                sent_bytes=each["sent"],
                received_bytes=each["received"],
                is_connected=each["connected"],
            )
            for each in self._status()
            if each["public"] in by_key
        ]

    def remove(self) -> None:
        """No more tunnel on this host; the key stays. Idempotent."""
        control = self._control or TunnelControl.connect(self._socket_path)
        self._control = None
        if control is not None:
            control.kill()
        self._forget_kernel()
        self._netlink.send(rtnetlink.delete_link(self.name))
        for path in (self._socket_path, self._socket_path.with_suffix(".pid"), self._log):
            path.unlink(missing_ok=True)
        self._peers, self.index = frozenset(), 0

    def close(self) -> None:
        """Let go; the tunnel stays."""
        self._forget_kernel()
        if self._control is not None:
            self._control.close()
            self._control = None

    def destroy(self) -> None:
        """Remove everything, the key too."""
        self.remove()
        self._key_path.unlink(missing_ok=True)
        self._key = b""

    # --- inside -------------------------------------------------------------------------------------------------------

    def _is_carried(self, device: Link) -> bool:
        """Whether a process of ours that answers has this device and our key."""
        control = self._control or TunnelControl.connect(self._socket_path)
        if control is None:
            return False
        adopted, self._control = self._control is None, control
        try:
            if adopted:
                self._push()  # it may have been told otherwise by a daemon that is gone
            else:
                control.status()
        except RuntimeFault:
            return False
        # a device that was made anew under the same name has another number, and the process is about to end
        return control.carries == self._to_carry() and self.index in (0, device.index)

    def _to_carry(self) -> list[Any]:
        return [KeyPair(self._private()).public.hex(), self._port, self._mtu]

    def _start(self, device: Link | None) -> None:
        if self._control is not None:
            self._control.kill()
            self._control = None
        with ExitStack() as undo:
            descriptor = open_device(self.name)
            undo.callback(os.close, descriptor)
            sock = bind_socket(self._port)
            undo.callback(sock.close)
            made = self._netlink.link(self.name)
            if made is None:
                raise RuntimeFault(f"TUN device {self.name} vanished while it was made")
            if device is None or made.group != self._owner.group:
                self._netlink.send(
                    rtnetlink.set_group(made.index, self._owner.group, queue_packets=_QUEUE_PACKETS),
                    rtnetlink.set_alias(self.name, self._owner.alias("tunnel")),
                )
            self._mend(made)
            self._control = TunnelControl.start(self._socket_path, log=self._log)
            self._control.open(private=self._private(), mtu=self._mtu, device=descriptor, sock=sock)
            self._control.carries = self._to_carry()
            self.index = made.index
            self._push()

    def _mend(self, device: Link) -> list[str]:
        done: list[str] = []
        # What comes by it has a source address that is routed by another link. A host that checks source addresses lets that
        # pass where the link is "loose" (the greater of the link's and the host's value counts) and has some address.
        write_sysctl(f"net/ipv4/conf/{self.name}/rp_filter", "2")
        write_sysctl(f"net/ipv6/conf/{self.name}/disable_ipv6", "1")
        if device.mtu != self._mtu:
            self._netlink.send(rtnetlink.set_mtu(device.index, self._mtu))
            done.append(f"tunnel: set the MTU from {device.mtu} to {self._mtu}")
        if (_DUMMY, 32) not in self._netlink.addresses(device.index):
            self._netlink.send(routing.add_address(device.index, _DUMMY, 32, scope=routing.SCOPE_HOST))
            done.append(f"tunnel: gave {self.name} its address")
        if not device.up:
            self._netlink.send(rtnetlink.link_up(device.index))
            done.append(f"tunnel: brought {self.name} up")
        return done

    def _push(self) -> None:
        peers = sorted(self._peers)
        if self._kernel is not None:
            wanted = [WireGuardPeer(parse_key(peer.key), peer.address, self._port) for peer in peers]
            self._kernel.set_peers(self.index, wanted=wanted, keepalive_s=int(PERSISTENT_S))
        elif self._control is not None:
            self._control.set_peers([(parse_key(p.key).hex(), p.address, self._port) for p in peers])

    def _status(self) -> list[dict[str, Any]]:
        if self._kernel is not None:
            now = time.time()
            return [
                {
                    "public": each.public.hex(),
                    "handshake_s": now - each.handshake_at if each.handshake_at else -1.0,
                    "connected": now - each.handshake_at < REJECT_AFTER_S,
                    "sent": each.sent_bytes,
                    "received": each.received_bytes,
                }
                for each in self._kernel.device(self.index).peers
            ]
        if self._control is None:
            raise RuntimeFault("nobody carries its packets")
        return self._control.status()

    # --- inside: WireGuard of the kernel ------------------------------------------------------------------------------

    def _ensure_kernel(self, device: Link | None) -> list[str] | None:
        """The device is the kernel's and as it should be; ``None`` where the kernel has none such."""
        done: list[str] = []
        if device is None:
            self._forget_kernel()
            try:
                self._netlink.send(
                    rtnetlink.add_wireguard(self.name, mtu=self._mtu, group=self._owner.group),
                    rtnetlink.set_alias(self.name, self._owner.alias("tunnel")),
                )
            except NetlinkError as error:
                if error.number != errno.EOPNOTSUPP:
                    raise
                return None
            device = self._netlink.link(self.name)
            if device is None:
                raise RuntimeFault(f"WireGuard device {self.name} vanished while it was made")
            done.append(f"tunnel: made {self.name} of the kernel's WireGuard")
        if self._kernel is None:
            self._kernel = WireGuard()
        self.index = device.index
        seen = self._kernel.device(device.index)
        try:
            if (seen.public, seen.port) != (KeyPair(self._private()).public, self._port):
                self._kernel.set_identity(device.index, private=self._private(), port=self._port)
            mended = self._mend(device)
        except NetlinkError as error:
            raise (busy_port(self._port) if error.number == errno.EADDRINUSE else error) from error
        self._push()
        return done or mended

    def _kernel_can(self) -> bool:
        """Whether the kernel has WireGuard, as it does when a device of it is there or can be made."""
        probe = f"{self.name}t"
        try:
            self._netlink.send(rtnetlink.add_wireguard(probe, mtu=1280, group=self._owner.group))
        except NetlinkError:
            return False
        self._netlink.send(rtnetlink.delete_link(probe))
        return True

    def _forget_kernel(self) -> None:
        if self._kernel is not None:
            self._kernel.close()
            self._kernel = None

    # --- inside: the key ----------------------------------------------------------------------------------------------

    def _private(self) -> bytes:
        if not self._key:
            try:
                self._key = self._key_path.read_bytes()
            except FileNotFoundError:
                self._key = secrets.token_bytes(32)
                temporary = self._key_path.with_suffix(".new")
                descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(self._key)
                    os.fsync(descriptor)
                temporary.replace(self._key_path)
            if len(self._key) != 32:
                raise RuntimeFault(f"{self._key_path}: not a key of 32 bytes; remove it, and another is made")
        return self._key
