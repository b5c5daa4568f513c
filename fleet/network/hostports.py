"""Is a port of the host free? Rules would take it from a program that listens there, without a word to either side."""

from __future__ import annotations

import errno
import socket

from fleet.errors import ConflictError, UserError
from fleet.network.ipam import is_ipv6
from fleet.network.topology import HostPort

__all__ = ["check_port_free"]


def check_port_free(port: HostPort, *, ipv6: bool = False) -> None:
    """Raise ``ConflictError`` if a program uses ``port``, ``UserError`` if its address is not one of the host's.

    ``ipv6``: the container has it, so a port on every address is asked for of both families. Called in the host's namespace.
    A look, not a lock: a program may still take the port later; then the container has it.
    """
    kinds = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
    if port.protocol not in kinds:
        return  # few kernels have SCTP sockets, and few programs use them
    every = ("0.0.0.0", "::") if ipv6 else ("0.0.0.0",)
    for address in (port.host_address,) if port.host_address else every:
        _try_to_bind(port, kinds[port.protocol], address)


def _try_to_bind(port: HostPort, kind: socket.SocketKind, address: str) -> None:
    family = socket.AF_INET6 if is_ipv6(address) else socket.AF_INET
    with socket.socket(family, kind) as sock:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if port.protocol == "tcp":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that are ending do not count
        try:
            sock.bind((address, port.host_port))
        except OSError as error:
            what = f"host port {port.host_port}/{port.protocol}"
            if error.errno == errno.EADDRINUSE:
                raise ConflictError(f"{what}: port is already allocated, a program on this host uses it") from error
            if error.errno == errno.EADDRNOTAVAIL:
                raise UserError(f"{what}: {address} is not an address of this host") from error
            raise
