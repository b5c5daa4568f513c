"""The supervisor's record of one container, and the pumps that move its output to the log and to whoever is attached.

Output goes through named pipes in the run directory. The container's end is opened for reading *and* writing, so the
container holds its own reader: when the supervisor dies, nobody gets SIGPIPE; a full pipe makes the container wait,
and the successor opens the same name and reads on, losing nothing. (An anonymous pipe whose read end is duplicated
elsewhere would need somebody else to stay alive.)
"""

from __future__ import annotations

import os
import select
import time
from _socket import MSG_DONTWAIT, MSG_NOSIGNAL

from fleet.node_runtime.log_writer import LogWriter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket as Socket  # noqa: N812
    from collections.abc import Callable
    from typing import Any

__all__ = ["Container", "Exec", "Loop", "Pump", "Sink"]

READ_BYTES = 1 << 16
"""Per wake-up and pipe, so that a chatty container cannot keep the loop from the others."""
_SINK_BYTES_MAX = 1 << 20
_STREAM_NUMBER = {"stdout": 1, "stderr": 2}


class Loop:
    """epoll, callbacks and a few timers."""

    def __init__(self) -> None:
        self._epoll = select.epoll(flags=select.EPOLL_CLOEXEC)
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, Callable[[], None]]] = []

    def add(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call back with the event mask while ``fd`` is ready."""
        self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def change(self, fd: int, events: int) -> None:
        """Wait for something else."""
        self._epoll.modify(fd, events)

    def drop(self, fd: int) -> None:
        """Stop watching; to be called before closing. Idempotent."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def later(self, delay_s: float, callback: Callable[[], None]) -> None:
        """Call once, not before the delay has passed."""
        self._timers.append((time.monotonic() + delay_s, callback))

    def turn(self) -> None:
        """Wait for something, and handle it."""
        timeout = -1.0
        if self._timers:
            timeout = max(0.0, min(due for due, _ in self._timers) - time.monotonic())
        for fd, events in self._epoll.poll(timeout):
            callback = self._callbacks.get(fd)
            if callback is not None:  # an earlier callback of this turn may have dropped it
                callback(events)
        if self._timers:
            now = time.monotonic()
            due_now = [entry for entry in self._timers if entry[0] <= now]
            if due_now:
                self._timers = [entry for entry in self._timers if entry[0] > now]
                for _, timer in due_now:
                    timer()


class Sink:
    """Somebody attached: a stream socket that gets output as it comes.

    Framed as Docker frames it (stream number, three zero bytes, length) unless the container has a terminal. One that
    does not read is cut off after a mebibyte: attached eyes must not stop a container.
    """

    def __init__(self, loop: Loop, sock: Socket, *, framed: bool) -> None:
        self._loop = loop
        self._socket = sock
        self._framed = framed
        self._waiting = bytearray()
        self._ending = False
        self.open = True

    def feed(self, stream: str, data: bytes) -> None:
        """Send or queue."""
        if not self.open:
            return
        if self._framed:
            data = bytes((_STREAM_NUMBER[stream], 0, 0, 0)) + len(data).to_bytes(4, "big") + data
        if not self._waiting:
            try:
                sent = self._socket.send(data, MSG_DONTWAIT | MSG_NOSIGNAL)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._close()
                return
            if sent == len(data):
                return
            data = data[sent:]
            self._loop.add(self._socket.fileno(), select.EPOLLOUT, self._writable)
        self._waiting += data
        if len(self._waiting) > _SINK_BYTES_MAX:
            self._close()

    def _writable(self, _events: int) -> None:
        try:
            sent = self._socket.send(self._waiting, MSG_DONTWAIT | MSG_NOSIGNAL)
        except BlockingIOError:
            return
        except OSError:
            self._close()
            return
        del self._waiting[:sent]
        if not self._waiting:
            self._loop.drop(self._socket.fileno())
            if self._ending:
                self._close()

    def end(self) -> None:
        """No more output: close when the queue is sent."""
        self._ending = True
        if not self._waiting:
            self._close()

    def _close(self) -> None:
        if self.open:
            self.open = False
            self._loop.drop(self._socket.fileno())
            self._socket.close()
            self._waiting.clear()


class Pump:
    """Moves one stream of a container: reads what is there, at most `READ_BYTES` a turn, writes the log and feeds the
    sinks.
    """

    def __init__(self, loop: Loop, fd: int, stream: str, container: Container) -> None:
        self._loop = loop
        self._fd = fd
        self._stream = stream
        self._container = container
        os.set_blocking(fd, False)
        loop.add(fd, select.EPOLLIN, self._readable)

    def _readable(self, _events: int) -> None:
        self._move()

    def _move(self) -> bool:
        """False when there is nothing now, or ever again."""
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:  # EIO: the last process has closed the terminal
            data = b""
        if not data:
            self.close()
            return False
        self._container.take_output(self._stream, data)
        return True

    def drain(self) -> None:
        """Read what is left, then close; every writer is dead. Bounded by what a pipe holds."""
        for _ in range(64):
            if self._fd < 0 or not self._move():
                break
        self.close()

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            self._loop.drop(self._fd)
            os.close(self._fd)
            self._fd = -1


class Exec:
    """A process that joined a container."""

    __slots__ = ("container", "id", "pid", "pidfd")

    def __init__(self, exec_id: str, container: Container, pid: int, pidfd: int) -> None:
        self.id = exec_id
        self.container = container
        self.pid = pid
        self.pidfd = pidfd


class Container:
    """One container from the start request to its removal. ``status``: starting, running, paused, exiting, exited."""

    def __init__(self, container_id: str, spec: dict[str, Any]) -> None:
        self.id = container_id
        self.spec = spec
        """What is on record: cgroup, log, tty, watch_oom."""
        self.status = "starting"
        self.pid = 0
        self.pidfd = -1
        self.started_at_ns = 0
        self.exit_code = 0
        self.finished_at_ns = 0
        self.oom_killed = False
        self.lost = False
        self.adopted = False
        """Not our child: its status comes from whoever reaped it."""
        self.oom_fd = -1
        self.master = -1
        self.pumps: list[Pump] = []
        self.sinks: list[Sink] = []
        self.execs: dict[str, Exec] = {}
        self.on_removed: list[Callable[[], None]] = []
        """Answers owed once everything is gone."""
        self.cgroup_gone = False
        self.settle_report: Callable[[], None] | None = None
        """Reads what the starting process has said, when it ended before we listened."""
        log = spec["log"]
        self.log = (
            None
            if log is None
            else LogWriter(log["path"], max_size_bytes=log["max_size_bytes"], max_files=log["max_files"])
        )

    def take_output(self, stream: str, data: bytes) -> None:
        """Log and fan out."""
        if self.log is not None:
            self.log.feed(stream, data, time_ns=time.time_ns())
        if self.sinks:
            for sink in self.sinks:
                sink.feed(stream, data)
            self.sinks = [sink for sink in self.sinks if sink.open]

    def finish_output(self) -> None:
        """Drain, write the last line, let the attached go."""
        for pump in self.pumps:
            pump.drain()
        self.pumps.clear()
        if self.log is not None:
            self.log.close(time_ns=time.time_ns())
        for sink in self.sinks:
            sink.end()
        self.sinks.clear()

    def describe(self) -> dict[str, Any]:
        """For listings."""
        return {
            "id": self.id,
            "status": self.status if self.status in ("running", "paused", "exited") else "running",
            "pid": self.pid if self.status != "exited" else 0,
            "started_at_ns": self.started_at_ns,
            "exit_code": self.exit_code if self.status == "exited" else None,
            "oom_killed": self.oom_killed,
            "finished_at_ns": self.finished_at_ns if self.status == "exited" else None,
            "lost": self.lost,
            "tty": self.spec["tty"],
            "cgroup": self.spec["cgroup"],
            "log_dropped_bytes": 0 if self.log is None else self.log.dropped_bytes,
        }
