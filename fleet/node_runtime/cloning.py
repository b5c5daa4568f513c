"""New processes in somebody else's pid namespace.

A process never changes its own (pid_namespaces(7)): setns(2) says where its children are born from then on. So one goes there,
clones, and comes back. Coming back needs rights over one's own pid namespace, which root of a user namespace does not have over
the machine's; there a helper goes instead, makes the child its parent's (CLONE_PARENT), and ends.
"""

from __future__ import annotations

import os
import struct
from _socket import AF_UNIX, SCM_RIGHTS, SOCK_CLOEXEC, SOCK_SEQPACKET, SOL_SOCKET
from _socket import socket as Socket  # noqa: N812 - the C class itself: the module around it costs memory in every child
from _socket import socketpair as _socketpair

from fleet.node_runtime import syscalls

__all__ = ["Cloning"]


class Cloning:
    """Of one single-threaded process."""

    def __init__(self) -> None:
        self._home = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscalls.setns(self._home, syscalls.CLONE_NEWPID)
            self._may_return = True
        except PermissionError:
            self._may_return = False

    def clone(self, flags: int, *, namespace: int = -1) -> tuple[int, int]:
        """As `syscalls.clone3`, born into the pid namespace ``namespace`` (a descriptor of it or a pidfd) if one is given."""
        if namespace < 0:
            return syscalls.clone3(flags)
        if not self._may_return:
            return _clone_by_helper(flags, namespace)
        syscalls.setns(namespace, syscalls.CLONE_NEWPID)
        pid = -1
        try:
            pid, pidfd = syscalls.clone3(flags)
            return pid, pidfd
        finally:
            if pid:  # not in the child, which is there to stay
                syscalls.setns(self._home, syscalls.CLONE_NEWPID)


def _clone_by_helper(flags: int, namespace: int) -> tuple[int, int]:
    ours, theirs = _socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)
    helper, helper_fd = syscalls.clone3(0)
    if not helper:
        ours.close()
        if _help(flags, namespace, theirs) == 0:
            theirs.close()
            return 0, -1
        os._exit(0)
    theirs.close()
    try:
        data, ancillary, _, _ = ours.recvmsg(64, 64, 0x40000000)  # MSG_CMSG_CLOEXEC
    finally:
        ours.close()
        os.waitid(os.P_PIDFD, helper_fd, os.WEXITED)
        os.close(helper_fd)
    pid, error = struct.unpack("ii", data or struct.pack("ii", 0, 3))
    if error:
        raise OSError(error, f"clone into a pid namespace: {os.strerror(error)}")
    return pid, struct.unpack("i", ancillary[0][2])[0]


def _help(flags: int, namespace: int, report: Socket) -> int:
    """In the helper: clone, and tell the parent. 0 in the child, which is the parent's."""
    try:
        syscalls.setns(namespace, syscalls.CLONE_NEWPID)
        pid, pidfd = syscalls.clone3(flags | syscalls.CLONE_PARENT)
    except OSError as error:
        report.send(struct.pack("ii", 0, error.errno or 5))
        return 1
    if pid:
        report.sendmsg([struct.pack("ii", pid, 0)], [(SOL_SOCKET, SCM_RIGHTS, struct.pack("i", pidfd))])
    return pid
