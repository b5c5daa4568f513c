"""The daemon's side of the tunnel process: what can be said to it. Blocking; used on the network thread only."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from fleet.errors import RuntimeFault
from fleet.network import processes
from fleet.network.tunnel.process import PROTOCOL

__all__ = ["TunnelControl"]

_WHAT: Final = "tunnel process"


class TunnelControl:
    """A connection to the running process."""

    def __init__(self, connection: socket.socket, hello: dict[str, Any]) -> None:
        self._socket = connection
        self.pid = int(hello["pid"])
        self.carries: list[Any] = hello["carries"]
        """Its public key in hex, UDP port and MTU; empty before it was opened."""

    @staticmethod
    def connect(path: Path) -> TunnelControl | None:
        """Connect to the process behind ``path``; ``None`` if there is none that can be used (``processes.connect``)."""
        found = processes.connect(path, protocol=PROTOCOL, what=_WHAT)
        return TunnelControl(*found) if found is not None else None

    @staticmethod
    def start(path: Path, *, log: Path) -> TunnelControl:
        """Start a process and connect to it. Raises ``RuntimeFault``."""
        # not the system's interpreter: cryptography is where the daemon's own packages are
        pid = processes.start(path, log=log, module="fleet.network.tunnel.process", interpreter=(sys.executable, "-I"))
        control = TunnelControl.connect(path)
        if control is None:
            processes.reap(pid)
            raise RuntimeFault(f"{_WHAT} {pid} did not answer within {processes.TIMEOUT_S:.0f} s; see {log}")
        return control

    def open(self, *, private: bytes, mtu: int, device: int, sock: socket.socket) -> None:
        """Give it the key, the device and the socket; duplicates of both, ours may be closed."""
        self._ask({"op": "open", "private": private.hex(), "mtu": mtu}, (device, sock.fileno()))

    def set_peers(self, peers: Sequence[tuple[str, str, int]]) -> None:
        """Exactly these: public key (hex), address, port."""
        self._ask({"op": "peers", "peers": [list(peer) for peer in peers]})

    def status(self) -> list[dict[str, Any]]:
        """Of each peer: ``public``, ``connected``, ``handshake_s`` (age; negative: none), ``sent`` and ``received`` bytes."""
        peers: list[dict[str, Any]] = self._ask({"op": "status"})["peers"]
        return peers

    def stop(self) -> None:
        """End the process in good order."""
        self._ask({"op": "stop"})
        self.close()
        processes.reap(self.pid)

    def kill(self) -> None:
        """End it the hard way; gone is fine."""
        self.close()
        processes.kill(self.pid)

    def close(self) -> None:
        """Leave the process running."""
        self._socket.close()

    def _ask(self, request: dict[str, Any], descriptors: Sequence[int] = ()) -> dict[str, Any]:
        answer, _ = processes.ask(self._socket, request, descriptors, what=_WHAT)
        if "error" in answer:
            raise RuntimeFault(f"{_WHAT} {self.pid} refused {request['op']}: {answer['error']}")
        return answer
