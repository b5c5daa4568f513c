"""The DNS process of a host: one thread, epoll, standard library only, outlives the daemon.

It owns no namespace and gives up its privileges when it starts: the daemon makes the sockets inside each sandbox and passes
them over a unix socket (SCM_RIGHTS) together with complete, numbered tables of names. Between two daemons it keeps
answering. When it dies, the daemon starts another and passes duplicates of the same sockets: questions that arrive
meanwhile wait in them.

Control messages are a four-byte length and JSON; each is answered by one. Requests: ``hello``, ``network`` (a table),
``drop-network``, ``sandbox`` (a view; two or three descriptors if ``fds`` says so), ``sockets`` (give duplicates
back), ``forget``, ``upstream`` (the host's servers), ``stop``.

Run as ``python3 -I -S -c 'import sys; sys.path.insert(0, ROOT); from fleet.network.dns.server import main; main(SOCKET)'``.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import secrets
import selectors
import signal
import socket
import struct
import sys
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

from fleet.network.channel import Channel
from fleet.network.dns import wire
from fleet.network.dns.lookup import Directory, Table, View
from fleet.privilege import become_nobody

__all__ = ["PROTOCOL", "DnsServer", "main"]

PROTOCOL = 2
"""Grows when the control messages change; a daemon replaces a process that speaks another."""

_PENDING_MAX = 4096  # questions under way to upstream servers, all sandboxes together
_PENDING_PER_SANDBOX_MAX = 256  # so that one container cannot use up the others' share
_TCP_MAX = 512  # client connections, all sandboxes together
_TCP_PER_SANDBOX_MAX = 64
_TCP_IDLE_S = 10.0
_UPSTREAM_TIMEOUT_S = 2.0
_UPSTREAM_ROUNDS = 2  # times through the list of servers before SERVFAIL
_REPORTS_MAX = 100
_BURST = 32  # datagrams taken from one socket before others get a turn


Reply = Callable[[bytes], None]


class _Sandbox:
    """One container's sockets and view."""

    def __init__(self, view: View, udp: socket.socket, tcp: socket.socket, upstream: socket.socket | None) -> None:
        self.view = view
        self.udp = udp
        self.tcp = tcp
        self.upstream = upstream  # made inside the sandbox: the user's own servers are reached from there
        self.pending = 0
        self.connections = 0

    def sockets(self) -> list[socket.socket]:
        return [self.udp, self.tcp] + ([self.upstream] if self.upstream is not None else [])


class _Forward:
    """A question on its way through the upstream servers."""

    def __init__(
        self, sandbox: _Sandbox, query: wire.Query, data: bytes, reply: Reply, servers: tuple[str, ...]
    ) -> None:
        self.sandbox = sandbox
        self.query = query
        self.data = data
        self.reply = reply
        self.servers = servers
        self.attempt = 0
        self.identity = 0
        self.socket: socket.socket | None = None  # ours alone, made for this attempt; None while the sandbox's is used
        self.key: tuple[int, int] = (-1, -1)
        self.deadline = 0.0


