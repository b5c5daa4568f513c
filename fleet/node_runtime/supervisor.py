"""The supervisor: one small single-threaded process that starts containers, keeps them, and outlives the daemon that
asked for them.

Life. `main` takes the lock of its run directory (one supervisor each), leaves the service manager's reach (own
session, own group), finds what a predecessor left (`_adopt_all`), listens, and tells its starter by exiting the
parent of the fork. It ends on SIGTERM, or on a ``shutdown`` request with no container left; containers go on either
way.

Loop. epoll over: the listening socket, connections, the pidfd of each process, each process's report socket (silence
= exec succeeded), output pipes, memory events, and the completion of asynchronous fsync. Nothing else blocks; the one
bounded wait is freezing (two seconds at most).

An exit, in order: pidfd readable -> reap -> drain output -> read whether memory ran out -> remove the cgroup -> write
``exit`` -> fdatasync, off the loop -> tell.

What a crash at each point leaves: before the clone a ``spec`` and maybe a cgroup (the successor removes both);
between clone and exec a process that dies with us; after exec a running container with ``spec`` and ``running``
(adopted). Between exit and its record: the status is asked of the kernel through a pidfd (PIDFD_GET_INFO, Linux
6.15), the successor's own or a duplicate a client has kept; on older kernels our keeper has written it down
(`keeper`); without either it is reported as lost, code 255.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import resource
import select
import signal
import stat
import struct
import sys
import time
from _socket import (
    AF_UNIX,
    SO_PEERCRED,
    SO_SNDBUF,
    SOCK_CLOEXEC,
    SOCK_NONBLOCK,
    SOCK_SEQPACKET,
    SOCK_STREAM,
    SOL_SOCKET,
)
from _socket import socket as Socket  # noqa: N812
from _socket import socketpair as _socketpair

from fleet.node_runtime import device_filter, keeper, process, syscalls  # noqa: F401 - device_filter is loaded before it is needed
from fleet.node_runtime import users as _users  # noqa: F401 - likewise
from fleet.node_runtime.cgroup_layout import layout_for
from fleet.node_runtime.cgroups import CgroupTree
from fleet.node_runtime.cloning import Cloning
from fleet.node_runtime.state import StateDir, boot_id, start_ticks
from fleet.node_runtime.supervised import Container, Exec, Loop, Pump, Sink
from fleet.node_runtime.wire import Channel, ClosedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Answer = Callable[..., None]
    """answer(result) or answer(result, fds)"""

__all__ = ["LOCK_HELD_STATUS", "LOST_EXIT_CODE", "Supervisor", "main"]

LOST_EXIT_CODE = 255
"""What is reported when nobody can know: the process ended while no supervisor and no holder of its pidfd was there."""
LOCK_HELD_STATUS = 75
"""Exit status of a supervisor that found another one at work."""
_PIPE_BYTES = 1 << 18
_LIVING = ("running", "paused")
_ORPHAN_WAIT_S = 3.0
_OOM_CHECKS, _OOM_CHECK_S = 20, 0.05
_REMOVE_RETRY_S = 0.01
_REMOVE_TIMEOUT_S = 30.0


class RequestError(Exception):
    """A refusal with its kind: ``user``, ``missing``, ``conflict``, ``rejected``, ``command`` or ``fault``."""

    def __init__(self, kind: str, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.kind = kind
        self.code = code


class Connection:
    """A client."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.wants_write = False


