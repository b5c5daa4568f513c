"""What names, virtual addresses and ports should lead to, computed from what the Docker API shows and from nothing else.

An oracle on purpose: it shares no code with ``fleet.network``. ``look_at`` reads the cluster, ``unsettled`` says why it is not at
rest yet, ``seats`` writes the questions for ``name_probe`` and ``wrong`` compares its answers.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Final

from support.lab import TestLab

PORT: Final = 8080
"""Where each container of the test says its identity."""
_REFUSED: Final = "!ConnectionRefusedError"
_REACH_S: Final = 3.0
_STRANGER_S: Final = 0.7
_STRANGERS: Final = 8
_NEIGHBOURS: Final = 12


@dataclass(frozen=True, kw_only=True)
class Member:
    """A running container: of a task, or one that no service made."""

    host: str
    container: str
    pid: int
    service: str = ""
    addresses: dict[str, str] = field(default_factory=dict)
    """Network id -> address, overlays only."""

    @property
    def says(self) -> str:
        return self.container[:12]


@dataclass(kw_only=True)
class Picture:
    networks: dict[str, str] = field(default_factory=dict)
    """Overlay networks (without ingress): id -> name."""
    members: list[Member] = field(default_factory=list)
    names: dict[str, dict[str, set[str]]] = field(default_factory=lambda: defaultdict(dict))
    """Network id -> name -> addresses."""
    reverse: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    """Network id -> address -> full name."""
    vips: dict[str, dict[str, set[str]]] = field(default_factory=lambda: defaultdict(dict))
    """Network id -> virtual address -> what its backends say."""
    published: dict[int, set[str]] = field(default_factory=dict)
    """Published port -> what the tasks behind say."""
    unsettled: str = ""

    @property
    def summary(self) -> str:
        names = sum(len(each) for each in self.names.values())
        return (
            f"{len(self.networks)} networks, {len(self.members)} containers, {names} names, {len(self.published)} ports"
        )


def look_at(lab: TestLab, *, via: str, present: list[str]) -> Picture:
    """``present`` are hosts that are on and connected, ``via`` a manager among them."""
    picture = Picture()
    nodes = lab.get("/nodes", host=via)
    names = {n["ID"]: n["Description"]["Hostname"] for n in nodes}
    states = {n["Description"]["Hostname"]: n["Status"]["State"] for n in nodes}
    away = sorted(h for h in states if (states[h] == "ready") is not (h in present))
    if away:
        picture.unsettled = f"nodes: {', '.join(f'{h} is {states[h]}' for h in away)}"
        return picture
    picture.networks = {
        n["Id"]: n["Name"]
        for n in lab.get("/networks", host=via)
        if n["Scope"] == "swarm" and n["Driver"] == "overlay" and not n["Ingress"]
    }
    services = lab.get("/services", host=via)
    tasks = lab.get("/tasks", host=via)
    shown = {host: lab.get("/containers/json", host=host) for host in present}
    pids = {
        (host, c["Id"]): lab.get(f"/containers/{c['Id']}/json", host=host)["State"]["Pid"]
        for host in present
        for c in shown[host]
    }
    running = [t for t in tasks if t["DesiredState"] == "running" and t["Status"]["State"] == "running"]
    picture.unsettled = _tasks_unsettled(services, tasks, running, nodes, names, pids, present)
    if picture.unsettled:
        return picture
    for task in running:
        host, container = names[task["NodeID"]], task["Status"]["ContainerStatus"]["ContainerID"]
        addresses = {
            a["Network"]["ID"]: a["Addresses"][0].partition("/")[0]
            for a in task.get("NetworksAttachments") or ()
            if a["Network"]["ID"] in picture.networks
        }
        member = Member(
            host=host, container=container, pid=pids[host, container], service=task["ServiceID"], addresses=addresses
        )
        picture.members.append(member)
        service = next(s for s in services if s["ID"] == task["ServiceID"])
        place = f"{service['Spec']['Name']}.{task.get('Slot') or task['NodeID']}"
        for network, address in addresses.items():
            for name in (place, f"{place}.{task['ID']}"):
                picture.names[network].setdefault(name.lower(), set()).add(address)
            picture.reverse[network][address] = f"{place}.{task['ID']}.{picture.networks[network]}".lower()
    _add_guests(lab, picture, shown, pids)
    for service in services:
        _add_service(picture, service)
    return picture


def _tasks_unsettled(
    services: list[dict[str, Any]],
    tasks: list[dict[str, Any]],
    running: list[dict[str, Any]],
    nodes: list[dict[str, Any]],
    names: dict[str, str],
    pids: dict[tuple[str, str], int],
    present: list[str],
) -> str:
    free = sum(1 for n in nodes if n["Status"]["State"] == "ready" and n["Spec"]["Availability"] == "active")
    for service in services:
        name, mode = service["Spec"]["Name"], service["Spec"]["Mode"]
        wanted = mode["Replicated"]["Replicas"] if "Replicated" in mode else free
        count = sum(1 for t in running if t["ServiceID"] == service["ID"])
        if count != wanted:
            return f"service {name}: {count} of {wanted} tasks run"
        if (service.get("UpdateStatus") or {}).get("State") in ("updating", "rollback_started"):
            return f"service {name}: being updated"
    known = {s["ID"] for s in services}
    for task in tasks:
        if task["Status"]["State"] in ("complete", "shutdown", "failed", "rejected", "orphaned"):
            continue
        if names.get(task.get("NodeID", "")) not in present and task["DesiredState"] != "running":
            continue  # its host is away: nobody can say what became of it
        if task not in running:
            return f"task {task['ID']}: {task['Status']['State']}, wanted {task['DesiredState']}"
        if task["ServiceID"] not in known:
            return f"task {task['ID']} of a service that is gone"
    there = {(names[t["NodeID"]], t["Status"]["ContainerStatus"]["ContainerID"]) for t in running}
    if missing := there - pids.keys():
        return f"tasks whose container is not there: {missing}"
    return ""


def _add_guests(
    lab: TestLab,
    picture: Picture,
    shown: dict[str, list[dict[str, Any]]],
    pids: dict[tuple[str, str], int],
) -> None:
    """Containers that no service made, with the overlays they are on."""
    by_name = {name: id_ for id_, name in picture.networks.items()}
    for host, containers in shown.items():
        for found in containers:
            if "com.docker.swarm.task.id" in found["Labels"]:
                continue
            detail = lab.get(f"/containers/{found['Id']}/json", host=host)
            cards = detail["NetworkSettings"]["Networks"]
            unnamed = [name for name in cards if name in picture.networks]
            if unnamed:
                picture.unsettled = f"{host} does not know the name of network {unnamed[0]} yet"
                return
            addresses = {by_name[n]: card["IPAddress"] for n, card in cards.items() if n in by_name}
            member = Member(host=host, container=found["Id"], pid=pids[host, found["Id"]], addresses=addresses)
            picture.members.append(member)
            for name, card in cards.items():
                for each in (detail["Name"].lstrip("/"), *(card["Aliases"] or ())) if name in by_name else ():
                    picture.names[by_name[name]].setdefault(each.lower(), set()).add(card["IPAddress"])
                if name in by_name:
                    full = f"{detail['Name'].lstrip('/')}.{name}"
                    picture.reverse[by_name[name]][card["IPAddress"]] = full.lower()


def _add_service(picture: Picture, service: dict[str, Any]) -> None:
    spec = service["Spec"]
    vips = {v["NetworkID"]: v["Addr"].partition("/")[0] for v in service["Endpoint"].get("VirtualIPs") or ()}
    mine = [m for m in picture.members if m.service == service["ID"]]
    by_name = {name: id_ for id_, name in picture.networks.items()}
    for wish in spec["TaskTemplate"].get("Networks") or ():
        network = by_name.get(wish["Target"], wish["Target"])
        on_it = [m for m in mine if network in m.addresses]
        vip = vips.get(network) if spec.get("EndpointSpec", {}).get("Mode", "vip") == "vip" else None
        for name in (spec["Name"], *(wish.get("Aliases") or ())):
            tasks = {m.addresses[network] for m in on_it}
            picture.names[network].setdefault(name.lower(), set()).update({vip} if vip else tasks)
            picture.names[network].setdefault(f"tasks.{name}".lower(), set()).update(tasks)
        if vip:
            picture.vips[network][vip] = {m.says for m in on_it}
            picture.reverse[network][vip] = f"{spec['Name']}.{picture.networks[network]}".lower()
    for port in service["Endpoint"].get("Ports") or ():
        if port["PublishMode"] == "ingress":
            picture.published[port["PublishedPort"]] = {m.says for m in mine}


def seats(
    picture: Picture, chance: random.Random, *, gone: set[str], addresses: dict[str, str]
) -> dict[str, list[dict[str, Any]]]:
    """The questions for each host: from each of its containers, and from the host itself to the published ports of all.

    ``gone`` are names that were once; ``addresses`` those of the hosts that are present.
    """
    found: dict[str, list[dict[str, Any]]] = {host: [] for host in addresses}
    for member in picture.members:
        if not member.addresses:
            continue
        names: list[tuple[str, bool]] = []
        reverse: list[str] = []
        doors: list[tuple[str, int, int, float]] = []
        for network in member.addresses:
            names += [(name, True) for name in picture.names[network]]
            names += [(f"{name}.{picture.networks[network]}", True) for name in picture.names[network]]
            reverse += sorted(picture.reverse[network])
            doors += [(vip, PORT, max(len(says), 1), _REACH_S) for vip, says in picture.vips[network].items()]
            near = [m.addresses[network] for m in picture.members if network in m.addresses]
            doors += [(a, PORT, 1, _REACH_S) for a in chance.sample(near, min(len(near), _NEIGHBOURS))]
        here = {name for network in member.addresses for name in picture.names[network]}
        names += [(name, False) for name in sorted(gone - here)]
        far = [
            a for m in picture.members if not m.addresses.keys() & member.addresses.keys() for a in m.addresses.values()
        ]
        doors += [(a, PORT, 1, _STRANGER_S) for a in chance.sample(far, min(len(far), _STRANGERS))]
        found[member.host].append(
            {
                "key": member.container,
                "netns": f"/proc/{member.pid}/ns/net",
                "names": names,
                "reverse": reverse,
                "doors": doors,
            }
        )
    for host in addresses:
        doors = [
            (addresses[other], port, max(len(says), 1), _REACH_S)
            for port, says in picture.published.items()
            for other in addresses
        ]
        found[host].append({"key": host, "netns": "", "names": [], "reverse": [], "doors": doors})
    return found


def wrong(
    picture: Picture, asked: dict[str, list[dict[str, Any]]], answers: dict[str, list[dict[str, Any]]]
) -> list[str]:
    """A sentence for each answer that is not what should be."""
    found: list[str] = []
    members = {m.container: m for m in picture.members}
    published: dict[tuple[str, int], set[str]] = defaultdict(set)
    for host, questions in asked.items():
        by_key = {answer["key"]: answer for answer in answers.get(host, ())}
        for seat in questions:
            answer = by_key.get(seat["key"])
            if answer is None:
                found.append(f"{host}: no answers from {seat['key'][:12]}")
                continue
            member = members.get(seat["key"])
            if member is None:
                for (address, port, _, _), told in zip(seat["doors"], answer["doors"], strict=True):
                    published[address, port].update(told)
                continue
            where = f"{host}, in {member.says}"
            found += [f"{where}: {each}" for each in _wrong_names(picture, member, seat, answer)]
            found += [f"{where}: {each}" for each in _wrong_doors(picture, member, seat, answer)]
    for (address, port), told in published.items():
        wanted = picture.published[port] or {_REFUSED}
        if told != wanted:
            found.append(f"port {port} of {address}: {sorted(told)}, wanted {sorted(wanted)}")
    return found


def _wrong_names(picture: Picture, member: Member, seat: dict[str, Any], answer: dict[str, Any]) -> list[str]:
    found = []
    tables = {picture.networks[n]: picture.names[n] for n in member.addresses}
    for (name, wanted), addresses in zip(seat["names"], answer["names"], strict=True):
        if not wanted:
            if isinstance(addresses, list):
                found.append(f"{name} is gone or elsewhere, but resolves to {addresses}")
            continue
        possible = [table[name] for table in tables.values() if name in table]
        for network, table in tables.items():
            if name.endswith(f".{network}") and (short := name.removesuffix(f".{network}")) in table:
                possible.append(table[short])
        if not isinstance(addresses, list) or set(addresses) not in possible:
            found.append(f"{name} resolves to {addresses}, wanted {' or '.join(str(sorted(p)) for p in possible)}")
    for address, names in zip(seat["reverse"], answer["reverse"], strict=True):
        possible_names = {picture.reverse[n].get(address) for n in member.addresses} - {None}
        if not isinstance(names, list) or len(names) != 1 or names[0].lower() not in possible_names:
            found.append(f"{address} is called {names}, wanted {sorted(filter(None, possible_names))}")
    return found


def _wrong_doors(picture: Picture, member: Member, seat: dict[str, Any], answer: dict[str, Any]) -> list[str]:
    found = []
    near = {m.addresses[n]: m.says for m in picture.members for n in member.addresses if n in m.addresses}
    vips = {vip: says for n in member.addresses for vip, says in picture.vips[n].items()}
    for (address, _, _, _), told in zip(seat["doors"], answer["doors"], strict=True):
        if address in vips:
            wanted = vips[address] or {_REFUSED}
            if set(told) != wanted:
                found.append(f"virtual address {address} leads to {sorted(set(told))}, wanted {sorted(wanted)}")
        elif address in near:
            if told != [near[address]]:
                found.append(f"{address} answers {told}, wanted {near[address]}")
        elif not told[0].startswith("!"):
            found.append(f"{address} is on no common network, and answers {told}")
    return found
