"""What the DNS process knows, and how a question becomes an answer: pure, no sockets, no clock.

A *table* is everything one network's names mean, complete and numbered; a newer one replaces an older one whole. A *view* is
one sandbox: the networks it is on, in order, and where its other questions go.
"""

from __future__ import annotations

import random
import socket
from dataclasses import dataclass, field
from typing import Any

from fleet.network.dns import wire

__all__ = ["Answer", "Directory", "Table", "View"]

_REVERSE, _REVERSE6 = ".in-addr.arpa", ".ip6.arpa"


@dataclass
class Table:
    """One network: ``hosts`` maps lower-case names to (TTL in seconds, addresses of both families), ``reverse`` addresses to full
    names."""

    network_id: str
    name: str
    revision: int
    subnet: tuple[int, int] = (0, 0)  # (network address, mask) as integers
    subnet6: tuple[int, int] | None = None
    hosts: dict[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict)
    reverse: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def from_json(value: dict[str, Any]) -> Table:
        """Read what ``records.Zone.to_json`` wrote."""
        return Table(
            network_id=value["id"],
            name=value["name"].lower(),
            revision=int(value["revision"]),
            subnet=(int(value["subnet"][0]), int(value["subnet"][1])),
            subnet6=(int(value["subnet6"][0], 16), int(value["subnet6"][1], 16)) if value["subnet6"] else None,
            hosts={name: (int(entry[0]), tuple(entry[1:])) for name, entry in value["hosts"].items()},
            reverse=dict(value["reverse"]),
        )


@dataclass
class View:
    """One sandbox. ``servers`` empty means the host's; ``forward`` False (internal networks only) means none at all."""

    sandbox_id: str
    networks: tuple[str, ...]
    forward: bool = True
    servers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """Records for a question the directory is authoritative for."""

    code: int
    records: list[tuple[int, int, bytes]]


class Directory:
    """All tables of this host."""

    def __init__(self, *, rng: random.Random | None = None) -> None:
        self.tables: dict[str, Table] = {}
        self._rng = rng or random.Random()  # noqa: S311 - order of answers, not a secret

    def answer(self, view: View, query: wire.Query) -> Answer | None:
        """Answer from the tables of the view's networks; ``None`` when the name is none of theirs and must be forwarded.

        A name that exists without addresses, or has none of the type that is asked for, gets an empty success (RFC 2308: NODATA),
        so that a resolver asking for AAAA first does not conclude that the name does not exist.
        """
        if query.klass not in (wire.CLASS_IN, wire.ANY):
            return None
        if query.name.endswith((_REVERSE, _REVERSE6)):
            return self._reverse(view, query)
        found = self._find(view, query.name)
        if found is None:
            return None
        ttl_s, addresses = found
        order = list(addresses)
        self._rng.shuffle(order)  # clients that take the first address spread over all
        records = [_record(address, ttl_s) for address in order]
        return Answer(wire.NOERROR, [record for record in records if query.kind in (record[0], wire.ANY)])

    def _find(self, view: View, name: str) -> tuple[int, tuple[str, ...]] | None:
        for network_id in view.networks:
            table = self.tables.get(network_id)
            if table is None:
                continue
            found = table.hosts.get(name)
            if found is None and name.endswith("." + table.name):  # Docker: NAME.NETWORK picks the network
                found = table.hosts.get(name[: -len(table.name) - 1])
            if found is not None:
                return found
        return None

    def _reverse(self, view: View, query: wire.Query) -> Answer | None:
        found = _parse_reverse6(query.name) if query.name.endswith(_REVERSE6) else _parse_reverse(query.name)
        if found is None:
            return None
        address, packed = found
        inside = False
        for network_id in view.networks:
            table = self.tables.get(network_id)
            if table is None:
                continue
            name = table.reverse.get(address)
            if name is not None:
                records = [(wire.PTR, 600, wire.encode_name(name))] if query.kind in (wire.PTR, wire.ANY) else []
                return Answer(wire.NOERROR, records)
            subnet = table.subnet6 if ":" in address else table.subnet
            inside = inside or (subnet is not None and packed & subnet[1] == subnet[0])
        # our own subnet: nobody else can know the name, and the host's resolver should not learn our addresses
        return Answer(wire.NXDOMAIN, []) if inside else None


def _record(address: str, ttl_s: int) -> tuple[int, int, bytes]:
    if ":" in address:
        return wire.AAAA, ttl_s, wire.encode_aaaa(address)
    return wire.A, ttl_s, wire.encode_a(address)


def _parse_reverse(name: str) -> tuple[str, int] | None:
    """``5.1.0.10.in-addr.arpa`` as address and number (RFC 1035 section 3.5)."""
    parts = name[: -len(_REVERSE)].split(".")
    if len(parts) != 4 or not all(
        part.isascii() and part.isdigit() and len(part) <= 3 and int(part) <= 255 for part in parts
    ):
        return None
    numbers = [int(part) for part in reversed(parts)]
    return ".".join(str(number) for number in numbers), int.from_bytes(bytes(numbers), "big")


def _parse_reverse6(name: str) -> tuple[str, int] | None:
    """32 hexadecimal digits, the last one first, before ``ip6.arpa`` (RFC 3596 section 2.5)."""
    parts = name[: -len(_REVERSE6)].split(".")
    if len(parts) != 32 or not all(len(part) == 1 and part in "0123456789abcdef" for part in parts):
        return None
    packed = bytes.fromhex("".join(reversed(parts)))
    return socket.inet_ntop(socket.AF_INET6, packed), int.from_bytes(packed, "big")
