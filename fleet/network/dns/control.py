"""The daemon's side of the DNS process: what can be said to it. Blocking; used on the network thread only."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from fleet.errors import RuntimeFault
from fleet.network import processes
from fleet.network.dns.server import PROTOCOL

__all__ = ["DnsControl"]

_WHAT: Final = "DNS process"


class DnsControl:
    """A connection to the running DNS process."""

    def __init__(self, connection: socket.socket, *, pid: int, hello: dict[str, Any]) -> None:
        self._socket = connection
        self._unanswered: list[str] = []  # at most one: each call first reads what is left of the one before
        self.pid = pid
        self.known_sandboxes: set[str] = set(hello.get("sandboxes", ()))
        """Sandboxes the process had when we connected."""
        self.known_networks: dict[str, int] = dict(hello.get("networks", {}))
        """Revision of each table it had when we connected."""

    @staticmethod
    def connect(path: Path) -> DnsControl | None:
        """Connect to the process behind ``path``; ``None`` if there is none that can be used (``processes.connect``)."""
        found = processes.connect(path, protocol=PROTOCOL, what=_WHAT)
        return DnsControl(found[0], pid=found[1]["pid"], hello=found[1]) if found is not None else None

    @staticmethod
    def start(path: Path, *, log: Path) -> DnsControl:
        """Start a process in the calling thread's network namespace and connect to it. Raises ``RuntimeFault``."""
        interpreter = (processes.system_interpreter(), "-I", "-S")
        pid = processes.start(path, log=log, module="fleet.network.dns.server", interpreter=interpreter)
        control = DnsControl.connect(path)
        if control is None:
            processes.reap(pid)
            raise RuntimeFault(f"{_WHAT} {pid} did not answer within {processes.TIMEOUT_S:.0f} s; see {log}")
        return control

    def close(self) -> None:
        """Leave the process running."""
        self._socket.close()

    def kill(self) -> None:
        """End the process the hard way; gone is fine."""
        self.close()
        processes.kill(self.pid)

    def stop(self) -> None:
        """End the process in good order."""
        self._call({"op": "stop"})
        self.close()
        processes.reap(self.pid)

    def put_network(self, table: dict[str, Any]) -> None:
        """Replace the table of a network."""
        self._post({"op": "network", "table": table})

    def drop_network(self, network_id: str) -> None:
        """Forget a network."""
        self._call({"op": "drop-network", "id": network_id})

    def put_sandbox(
        self,
        sandbox_id: str,
        *,
        networks: Sequence[str],
        forward: bool,
        servers: Sequence[str],
        sockets: Sequence[socket.socket] = (),
    ) -> None:
        """Set a sandbox's view; with ``sockets`` (udp, tcp[, upstream]) also where its questions arrive."""
        request = {
            "op": "sandbox",
            "id": sandbox_id,
            "networks": list(networks),
            "forward": forward,
            "servers": list(servers),
            "fds": len(sockets),
        }
        self._post(request, [sock.fileno() for sock in sockets])

    def borrow_sockets(self, sandbox_id: str) -> list[socket.socket]:
        """Duplicates of the sockets the process has for a sandbox; empty if it has none."""
        _, descriptors = self._call({"op": "sockets", "id": sandbox_id})
        return [socket.socket(fileno=descriptor) for descriptor in descriptors]

    def forget(self, sandbox_id: str) -> None:
        """Close the process's sockets of a sandbox (they would keep its namespace alive)."""
        self._post({"op": "forget", "id": sandbox_id})

    def set_upstream(self, servers: Sequence[str]) -> None:
        """Set the host's own resolvers."""
        self._call({"op": "upstream", "servers": list(servers)})

    def _call(self, request: dict[str, Any], descriptors: Sequence[int] = ()) -> tuple[dict[str, Any], list[int]]:
        self._collect()
        answer, received = processes.ask(self._socket, request, descriptors, what=_WHAT)
        self._check(request["op"], answer)
        return answer, received

    def _post(self, request: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send a request and leave its answer for the next call: the process handles requests in order anyway."""
        self._collect()
        processes.tell(self._socket, request, descriptors, what=_WHAT)
        self._unanswered.append(request["op"])

    def _collect(self) -> None:
        while self._unanswered:
            operation = self._unanswered.pop(0)
            self._check(operation, processes.answer_to(self._socket, operation, what=_WHAT)[0])

    def _check(self, operation: str, answer: dict[str, Any]) -> None:
        if "error" in answer:
            raise RuntimeFault(f"{_WHAT} {self.pid} refused {operation}: {answer['error']}")
