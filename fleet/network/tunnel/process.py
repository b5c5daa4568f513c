"""The tunnel process of a host without WireGuard in its kernel: one thread, epoll, outlives the daemon.

    kernel -- TUN device -- this process -- UDP socket ==> other hosts

It is given everything and owns nothing: the daemon opens the device and the socket in the host's namespace and passes both over
the control socket, with the private key; the process reads no files and gives up its privileges when it starts. When it dies the
device stays (it is persistent), packets are dropped, and the daemon starts another, which greets all peers.

Control requests (``channel``): ``hello``; ``open`` (private key, MTU; two descriptors: device, socket), once; ``peers`` (all of
them, as lists of public key, address, port); ``status``; ``stop``.

Run with the daemon's interpreter, which has ``cryptography``: ``PYTHON -I -c '... main(SOCKET)'``.
"""

from __future__ import annotations

import errno
import gc
import os
import select
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from fleet.network.channel import Channel
from fleet.network.tunnel.engine import PeerSpec, TunnelEnd
from fleet.network.tunnel.noise import Initiator, KeyPair, Responder
from fleet.network.tunnel.offload import HEADER_BYTES, join_packets, plain, runs
from fleet.network.tunnel.peer import Endpoint
from fleet.network.tunnel.session import Session
from fleet.network.tunnel.wire import DATA_HEADER
from fleet.privilege import become_nobody

__all__ = ["PROTOCOL", "TunnelProcess", "main"]

PROTOCOL: Final = 2
"""Grows when the control messages or what the device is change; a daemon replaces a process that speaks another."""

_REPORTS_MAX: Final = 100
_BURST: Final = 44
"""Packets taken from the device before datagrams get a turn, and the other way round (of those, the kernel's last bundle may
bring more). One send carries as many full ones. Never waited for."""
_RECEIVE_BYTES: Final = 1 << 16
_SOL_UDP, _UDP_SEGMENT, _UDP_GRO = 17, 103, 104  # linux/udp.h
_CMSG_SPACE: Final = socket.CMSG_SPACE(4)
_IDLE_S: Final = 3600.0


