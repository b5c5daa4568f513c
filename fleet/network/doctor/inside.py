"""Asks for names from inside sandboxes, as a program there would, and knocks at ports that should be open."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from fleet.errors import NotFoundError
from fleet.network.dns import wire
from fleet.network.doctor.finding import Check, Finding, note, right, wrong
from fleet.network.doctor.view import PlaneView
from fleet.network.ipam import is_ipv6
from fleet.network.namespaces import open_namespace
from fleet.network.resolv import EMBEDDED_SERVER

__all__ = ["Door", "Question", "ask", "doors", "judge_answer", "knock", "questions"]

_TRIES, _TRY_S = 2, 1.5
_DOOR_S = 2.0
_QUESTIONS_MAX = 32
_CLOSED = "see what the daemon's log says of its container, and whether it listens on 0.0.0.0 rather than 127.0.0.1"


@dataclass(slots=True, kw_only=True)
class Question:
    """``name`` asked from inside ``sandbox_id``; ``expected`` is what the tables say. ``sock`` is the asker's to close."""

    sandbox_id: str
    network: str
    name: str
    expected: frozenset[str]
    sock: socket.socket


def questions(view: PlaneView, network_id: str) -> list[Question]:
    """One for each container on the network, about one of its services in turn; on the network thread."""
    state = view.states.get(network_id)
    if state is None:
        return []
    zone = view.zone(network_id)
    names = [s.name.lower() for s in state.services if s.name.lower() in zone.hosts] or sorted(zone.hosts)
    found: list[Question] = []
    on = [record for record in view.records.values() if any(i.network_id == network_id for i in record.interfaces)]
    for number, record in enumerate(on[:_QUESTIONS_MAX]):
        if not names or not record.dns_port:
            continue
        name = names[number % len(names)]
        tables = (view.zone(other).hosts.get(name) for other in view.asking_order(record) if other in view.states)
        expected = next((addresses for hit in tables if hit is not None for addresses in (hit[1],)), ())
        with suppress(NotFoundError):
            sock = _socket_inside(view, record.spec.id)
            found.append(
                Question(
                    sandbox_id=record.spec.id,
                    network=state.network.name,
                    name=name,
                    expected=frozenset(address for address in expected if not is_ipv6(address)),
                    sock=sock,
                )
            )
    return found


async def ask(question: Question) -> frozenset[str] | None:
    """Addresses answered; ``None`` for silence. Closes the socket."""
    loop = asyncio.get_running_loop()
    with question.sock as sock:
        for _ in range(_TRIES):
            identity = secrets.randbelow(1 << 16)
            with suppress(TimeoutError, OSError):
                async with asyncio.timeout(_TRY_S):
                    await loop.sock_connect(sock, (EMBEDDED_SERVER, 53))
                    await loop.sock_sendall(sock, wire.build_query(question.name, wire.A, identity=identity))
                    while True:
                        data = await loop.sock_recv(sock, 65535)
                        if data[:2] == struct.pack("!H", identity):
                            return _addresses(data)
    return None


def judge_answer(question: Question, answer: frozenset[str] | None) -> Finding:
    """What an answer means."""
    what = f"name {question.name} asked inside container {question.sandbox_id[:12]}"
    if answer is None:
        return wrong(
            Check.NAMES,
            f"{what} gets no answer: the resolver at {EMBEDDED_SERVER} is silent there",
            "see whether rules inside the container drop it (nft list ruleset in its namespace), and the daemon's log for the "
            "DNS process",
            network=question.network,
        )
    if answer != question.expected:
        got, expected = (", ".join(sorted(each)) or "no address" for each in (answer, question.expected))
        return wrong(
            Check.NAMES,
            f"{what} is answered with {got}; it should be {expected}",
            "look again in a few seconds; if it stays so, restart fleetd on this host: it tells the DNS process everything anew",
            network=question.network,
        )
    return right(Check.NAMES, f"{what} is answered rightly", network=question.network)


