"""Keeps the DNS process alive and told, on behalf of the network thread.

It holds duplicates of every sandbox's sockets and the tables last pushed, so a replacement for a dead process is
complete in a few milliseconds and questions asked meanwhile wait in the sockets. A daemon that finds a running
process borrows the sockets back.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fleet.errors import RuntimeFault
from fleet.network.dns.control import DnsControl
from fleet.network.dns.records import Zone

__all__ = ["DnsKeeper"]


@dataclass(slots=True)
class _Seat:
    """One sandbox's place in the DNS process."""

    networks: tuple[str, ...]
    forward: bool
    servers: tuple[str, ...]
    sockets: list[socket.socket] = field(default_factory=list)


class DnsKeeper:
    """The process, the seats and the zones. Every method may find the process dead and replace it once."""

    def __init__(self, *, socket_path: Path, log: Path, upstream: Callable[[], tuple[str, ...]]) -> None:
        self._socket_path = socket_path
        self._log = log
        self._upstream = upstream
        self._control: DnsControl | None = None
        self._seats: dict[str, _Seat] = {}
        self._zones: dict[str, Zone] = {}
        self._revisions: dict[str, int] = {}

    @property
    def pid(self) -> int:
        """The running process; 0 if there is none."""
        return self._control.pid if self._control is not None else 0

    def open(self) -> bool:
        """Connect to the running process or start one; returns whether it was already there."""
        self._control = DnsControl.connect(self._socket_path)
        if self._control is None:
            self._start()
            return False
        self._revisions = dict(self._control.known_networks)
        self._push_upstream()
        return True

    def close(self) -> None:
        """Leave the process alone with what it has."""
        if self._control is not None:
            self._control.close()
            self._control = None
        for seat in self._seats.values():
            _close(seat.sockets)
        self._seats.clear()

    def destroy(self) -> None:
        """End the process."""
        control = self._control
        if control is not None:
            try:
                control.stop()
            except RuntimeFault:
                control.kill()
        self.close()

    def restart(self) -> None:
        """Replace the process; everything it knew is given to the new one. Raises ``RuntimeFault`` if none will start."""
        if self._control is not None:
            self._control.kill()
            self._control = None
        self._start()

    def alive(self) -> bool:
        """Whether the process answers; costs a round trip."""
        if self._control is None:
            return False
        try:
            self._control.set_upstream(self._upstream())
        except RuntimeFault:
            return False
        return True

    def put_zone(self, zone: Zone) -> bool:
        """Push a table if it differs from the one pushed last; returns whether it did."""
        if self._zones.get(zone.network_id) == zone:
            return False
        self._zones[zone.network_id] = zone
        self._revisions[zone.network_id] = self._revisions.get(zone.network_id, 0) + 1
        self._do(lambda control: control.put_network(zone.to_json(self._revisions[zone.network_id])))
        return True

    def drop_zone(self, network_id: str) -> None:
        """Forget a network."""
        self._zones.pop(network_id, None)
        self._do(lambda control: control.drop_network(network_id))

    def put_seat(
        self,
        sandbox_id: str,
        *,
        networks: Sequence[str],
        forward: bool,
        servers: Sequence[str],
        sockets: Sequence[socket.socket],
    ) -> None:
        """Seat a sandbox; its ``sockets`` now belong to the keeper."""
        seat = _Seat(tuple(networks), forward, tuple(servers), list(sockets))
        self._seats[sandbox_id] = seat
        self._do(lambda control: self._push_seat(control, sandbox_id, seat, with_sockets=True))

    def move_seat(self, sandbox_id: str, *, networks: Sequence[str], forward: bool) -> None:
        """Change which networks a sandbox asks, keeping its sockets."""
        seat = self._seats[sandbox_id]
        seat.networks, seat.forward = tuple(networks), forward
        self._do(lambda control: self._push_seat(control, sandbox_id, seat, with_sockets=False))

    def borrow(self, sandbox_id: str) -> list[socket.socket]:
        """Duplicates of the sockets the running process has for a sandbox; empty if none."""
        if self._control is None or sandbox_id not in self._control.known_sandboxes:
            return []
        return self._control.borrow_sockets(sandbox_id)

    def leave(self, sandbox_id: str) -> None:
        """Close all sockets of a sandbox, here and there."""
        seat = self._seats.pop(sandbox_id, None)
        if seat is not None:
            _close(seat.sockets)
        self._do(lambda control: control.forget(sandbox_id))

    def strangers(self) -> set[str]:
        """Sandboxes the process had when we connected and nobody has seated since."""
        known = self._control.known_sandboxes if self._control is not None else set()
        return known - self._seats.keys()

    def _do(self, action: Callable[[DnsControl], None]) -> None:
        """Act; if the process fails, replace it (which repeats everything it must know, this action's effect included)."""
        try:
            if self._control is None:
                raise RuntimeFault("DNS process is not running")
            action(self._control)
        except RuntimeFault:
            self.restart()

    def _start(self) -> None:
        self._control = DnsControl.start(self._socket_path, log=self._log)
        self._push_upstream()
        for zone in self._zones.values():
            self._control.put_network(zone.to_json(self._revisions[zone.network_id]))
        for sandbox_id, seat in self._seats.items():
            self._push_seat(self._control, sandbox_id, seat, with_sockets=True)

    def _push_upstream(self) -> None:
        if self._control is not None:
            self._control.set_upstream(self._upstream())

    def _push_seat(self, control: DnsControl, sandbox_id: str, seat: _Seat, *, with_sockets: bool) -> None:
        control.put_sandbox(
            sandbox_id,
            networks=seat.networks,
            forward=seat.forward,
            servers=seat.servers,
            sockets=seat.sockets if with_sockets else (),
        )


def _close(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        with contextlib.suppress(OSError):
            sock.close()
    sockets.clear()
