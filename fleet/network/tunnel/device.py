"""The device and the socket of the tunnel process: made here, in the calling thread's network namespace.

The device is persistent: it stays when the process that has it open dies, and with it the VXLAN devices on top. Meanwhile the
kernel drops what is sent there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final

from fleet.errors import RuntimeFault, UnsupportedError
from fleet.network.tunnel.offload import HEADER_BYTES

__all__ = ["bind_socket", "busy_port", "can_open_devices", "open_device"]

_TUN: Final = Path("/dev/net/tun")
_TUNSETIFF, _TUNSETPERSIST, _TUNSETOFFLOAD, _TUNSETVNETHDRSZ = 0x400454CA, 0x400454CB, 0x400454D0, 0x400454D8
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000  # linux/if_tun.h
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33  # asm-generic/socket.h
_SOL_UDP, _UDP_GRO = 17, 104  # linux/udp.h
_IP_MTU_DISCOVER, _IP_PMTUDISC_DONT = (
    10,
    0,
)  # linux/in.h: outer packets may be cut on the way, as WireGuard's of the kernel
_BUFFER_BYTES: Final = 4 << 20


def open_device(name: str) -> int:
    """Open the TUN device ``name``, made if it is not there; the caller closes the descriptor. Raises ``UnsupportedError``
    where the kernel has no TUN, ``RuntimeFault`` when another process has it open."""
    try:
        descriptor = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise UnsupportedError(
            f"this host has neither WireGuard in its kernel (module wireguard) nor TUN devices ({_TUN}: {error.strerror}; "
            "module tun), one of which encrypted networks need"
        ) from error
    try:
        flags = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        fcntl.ioctl(descriptor, _TUNSETVNETHDRSZ, struct.pack("=i", HEADER_BYTES))
        # Packets come cut and with their checksums: to leave both to us would cost more here than it spares there.
        fcntl.ioctl(descriptor, _TUNSETOFFLOAD, 0)
        fcntl.ioctl(descriptor, _TUNSETPERSIST, 1)
    except OSError as error:
        os.close(descriptor)
        raise RuntimeFault(f"open TUN device {name}: {error.strerror}") from error
    return descriptor


def can_open_devices() -> bool:
    """Whether the kernel has TUN devices, and we may open them."""
    try:
        os.close(os.open(_TUN, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def busy_port(port: int) -> RuntimeFault:
    """What to say when somebody else has the tunnel's port."""
    return RuntimeFault(
        f"encrypted networks: UDP port {port} is in use by another program on this host; it is the cluster's data path port "
        "plus one: stop that program, or found the cluster with another --data-path-port"
    )


def bind_socket(port: int) -> socket.socket:
    """The UDP socket of the tunnel. Raises ``RuntimeFault``, which names the port when somebody else has it."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        sock.bind(("0.0.0.0", port))
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DONT)
        for option in (_SO_RCVBUFFORCE, _SO_SNDBUFFORCE):
            with suppress(OSError):  # root of a user namespace may not; the default is 208 KiB
                sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
        with suppress(OSError):  # Linux 5.0
            sock.setsockopt(_SOL_UDP, _UDP_GRO, 1)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise busy_port(port) from error
        raise RuntimeFault(f"encrypted networks: UDP port {port}: {error.strerror}") from error
    return sock
