"""Is a port of the host free? Rules would take it from a program that listens there, without a word to either side."""

from __future__ import annotations

import errno
import socket

from fleet.errors import ConflictError, UserError
from fleet.network.topology import HostPort

__all__ = ["check_port_free"]


def check_port_free(port: HostPort) -> None:
    """Raise ``ConflictError`` if a program uses ``port``, ``UserError`` if its address is not one of the host's.

    Called in the host's namespace. A look, not a lock: a program may still take the port later; then the container has it.
    """
    kinds = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
    if port.protocol not in kinds:
        return  # few kernels have SCTP sockets, and few programs use them
    with socket.socket(socket.AF_INET, kinds[port.protocol]) as sock:
        if port.protocol == "tcp":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that are ending do not count
        try:
            sock.bind((port.host_address, port.host_port))
        except OSError as error:
            what = f"host port {port.host_port}/{port.protocol}"
            if error.errno == errno.EADDRINUSE:
                raise ConflictError(f"{what}: port is already allocated, a program on this host uses it") from error
            if error.errno == errno.EADDRNOTAVAIL:
                raise UserError(f"{what}: {port.host_address} is not an address of this host") from error
            raise