class DnsServer:
    """Event loop, sandboxes and forwarding."""

    def __init__(self, *, daemon_uid: int) -> None:
        """``daemon_uid`` is the only user who may control this process."""
        self.daemon_uid = daemon_uid
        self.directory = Directory()
        self._selector = selectors.DefaultSelector()
        self._sandboxes: dict[str, _Sandbox] = {}
        self._upstream: tuple[str, ...] = ()
        self._forwards: OrderedDict[tuple[int, int], _Forward] = (
            OrderedDict()
        )  # oldest deadline first: one constant timeout
        self._streams: dict[_Stream, float] = {}
        self._running = True
        self._reports = 0

    def listen(self, listener: socket.socket) -> None:
        """Serve control connections from ``listener``."""
        listener.setblocking(False)
        self.watch(listener, lambda: Channel.accept(self, listener))

    def run(self) -> None:
        """Serve until ``stop``."""
        while self._running:
            for key, _ in self._selector.select(self._timeout()):
                try:
                    key.data()
                except Exception:  # noqa: BLE001 - one container's packet must not take the names from all the others
                    self._report()
            self._expire()

    def _report(self) -> None:
        """Write the exception being handled to the log, the first hundred times."""
        self._reports += 1
        if self._reports <= _REPORTS_MAX:
            traceback.print_exc()
            sys.stderr.flush()

    def watch(self, sock: socket.socket, callback: Callable[[], None], *, write: bool = False) -> None:
        """Call ``callback`` when ``sock`` is readable (or writable)."""
        events = selectors.EVENT_WRITE if write else selectors.EVENT_READ
        try:
            self._selector.modify(sock, events, callback)
        except KeyError:
            self._selector.register(sock, events, callback)

    def unwatch(self, sock: socket.socket) -> None:
        """Forget ``sock``; not watched is fine."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(sock)

    # --- control ------------------------------------------------------------------------------------------------

    def handle(self, request: dict[str, Any], descriptors: list[int]) -> tuple[dict[str, Any], list[socket.socket]]:
        """Carry out one control request; returns the answer and the sockets to send with it."""
        match request["op"]:
            case "hello":
                revisions = {table.network_id: table.revision for table in self.directory.tables.values()}
                return {
                    "protocol": PROTOCOL,
                    "pid": os.getpid(),
                    "networks": revisions,
                    "sandboxes": list(self._sandboxes),
                }, []
            case "network":
                table = Table.from_json(request["table"])
                self.directory.tables[table.network_id] = table
            case "drop-network":
                self.directory.tables.pop(request["id"], None)
            case "sandbox":
                self._put_sandbox(
                    request, [socket.socket(fileno=descriptors.pop(0)) for _ in range(int(request["fds"]))]
                )
            case "sockets":
                sandbox = self._sandboxes.get(request["id"])
                return {"ok": sandbox is not None}, sandbox.sockets() if sandbox is not None else []
            case "forget":
                self._forget(request["id"])
            case "upstream":
                self._upstream = tuple(request["servers"])
            case "stop":
                self._running = False
            case other:
                return {"error": f"unknown request {other!r}"}, []
        return {"ok": True}, []

    def _put_sandbox(self, request: dict[str, Any], sockets: list[socket.socket]) -> None:
        view = View(request["id"], tuple(request["networks"]), bool(request["forward"]), tuple(request["servers"]))
        known = self._sandboxes.get(view.sandbox_id)
        if known is not None and not sockets:
            known.view = view
            return
        if len(sockets) < 2:
            raise ValueError(f"sandbox {view.sandbox_id}: no sockets given and none known")
        self._forget(view.sandbox_id)
        for sock in sockets:
            sock.setblocking(False)
        sandbox = _Sandbox(view, sockets[0], sockets[1], sockets[2] if len(sockets) > 2 else None)
        self._sandboxes[view.sandbox_id] = sandbox
        self.watch(sandbox.udp, lambda: self._udp_ready(sandbox))
        self.watch(sandbox.tcp, lambda: self._tcp_ready(sandbox))
        if sandbox.upstream is not None:
            self.watch(sandbox.upstream, partial(self._upstream_ready, sandbox.upstream))

    def _forget(self, sandbox_id: str) -> None:
        sandbox = self._sandboxes.pop(sandbox_id, None)
        if sandbox is None:
            return
        for stream in [stream for stream in self._streams if stream.sandbox is sandbox]:
            stream.close()
        for forward in [forward for forward in self._forwards.values() if forward.sandbox is sandbox]:
            self._end(forward)
        for sock in sandbox.sockets():
            self.unwatch(sock)
            sock.close()

    # --- questions ----------------------------------------------------------------------------------------------

    def _udp_ready(self, sandbox: _Sandbox) -> None:
        for _ in range(_BURST):
            try:
                data, client = sandbox.udp.recvfrom(65535)
            except OSError:  # nothing left, or an ICMP error of an earlier answer
                return
            self._ask(sandbox, data, partial(_send, sandbox.udp, client), tcp=False)

    def _tcp_ready(self, sandbox: _Sandbox) -> None:
        try:
            connection, _ = sandbox.tcp.accept()
        except OSError:
            return
        if len(self._streams) >= _TCP_MAX or sandbox.connections >= _TCP_PER_SANDBOX_MAX:
            connection.close()
            return
        _ClientStream(self, sandbox, connection)

    def _ask(self, sandbox: _Sandbox, data: bytes, reply: Reply, *, tcp: bool) -> None:
        try:
            query = wire.parse_query(data)
        except wire.WireError:
            if len(data) >= 12 and not data[2] & 0x80:  # never answer an answer
                reply(data[:2] + struct.pack("!HHHHH", 0x8000 | wire.FORMERR, 0, 0, 0, 0))
            return
        size_max = 65535 if tcp else query.udp_size
        answer = self.directory.answer(sandbox.view, query)
        if answer is not None:
            reply(
                wire.build_response(
                    query, code=answer.code, answers=answer.records, authoritative=True, size_max=size_max
                )
            )
            return
        servers = sandbox.view.servers or self._upstream
        busy = len(self._forwards) >= _PENDING_MAX or sandbox.pending >= _PENDING_PER_SANDBOX_MAX
        if not sandbox.view.forward or not servers or busy:
            reply(wire.build_response(query, code=wire.SERVFAIL, answers=[], authoritative=False, size_max=size_max))
            return
        forward = _Forward(sandbox, query, data, reply, servers)
        if tcp and sandbox.upstream is None and sandbox.connections < 2 * _TCP_PER_SANDBOX_MAX:
            _UpstreamStream(self, sandbox, forward)
        else:
            sandbox.pending += 1
            self._attempt(forward)

    # --- forwarding over UDP --------------------------------------------------------------------------------------

    def _attempt(self, forward: _Forward) -> None:
        """Ask the next server; a fresh socket each time, so that port and identity are both unpredictable (RFC 5452)."""
        while forward.attempt < _UPSTREAM_ROUNDS * len(forward.servers):
            server = forward.servers[forward.attempt % len(forward.servers)]
            forward.attempt += 1
            forward.identity = secrets.randbelow(65536)
            data = struct.pack("!H", forward.identity) + forward.data[2:]
            sock = forward.sandbox.upstream
            try:
                if sock is None:
                    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
                    forward.socket = sock
                    sock.connect((server, 53))
                    sock.send(data)
                    self.watch(sock, partial(self._upstream_ready, sock))
                else:
                    sock.sendto(data, (server, 53))
            except OSError:
                self._drop_socket(forward)
                continue
            forward.key = (sock.fileno(), forward.identity)
            if forward.key in self._forwards:  # one in 65,536 on a shared socket: choose again
                forward.attempt -= 1
                continue
            forward.deadline = time.monotonic() + _UPSTREAM_TIMEOUT_S
            self._forwards[forward.key] = forward
            return
        self._fail(forward)

    def _upstream_ready(self, sock: socket.socket) -> None:
        for _ in range(_BURST):
            try:
                data, source = sock.recvfrom(65535)
            except BlockingIOError:
                return
            except OSError:  # connection refused by ICMP: the next server, now
                for forward in [forward for forward in self._forwards.values() if forward.socket is sock]:
                    self._retry(forward)
                return
            found = self._forwards.get((sock.fileno(), struct.unpack_from("!H", data)[0])) if len(data) >= 12 else None
            if (
                found is None
                or source[0] not in found.servers
                or wire.question_of(data) != found.query.question.lower()
            ):
                continue  # late, or somebody guessing
            if data[3] & 0xF in (wire.SERVFAIL, wire.REFUSED) and found.attempt < len(found.servers):
                self._retry(found)
                continue
            self._end(found)
            found.reply(struct.pack("!H", found.query.id) + data[2:])
            if found.socket is not None:
                return

    def _retry(self, forward: _Forward) -> None:
        self._forwards.pop(forward.key, None)
        self._drop_socket(forward)
        self._attempt(forward)

    def _fail(self, forward: _Forward) -> None:
        self._end(forward)
        query = forward.query
        forward.reply(
            wire.build_response(query, code=wire.SERVFAIL, answers=[], authoritative=False, size_max=query.udp_size)
        )

    def _end(self, forward: _Forward) -> None:
        self._forwards.pop(forward.key, None)
        self._drop_socket(forward)
        forward.sandbox.pending -= 1

    def _drop_socket(self, forward: _Forward) -> None:
        if forward.socket is not None:
            self.unwatch(forward.socket)
            forward.socket.close()
            forward.socket = None

    # --- streams and time ---------------------------------------------------------------------------------------

    def ask_over_tcp(self, sandbox: _Sandbox, data: bytes, reply: Reply) -> None:
        """Answer a question that came over TCP."""
        self._ask(sandbox, data, reply, tcp=True)

    def upstream_failed(self, forward: _Forward) -> None:
        """A TCP attempt failed: the next server, or SERVFAIL."""
        if forward.attempt < len(forward.servers):
            _UpstreamStream(self, forward.sandbox, forward)
            return
        answer = wire.build_response(forward.query, code=wire.SERVFAIL, answers=[], authoritative=False, size_max=65535)
        forward.reply(answer)

    def add_stream(self, stream: _Stream) -> None:
        """Keep a stream, with an idle deadline."""
        self._streams[stream] = time.monotonic() + _TCP_IDLE_S

    def drop_stream(self, stream: _Stream) -> None:
        """Forget a stream; unknown is fine."""
        self._streams.pop(stream, None)

    def _timeout(self) -> float | None:
        deadlines = [next(iter(self._forwards.values())).deadline] if self._forwards else []
        if self._streams:
            deadlines.append(min(self._streams.values()))
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _expire(self) -> None:
        now = time.monotonic()
        while self._forwards:
            forward = next(iter(self._forwards.values()))
            if forward.deadline > now:
                break
            self._retry(forward)
        for stream in [stream for stream, deadline in self._streams.items() if deadline <= now]:
            stream.close()


class _Stream:
    """A TCP connection carrying length-prefixed messages (RFC 7766)."""

    def __init__(self, server: DnsServer, sandbox: _Sandbox, sock: socket.socket) -> None:
        self.server = server
        self.sandbox = sandbox
        self.socket = sock
        self._received = bytearray()
        self._unsent = bytearray()
        self._closed = False
        sock.setblocking(False)
        sandbox.connections += 1
        server.add_stream(self)

    def send(self, message: bytes) -> None:
        """Queue a message and write what the socket takes."""
        if self._closed:
            return
        self._unsent += struct.pack("!H", len(message)) + message
        if len(self._unsent) > 1 << 20:  # asks, and never reads the answers
            self.close()
            return
        self.flush()

    def flush(self) -> None:
        """Write what is queued; wait for room if need be."""
        try:
            sent = self.socket.send(self._unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        del self._unsent[:sent]
        if self._unsent:
            self.server.watch(self.socket, self.flush, write=True)
        else:
            self.server.watch(self.socket, self.readable)

    def readable(self) -> None:
        """Read, and hand on each complete message."""
        try:
            data = self.socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._received += data
        while len(self._received) >= 2 and not self._closed:
            length = struct.unpack_from("!H", self._received)[0]
            if len(self._received) < 2 + length:
                break
            message = bytes(self._received[2 : 2 + length])
            del self._received[: 2 + length]
            self.message(message)

    def message(self, data: bytes) -> None:
        """Handle one message."""
        raise NotImplementedError

    def close(self) -> None:
        """Close; idempotent."""
        if self._closed:
            return
        self._closed = True
        self.sandbox.connections -= 1
        self.server.drop_stream(self)
        self.server.unwatch(self.socket)
        self.socket.close()


class _ClientStream(_Stream):
    """A container's connection."""

    def __init__(self, server: DnsServer, sandbox: _Sandbox, sock: socket.socket) -> None:
        super().__init__(server, sandbox, sock)
        server.watch(sock, self.readable)

    def message(self, data: bytes) -> None:
        self.server.add_stream(self)  # not idle
        self.server.ask_over_tcp(self.sandbox, data, self.send)


