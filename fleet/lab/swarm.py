"""Making one swarm of the hosts' daemons, through the engine API only, as a person with the ``docker`` command would."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fleet import errors
from fleet.api.client import EngineClient, EngineError
from fleet.lab.names import Role

__all__ = ["SWARM_PORT", "Member", "form_swarm"]

SWARM_PORT: Final = 2377
_POLL_S: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A host that should be in the swarm."""

    name: str
    role: Role
    address: str
    url: str


def form_swarm(members: list[Member], *, say: Callable[[str], None], timeout_s: float) -> None:
    """Bring every member into one swarm and wait until all its nodes are ready; those in already are left as they are.

    Raises ``FleetError`` naming the host and what its daemon said, ``UnavailableError`` when nodes are not ready after
    ``timeout_s``.
    """
    clients = {member.name: EngineClient(member.url, timeout_s=60.0) for member in members}
    try:
        states = {member.name: _swarm_info(clients[member.name]) for member in members}
        lead = next((m for m in members if states[m.name].get("ControlAvailable")), None)
        if lead is None:
            lead = members[0]
            say(f"{lead.name}: starting the swarm")
            _told(lead, lambda: clients[lead.name].post("/swarm/init", _advertised(lead)))
        tokens: Mapping[str, str] = clients[lead.name].get("/swarm")["JoinTokens"]
        for member in members:
            if member is lead or states[member.name].get("LocalNodeState") == "active":
                continue
            say(f"{member.name}: joining as {member.role}")
            body = {
                **_advertised(member),
                "RemoteAddrs": [f"{lead.address}:{SWARM_PORT}"],
                "JoinToken": tokens["Manager" if member.role == "manager" else "Worker"],
            }
            _told(member, lambda member=member, body=body: clients[member.name].post("/swarm/join", body))  # type: ignore[misc]
        _await_ready(clients[lead.name], {m.name for m in members}, say=say, timeout_s=timeout_s)
    finally:
        for client in clients.values():
            client.close()


def _advertised(member: Member) -> dict[str, str]:
    return {"AdvertiseAddr": member.address, "ListenAddr": f"0.0.0.0:{SWARM_PORT}"}


def _swarm_info(client: EngineClient) -> Mapping[str, Any]:
    return client.get("/info").get("Swarm") or {}


def _told(member: Member, call: Callable[[], object]) -> None:
    try:
        call()
    except EngineError as cause:
        raise EngineError(f"{member.name} as {member.role}: {cause}", status=cause.status) from cause


def _await_ready(client: EngineClient, names: set[str], *, say: Callable[[str], None], timeout_s: float) -> None:
    began = told = time.monotonic()
    while True:
        nodes = client.get("/nodes")
        ready = {n["Description"]["Hostname"] for n in nodes if n["Status"]["State"] == "ready"}
        missing = sorted(names - ready)
        now = time.monotonic()
        if not missing:
            return
        if now - began > timeout_s:
            raise errors.UnavailableError(f"nodes not ready after {timeout_s:g} s: {', '.join(missing)}")
        if now - told > 2:
            say(f"waiting for nodes: {', '.join(missing)} ({now - began:.0f} s)")
            told = now
        time.sleep(_POLL_S)
