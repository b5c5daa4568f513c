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
import errno
import fcntl
import os
import signal
import socket
import sys
import termios
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fleet.cancellation import cancel_and_wait
from fleet.errors import (
    ConflictError,
    NotFoundError,
    RejectedFault,
    RuntimeFault,
    UnavailableError,
    UnsupportedError,
    UserError,
)
from fleet.node_runtime.cgroup_layout import NO_CGROUPS, layout_for
from fleet.node_runtime.cgroups import CgroupTree
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
from fleet.node_runtime.faults import CommandFault
from fleet.node_runtime.plan import check_container_id, plan_container, plan_limits, plan_process, read_host
from fleet.node_runtime.processes import namespace_pids, read_processes
from fleet.node_runtime.spec import ContainerSpec, ProcessSpec, ResourceLimits
from fleet.node_runtime.state import start_ticks
from fleet.node_runtime.wire import FDS_MAX, Channel, ClosedError

__all__ = ["RuntimeClient"]

_States = list[ContainerState]
_Processes = list[ContainerProcess]  # the class below has a method named list

_EVENTS_MAX = 10_000
_EXECS_MAX = 10_000
_START_TIMEOUT_S = 60.0
_RECONNECT_DELAYS_S = (0.0, 0.05, 0.2, 0.5, 1.0)
_LOCK_HELD_STATUS = 75
_SOCKET_PATH_MAX = 107