class Supervisor:
    """State and handlers; see the module."""

    def __init__(self, *, state_dir: str, run_dir: str, cgroup_parent: str, keeper_pid: int = 0) -> None:
        self._run_dir = run_dir
        self._keeper_pid = keeper_pid
        self._staging = f"{run_dir}/root"
        os.makedirs(self._staging, mode=0o700, exist_ok=True)
        self._state = StateDir(state_dir)
        self._cgroups = CgroupTree(layout_for(cgroup_parent), cgroup_parent)
        self._loop = Loop()
        self._sync = syscalls.AsyncSync()
        self._syncing: dict[int, tuple[int, Callable[[], None]]] = {}
        self._sync_tag = 0
        self._boot = boot_id()
        self._cloning = Cloning()
        self._containers: dict[str, Container] = {}
        self._execs: dict[str, Exec] = {}
        self._exec_number = 0
        self._connections: dict[int, Connection] = {}
        self._listener: Socket | None = None
        self._running = True
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._loop.add(self._wake_fd, select.EPOLLIN, lambda _events: None)
        self._loop.add(self._sync.event_fd, select.EPOLLIN, self._synced)
        self._operations: dict[str, Callable[[dict[str, Any], list[int], Answer], None]] = {
            "hello": self._op_hello,
            "start": self._op_start,
            "list": self._op_list,
            "signal": self._op_signal,
            "pause": self._op_pause,
            "resume": self._op_resume,
            "update": self._op_update,
            "exec": self._op_exec,
            "signal_exec": self._op_signal_exec,
            "attach": self._op_attach,
            "terminal": self._op_terminal,
            "users": self._op_users,
            "user_network": self._op_users,
            "remove": self._op_remove,
            "shutdown": self._op_shutdown,
        }

    # --- serving ------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Cgroup parent, shelter, whatever a predecessor left, listening socket."""
        self._cgroups.prepare()
        self._cgroups.shelter(os.getpid())
        if self._keeper_pid:
            self._cgroups.shelter(self._keeper_pid)
        self._adopt_all()
        path = f"{self._run_dir}/supervisor.sock"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self._listener = Socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)
        previous = os.umask(0o177)
        try:
            self._listener.bind(path)
        finally:
            os.umask(previous)
        self._listener.listen(16)
        self._loop.add(self._listener.fileno(), select.EPOLLIN, self._accept)

    def serve(self) -> None:
        """Until told to stop."""
        while self._running:
            self._loop.turn()
        while self._syncing:  # an exit already written is told before leaving
            self._loop.turn()

    def stop(self) -> None:
        """Leave the loop at once; containers stay. May be called from a signal handler."""
        self._running = False
        os.eventfd_write(self._wake_fd, 1)  # epoll goes on waiting after a signal (PEP 475)

    def _accept(self, _events: int) -> None:
        assert self._listener is not None
        try:
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]
        except BlockingIOError:
            return
        sock = Socket(AF_UNIX, SOCK_STREAM, 0, fd)
        os.set_inheritable(fd, False)
        _, uid, _ = struct.unpack("3i", sock.getsockopt(SOL_SOCKET, SO_PEERCRED, 12))
        if uid != os.geteuid():  # the directory is 0700 already; this is the second lock
            sock.close()
            return
        sock.setblocking(False)
        sock.setsockopt(SOL_SOCKET, SO_SNDBUF, 1 << 20)
        connection = Connection(Channel(sock))
        self._connections[fd] = connection
        self._loop.add(fd, select.EPOLLIN, lambda events: self._ready(connection, events))

    def _ready(self, connection: Connection, events: int) -> None:
        try:
            if events & select.EPOLLOUT:
                self._flushed(connection, done=connection.channel.flush())
            if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                for message, fds in connection.channel.receive():
                    self._handle(connection, message, fds)
        except ClosedError:
            self._disconnect(connection)

    def _flushed(self, connection: Connection, *, done: bool) -> None:
        if done == connection.wants_write:
            connection.wants_write = not done
            events = select.EPOLLIN | (0 if done else select.EPOLLOUT)
            self._loop.change(connection.channel.socket.fileno(), events)

    def _disconnect(self, connection: Connection) -> None:
        fd = connection.channel.socket.fileno()
        if self._connections.pop(fd, None) is not None:
            self._loop.drop(fd)
            connection.channel.close()

    def _send(self, connection: Connection, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        if connection.channel.socket.fileno() < 0:
            return  # gone while its answer was being prepared
        try:
            connection.channel.send(message, fds)
            self._flushed(connection, done=connection.channel.flush())
        except ClosedError:
            self._disconnect(connection)

    def _tell_all(self, event: dict[str, Any]) -> None:
        for connection in list(self._connections.values()):
            self._send(connection, event)

    def _handle(self, connection: Connection, message: dict[str, Any], fds: list[int]) -> None:
        sequence = message.get("seq")

        def answer(result: dict[str, Any] | RequestError, given: tuple[int, ...] = ()) -> None:
            if isinstance(result, RequestError):
                error = {"kind": result.kind, "code": result.code, "text": str(result)}
                self._send(connection, {"seq": sequence, "error": error})
            else:
                self._send(connection, {"seq": sequence, "ok": result}, given)

        try:
            operation = self._operations.get(str(message.get("op")))
            if operation is None:
                raise RequestError("user", f"unknown request {message.get('op')!r}")
            operation(message, fds, answer)
        except RequestError as error:
            answer(error)
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            answer(RequestError("fault", f"{message.get('op')}: {error.strerror}{where}", error.errno or 0))
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
            answer(RequestError("user", f"{message.get('op')}: malformed request: {type(error).__name__} {error}"))
        finally:
            for fd in fds:  # whoever wanted to keep one has duplicated it
                os.close(fd)

    def _need(self, message: dict[str, Any], *statuses: str) -> Container:
        container = self._containers.get(message["id"])
        if container is None:
            raise RequestError("missing", f"no container {message['id']}")
        if statuses and container.status not in statuses:
            raise RequestError(
                "conflict", f"container {container.id} is {container.status}, not {' or '.join(statuses)}"
            )
        return container

    # --- starting -----------------------------------------------------------------------------------------------

    def _op_start(self, message: dict[str, Any], fds: list[int], answer: Answer) -> None:
        plan = message["plan"]
        container_id = str(plan["id"])
        if container_id in self._containers:
            raise RequestError("conflict", f"container {container_id} already exists; remove it first")
        given = dict(zip(message.get("descriptors", []), fds, strict=True))
        record = {
            "cgroup": plan["cgroup"],
            "log": plan["log"],
            "tty": plan["process"]["tty"],
            "watch_oom": bool(plan["limits"].get("memory_bytes")),
            "shares_pid": plan["pid"] != "private",
            "first_id": plan["user_namespace"][0] if plan["user_namespace"] else 0,
        }
        joins = {what: pidfd for what in ("network", "pid", "ipc") if (pidfd := self._joined(plan[what], what)) >= 0}
        self._state.create(container_id, record)
        container = self._containers[container_id] = Container(container_id, record)
        try:
            self._launch(container, plan, given, joins, answer)
        except BaseException:
            self._forget(container)
            raise

    def _joined(self, mode: str, what: str) -> int:
        """The pidfd of the container that ``container:ID`` names, -1 for other modes."""
        kind, _, other = mode.partition(":")
        if kind != "container":
            return -1
        container = self._containers.get(other)
        if container is None or container.status not in _LIVING:
            raise RequestError("conflict", f"cannot join the {what} namespace of a non running container: {other}")
        return container.pidfd

    def _launch(
        self,
        container: Container,
        plan: dict[str, Any],
        given: dict[str, int],
        joins: dict[str, int],
        answer: Answer,
    ) -> None:
        opened: list[int] = []
        ours, theirs = _socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)
        try:
            self._cgroups.create(container.spec["cgroup"], limits=plan["limits"], devices=plan["device_rules"])
            entrances = self._cgroups.open_entrances(container.spec["cgroup"])
            opened += entrances
            streams = process.Streams(given.get("stdin", -1), -1, -1)
            if not container.spec["tty"]:
                streams.stdout, streams.stderr = self._make_pipes(container)
                opened += [streams.stdout, streams.stderr]
            if "attach" in given:
                self._add_sink(container, given["attach"])
            if container.log is not None:
                container.log.open()
            plan["cgroup2"] = self._cgroups.is_v2
            users, netns = self._open_users(plan, given, joins, opened)
            flags = process.new_namespaces(plan)
            if users >= 0:
                flags &= syscalls.CLONE_NEWPID  # the others are to belong to the user namespace
                _give_pipes(streams, plan["user_namespace"][0])
            pid, pidfd = self._cloning.clone(flags, namespace=joins.get("pid", -1))
            if not pid:
                try:
                    process.become_container(
                        plan,
                        report=theirs,
                        entrances=entrances,
                        netns=netns,
                        users=users,
                        joins=joins,
                        streams=streams,
                        staging=self._staging,
                    )
                finally:  # whatever happens, the child must not return into the supervisor's loop
                    os._exit(70)
            container.pid, container.pidfd = pid, pidfd
            container.started_at_ns = time.time_ns()
            self._write_running(container)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            for fd in opened:
                os.close(fd)
        if container.spec["watch_oom"]:
            self._watch_oom(container)
        self._loop.add(pidfd, select.EPOLLIN, lambda _events: self._process_ended(container))
        self._watch_report(ours, container, lambda master, failure: self._launched(container, master, failure, answer))

    def _users_for(self, plan: dict[str, Any], given: dict[str, int], joins: dict[str, int]) -> int:
        """A descriptor of the user namespace a container with ids of its own enters: that of the containers whose namespaces it
        shares, else the one its network belongs to; -1 for a new one.
        """
        found: list[int] = []
        try:
            for what, pidfd in joins.items():
                donor = self._containers[plan[what].partition(":")[2]]
                found.append(process.user_namespace_of(pidfd, is_process=True))
                if found[-1] < 0 or donor.spec.get("first_id", 0) != plan["user_namespace"][0]:
                    raise RequestError(
                        "conflict", f"cannot join the {what} namespace of {donor.id}: it has other user ids"
                    )
            if len({os.fstat(users).st_ino for users in found}) > 1:
                raise RequestError("conflict", "cannot join containers that are in different user namespaces")
            if not found and "netns" in given:
                return process.user_namespace_of(given["netns"], is_process=False)
            return found.pop() if found else -1
        finally:
            for users in found:
                if users >= 0:
                    os.close(users)

    def _open_users(
        self, plan: dict[str, Any], given: dict[str, int], joins: dict[str, int], opened: list[int]
    ) -> tuple[int, int]:
        """(user namespace, network namespace) that a container is to enter; -1 for none. What is opened goes into ``opened``."""
        netns = given.get("netns", -1)
        if not plan["user_namespace"]:
            return -1, netns
        users = self._users_for(plan, given, joins)
        if plan["network"] == "none":
            netns = process.open_user_namespace(*plan["user_namespace"], network=True)
            opened.append(netns)
            users = process.user_namespace_of(netns, is_process=False)
        elif users < 0:
            users = process.open_user_namespace(*plan["user_namespace"])
        opened.append(users)
        return users, netns

    def _write_running(self, container: Container) -> None:
        self._state.write_running(
            container.id,
            {
                "pid": container.pid,
                "ticks": start_ticks(container.pid),
                "boot": self._boot,
                "started_at_ns": container.started_at_ns,
            },
        )

    def _make_pipes(self, container: Container) -> tuple[int, int]:
        """The container's two ends, each open for reading and writing; ours are being pumped."""
        ends = []
        for stream in ("stdout", "stderr"):
            path = self._pipe_path(container, stream)
            os.mkfifo(path, 0o600)
            reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            ends.append(os.open(path, os.O_RDWR | os.O_CLOEXEC))
            fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
            container.pumps.append(Pump(self._loop, reader, stream, container))
        return ends[0], ends[1]

    def _pipe_path(self, container: Container, stream: str) -> str:
        return f"{self._run_dir}/{container.id}.{stream}"

    def _watch_report(
        self, ours: Socket, container: Container, done: Callable[[int, tuple[str, int, str] | None], None]
    ) -> None:
        """Read the new process's reports until silence; then ``done(terminal master or -1, failure or None)``."""
        ours.setblocking(False)
        master = -1
        failure: tuple[str, int, str] | None = None

        def ready(_events: int) -> None:
            nonlocal master, failure
            while True:
                try:
                    data, ancillary, _, _ = ours.recvmsg(8192, 64, 0x40000000)  # MSG_CMSG_CLOEXEC
                except BlockingIOError:
                    return
                except OSError:
                    data, ancillary = b"", []
                for _, _, payload in ancillary:
                    master = struct.unpack("i", payload[:4])[0]
                if not data:
                    self._loop.drop(ours.fileno())
                    ours.close()
                    container.settle_report = None
                    done(master, failure)
                    return
                if data != process.MASTER:
                    failure = process.parse_report(data)

        container.settle_report = lambda: ready(0)
        self._loop.add(ours.fileno(), select.EPOLLIN, ready)

    def _launched(
        self, container: Container, master: int, failure: tuple[str, int, str] | None, answer: Answer
    ) -> None:
        if failure is None:
            container.status = "running"
            if master >= 0:
                container.master = master
                container.pumps.append(Pump(self._loop, os.dup(master), "stdout", container))
            answer({"pid": container.pid, "started_at_ns": container.started_at_ns}, () if master < 0 else (master,))
            if container.on_removed:  # somebody has asked for its removal meanwhile
                signal.pidfd_send_signal(container.pidfd, signal.SIGKILL)
            return
        if master >= 0:
            os.close(master)
        kind, code, text = failure
        self._loop.drop(container.pidfd)
        os.waitid(os.P_PIDFD, container.pidfd, os.WEXITED)  # it exits right after its report
        self._forget(container)
        answer(RequestError(kind, text, code))

    def _forget(self, container: Container) -> None:
        """Undo a start that did not come about."""
        for pump in container.pumps:
            pump.close()
        container.pumps.clear()
        for sink in container.sinks:
            sink.end()
        container.sinks.clear()
        if container.log is not None:
            container.log.close(time_ns=time.time_ns())
        self._release(container)
        container.on_removed.append(lambda: None)
        self._finish_removal(container, time.monotonic() + _REMOVE_TIMEOUT_S)

    def _release(self, container: Container) -> None:
        """Close what was held for a living container."""
        for name in ("pidfd", "oom_fd", "master"):
            fd = getattr(container, name)
            if fd >= 0:
                self._loop.drop(fd)
                os.close(fd)
                setattr(container, name, -1)
        for stream in ("stdout", "stderr"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._pipe_path(container, stream))

    def _add_sink(self, container: Container, fd: int) -> None:
        sock = Socket(AF_UNIX, SOCK_STREAM, 0, os.dup(fd))
        os.set_inheritable(sock.fileno(), False)
        container.sinks.append(Sink(self._loop, sock, framed=not container.spec["tty"]))

    # --- ending -------------------------------------------------------------------------------------------------

    def _watch_oom(self, container: Container) -> None:
        try:
            container.oom_fd = fd = self._cgroups.watch_oom(container.spec["cgroup"])
        except OSError:
            return  # the count is read again at the end; only the early notice is missing

        def ready(_events: int) -> None:
            if self._cgroups.is_v2:
                with contextlib.suppress(OSError):
                    os.pread(fd, 4096, 0)
            else:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(fd)
            self._check_oom(container, attempts=_OOM_CHECKS)

        self._loop.add(fd, select.EPOLLPRI if self._cgroups.is_v2 else select.EPOLLIN, ready)

    def _check_oom(self, container: Container, *, attempts: int) -> None:
        """v1 gives notice when memory runs out, a moment before the kernel has chosen and counted its victim."""
        if container.oom_killed or container.status not in ("starting", *_LIVING):
            return
        if self._cgroups.oom_kills(container.spec["cgroup"]):
            container.oom_killed = True
            self._tell_all({"event": "oom", "id": container.id})
        elif attempts:
            self._loop.later(_OOM_CHECK_S, lambda: self._check_oom(container, attempts=attempts - 1))

    def _process_ended(self, container: Container) -> None:
        """The pidfd of a container's first process is readable."""
        if container.settle_report is not None:  # it ended before we read what it said about its exec
            container.settle_report()
            if container.pidfd < 0:
                return  # that was a failed start, and is dealt with
        status = self._status_of(container)
        if status is None:
            return
        self._ended(container, status)

    def _status_of(self, container: Container) -> int | None:
        """The wait status; None while it is not known, with another attempt under way."""
        try:
            result = os.waitid(os.P_PIDFD, container.pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            status = self._orphans_status(container)
            if status is None:
                self._loop.drop(container.pidfd)
                self._ask_again(container, time.monotonic() + _ORPHAN_WAIT_S)
            return status
        if result is None:
            return None
        return result.si_status << 8 if result.si_code == os.CLD_EXITED else result.si_status & 0x7F

    def _orphans_status(self, container: Container) -> int | None:
        """The wait status of a predecessor's child, from the kernel or from the predecessor's keeper."""
        status = syscalls.pidfd_exit_status(container.pidfd) if container.pidfd >= 0 else None
        return keeper.reaped_status(self._state, container.id) if status is None else status

    def _ask_again(self, container: Container, deadline: float) -> None:
        """An adopted process has ended; its status appears once its parent has reaped it."""
        if container.status in ("exiting", "exited"):
            return
        status = self._orphans_status(container)
        if status is not None:
            self._ended(container, status)
        elif time.monotonic() > deadline:
            self._ended(container, None)
        else:
            self._loop.later(0.02, lambda: self._ask_again(container, deadline))

    def _ended(self, container: Container, status: int | None) -> None:
        container.status = "exiting"
        container.finished_at_ns = time.time_ns()
        container.lost = status is None
        if status is None:
            container.exit_code = LOST_EXIT_CODE
        else:
            container.exit_code = 128 + (status & 0x7F) if status & 0x7F else status >> 8 & 0xFF
        if container.spec.get("shares_pid"):
            self._cgroups.kill(container.spec["cgroup"])
        container.finish_output()
        if container.spec["watch_oom"] and self._cgroups.oom_kills(container.spec["cgroup"]):
            container.oom_killed = True
        self._release(container)
        container.cgroup_gone = self._cgroups.remove(container.spec["cgroup"])
        record = {
            "exit_code": container.exit_code,
            "oom_killed": container.oom_killed,
            "finished_at_ns": container.finished_at_ns,
            "lost": container.lost,
        }
        try:
            fd = self._state.write_exit(container.id, record)
        except OSError:
            # The disk is full: known to us, not durable. Better told than kept; a successor would call it lost.
            self._announce(container)
            return
        self._when_durable(fd, lambda: self._announce(container))

    def _when_durable(self, fd: int, then: Callable[[], None]) -> None:
        """Sync without stopping the loop, then go on. A failed sync goes on too: waiting for a broken disk would hide
        the exit.
        """
        self._sync_tag += 1
        if self._sync.submit(fd, self._sync_tag):
            self._syncing[self._sync_tag] = (fd, then)
            return
        with contextlib.suppress(OSError):
            os.fdatasync(fd)
        os.close(fd)
        then()

    def _synced(self, _events: int) -> None:
        for tag, _result in self._sync.completed():
            fd, then = self._syncing.pop(tag)
            os.close(fd)
            then()

    def _announce(self, container: Container) -> None:
        container.status = "exited"
        self._tell_all(
            {
                "event": "exited",
                "id": container.id,
                "exit_code": container.exit_code,
                "oom_killed": container.oom_killed,
                "finished_at_ns": container.finished_at_ns,
                "lost": container.lost,
            }
        )
        if container.on_removed:
            self._finish_removal(container, time.monotonic() + _REMOVE_TIMEOUT_S)

    # --- requests -----------------------------------------------------------------------------------------------

    def _op_list(self, _message: dict[str, Any], _fds: list[int], answer: Answer) -> None:
        known = [container.describe() for container in self._containers.values() if container.status != "starting"]
        answer({"containers": known, "pid": os.getpid()})

    def _op_signal(self, message: dict[str, Any], _fds: list[int], answer: Answer) -> None:
        container = self._need(message, *_LIVING)
        if container.pidfd < 0:  # adopted dead, and its end is about to be told
            answer({})
            return
        signal.pidfd_send_signal(container.pidfd, int(message["signal"]))
        if int(message["signal"]) == signal.SIGKILL and container.status == "paused":
            self._cgroups.thaw(container.spec["cgroup"])  # v1 delivers it only to what runs
        answer({})

    def _op_pause(self, message: dict[str, Any], _fds: list[int], answer: Answer) -> None:
        container = self._need(message, "running")
        self._cgroups.freeze(container.spec["cgroup"])
        container.status = "paused"
        answer({})

    def _op_resume(self, message: dict[str, Any], _fds: list[int], answer: Answer) -> None:
        container = self._need(message, "paused")
        self._cgroups.thaw(container.spec["cgroup"])
        container.status = "running"
        answer({})

    def _op_update(self, message: dict[str, Any], _fds: list[int], answer: Answer) -> None:
        container = self._need(message, *_LIVING)
        self._cgroups.apply_limits(container.spec["cgroup"], message["limits"])
        if message["limits"].get("memory_bytes") and not container.spec["watch_oom"]:
            container.spec["watch_oom"] = True
            self._watch_oom(container)
        answer({})

    def _op_attach(self, message: dict[str, Any], fds: list[int], answer: Answer) -> None:
        self._add_sink(self._need(message, *_LIVING), fds[0])
        answer({})

    def _op_terminal(self, message: dict[str, Any], _fds: list[int], answer: Answer) -> None:
        container = self._need(message, *_LIVING)
        if container.master < 0:
            raise RequestError("conflict", f"container {container.id} has no terminal")
        answer({}, (container.master,))

    def _op_users(self, message: dict[str, Any], _fds: list[int], answer: Answer) -> None:
        first_id, count = int(message["first_id"]), int(message["count"])
        namespace = process.open_user_namespace(first_id, count, network=message["op"] == "user_network")
        try:
            answer({}, (namespace,))
        finally:
            os.close(namespace)

    def _op_remove(self, message: dict[str, Any], _fds: list[int], answer: Answer) -> None:
        container = self._containers.get(message["id"])
        if container is None:
            answer({})
            return
        container.on_removed.append(lambda: answer({}))
        if container.status in _LIVING:
            signal.pidfd_send_signal(container.pidfd, signal.SIGKILL)
            if container.status == "paused":
                self._cgroups.thaw(container.spec["cgroup"])
        elif container.status == "exited":
            self._finish_removal(container, time.monotonic() + _REMOVE_TIMEOUT_S)

    def _finish_removal(self, container: Container, deadline: float) -> None:
        """Groups stay busy for a moment after their last process; ask again until they are gone."""
        if not container.cgroup_gone:
            container.cgroup_gone = self._cgroups.remove(container.spec["cgroup"])
        if not container.cgroup_gone and time.monotonic() < deadline:
            for pid in self._cgroups.pids(
                container.spec["cgroup"]
            ):  # privileged containers can leave processes of other namespaces
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._loop.later(_REMOVE_RETRY_S, lambda: self._finish_removal(container, deadline))
            return
        waiting, container.on_removed = container.on_removed, []
        if self._containers.get(container.id) is container:
            self._state.remove(container.id)
            del self._containers[container.id]
        for done in waiting:
            done()

    def _op_shutdown(self, _message: dict[str, Any], _fds: list[int], answer: Answer) -> None:
        if self._containers:
            raise RequestError("conflict", f"{len(self._containers)} containers are still here; remove them first")
        answer({"pid": os.getpid(), "keeper": self._keeper_pid})
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._run_dir}/supervisor.sock")
        self.stop()

    # --- exec ---------------------------------------------------------------------------------------------------

    def _op_exec(self, message: dict[str, Any], fds: list[int], answer: Answer) -> None:
        container = self._need(message, "running")
        given = dict(zip(message.get("descriptors", []), fds, strict=True))
        wanted = message["process"]
        self._exec_number += 1
        exec_id = f"{container.id[:64]}-{os.getpid()}-{self._exec_number}"
        entrances = self._cgroups.open_entrances(container.spec["cgroup"], beside=container.pid)
        ours, theirs = _socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)
        streams = process.Streams(given.get("stdin", -1), given.get("stdout", -1), given.get("stderr", -1))
        try:
            pid, pidfd = self._cloning.clone(0, namespace=container.pidfd)
            if not pid:
                try:
                    process.become_exec(
                        wanted,
                        report=theirs,
                        entrances=entrances,
                        target=container.pidfd,
                        streams=streams,
                        first_id=container.spec.get("first_id", 0),
                    )
                finally:
                    os._exit(70)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            for fd in entrances:
                os.close(fd)
        joined = Exec(exec_id, container, pid, pidfd)
        self._watch_exec_report(joined, ours, answer)

    def _watch_exec_report(self, joined: Exec, ours: Socket, answer: Answer) -> None:
        def done(master: int, failure: tuple[str, int, str] | None) -> None:
            if failure is not None:
                os.waitid(os.P_PIDFD, joined.pidfd, os.WEXITED)
                os.close(joined.pidfd)
                kind, code, text = failure
                answer(RequestError(kind, text, code))
            else:
                self._execs[joined.id] = joined
                answer({"exec_id": joined.id, "pid": joined.pid}, () if master < 0 else (master,))
                self._loop.add(joined.pidfd, select.EPOLLIN, lambda _events: self._exec_ended(joined))
            if master >= 0:
                os.close(master)  # the client holds the terminal of an exec; there is nothing to log

        self._watch_report(ours, Container(joined.id, {"log": None}), done)

    def _exec_ended(self, joined: Exec) -> None:
        result = os.waitid(os.P_PIDFD, joined.pidfd, os.WEXITED | os.WNOHANG)
        if result is None:
            return
        self._loop.drop(joined.pidfd)
        os.close(joined.pidfd)
        del self._execs[joined.id]
        code = result.si_status if result.si_code == os.CLD_EXITED else 128 + (result.si_status & 0x7F)
        self._tell_all({"event": "exec_exited", "exec_id": joined.id, "id": joined.container.id, "exit_code": code})

    def _op_signal_exec(self, message: dict[str, Any], _fds: list[int], answer: Answer) -> None:
        joined = self._execs.get(message["exec_id"])
        if joined is None:
            raise RequestError("missing", f"no exec {message['exec_id']}")
        signal.pidfd_send_signal(joined.pidfd, int(message["signal"]))
        answer({})

    # --- after a predecessor ------------------------------------------------------------------------------------

    def _adopt_all(self) -> None:
        for container_id in self._state.list():
            spec = self._state.read(container_id, "spec")
            if spec is None:
                self._state.remove(container_id)
                continue
            container = Container(container_id, spec)
            running, ended = self._state.read(container_id, "running"), self._state.read(container_id, "exit")
            self._containers[container_id] = container
            if running is None:
                self._forget(container)  # the start never finished, nobody was told of it
                continue
            container.pid, container.started_at_ns = running["pid"], running["started_at_ns"]
            if ended is not None:
                self._state.sync(container_id, "exit")
                self._read_exit(container, ended)
            else:
                self._adopt(container, running)

    def _read_exit(self, container: Container, ended: dict[str, Any]) -> None:
        container.status = "exited"
        container.exit_code, container.oom_killed = ended["exit_code"], ended["oom_killed"]
        container.finished_at_ns, container.lost = ended["finished_at_ns"], ended["lost"]
        container.cgroup_gone = self._cgroups.remove(container.spec["cgroup"])

    def _adopt(self, container: Container, running: dict[str, Any]) -> None:
        container.adopted = True
        container.status = "running"
        if running["boot"] == self._boot:
            with contextlib.suppress(ProcessLookupError):
                container.pidfd = os.pidfd_open(container.pid)
            if container.pidfd >= 0 and start_ticks(container.pid) != running["ticks"]:
                os.close(container.pidfd)  # the number belongs to another process now
                container.pidfd = -1
            for stream in ("stdout", "stderr"):
                with contextlib.suppress(FileNotFoundError):
                    reader = os.open(self._pipe_path(container, stream), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                    container.pumps.append(Pump(self._loop, reader, stream, container))
        if container.pidfd < 0:
            # Dead. Somebody may have kept a pidfd and give it to us (``hello``); wait a moment for that.
            self._loop.later(_ORPHAN_WAIT_S, lambda: self._give_up(container))
            return
        if self._cgroups.is_frozen(container.spec["cgroup"]):
            container.status = "paused"
        if container.spec["watch_oom"]:
            self._watch_oom(container)
        self._loop.add(container.pidfd, select.EPOLLIN, lambda _events: self._process_ended(container))

    def _give_up(self, container: Container) -> None:
        if container.status in _LIVING and container.pidfd < 0:
            self._ended(container, keeper.reaped_status(self._state, container.id))

    def _op_hello(self, message: dict[str, Any], fds: list[int], answer: Answer) -> None:
        """A client that outlived our predecessor hands over what it kept: pidfds, statuses it reaped itself,
        terminals.
        """
        for container_id, fd in zip(message.get("pidfds", []), fds, strict=False):
            container = self._containers.get(container_id)
            if container is not None and container.status in _LIVING and container.pidfd < 0:
                container.pidfd = os.dup(fd)
                os.set_inheritable(container.pidfd, False)
                self._ask_again(container, time.monotonic() + _ORPHAN_WAIT_S)
        for container_id, status in message.get("reaped", {}).items():
            container = self._containers.get(container_id)
            if container is not None and container.status in _LIVING and (container.pidfd < 0 or container.adopted):
                self._ended(container, int(status))
        for container_id, fd in zip(message.get("terminals", []), fds[len(message.get("pidfds", [])) :], strict=False):
            container = self._containers.get(container_id)
            if container is not None and container.status in _LIVING and container.spec["tty"] and container.master < 0:
                container.master = os.dup(fd)
                container.pumps.append(Pump(self._loop, os.dup(fd), "stdout", container))
        answer({"pid": os.getpid()})


def _give_pipes(streams: process.Streams, uid: int) -> None:
    for fd in (streams.stdin, streams.stdout, streams.stderr):
        if fd >= 0 and stat.S_ISFIFO(os.fstat(fd).st_mode):
            os.fchown(fd, uid, uid)


def main(arguments: list[str]) -> int:
    """``STATE_DIR RUN_DIR CGROUP_PARENT``: returns in the starter once the forked supervisor listens; its status says
    whether it does.
    """
    state_dir, run_dir, cgroup_parent = arguments
    os.closerange(3, max(map(int, os.listdir("/proc/self/fd"))) + 1)  # some event loops leak the caller's pipes
    os.makedirs(run_dir, mode=0o700, exist_ok=True)
    os.chmod(run_dir, 0o700)
    if os.stat(run_dir).st_uid != os.geteuid() or not stat.S_ISDIR(os.stat(run_dir).st_mode):
        print(f"{run_dir} is not a directory of ours", file=sys.stderr)
        return 1
    lock = os.open(f"{run_dir}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return LOCK_HELD_STATUS
    ready, tell = os.pipe()
    if os.fork():
        os.close(tell)
        return 0 if os.read(ready, 1) == b"1" else 1
    os.close(ready)
    os.setsid()
    os.chdir("/")
    keeper_pid = 0
    if not keeper.kernel_tells_exits():
        keeper.stay_behind(state_dir)
        keeper_pid = os.getppid()
    supervisor = Supervisor(state_dir=state_dir, run_dir=run_dir, cgroup_parent=cgroup_parent, keeper_pid=keeper_pid)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    syscalls.set_name(b"fleet-runtime")
    process.remember_permitted()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda _number, _frame: supervisor.stop())
    log = os.open(f"{run_dir}/supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    supervisor.prepare()
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for fd, source in ((0, null), (1, log), (2, log)):
        os.dup2(source, fd)
    os.write(tell, b"1")
    os.close(tell)
    os.close(null)
    os.close(log)
    gc.collect()
    gc.freeze()
    gc.disable()
    supervisor.serve()
    os._exit(0)
