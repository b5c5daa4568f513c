"""The last of fleetd's doings: when nothing runs any more, the processes around it end too, and the namespaces with them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Final

from fleet.daemon.rootless import delegation
from fleet.daemon.rootless.records import OUTSIDE, OUTSIDE_SOCKET, ask, living, peer_pid
from fleet.errors import FleetError
from fleet.network.dns.control import DnsControl
from fleet.network.tunnel.control import TunnelControl
from fleet.node_runtime.state import StateDir, start_ticks

__all__ = ["leave", "running_containers"]

_END_TIMEOUT_S: Final = 10.0


def running_containers(data_root: Path) -> list[str]:
    """Ids of containers whose first process lives, by the supervisor's records."""
    state = StateDir(str(data_root / "runtime"))
    found = []
    for container_id in state.list():
        running = state.read(container_id, "running")
        if running is not None and running["ticks"] and start_ticks(running["pid"]) == running["ticks"]:
            found.append(container_id)
    return found


def leave(*, data_root: Path, exec_root: Path) -> int:
    """How many containers go on in the namespaces. When none does: end supervisor, DNS and tunnel process, anchor and the way
    out, and wait for that. Never raises.
    """
    with contextlib.suppress(OSError):
        if running := running_containers(data_root):
            return len(running)
    if pid := peer_pid(exec_root / "runtime" / "supervisor.sock"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    network = exec_root / "network"
    for control in (DnsControl.connect(network / "dns.sock"), TunnelControl.connect(network / "tunnel.sock")):
        with contextlib.suppress(FleetError):
            if control is not None:
                control.stop()
    folder = exec_root / "rootless"
    with contextlib.suppress(OSError, ValueError):
        ask(folder / OUTSIDE_SOCKET, {"op": "end"})
        deadline = time.monotonic() + _END_TIMEOUT_S
        while living(folder, OUTSIDE) and time.monotonic() < deadline:
            time.sleep(0.02)
        delegation.release(folder)
    return 0
