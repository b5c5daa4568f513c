"""The manager's part: all hosts listen, then all look and speak, then all say what they heard."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import Final, TypeVar

from msgspec.structs import replace

from fleet import errors
from fleet.daemon.doctor.host import HostDoctor
from fleet.daemon.doctor.verdict import HostSeen, judge_ways, targets_of
from fleet.daemon.doctor.words import (
    HeardAnswer,
    HostWord,
    ListenAnswer,
    ListenRequest,
    LookAnswer,
    LookRequest,
    Report,
    Target,
)
from fleet.daemon.moves.peers import Peers
from fleet.model import wire
from fleet.model.node import Node, NodeState
from fleet.network.doctor.finding import Check, Finding, Level, note, wrong
from fleet.store import Store

__all__ = ["Doctor"]

A = TypeVar("A")

_ARRIVAL_S: Final = 0.3
"""From the last packet sent to the question what arrived; they are under way for milliseconds."""
_LOOK_S: Final = 50.0
_AT_ONCE: Final = 32
_DATA_PATH_PORT: Final = 4789


class Doctor:
    """One for the daemon. ``peers`` reaches the other hosts, and this one too."""

    def __init__(self, host: HostDoctor, peers: Peers) -> None:
        self.host = host
        self._peers = peers
        self._gate = asyncio.Semaphore(_AT_ONCE)

    async def alone(self, networks: Sequence[str], *, hostname: str, why: str) -> Report:
        """What this host can see without a manager; ``why`` it is without."""
        findings = await self.host.alone(networks)
        if why:
            findings.append(note(Check.PATH, f"the ways to other hosts were not tried: {why}"))
        return _report([HostWord(hostname=hostname)], [replace(finding, host=hostname) for finding in findings])

    async def examine(self, store: Store, networks: Sequence[str], *, node: str = "") -> Report:
        """All hosts, or the one called ``node`` and its ways to the others. Raises ``NotFoundError``, ``UserError``."""
        chosen = store.nodes.find(node, "node").id if node else ""
        run = secrets.token_hex(16)
        port = next((cluster.data_path_port for cluster in store.clusters.all()), _DATA_PATH_PORT)
        members = sorted((n for n in store.nodes.all() if not n.removed), key=lambda n: (_hostname(n), n.id))
        findings: list[Finding] = []
        ready: list[Node] = []
        for member in members:
            if member.status.state is NodeState.READY and member.cluster_addr:
                ready.append(member)
                continue
            says = f"{_hostname(member)} is {member.status.state}, so it was not looked at"
            remedy = f"start fleetd there, or take it out of the cluster: fleet node rm {_hostname(member)}"
            make = wrong if not chosen or member.id == chosen else note
            findings.append(replace(make(Check.HOST, says, remedy), host=_hostname(member)))
        hosts: dict[int, HostSeen] = {}
        listen = wire.encode(ListenRequest(networks=tuple(networks), vxlan_port=port))
        answers = await asyncio.gather(*(self._ask(n, run, "listen", ListenAnswer, listen) for n in ready))
        for number, (member, answer) in enumerate(zip(ready, answers, strict=True)):
            if isinstance(answer, Finding):
                findings.append(answer)
                continue
            hosts[number] = HostSeen(
                number=number, name=_hostname(member), listening=answer, examined=not chosen or member.id == chosen
            )
        seen = list(hosts.values())
        requests = [self._look(ready[host.number], run, host, seen, networks) for host in seen]
        for host, look in zip(seen, await asyncio.gather(*requests), strict=True):
            if isinstance(look, Finding):
                findings.append(look)
            else:
                host.look = look
                findings += [replace(finding, host=host.name) for finding in look.findings]
        await asyncio.sleep(_ARRIVAL_S)
        heard = await asyncio.gather(*(self._ask(ready[h.number], run, "heard", HeardAnswer, b"") for h in seen))
        deaf: set[int] = set()
        for host, answer_ in zip(seen, heard, strict=True):
            if isinstance(answer_, Finding):
                findings.append(answer_)
                deaf.add(host.number)
            else:
                host.heard = answer_.heard
        findings += judge_ways([host for host in seen if host.number not in deaf])
        words = [
            HostWord(id=ready[h.number].id, hostname=h.name, address=h.listening.underlay) for h in seen if h.examined
        ]
        return _report(words, [_with_names(store, finding) for finding in findings])

    async def _look(
        self, member: Node, run: str, host: HostSeen, hosts: Sequence[HostSeen], networks: Sequence[str]
    ) -> LookAnswer | Finding:
        position = hosts.index(host)
        following = hosts[(position + 1) % len(hosts)]
        door = Target(number=following.number, name=following.name, underlay=following.listening.underlay)
        wish = LookRequest(
            number=host.number,
            networks=tuple(networks),
            examine=host.examined,
            targets=targets_of(host, hosts),
            doors=(door,) if following is not host else (),
        )
        return await self._ask(member, run, "look", LookAnswer, wire.encode(wish))

    async def _ask(self, member: Node, run: str, step: str, kind: type[A], body: bytes) -> A | Finding:
        name = _hostname(member)
        path = f"/cluster/v1/doctor/{run}/{step}"
        try:
            async with self._gate:
                answer = await self._peers.ask(
                    "POST", member.cluster_addr, path, host=name, body=body, answer_s=_LOOK_S
                )
            return wire.parse_builtins(answer, kind, what=f"answer of {name}")
        except errors.FleetError as cause:
            finding = wrong(
                Check.HOST,
                f"{name} could not be examined: {cause}",
                "see whether it is up, whether TCP passes to that address, and its daemon's log; an older fleetd has to be "
                "brought up to date",
            )
            return replace(finding, host=name)


def _hostname(node: Node) -> str:
    return node.description.hostname or node.id


def _with_names(store: Store, finding: Finding) -> Finding:
    """Hosts know a service on the ingress network by its id alone."""
    if finding.check is not Check.PORTS or finding.level is Level.RIGHT:
        return finding
    for service in store.services.all():
        if service.id in finding.says or service.id in finding.remedy:
            says, remedy = (text.replace(service.id, service.spec.name) for text in (finding.says, finding.remedy))
            finding = replace(finding, says=says, remedy=remedy)
    return finding


def _report(hosts: Sequence[HostWord], findings: Sequence[Finding]) -> Report:
    return Report(
        healthy=all(finding.level is not Level.WRONG for finding in findings),
        hosts=tuple(hosts),
        findings=tuple(sorted(findings, key=lambda finding: finding.host)),
    )