class _UpstreamStream(_Stream):
    """One attempt to ask an upstream server over TCP."""

    def __init__(self, server: DnsServer, sandbox: _Sandbox, forward: _Forward) -> None:
        super().__init__(server, sandbox, socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
        self._forward = forward
        self._answered = False
        address = forward.servers[forward.attempt % len(forward.servers)]
        forward.attempt += 1
        with contextlib.suppress(BlockingIOError):
            try:
                self.socket.connect((address, 53))
            except BlockingIOError:
                raise
            except OSError:
                self.close()
                return
        self._unsent += struct.pack("!H", len(forward.data)) + forward.data
        server.watch(self.socket, self.flush, write=True)

    def message(self, data: bytes) -> None:
        self._answered = True
        self._forward.reply(data)
        self.close()

    def close(self) -> None:
        if self._closed:
            return
        super().close()
        if not self._answered:
            self._answered = True
            self.server.upstream_failed(self._forward)


def _send(sock: socket.socket, client: Any, data: bytes) -> None:
    with contextlib.suppress(OSError):  # the client is gone or its buffer is full: it will ask again
        sock.sendto(data, client)


def main(descriptor: int) -> None:
    """Serve control connections on the inherited listening socket ``descriptor`` until told to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C meant for the daemon's terminal
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    server = DnsServer(daemon_uid=os.getuid())
    server.listen(socket.socket(fileno=descriptor))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # two or three sockets a sandbox
    become_nobody()  # everything that needs privilege was done by the daemon
    gc.collect()
    gc.freeze()
    server.run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
