"""The asyncio side of the supervisor: starts it, speaks to it, starts another when it dies, and tells what changed
meanwhile.

A client never forks a container and holds nothing a container needs. It does keep three descriptors of each running one:
its pidfd, and its two output pipes, which it never reads (with a terminal: the master). If the supervisor dies and the
container ends before a new one is up, the kernel still answers through the pidfd how it ended, and what it wrote last
still waits in the pipes.

`RuntimeClient` is level-triggered like everything else: after a reconnect it lists and compares, so an exit is told
exactly once per client, also when the message about it was lost with a connection. Events are told in the order seen;
a subscriber that does not read loses nothing until 10,000 wait, then it is ended with an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import os
import signal
import sys
import termios
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fleet.cancellation import cancel_and_wait
from fleet.errors import (
    NotFoundError,
    RuntimeFault,
    UnavailableError,
    UnsupportedError,
    UserError,
)
from fleet.node_runtime.answers import figures_of, instant, state_of
from fleet.node_runtime.cgroup_layout import NO_CGROUPS, layout_for
from fleet.node_runtime.cgroups import CgroupTree
from fleet.node_runtime.connection import Connection
from fleet.node_runtime.events import (
    ContainerProcess,
    ContainerState,
    ContainerStats,
    ExecStarted,
    Exited,
    Oom,
    RuntimeEvent,
    Started,
    SupervisorRestarted,
)
from fleet.node_runtime.execs import Execs
from fleet.node_runtime.kept import Kept, greetings
from fleet.node_runtime.launching import START_TIMEOUT_S, open_socket, wait_gone
from fleet.node_runtime.pipes import read_pipe
from fleet.node_runtime.plan import check_container_id, plan_container, plan_limits, plan_process, read_host
from fleet.node_runtime.processes import namespace_pids, read_processes
from fleet.node_runtime.spec import ContainerSpec, ProcessSpec, ResourceLimits
from fleet.node_runtime.subscriptions import Subscriptions

__all__ = ["RuntimeClient"]

_States = list[ContainerState]
_Processes = list[ContainerProcess]  # the class below has a method named list

_RECONNECT_DELAYS_S = (0.0, 0.05, 0.2, 0.5, 1.0)
_SOCKET_PATH_MAX = 107


class RuntimeClient:
    """One connection to the node's supervisor. Safe for concurrent use by tasks of one loop; every call may be
    cancelled, the kernel's work then goes on.
    """

    def __init__(self, *, state_dir: Path, run_dir: Path, cgroup_parent: str) -> None:
        """Use `open`."""
        self._state_dir = state_dir
        self._run_dir = run_dir
        self._cgroup_parent = cgroup_parent
        self._cgroups = CgroupTree(layout_for(cgroup_parent), cgroup_parent)
        self._connection: Connection | None = None
        self._known: dict[str, Kept] = {}
        self._execs = Execs()
        self._subscriptions = Subscriptions()
        self._supervisor_pid = 0
        self._connected = asyncio.Event()
        self._reconnecting: asyncio.Task[None] | None = None
        self._closed = False

    # --- life ---------------------------------------------------------------------------------------------------

    @classmethod
    async def open(cls, *, state_dir: Path, run_dir: Path, cgroup_parent: str) -> RuntimeClient:
        """Connect to the supervisor of ``run_dir``, starting one if none is there.

        ``state_dir`` survives reboots, ``run_dir`` should not (tmpfs); both are made, mode 0700. ``cgroup_parent``
        like ``/fleet``. Raises `RuntimeFault` with what the supervisor said when it cannot start, `UserError` when
        ``run_dir`` is too long for a socket path.
        """
        if len(os.fsencode(run_dir / "supervisor.sock")) > _SOCKET_PATH_MAX:
            raise UserError(f"run directory {run_dir}: a socket path holds at most {_SOCKET_PATH_MAX} bytes")
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            client = cls(state_dir=state_dir, run_dir=run_dir, cgroup_parent=cgroup_parent)
            try:
                await client._connect(announce=False)
            except UnavailableError:  # a supervisor that was dying took the connection: the next try starts another
                await client.close()
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.02)
            except BaseException:
                await client.close()
                raise
            else:
                return client

    async def close(self) -> None:
        """Let go; containers and supervisor live on. Subscriptions end. Idempotent."""
        self._closed = True
        await cancel_and_wait(self._reconnecting)
        self._drop("the client was closed")
        self._subscriptions.end()
        for known in self._known.values():
            known.let_go()
        self._known.clear()

    async def shutdown(self) -> None:
        """End the supervisor and remove the cgroup parent. Raises `ConflictError` while containers exist. The client
        is closed afterwards.
        """
        answer, _ = await self._request({"op": "shutdown"})
        self._closed = True
        await wait_gone(int(answer["pid"]))
        if answer.get("keeper"):  # it holds the cgroup for a moment longer than the supervisor it reaps
            await wait_gone(int(answer["keeper"]))
        await asyncio.to_thread(self._cgroups.remove_parent)
        for name in ("supervisor.sock", "lock", "supervisor.log"):
            (self._run_dir / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            (self._run_dir / "root").rmdir()
        await self.close()

    async def shelter(self, pid: int) -> None:
        """Move a process that is to outlive this one beside the supervisor, out of the group a service manager counts as
        ours. Raises OSError when it has ended.
        """
        await asyncio.to_thread(self._cgroups.shelter, pid)

    @property
    def supervisor_pid(self) -> int:
        """Of the supervisor connected to now."""
        return self._supervisor_pid

    async def _connect(self, *, announce: bool) -> None:
        sock = await open_socket(state_dir=self._state_dir, run_dir=self._run_dir, cgroup_parent=self._cgroup_parent)
        self._connection = Connection(sock, on_event=self._on_event, on_lost=self._lost)
        answer = await self._hello()
        restarted = self._supervisor_pid not in (0, answer["pid"])
        self._supervisor_pid = answer["pid"]
        listing, _ = await self._call({"op": "list"})
        if restarted:
            self._subscriptions.tell(SupervisorRestarted(pid=self._supervisor_pid))
            self._execs.lost()
        self._learn(listing["containers"], announce=announce)
        self._connected.set()

    async def _hello(self) -> dict[str, Any]:
        """Give a new supervisor what this client kept; to an old one it is only a greeting."""
        answer: dict[str, Any] = {}
        for message, fds in greetings(self._known):
            answer, _ = await self._call(message, fds)
        return answer

    def _learn(self, containers: list[dict[str, Any]], *, announce: bool) -> None:
        """Take a listing as the truth: hold pidfds of what runs, tell exits not told yet."""
        present = {entry["id"] for entry in containers}
        for container_id in list(self._known):
            if container_id not in present:
                self._known.pop(container_id).let_go()
        for entry in containers:
            known = self._known.setdefault(entry["id"], Kept(exit_told=not announce and entry["status"] == "exited"))
            if entry["status"] == "exited":
                self._exited(entry)
            elif known.pidfd < 0:
                known.hold(entry["pid"], run_dir=self._run_dir, container_id=entry["id"])

    def _exited(self, entry: dict[str, Any]) -> None:
        known = self._known.setdefault(entry["id"], Kept())
        known.let_go()
        if known.exit_told:
            return
        known.exit_told = True
        self._subscriptions.tell(
            Exited(
                id=entry["id"],
                exit_code=entry["exit_code"],
                oom_killed=entry["oom_killed"],
                finished_at=instant(entry["finished_at_ns"]),
                lost=entry["lost"],
            )
        )

    # --- messages -----------------------------------------------------------------------------------------------

    async def _request(self, message: dict[str, Any], fds: Sequence[int] = ()) -> tuple[dict[str, Any], list[int]]:
        """Wait for a connection, then ask. Raises `UnavailableError` when the supervisor died before answering: ask
        `list` what became of it.
        """
        if self._closed:
            raise UnavailableError("the runtime client is closed")
        await self._connected.wait()
        return await self._call(message, fds)

    async def _call(self, message: dict[str, Any], fds: Sequence[int] = ()) -> tuple[dict[str, Any], list[int]]:
        if self._connection is None:
            raise UnavailableError("no connection to the supervisor", retry_after_s=0.1)
        return await self._connection.call(message, fds)

    def _on_event(self, message: dict[str, Any]) -> None:
        match message["event"]:
            case "exited":
                self._exited(message)
            case "oom":
                self._subscriptions.tell(Oom(id=message["id"]))
            case "exec_exited":
                self._execs.ended(message["exec_id"], message["exit_code"])

    def _drop(self, reason: str) -> None:
        self._connected.clear()
        if self._connection is not None:
            self._connection.close(reason)
            self._connection = None

    def _lost(self, reason: str) -> None:
        self._drop(reason)
        if not self._closed and (self._reconnecting is None or self._reconnecting.done()):
            self._reconnecting = asyncio.get_running_loop().create_task(self._reconnect(), name="runtime-reconnect")

    async def _reconnect(self) -> None:
        """Until it works; the last delay repeats."""
        attempt = 0
        while not self._closed:
            await asyncio.sleep(_RECONNECT_DELAYS_S[min(attempt, len(_RECONNECT_DELAYS_S) - 1)])
            attempt += 1
            try:
                await self._connect(announce=True)
            except (RuntimeFault, UnavailableError, OSError) as error:
                print(f"fleet runtime: reconnect failed: {error}", file=sys.stderr)
                self._drop(str(error))
            else:
                return

    def subscribe(self) -> AsyncIterator[RuntimeEvent]:
        """Events from now on (from this call, not from the first iteration). Ends when the client is closed or the
        reader is 10,000 events behind.
        """
        return self._subscriptions.subscribe()

    # --- containers ---------------------------------------------------------------------------------------------

    async def start(
        self,
        spec: ContainerSpec,
        *,
        netns_fd: int | None = None,
        stdin_fd: int | None = None,
        attach_fd: int | None = None,
    ) -> Started:
        """Start a container; returns when its command has been executed.

        Descriptors stay the caller's. ``attach_fd`` is one end of a stream socket pair that gets the output from its
        first byte, see `attach`. Raises `CommandFault` (a `RejectedFault`) when the command cannot be executed,
        `RejectedFault` or `UserError` for other faults of spec or image, `ConflictError` when the id is taken,
        `RuntimeFault` for the kernel's. After any of them nothing of the container is left.
        """
        if (spec.network == "fd") != (netns_fd is not None):
            raise UserError("network 'fd' and netns_fd go together")
        plan = plan_container(spec, host=read_host())
        given = {"netns": netns_fd, "stdin": stdin_fd, "attach": attach_fd}
        names = [name for name, fd in given.items() if fd is not None]
        fds = [fd for fd in given.values() if fd is not None]
        answer, received = await self._request({"op": "start", "plan": plan, "descriptors": names}, fds)
        known = self._known.setdefault(spec.id, Kept())
        known.spec = spec
        if not known.exit_told:  # it may have ended already
            known.hold(answer["pid"], run_dir=self._run_dir, container_id=spec.id)
        terminal = None
        if received:
            terminal = received[0]
            if not known.exit_told:
                known.terminal_fd = fcntl.fcntl(terminal, fcntl.F_DUPFD_CLOEXEC, 0)
        return Started(spec.id, answer["pid"], instant(answer["started_at_ns"]), terminal)

    async def signal(self, container_id: str, signum: int) -> None:
        """Send to the container's first process. Raises `NotFoundError`, `ConflictError` when it has exited."""
        await self._request({"op": "signal", "id": container_id, "signal": int(signum)})

    async def pause(self, container_id: str) -> None:
        """Freeze every process. Raises `ConflictError` unless it is running."""
        await self._request({"op": "pause", "id": container_id})

    async def resume(self, container_id: str) -> None:
        """Let a paused container run on. Raises `ConflictError` unless it is paused."""
        await self._request({"op": "resume", "id": container_id})

    async def update(self, container_id: str, limits: ResourceLimits) -> None:
        """Set new limits at once; all of them, 0 lifts. Raises `RuntimeFault` when the kernel refuses (memory already
        in use, say).
        """
        await self._request({"op": "update", "id": container_id, "limits": plan_limits(limits)})

    async def attach(self, container_id: str, fd: int) -> None:
        """Send the output from now on to ``fd``, one end of a stream socket pair; the caller reads the other and may
        close this one.

        Docker's framing (stream, length) unless the container has a terminal, then raw. End of file when it exits. A
        reader a mebibyte behind is cut off.
        """
        await self._request({"op": "attach", "id": container_id}, [fd])

    async def open_terminal(self, container_id: str) -> int:
        """The master of the container's terminal, for input and resizing; output comes by `attach`. The descriptor is
        the caller's.
        """
        _, fds = await self._request({"op": "terminal", "id": container_id})
        return fds[0]

    async def open_user_namespace(self, *, first_id: int, count: int) -> int:
        """A descriptor of a new user namespace, 0..count-1 inside being ``first_id``... outside, to map mounts with; the
        caller's. Raises `RuntimeFault` where the kernel allows none.
        """
        _, fds = await self._request({"op": "users", "first_id": first_id, "count": count})
        return fds[0]

    async def open_network_namespace(self, first_id: int, count: int) -> int:
        """A descriptor of a new, empty network namespace that belongs to a new user namespace with these ids, for a container
        to come: its root then has a say there. The caller's. Raises `RuntimeFault` where the kernel allows none,
        `UnsupportedError` when the supervisor is of an older fleetd.
        """
        try:
            _, fds = await self._request({"op": "user_network", "first_id": first_id, "count": count})
        except UserError as error:
            raise UnsupportedError("network namespaces of containers' own users need a newer supervisor") from error
        return fds[0]

    async def resize(self, container_id: str, *, rows: int, columns: int) -> None:
        """Set the terminal's size."""
        fd = await self.open_terminal(container_id)
        try:
            termios.tcsetwinsize(fd, (rows, columns))
        finally:
            os.close(fd)

    async def list(self) -> _States:
        """Every container not yet removed."""
        answer, _ = await self._request({"op": "list"})
        return [state_of(entry) for entry in answer["containers"]]

    async def remove(self, container_id: str) -> None:
        """Kill it if it runs, remove its cgroup and the supervisor's records; the upper directory and the log stay.
        Idempotent.
        """
        await self._request({"op": "remove", "id": check_container_id(container_id)})
        known = self._known.pop(container_id, None)
        if known is not None:
            known.let_go()

    async def stats(self, container_id: str) -> ContainerStats:
        """Use of resources now; without cgroups of the processes that live now. Raises `NotFoundError` when it is not running."""
        if self._cgroup_parent == NO_CGROUPS:
            return figures_of(await self.processes(container_id))
        path = await self._cgroup_of(container_id)
        try:
            figures = await asyncio.to_thread(self._cgroups.figures, path)
        except OSError as error:
            raise NotFoundError(f"container {container_id} is not running") from error
        return ContainerStats(read_at=datetime.now(UTC), **figures)

    async def stats_of_all(self) -> ContainerStats:
        """What all containers use together: figures of their common parent, which keep what ended ones used. Zeros without
        cgroups, and before the first container."""
        if self._cgroup_parent == NO_CGROUPS:
            return ContainerStats(read_at=datetime.now(UTC))
        try:
            figures = await asyncio.to_thread(self._cgroups.figures, "")
        except OSError:
            figures = {}
        return ContainerStats(read_at=datetime.now(UTC), **figures)

    async def processes(self, container_id: str) -> _Processes:
        """Processes of the container with the host's ids. Raises `NotFoundError` when it is not running."""
        if self._cgroup_parent == NO_CGROUPS:
            pids = await asyncio.to_thread(namespace_pids, await self._pid_of(container_id))
        else:
            pids = await asyncio.to_thread(self._cgroups.pids, await self._cgroup_of(container_id))
        if not pids:
            raise NotFoundError(f"container {container_id} is not running")
        return await asyncio.to_thread(read_processes, pids)

    async def _pid_of(self, container_id: str) -> int:
        answer, _ = await self._request({"op": "list"})
        for entry in answer["containers"]:
            if entry["id"] == container_id and entry["status"] in ("running", "paused"):
                return int(entry["pid"])
        raise NotFoundError(f"container {container_id} is not running")

    async def _cgroup_of(self, container_id: str) -> str:
        known = self._known.get(container_id)
        if known is not None and known.spec is not None:
            return known.spec.cgroup_path.strip("/") or container_id
        answer, _ = await self._request({"op": "list"})
        for entry in answer["containers"]:
            if entry["id"] == container_id:
                return str(entry["cgroup"])
        raise NotFoundError(f"no container {container_id}")

    # --- exec ---------------------------------------------------------------------------------------------------

    async def exec(
        self,
        container_id: str,
        process: ProcessSpec,
        *,
        stdin_fd: int | None = None,
        stdout_fd: int | None = None,
        stderr_fd: int | None = None,
        tty: bool = False,
        privileged: bool = False,
        seccomp: str = "default",
    ) -> ExecStarted:
        """Run a process inside; returns when its command has been executed. Missing descriptors are the null device;
        with ``tty`` none is used and ``terminal_fd`` is the caller's.

        Raises as `start` does, `ConflictError` when the container is not running.
        """
        wanted = plan_process(
            dataclasses.replace(process, tty=tty or process.tty),
            seccomp_choice=seccomp,
            privileged=privileged,
            host=read_host(),
        )
        given = {"stdin": stdin_fd, "stdout": stdout_fd, "stderr": stderr_fd}
        names = [name for name, fd in given.items() if fd is not None]
        fds = [fd for fd in given.values() if fd is not None]
        answer, received = await self._request(
            {"op": "exec", "id": container_id, "process": wanted, "descriptors": names}, fds
        )
        self._execs.started(answer["exec_id"])
        return ExecStarted(answer["exec_id"], answer["pid"], received[0] if received else None)

    async def wait_exec(self, exec_id: str) -> int:
        """The exit code (128 + signal). May be called once. Raises `RuntimeFault` when the supervisor was replaced
        meanwhile, `NotFoundError` for an unknown id.
        """
        return await self._execs.wait(exec_id)

    async def signal_exec(self, exec_id: str, signum: int) -> None:
        """Send to an exec'd process. Raises `NotFoundError` when it has ended."""
        await self._request({"op": "signal_exec", "exec_id": exec_id, "signal": int(signum)})

    async def exec_capture(
        self, container_id: str, process: ProcessSpec, *, timeout_s: float, output_bytes_max: int = 1 << 16
    ) -> tuple[int, bytes]:
        """Run to the end and return (exit code, stdout and stderr as they came, at most ``output_bytes_max``); for
        health checks.

        Raises `TimeoutError` after killing it.
        """
        reader, writer = os.pipe()
        try:
            started = await self.exec(container_id, process, stdout_fd=writer, stderr_fd=writer)
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        output = asyncio.ensure_future(read_pipe(reader, output_bytes_max))
        try:
            async with asyncio.timeout(timeout_s):
                code = await self.wait_exec(started.exec_id)
            # A child it left behind may hold the pipe; what the process itself wrote is there by now.
            await asyncio.wait([output], timeout=0.1)
            return code, (await output if output.done() else b"")
        finally:
            await cancel_and_wait(output)
            if started.exec_id in self._execs:
                with contextlib.suppress(NotFoundError, UnavailableError):
                    await self.signal_exec(started.exec_id, signal.SIGKILL)
                self._execs.forget(started.exec_id)