@dataclasses.dataclass(slots=True)
class _Known:
    """What this client believes about a container."""

    pidfd: int = -1
    terminal_fd: int = -1
    stdout_fd: int = -1
    stderr_fd: int = -1
    exit_told: bool = False
    spec: ContainerSpec | None = None


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
        self._channel: Channel | None = None
        self._sequence = 0
        self._waiting: dict[int, asyncio.Future[tuple[dict[str, Any], list[int]]]] = {}
        self._known: dict[str, _Known] = {}
        self._execs: dict[str, asyncio.Future[int]] = {}
        self._subscribers: list[asyncio.Queue[RuntimeEvent | None]] = []
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
        deadline = time.monotonic() + _START_TIMEOUT_S
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
        self._drop_channel("the client was closed")
        for queue in self._subscribers:
            queue.put_nowait(None)
        self._subscribers.clear()
        for known in self._known.values():
            _close_all(known)
        self._known.clear()

    async def shutdown(self) -> None:
        """End the supervisor and remove the cgroup parent. Raises `ConflictError` while containers exist. The client
        is closed afterwards.
        """
        answer, _ = await self._request({"op": "shutdown"})
        self._closed = True
        await _wait_gone(int(answer["pid"]))
        if answer.get("keeper"):  # it holds the cgroup for a moment longer than the supervisor it reaps
            await _wait_gone(int(answer["keeper"]))
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
        sock = await self._open_socket()
        sock.setblocking(False)
        self._channel = Channel(sock)
        asyncio.get_running_loop().add_reader(sock.fileno(), self._readable)
        answer = await self._hello()
        restarted = self._supervisor_pid not in (0, answer["pid"])
        self._supervisor_pid = answer["pid"]
        listing, _ = await self._call({"op": "list"})
        if restarted:
            self._tell(SupervisorRestarted(pid=self._supervisor_pid))
            lost = RuntimeFault("the supervisor was replaced; the exit code of this exec is not known")
            for future in self._execs.values():
                if not future.done():
                    future.set_exception(lost)
                    future.exception()  # nobody may be waiting
            self._execs.clear()
        self._learn(listing["containers"], announce=announce)
        self._connected.set()

    async def _open_socket(self) -> socket.socket:
        path = str(self._run_dir / "supervisor.sock")
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.connect(path)
            except (FileNotFoundError, ConnectionRefusedError):
                sock.close()
            except OSError:
                sock.close()
                raise
            else:
                return sock
            if not await self._start_supervisor():
                if time.monotonic() > deadline:
                    raise RuntimeFault(f"another supervisor holds {self._run_dir}/lock but does not listen")
                await asyncio.sleep(0.02)  # somebody else is starting one

    async def _start_supervisor(self) -> bool:
        """Start one; False when another is already at work (or just starting)."""
        program = Path(__file__).with_name("supervisor_main.py")
        self._run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        process = await asyncio.create_subprocess_exec(
            system_python(),
            "-I",
            "-S",
            str(program),
            str(self._state_dir.absolute()),
            str(self._run_dir.absolute()),
            self._cgroup_parent,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={},
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                _, errors = await process.communicate()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and what it started holds the pipe
                process.kill()
            raise RuntimeFault(f"the supervisor did not come up within {_START_TIMEOUT_S:.0f} s") from None
        if process.returncode == _LOCK_HELD_STATUS:
            return False
        if process.returncode:
            text = errors.decode("utf-8", "replace").strip().splitlines()
            raise RuntimeFault(f"start the supervisor: {text[-1] if text else f'exit status {process.returncode}'}")
        return True

    async def _hello(self) -> dict[str, Any]:
        """Give a new supervisor what this client kept; to an old one it is only a greeting."""
        reaped: dict[str, int] = {}
        keepers: list[tuple[str, int]] = []
        terminals: list[tuple[str, int]] = []
        for container_id, known in self._known.items():
            if known.pidfd >= 0 and not known.exit_told:
                status = _reap_if_child(known.pidfd)
                if status is not None:
                    reaped[container_id] = status
                keepers.append((container_id, known.pidfd))
            if known.terminal_fd >= 0 and not known.exit_told:
                terminals.append((container_id, known.terminal_fd))
        answer: dict[str, Any] = {}
        room = FDS_MAX // 2
        for start in range(0, max(len(keepers), len(terminals), 1), room):
            pids, masters = keepers[start : start + room], terminals[start : start + room]
            answer, _ = await self._call(
                {"op": "hello", "pidfds": [i for i, _ in pids], "terminals": [i for i, _ in masters], "reaped": reaped},
                [fd for _, fd in pids + masters],
            )
            reaped = {}
        return answer

    def _learn(self, containers: list[dict[str, Any]], *, announce: bool) -> None:
        """Take a listing as the truth: hold pidfds of what runs, tell exits not told yet."""
        present = {entry["id"] for entry in containers}
        for container_id in list(self._known):
            if container_id not in present:
                _close_all(self._known.pop(container_id))
        for entry in containers:
            known = self._known.setdefault(entry["id"], _Known(exit_told=not announce and entry["status"] == "exited"))
            if entry["status"] == "exited":
                self._exited(entry)
            elif known.pidfd < 0:
                self._keep(entry["id"], known, entry["pid"])

    def _keep(self, container_id: str, known: _Known, pid: int) -> None:
        """Hold what keeps an exit status and unread output alive while no supervisor does; nothing is ever read here."""
        known.pidfd = _lifted(_open_pidfd(pid))
        for stream in ("stdout", "stderr"):
            with contextlib.suppress(FileNotFoundError):  # a terminal has no pipes
                path = self._run_dir / f"{container_id}.{stream}"
                setattr(known, f"{stream}_fd", _lifted(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)))

    def _exited(self, entry: dict[str, Any]) -> None:
        known = self._known.setdefault(entry["id"], _Known())
        _close_all(known)
        if known.exit_told:
            return
        known.exit_told = True
        self._tell(
            Exited(
                id=entry["id"],
                exit_code=entry["exit_code"],
                oom_killed=entry["oom_killed"],
                finished_at=_instant(entry["finished_at_ns"]),
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
        if self._channel is None:
            raise UnavailableError("no connection to the supervisor", retry_after_s=0.1)
        self._sequence += 1
        sequence = self._sequence
        future: asyncio.Future[tuple[dict[str, Any], list[int]]] = asyncio.get_running_loop().create_future()
        self._waiting[sequence] = future
        try:
            try:
                self._channel.send({**message, "seq": sequence}, fds)
                self._want_write()
            except ClosedError as error:
                self._lost(str(error))
            return await future
        finally:
            self._waiting.pop(sequence, None)

    def _want_write(self) -> None:
        if self._channel is None:
            return
        loop, fd = asyncio.get_running_loop(), self._channel.socket.fileno()
        try:
            if self._channel.flush():
                loop.remove_writer(fd)
            else:
                loop.add_writer(fd, self._want_write)
        except ClosedError as error:
            self._lost(str(error))

    def _readable(self) -> None:
        if self._channel is None:
            return
        try:
            messages = self._channel.receive()
        except ClosedError as error:
            self._lost(str(error))
            return
        for message, fds in messages:
            if "event" in message:
                self._on_event(message)
                continue
            future = self._waiting.get(message["seq"])
            if future is None or future.done():  # cancelled meanwhile
                for fd in fds:
                    os.close(fd)
            elif "error" in message:
                future.set_exception(_fault(message["error"]))
            else:
                future.set_result((message["ok"], fds))

    def _on_event(self, message: dict[str, Any]) -> None:
        match message["event"]:
            case "exited":
                self._exited(message)
            case "oom":
                self._tell(Oom(id=message["id"]))
            case "exec_exited":
                future = self._execs.setdefault(message["exec_id"], asyncio.get_running_loop().create_future())
                if not future.done():
                    future.set_result(message["exit_code"])
                if len(self._execs) > _EXECS_MAX:  # other clients' execs are told here too, and nobody waits for them
                    self._execs.pop(next(iter(self._execs)))

    def _drop_channel(self, reason: str) -> None:
        self._connected.clear()
        if self._channel is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._channel.socket.fileno())
            loop.remove_writer(self._channel.socket.fileno())
            self._channel.close()
            self._channel = None
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(UnavailableError(f"the supervisor did not answer: {reason}", retry_after_s=0.1))
        self._waiting.clear()

    def _lost(self, reason: str) -> None:
        self._drop_channel(reason)
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
                self._drop_channel(str(error))
            else:
                return

    def _tell(self, event: RuntimeEvent) -> None:
        for queue in list(self._subscribers):
            try:
                queue.put_nowait(event)
            except asyncio.QueueFull:
                self._subscribers.remove(queue)
                while not queue.empty():
                    queue.get_nowait()
                queue.put_nowait(None)

    def subscribe(self) -> AsyncIterator[RuntimeEvent]:
        """Events from now on (from this call, not from the first iteration). Ends when the client is closed or the
        reader is 10,000 events behind.
        """
        queue: asyncio.Queue[RuntimeEvent | None] = asyncio.Queue(_EVENTS_MAX)
        self._subscribers.append(queue)
        return self._iterate(queue)

    async def _iterate(self, queue: asyncio.Queue[RuntimeEvent | None]) -> AsyncIterator[RuntimeEvent]:
        try:
            while (event := await queue.get()) is not None:
                yield event
        finally:
            if queue in self._subscribers:
                self._subscribers.remove(queue)

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
        known = self._known.setdefault(spec.id, _Known())
        known.spec = spec
        if not known.exit_told:  # it may have ended already
            self._keep(spec.id, known, answer["pid"])
        terminal = None
        if received:
            terminal = received[0]
            if not known.exit_told:
                known.terminal_fd = fcntl.fcntl(terminal, fcntl.F_DUPFD_CLOEXEC, 0)
        return Started(spec.id, answer["pid"], _instant(answer["started_at_ns"]), terminal)

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
        return [_state(entry) for entry in answer["containers"]]

    async def remove(self, container_id: str) -> None:
        """Kill it if it runs, remove its cgroup and the supervisor's records; the upper directory and the log stay.
        Idempotent.
        """
        await self._request({"op": "remove", "id": check_container_id(container_id)})
        known = self._known.pop(container_id, None)
        if known is not None:
            _close_all(known)

    async def stats(self, container_id: str) -> ContainerStats:
        """Use of resources now; without cgroups of the processes that live now. Raises `NotFoundError` when it is not running."""
        if self._cgroup_parent == NO_CGROUPS:
            return _figures_of(await self.processes(container_id))
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
        self._execs.setdefault(answer["exec_id"], asyncio.get_running_loop().create_future())
        return ExecStarted(answer["exec_id"], answer["pid"], received[0] if received else None)

    async def wait_exec(self, exec_id: str) -> int:
        """The exit code (128 + signal). May be called once. Raises `RuntimeFault` when the supervisor was replaced
        meanwhile, `NotFoundError` for an unknown id.
        """
        future = self._execs.get(exec_id)
        if future is None:
            raise NotFoundError(f"no exec {exec_id}, or it was waited for already")
        code = await asyncio.shield(future)
        self._execs.pop(exec_id, None)
        return code

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
        output = asyncio.ensure_future(_read_pipe(reader, output_bytes_max))
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
                self._execs.pop(started.exec_id, None)


def system_python() -> str:
    """The interpreter to run the supervisor with: the system's if it is new enough (it starts faster than a venv's
    and nothing is installed into it).
    """
    for candidate in ("/usr/bin/python3.13", "/usr/bin/python3.12", "/usr/bin/python3.11"):
        if os.access(candidate, os.X_OK):
            return candidate
    return str(getattr(sys, "_base_executable", sys.executable))


async def _read_pipe(fd: int, limit: int) -> bytes:
    """Until end of file or cancellation; what exceeds the limit is read and dropped. Closes the descriptor."""
    loop = asyncio.get_running_loop()
    os.set_blocking(fd, False)
    data, done = bytearray(), loop.create_future()

    def readable() -> None:
        try:
            chunk = os.read(fd, 65536)
        except BlockingIOError:
            return
        data.extend(chunk[: max(limit - len(data), 0)])
        if not chunk and not done.done():
            done.set_result(None)

    loop.add_reader(fd, readable)
    try:
        await done
    finally:
        loop.remove_reader(fd)
        os.close(fd)
    return bytes(data)


async def _wait_gone(pid: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    loop.add_reader(pidfd, gone.set)
    try:
        async with asyncio.timeout(10):
            await gone.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


def _lifted(fd: int) -> int:
    """The same, numbered above 1023 where the limit allows. libnftables, which shares this process, waits by select(2) and
    aborts it when its socket's number is higher; so what is kept by the thousand leaves the low numbers free.
    """
    if fd < 0:
        return fd
    try:
        high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 1024)
    except OSError:  # EINVAL: the limit is lower; EMFILE: no room above
        return fd
    os.close(fd)
    return high


def _open_pidfd(pid: int) -> int:
    try:
        fd = os.pidfd_open(pid)
    except (ProcessLookupError, OSError):
        return -1
    if start_ticks(pid) is None:
        os.close(fd)
        return -1
    return fd


def _reap_if_child(pidfd: int) -> int | None:
    """If the orphaned process became ours (this process is a subreaper) and has ended: reap it and return its wait
    status.
    """
    try:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except OSError as error:
        if error.errno in (errno.ECHILD, errno.EBADF):
            return None
        raise
    if result is None:
        return None
    return result.si_status << 8 if result.si_code == os.CLD_EXITED else result.si_status & 0x7F


def _close_all(known: _Known) -> None:
    for name in ("pidfd", "terminal_fd", "stdout_fd", "stderr_fd"):
        fd = getattr(known, name)
        if fd >= 0:
            os.close(fd)
            setattr(known, name, -1)


def _figures_of(processes: _Processes) -> ContainerStats:
    cpu_ns = int(sum(process.cpu_time_s for process in processes) * 1e9)
    resident = sum(process.resident_bytes for process in processes)
    return ContainerStats(
        read_at=datetime.now(UTC),
        cpu_usage_ns=cpu_ns,
        memory_usage_bytes=resident,
        memory_anonymous_bytes=resident,
        pids=len(processes),
    )


def _instant(time_ns: int) -> datetime:
    return datetime.fromtimestamp(time_ns / 1e9, UTC)


def _state(entry: dict[str, Any]) -> ContainerState:
    return ContainerState(
        id=entry["id"],
        status=entry["status"],
        pid=entry["pid"],
        started_at=_instant(entry["started_at_ns"]),
        exit_code=entry["exit_code"],
        oom_killed=entry["oom_killed"],
        finished_at=None if entry["finished_at_ns"] is None else _instant(entry["finished_at_ns"]),
        lost=entry["lost"],
        tty=entry["tty"],
        log_dropped_bytes=entry["log_dropped_bytes"],
    )


_FAULTS: dict[str, Callable[[str], Exception]] = {
    "user": UserError,
    "missing": NotFoundError,
    "conflict": ConflictError,
    "rejected": RejectedFault,
}


def _fault(error: dict[str, Any]) -> Exception:
    if error["kind"] == "command":
        return CommandFault(error["text"], container_exit_code=error["code"])
    if error["kind"] == "fault" and error["code"] == errno.ESRCH:
        return ConflictError(error["text"])
    return _FAULTS.get(error["kind"], RuntimeFault)(error["text"])