@dataclass(slots=True, kw_only=True)
class Door:
    """A TCP port that should be open. ``sock`` is the knocker's to close; ``who`` and ``remedy`` are parts of the sentence."""

    address: str
    port: int
    who: str
    remedy: str
    sock: socket.socket


def doors(view: PlaneView, *, elsewhere: Sequence[tuple[str, str]] = ()) -> tuple[list[Door], list[Finding]]:
    """Published ports as this host can try them: here, behind them, and at hosts ``elsewhere`` (name, address).

    Also what is known without knocking: ports that lead nowhere. On the network thread.
    """
    ingress = next((state for state in view.states.values() if state.network.ingress), None)
    found: list[Door] = []
    known: list[Finding] = []
    for port in view.published if ingress is not None else ():
        assert ingress is not None
        service = next((s.name for s in ingress.services if s.id == port.service_id), port.service_id)
        what = f"published port {port.published_port}/{port.protocol} of service {service}"
        ready = [e for e in ingress.endpoints if e.service_id == port.service_id and e.ready]
        if not ready:
            known.append(
                wrong(
                    Check.PORTS,
                    f"{what} is closed: no task of the service is ready",
                    f"fleet service ps {service} says why",
                    network=ingress.network.name,
                )
            )
            continue
        if port.protocol != "tcp":
            says = f"{what} was not tried: only TCP tells whether somebody listens"
            known.append(note(Check.PORTS, says, network=ingress.network.name))
            continue
        for endpoint in ready:
            if endpoint.underlay == view.underlay:
                who = f"task {_name(endpoint.names, endpoint.id)} does not listen on port {port.target_port}, so {what}"
                found.append(_door(endpoint.address, port.target_port, f"{who} fails", _CLOSED))
        remedy = "look for what else is wrong on this host, and for rules of others (nft list ruleset)"
        found.append(_door(view.underlay, port.published_port, f"{what} is closed at this host", remedy))
        for name, address in elsewhere:
            firewall = f"let TCP port {port.published_port} pass at {name}, and see what is wrong there"
            found.append(_door(address, port.published_port, f"{what} is closed at {name}, tried from here", firewall))
    return found, known


async def knock(door: Door) -> Finding | None:
    """``None`` when it opened. Nothing is said to whoever opens."""
    loop = asyncio.get_running_loop()
    cause = "nobody answered within 2 s"
    with door.sock as sock:
        try:
            async with asyncio.timeout(_DOOR_S):
                await loop.sock_connect(sock, (door.address, door.port))
            return None
        except TimeoutError:
            pass
        except OSError as error:
            cause = os.strerror(error.errno).lower() if error.errno else str(error)
    return wrong(Check.PORTS, f"{door.who} ({door.address}:{door.port}: {cause})", door.remedy)


def _door(address: str, port: int, who: str, remedy: str) -> Door:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    return Door(address=address, port=port, who=who, remedy=remedy, sock=sock)


def _name(names: Sequence[str], other: str) -> str:
    return names[0] if names else other


def _socket_inside(view: PlaneView, sandbox_id: str) -> socket.socket:
    netns = open_namespace(view.netns_path(sandbox_id))
    try:
        with view.thread.inside(netns):
            return socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    finally:
        os.close(netns)


def _addresses(data: bytes) -> frozenset[str]:
    """A records of an answer. Raises ``OSError`` for bytes that are none, as if nothing had come."""
    try:
        questions_, answers = struct.unpack_from("!HH", data, 4)
        offset = 12
        for _ in range(questions_):
            offset = _skip_name(data, offset) + 4
        found = set()
        for _ in range(answers):
            offset = _skip_name(data, offset)
            kind, _, _, length = struct.unpack_from("!HHIH", data, offset)
            offset += 10
            if kind == wire.A and length == 4:
                found.add(socket.inet_ntoa(data[offset : offset + 4]))
            offset += length
    except (struct.error, IndexError) as cause:
        raise OSError("not a DNS answer") from cause
    return frozenset(found)


def _skip_name(data: bytes, offset: int) -> int:
    while data[offset]:
        if data[offset] & 0xC0:
            return offset + 2
        offset += data[offset] + 1
    return offset + 1
