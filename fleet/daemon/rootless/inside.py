"""What fleetd, inside its namespaces, asks of the processes around it: carry ports, tell what is possible."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from fleet.daemon.rootless import delegation
from fleet.daemon.rootless.records import OUTSIDE, PORTS_SOCKET, ask
from fleet.errors import ConflictError, RuntimeFault, UnsupportedError, UserError
from fleet.network.topology import HostPort

__all__ = ["Inside", "port_error"]


class Inside:
    """Of one daemon; ``exec_root`` as it was started with."""

    def __init__(self, exec_root: Path) -> None:
        self._folder = exec_root / "rootless"

    async def open_ports(self, sandbox_id: str, ports: Sequence[HostPort]) -> None:
        """Lead these ports of the host into the namespaces; all or none. Idempotent.

        Raises ``ConflictError`` for one in use, ``UserError`` for one that an ordinary user may not have or an address that is
        not the host's, ``UnsupportedError`` for SCTP.
        """
        if any(port.protocol not in ("tcp", "udp") for port in ports):
            raise UnsupportedError("publish an SCTP port: a fleetd without root carries TCP and UDP only")
        wanted = [[port.protocol, port.host_address, port.host_port] for port in ports]
        answer = await self._ask(PORTS_SOCKET, {"op": "open", "id": sandbox_id, "ports": wanted})
        if "error" in answer:
            raise port_error(answer)

    async def close_ports(self, sandbox_id: str) -> None:
        """The sandbox's ports lead nowhere any more. Idempotent."""
        with contextlib.suppress(RuntimeFault):  # without the anchor none is open
            await self._ask(PORTS_SOCKET, {"op": "close", "id": sandbox_id})

    async def keep_ports(self, sandboxes: Collection[str]) -> None:
        """Close those of all other sandboxes."""
        with contextlib.suppress(RuntimeFault):
            for sandbox_id in (await self._ask(PORTS_SOCKET, {"op": "list"}))["ids"]:
                if sandbox_id not in sandboxes:
                    await self.close_ports(sandbox_id)

    def warnings(self) -> list[str]:
        """What does not work here and why, for ``info``."""
        found = []
        record: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            record = json.loads((self._folder / OUTSIDE).read_text())
        if why := record.get("why_no_network", ""):
            found.append(f"WARNING: no network beyond this host: {why}")
        if why := delegation.noted(self._folder).why_not:
            found.append(f"WARNING: containers have no limits and cannot be paused: {why}")
        found += [f"WARNING: {text}" for text in record.get("limits", ())]
        return found

    def cgroup_parent(self, configured: str) -> str:
        """Where containers' groups are made; ``NO_CGROUPS`` where this user may make none."""
        return delegation.noted(self._folder).parent(configured)

    def why_no_network(self) -> str:
        """Why nothing beyond this host can be reached; "" when it can."""
        with contextlib.suppress(OSError, ValueError):
            return str(json.loads((self._folder / OUTSIDE).read_text()).get("why_no_network", ""))
        return ""

    async def _ask(self, name: str, question: dict[str, Any]) -> dict[str, Any]:
        try:
            answer, _ = await asyncio.to_thread(ask, self._folder / name, question)
        except (OSError, ValueError) as cause:
            raise RuntimeFault(
                f"the process that carries ports does not answer ({cause}): stop the running containers and fleetd, then "
                "start it again"
            ) from cause
        return answer


def port_error(answer: dict[str, Any]) -> Exception:
    """Pure. Why a port was not opened."""
    what = f"host port {answer['port']}/{answer['protocol']}"
    match answer["error"]:
        case errno.EADDRINUSE:
            return ConflictError(f"{what}: port is already allocated, a program on this host uses it")
        case errno.EADDRNOTAVAIL:
            return UserError(f"{what}: {answer['address']} is not an address of this host")
        case errno.EACCES:
            return UserError(
                f"{what}: low ports are root's, and this fleetd runs as an ordinary user; publish 1024 or above, or have root "
                f"run: sysctl -w net.ipv4.ip_unprivileged_port_start={answer['port']}"
            )
        case _:
            return RuntimeFault(f"{what}: {answer['text']}")
