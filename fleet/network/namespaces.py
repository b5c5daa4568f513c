"""Network namespaces of sandboxes: prepared ahead, given a name, found again, closed.

A namespace lives as long as something refers to it: a process in it, an open descriptor, a socket made in it, or a bind mount of
it. It belongs to the host's user namespace, or to that of a container to come, in which whoever made it has made it. A prepared
one is held by a descriptor only, so a crash leaves no trace of it. Given to a sandbox it is bound on
``<run_dir>/netns/<id>``, needs no process and survives the daemon. To close it, everything that refers to it goes, and the
kernel takes it apart in the background, cables included (deleting a cable by hand costs 20 ms).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path

from fleet.errors import NotFoundError
from fleet.network import rules
from fleet.network.kernel import rtnetlink, syscalls
from fleet.network.kernel.nft import NftCloser, NftContext
from fleet.network.kernel.rtnetlink import Netlink
from fleet.network.kernel.thread import KernelThread
from fleet.network.resolv import EMBEDDED_SERVER
from fleet.network.rules import SandboxRules
from fleet.privilege import highest_group

__all__ = [
    "NamespacePool",
    "Prepared",
    "bind_dns_sockets",
    "close_namespace",
    "is_open",
    "open_namespace",
    "read_sysctl",
    "write_sysctl",
]


@dataclass(slots=True)
class Prepared:
    """A namespace with loopback up. ``rules`` and ``sockets`` (udp, tcp) are there unless it was made bare."""

    descriptor: int
    sockets: list[socket.socket] = field(default_factory=list)
    rules: SandboxRules | None = None

    def hold_at(self, path: Path) -> None:
        """Bind the namespace on a file at ``path``, from where on it needs no descriptor."""
        path.touch(mode=0o600)
        syscalls.mount_bind(f"/proc/thread-self/fd/{self.descriptor}", path)

    def close(self) -> None:
        """Close the descriptors; the namespace ends unless it is held at a path. Idempotent."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
        for sock in self.sockets:
            sock.close()


class NamespacePool:
    """Namespaces made ahead of need: 1.5 ms of a container's start, and the part whose time varies most, off its path."""

    def __init__(self, *, thread: KernelThread, closer: NftCloser, size: int) -> None:
        self._thread = thread
        self._closer = closer
        self._size = size
        self._stock: list[Prepared] = []
        self._owned: list[Prepared] = []
        self._ids: tuple[int, int] | None = None  # whose the owned ones are: all containers of a host have the same

    def take(self, *, bare: bool) -> Prepared:
        """A namespace from the stock, or a fresh one if it is empty. ``bare`` is for a sandbox without networks."""
        if bare:
            return self._make(bare=True)
        return self._stock.pop() if self._stock else self._make(bare=False)

    def take_owned(self, ids: tuple[int, int], *, bare: bool, netns: int) -> Prepared | None:
        """One that belongs to a user namespace with these ids: ``netns`` if it is one (it stays the caller's), else of the stock.
        None: there is none.
        """
        if ids != self._ids:
            self._ids = ids
            while self._owned:
                self._owned.pop().close()
        if netns >= 0:
            return self._make(bare=bare, netns=netns)
        return self._owned.pop() if self._owned and not bare else None

    def refill(self) -> bool:
        """Make one if there is room; returns whether there is room for more."""
        if len(self._stock) < self._size:
            self._stock.append(self._make(bare=False))
        return len(self._stock) < self._size

    def lacking(self) -> tuple[int, int] | None:
        """Of whose namespaces the stock has room for one more."""
        return self._ids if len(self._owned) < self._size else None

    def put_owned(self, ids: tuple[int, int], netns: int) -> None:
        """Prepare an empty one; ``netns`` stays the caller's."""
        if ids == self.lacking():
            self._owned.append(self._make(bare=False, netns=netns))

    def close(self) -> None:
        """Give the stock up."""
        for stock in (self._stock, self._owned):
            while stock:
                stock.pop().close()

    def _make(self, *, bare: bool, netns: int = -1) -> Prepared:
        with self._thread.inside_new() if netns < 0 else self._thread.inside(netns):
            prepared = Prepared(os.open(syscalls.thread_netns_path(), os.O_RDONLY | os.O_CLOEXEC))
            try:
                _set_defaults()
                if not bare:
                    prepared.sockets = bind_dns_sockets(port=0, upstream=False)
                    prepared.rules = SandboxRules(dns_port=prepared.sockets[1].getsockname()[1])
                    with NftContext(self._closer) as nft:
                        nft.run(rules.plan_sandbox(None, prepared.rules))
            except BaseException:
                prepared.close()
                raise
            return prepared


def close_namespace(path: Path) -> None:
    """Let go of the namespace held at ``path``; absent is fine.

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
    """Make the sockets of the DNS process in the thread's namespace: UDP and TCP on one port, one more to ask the user's servers.

    ``port`` 0 lets the kernel choose; if the given one is taken by the container, the kernel chooses too. Never 53: that stays
    free for the container, rules lead there. Raises ``OSError`` if no port is to be had.
    """
    for wanted in (port, 0) if port else (0,):
        with contextlib.ExitStack() as undo:
            tcp = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            udp = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            try:
                tcp.bind((EMBEDDED_SERVER, wanted))
                udp.bind((EMBEDDED_SERVER, tcp.getsockname()[1]))
                tcp.listen(128)
            except OSError:
                if not wanted:
                    raise
                continue
            undo.pop_all()
            return [_lifted(udp), _lifted(tcp), *([bind_upstream_socket()] if upstream else [])]
    raise AssertionError("the loop returns or raises")


def bind_upstream_socket() -> socket.socket:
    """A socket of the thread's namespace from which the DNS process asks the servers a user named."""
    return _lifted(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))


def _lifted(sock: socket.socket) -> socket.socket:
    """The same, numbered above 1023 where the limit allows: libnftables aborts this process when its own socket is above
    (select(2)), and these are kept by the thousand.
    """
    try:
        high = fcntl.fcntl(sock, fcntl.F_DUPFD_CLOEXEC, 1024)
    except OSError:  # EINVAL: the limit is lower; EMFILE: no room above
        return sock
    sock.close()
    return socket.socket(fileno=high)


def write_sysctl(name: str, value: str) -> None:
    """Write a sysctl of the calling thread's network namespace; one this kernel does not have is not ours to mind."""
    syscalls.write_file(Path("/proc/sys") / name, value)


def read_sysctl(name: str) -> str:
    """Read a sysctl of the calling thread's network namespace; empty for one that is not there."""
    try:
        return (Path("/proc/sys") / name).read_text().strip()
    except OSError:
        return ""


def _set_defaults() -> None:
    """Loopback up, and the defaults Docker gives a container's namespace."""
    # no IPv6 on the cards to come, unless their network has it (``cables.enable_ipv6``); lo keeps ::1
    write_sysctl("net/ipv6/conf/default/disable_ipv6", "1")
    # inside, every user may bind low ports and ping: there is nobody to protect them from
    write_sysctl("net/ipv4/ip_unprivileged_port_start", "0")
    write_sysctl("net/ipv4/ping_group_range", f"0 {highest_group()}")
    with Netlink() as netlink:
        netlink.send(rtnetlink.link_up(1))  # lo is always link 1
