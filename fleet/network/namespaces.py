"""Network namespaces of sandboxes: made, found again, closed.

A namespace lives as long as something refers to it: a process in it, an open descriptor, a socket made in it, or a
bind mount of it. Ours is held by a mount on ``<run_dir>/netns/<id>``, so it needs no process and survives the
daemon. To close it, everything that refers to it goes, and the kernel takes it apart in the background, cables
included (deleting a cable by hand costs 20 ms).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fleet.errors import NotFoundError
from fleet.network.kernel import rtnetlink, syscalls
from fleet.network.kernel.rtnetlink import Netlink
from fleet.network.kernel.thread import KernelThread
from fleet.network.links import write_sysctl
from fleet.network.resolv import EMBEDDED_SERVER

__all__ = ["bind_dns_sockets", "close_namespace", "is_open", "new_namespace", "open_namespace"]


@contextmanager
def new_namespace(thread: KernelThread, path: Path) -> Iterator[int]:
    """Make a namespace, hold it at ``path``, and be inside it for the length of the block; yields a descriptor of it.

    On an error in the block the caller closes it with ``close_namespace``.
    """
    path.touch(mode=0o600)
    with thread.inside_new():
        syscalls.mount_bind(syscalls.thread_netns_path(), path)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _prepare()
            yield descriptor
        finally:
            os.close(descriptor)


def close_namespace(path: Path) -> None:
    """Let go of the namespace at ``path``; absent is fine.

    Removing the file also detaches the mount where other mount namespaces hold a copy of it (Linux 3.18).
    """
    syscalls.umount_detach(path)
    path.unlink(missing_ok=True)


def open_namespace(path: Path) -> int:
    """Open the namespace held at ``path``. Raises ``NotFoundError`` if there is none (any more)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFoundError(f"no network namespace at {path}") from error
    if not syscalls.is_namespace(descriptor):
        os.close(descriptor)
        raise NotFoundError(f"{path} is left over from before the last boot: no network namespace")
    return descriptor


def is_open(path: Path) -> bool:
    """Whether a namespace is held at ``path``."""
    try:
        os.close(open_namespace(path))
    except NotFoundError:
        return False
    return True


def bind_dns_sockets(*, port: int, upstream: bool) -> list[socket.socket]:
    """Make the sockets of the DNS process in the thread's namespace: UDP and TCP on one port, and one to ask the
    user's servers.

    ``port`` 0 lets the kernel choose; if the given one is taken by the container, the kernel chooses too. Never 53:
    that stays free for the container, rules lead there.
    """
    for wanted in (port, 0) if port else (0,):
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            tcp.bind((EMBEDDED_SERVER, wanted))
            udp.bind((EMBEDDED_SERVER, tcp.getsockname()[1]))
            tcp.listen(128)
        except OSError:
            tcp.close()
            udp.close()
            if not wanted:
                raise
            continue
        sockets = [udp, tcp]
        if upstream:
            sockets.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        return sockets
    raise AssertionError("the loop returns or raises")


def _prepare() -> None:
    """Loopback up, and the defaults Docker gives a container's namespace."""
    # no IPv6 on the cards to come (we give no such addresses, link-local ones would only make noise); lo keeps ::1
    write_sysctl("net/ipv6/conf/default/disable_ipv6", "1")
    # inside, every user may bind low ports and ping: there is nobody to protect them from
    write_sysctl("net/ipv4/ip_unprivileged_port_start", "0")
    write_sysctl("net/ipv4/ping_group_range", "0 2147483647")
    with Netlink() as netlink:
        netlink.send(rtnetlink.link_up(1))  # lo is always link 1