class TunnelProcess:
    """The event loop around a ``TunnelEnd``."""

    def __init__(self, *, daemon_uid: int) -> None:
        """``daemon_uid`` is the only user who may control this process."""
        self.daemon_uid = daemon_uid
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._end: TunnelEnd | None = None
        self._device = -1
        self._socket: socket.socket | None = None
        self._buffer = bytearray(_RECEIVE_BYTES)
        self._running = True
        self._reports = 0

    def listen(self, listener: socket.socket) -> None:
        """Serve control connections from ``listener``."""
        listener.setblocking(False)
        self.watch(listener, lambda: Channel.accept(self, listener))

    def watch(self, sock: socket.socket, callback: Callable[[], None]) -> None:
        """Call ``callback`` when ``sock`` is readable."""
        self._watch(sock.fileno(), callback)

    def unwatch(self, sock: socket.socket) -> None:
        """Forget ``sock``; not watched is fine."""
        if self._callbacks.pop(sock.fileno(), None) is not None:
            self._epoll.unregister(sock.fileno())

    def run(self) -> None:
        """Serve until ``stop``, or until the device is gone."""
        while self._running:
            for descriptor, _ in self._epoll.poll(self._timeout()):
                callback = self._callbacks.get(descriptor)
                try:
                    if callback is not None:
                        callback()
                except Exception:  # noqa: BLE001 - one peer's datagram must not take the tunnel from all the others
                    self._report()
            if self._end is not None:
                self._end.tick(time.monotonic())

    # --- control ------------------------------------------------------------------------------------------------------

    def handle(self, request: dict[str, Any], descriptors: list[int]) -> tuple[dict[str, Any], list[socket.socket]]:
        """Carry out one control request."""
        match request["op"]:
            case "hello":
                return {"protocol": PROTOCOL, "pid": os.getpid(), "carries": self._carries()}, []
            case "open":
                device, bound = descriptors.pop(0), descriptors.pop(0)
                self._open(bytes.fromhex(request["private"]), int(request["mtu"]), device, bound)
            case "peers":
                if self._end is None:
                    raise ValueError("not opened yet")
                self._end.set_peers(_specs(request["peers"]), time.monotonic())
            case "status":
                return {"peers": self._status()}, []
            case "stop":
                self._running = False
            case other:
                return {"error": f"unknown request {other!r}"}, []
        return {"ok": True}, []

    def _open(self, private: bytes, mtu: int, device: int, bound: int) -> None:
        sock = socket.socket(fileno=bound)
        if self._end is not None:
            os.close(device)
            sock.close()
            raise ValueError("opened already")
        os.set_blocking(device, False)
        self._device, self._socket = device, sock
        self._end = TunnelEnd(
            private,
            mtu=mtu,
            emit=self._emit,
            random=os.urandom,
            wall_ns=time.time_ns,
        )
        self._watch(device, self._device_ready)
        self.watch(sock, self._socket_ready)

    def _carries(self) -> list[Any]:
        if self._end is None or self._socket is None:
            return []
        return [self._end.public.hex(), self._socket.getsockname()[1], self._end.mtu]

    def _status(self) -> list[dict[str, Any]]:
        if self._end is None:
            return []
        now = time.monotonic()
        return [
            {
                "public": public.hex(),
                "connected": status.is_connected,
                "handshake_s": now - status.last_handshake if status.last_handshake >= 0 else -1.0,
                "sent": status.sent_bytes,
                "received": status.received_bytes,
            }
            for public, status in self._end.status(now).items()
        ]

    # --- packets ------------------------------------------------------------------------------------------------------

    def _device_ready(self) -> None:
        """Packets of the kernel, to be sealed and sent."""
        end, device = self._end, self._device
        assert end is not None
        room = HEADER_BYTES + end.mtu
        packets: list[bytes] = []
        try:
            for _ in range(_BURST):
                read = os.read(device, room + 1)
                if HEADER_BYTES + 20 <= len(read) <= room:
                    packets.append(read[HEADER_BYTES:])
        except BlockingIOError:
            pass
        except OSError as error:  # somebody deleted it: only the daemon can make another
            print(f"the device is gone: {error}", file=sys.stderr, flush=True)
            self._running = False
        end.send(packets, time.monotonic())

    def _socket_ready(self) -> None:
        """Datagrams, to be opened and given to the kernel. It, or the network card, may have joined several of one size."""
        end, sock, buffer = self._end, self._socket, self._buffer
        assert end is not None
        assert sock is not None
        now, whole, seen = time.monotonic(), memoryview(buffer), 0
        packets: list[bytes] = []
        while seen < _BURST:
            try:
                length, extra, _, source = sock.recvmsg_into([buffer], _CMSG_SPACE, socket.MSG_DONTWAIT)
            except OSError:  # nothing left
                break
            size = length
            for level, kind, data in extra:
                if (level, kind) == (_SOL_UDP, _UDP_GRO):
                    size = struct.unpack("=i", data[:4])[0] or length
            if not length:
                seen += 1
            elif seen:
                packets += end.receive(whole[:length], size, source, now)
                seen += -(-length // size)
            else:  # the first does not wait until we know whether there are others
                self._deliver(end.receive(whole[:length], size, source, now))
                seen = -(-length // size)
        if packets:
            self._deliver(packets)

    def _deliver(self, packets: list[bytes]) -> None:
        """Give the kernel what came."""
        for buffers, run in join_packets(packets):
            try:
                os.writev(self._device, buffers)
            except OSError as error:
                if len(run) == 1 or error.errno != errno.EINVAL:
                    continue  # the device is down or gone, which reading from it tells
                for packet in run:  # Linux before 6.2
                    with suppress(OSError):
                        os.writev(self._device, plain(packet))

    def _emit(self, to: Endpoint, datagrams: list[bytes]) -> None:
        """Send; what cannot be sent is as if lost on the way: who needs it sends it again."""
        sock = self._socket
        assert sock is not None
        for run in runs(datagrams):
            try:
                if len(run) == 1:
                    sock.sendto(run[0], to)
                else:
                    sock.sendmsg(run, [(_SOL_UDP, _UDP_SEGMENT, struct.pack("=H", len(run[0])))], 0, to)
            except OSError:
                if len(run) > 1:  # larger than the way allows, or a card that cannot: one by one
                    for datagram in run:
                        with suppress(OSError):
                            sock.sendto(datagram, to)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _watch(self, descriptor: int, callback: Callable[[], None]) -> None:
        if descriptor not in self._callbacks:
            self._epoll.register(descriptor, select.EPOLLIN)
        self._callbacks[descriptor] = callback

    def _timeout(self) -> float:
        if self._end is None:
            return _IDLE_S
        return min(max(0.0, self._end.deadline - time.monotonic()), _IDLE_S)

    def _report(self) -> None:
        """Write the exception being handled to the log, the first hundred times."""
        self._reports += 1
        if self._reports <= _REPORTS_MAX:
            traceback.print_exc()
            sys.stderr.flush()


def _specs(peers: list[list[Any]]) -> dict[bytes, PeerSpec]:
    """Raises ``ValueError`` for what is no peer."""
    found: dict[bytes, PeerSpec] = {}
    for public, address, port in peers:
        key = bytes.fromhex(public)
        if len(key) != 32 or not 0 < int(port) < 65536:
            raise ValueError(f"peer {address}: not a public key and a port")
        found[key] = PeerSpec((str(address), int(port)), frozenset([socket.inet_aton(address)]))
    return found


def _rehearse() -> None:
    """Use each algorithm once: ``cryptography`` loads parts of itself from disk only then, which nobody may read for us later."""
    one, two = KeyPair(bytes(range(32))), KeyPair(bytes(range(1, 33)))
    first = Initiator(static=one, remote=two.public, ephemeral=two, prologue=b"", payload=b"")
    answer, _ = Responder(static=two, message=first.first, prologue=b"").answer(ephemeral=one)
    session = Session(first.finish(answer)[0], local=1, remote=1, is_initiator=True, born=0.0)
    (message,) = session.seal([b""])
    session.open([(0, message[DATA_HEADER.size :])])


def main(descriptor: int) -> None:
    """Serve control connections on the inherited listening socket ``descriptor`` until told to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C meant for the daemon's terminal
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    process = TunnelProcess(daemon_uid=os.getuid())
    process.listen(socket.socket(fileno=descriptor))
    _rehearse()
    become_nobody()  # everything that needs privilege was done by the daemon
    gc.collect()
    gc.freeze()
    process.run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
