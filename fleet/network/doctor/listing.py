"""nftables listings taken apart, to say in words what differs; pure.

The kernel lists the elements of a set in no particular order and the tool breaks long lines, so listings are compared as
sets of statements: ``chain input: udp dport @vxlan_ports jump tunnels``, ``set peers: 10.1.1.2``.
"""

from __future__ import annotations

from fleet.network.doctor.finding import MENDS, Check, Finding, right, wrong

__all__ = ["compare_rules", "dropping_rules", "statements"]

_OBJECTS = ("chain", "set", "map")
_NAMED_MAX = 3
_TEXT_MAX = 100


def statements(listing: str) -> frozenset[str]:
    """Every chain's rules and every set's elements of ``nft list table``, each with the name of what it is in."""
    found: set[str] = set()
    inside = pending = ""
    for line in (raw.strip() for raw in listing.splitlines()):
        words = line.split()
        if not pending and line.endswith("{") and words[0] in ("table", *_OBJECTS):
            if words[0] in _OBJECTS:
                inside = " ".join(words[:2])
                found.add(inside)
            continue
        if not pending and line in ("}", ""):
            continue
        pending = f"{pending} {line}".strip()
        if pending.count("{") > pending.count("}"):
            continue
        if pending.startswith("elements = {"):
            elements = pending.removeprefix("elements = {").rpartition("}")[0].split(",")
            found.update(f"{inside}: {' '.join(element.split())}" for element in elements)
        else:
            found.add(f"{inside}: {' '.join(pending.split())}")
        pending = ""
    return frozenset(found)


def compare_rules(wanted: str, seen: str, *, where: str, network: str = "") -> Finding:
    """One finding about a table; ``where`` says which, ``seen`` is empty if there is none."""
    if not seen:
        return wrong(Check.RULES, f"{where}: the table of rules is missing", MENDS, network=network)
    expected, found = statements(wanted), statements(seen)
    parts = [
        f"{len(difference)} {word} ({_some(difference)})"
        for word, difference in (("missing", sorted(expected - found)), ("added", sorted(found - expected)))
        if difference
    ]
    if parts:
        return wrong(Check.RULES, f"{where}: rules are not as ordered: {', '.join(parts)}", MENDS, network=network)
    return right(Check.RULES, f"{where}: rules are as ordered", network=network)


def dropping_rules(ruleset: str, *, port: int, ours: str) -> list[str]:
    """Rules of others that speak of ``port`` and drop or reject, with chain and table; ``ours`` is our table's name."""
    found: list[str] = []
    table = chain = ""
    for line in (raw.strip() for raw in ruleset.splitlines()):
        words = line.split()
        if words[:1] == ["table"]:
            table = " ".join(words[1:3])
        elif words[:1] == ["chain"]:
            chain = words[1]
        elif str(port) in words and {"drop", "reject"} & set(words) and table.split()[-1:] != [ours]:
            found.append(f"chain {chain} of table {table}: {line[:_TEXT_MAX]}")
    return found[:_NAMED_MAX]


def _some(entries: list[str]) -> str:
    shown = "; ".join(entry[:_TEXT_MAX] for entry in entries[:_NAMED_MAX])
    return shown + (f"; and {len(entries) - _NAMED_MAX} more" if len(entries) > _NAMED_MAX else "")
