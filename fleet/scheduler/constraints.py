"""Placement constraints: ``node.labels.zone==eu``, ``node.role!=manager`` (SCH-04; SwarmKit manager/constraint).

All of a task's constraints must hold. Values compare without regard to case; a label that a node lacks is the empty
string, so ``!=`` holds for it. Unlike Swarm, a key that nothing could ever match is refused when written, and
architectures compare under either of their two names (``amd64`` is ``x86_64``).
"""

from __future__ import annotations

import enum
import ipaddress
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from fleet import errors
from fleet.model.node import Node

__all__ = [
    "Constraint",
    "Operator",
    "attribute_reader",
    "match_all",
    "matcher",
    "normal_architecture",
    "parse_constraint",
    "parse_constraints",
]

CONSTRAINTS_MAX: Final = 256
LENGTH_MAX: Final = 1024
NODE_LABELS: Final = "node.labels."
ENGINE_LABELS: Final = "engine.labels."

_FORM: Final = re.compile(r"\s*(?P<key>[^=!\s]+)\s*(?P<operator>==|!=)\s*(?P<value>.*?)\s*", re.DOTALL)
_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9\-_./]+")
_VALUE: Final = re.compile(r"[A-Za-z0-9:\-_\s.*()?+\[\]\\^$|/@,]+")
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "armv6l": "arm", "i686": "386"}


class Operator(enum.StrEnum):
    EQUAL = "=="
    NOT_EQUAL = "!="


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """``key`` is canonical: lower case, except for the name of a label."""

    key: str
    operator: Operator
    value: str


def parse_constraints(texts: Iterable[str]) -> tuple[Constraint, ...]:
    """All of them in order. Raises ``UserError`` that names the first wrong one and its fault."""
    found = tuple(parse_constraint(text) for text in texts)
    if len(found) > CONSTRAINTS_MAX:
        raise errors.UserError(f"{len(found)} placement constraints, at most {CONSTRAINTS_MAX}")
    return found


def parse_constraint(text: str) -> Constraint:
    """One constraint. Raises ``UserError``: ``constraint 'node.role=x': expected == or != between key and value``."""
    if len(text) > LENGTH_MAX:
        raise errors.UserError(f"constraint {text[:40]!r}...: longer than {LENGTH_MAX} characters")
    found = _FORM.fullmatch(text)
    if found is None:
        raise errors.UserError(f"constraint {text!r}: expected == or != between key and value")
    key, value = found["key"], found["value"]
    if not value or not _VALUE.fullmatch(value):
        raise errors.UserError(f"constraint {text!r}: value {value!r} is invalid")
    canonical = _canonical_key(key)
    if canonical is None:
        raise errors.UserError(
            f"constraint {text!r}: unknown key {key!r}; known are node.id, node.hostname, node.ip, node.role, "
            "node.platform.os, node.platform.arch, node.labels.NAME, engine.labels.NAME"
        )
    if canonical == "node.ip":
        _parse_network(text, value)
    return Constraint(key=canonical, operator=Operator(found["operator"]), value=value)


def matcher(constraint: Constraint) -> Callable[[Node], bool]:
    """A function that says whether a node satisfies the constraint; for asking many nodes."""
    key, value = constraint.key, constraint.value
    wanted = constraint.operator is Operator.EQUAL
    if key == "node.ip":
        return lambda node: _address_within(node.status.addr, value) is wanted
    read = attribute_reader(key)
    if key == "node.platform.arch":
        architecture = normal_architecture(value)
        return lambda node: (normal_architecture(read(node)) == architecture) is wanted
    folded = value.casefold()

    def satisfies(node: Node) -> bool:
        found = read(node)
        return (found == value or found.casefold() == folded) is wanted

    return satisfies


def match_all(constraints: Iterable[Constraint], node: Node) -> bool:
    """Whether the node satisfies all of them."""
    return all(matcher(constraint)(node) for constraint in constraints)


def attribute_reader(key: str) -> Callable[[Node], str]:
    """A function from a node to its value for ``key`` ("" when it has none). Raises ``UserError`` for an unknown key."""
    canonical = _canonical_key(key)
    if canonical is None or canonical == "node.ip":
        raise errors.UserError(f"{key!r} is no attribute of nodes to spread over; use node.labels.NAME")
    if canonical.startswith(NODE_LABELS):
        name = canonical[len(NODE_LABELS) :]
        return lambda node: node.spec.labels.get(name, "")
    if canonical.startswith(ENGINE_LABELS):
        name = canonical[len(ENGINE_LABELS) :]
        return lambda node: node.description.engine.labels.get(name, "")
    return _READERS[canonical]


def normal_architecture(name: str) -> str:
    """Go's name of an architecture, whichever of ``uname -m``'s and Go's is given."""
    lower = name.lower()
    return _ARCHITECTURES.get(lower, lower)


_READERS: Final[dict[str, Callable[[Node], str]]] = {
    "node.id": lambda node: node.id,
    "node.hostname": lambda node: node.description.hostname,
    "node.role": lambda node: node.spec.role.value,
    "node.platform.os": lambda node: node.description.platform.os,
    "node.platform.arch": lambda node: node.description.platform.architecture,
}


def _canonical_key(key: str) -> str | None:
    if not _KEY.fullmatch(key):
        return None
    lower = key.lower()
    if lower in _READERS or lower == "node.ip":
        return lower
    for prefix in (NODE_LABELS, ENGINE_LABELS):
        if lower.startswith(prefix) and len(key) > len(prefix):
            return prefix + key[len(prefix) :]
    return None


def _parse_network(text: str, value: str) -> None:
    try:
        ipaddress.ip_network(value, strict=False)
    except ValueError as cause:
        raise errors.UserError(f"constraint {text!r}: {value!r} is neither an IP address nor a subnet") from cause


def _address_within(address: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(address) in ipaddress.ip_network(network, strict=False)
    except ValueError:  # the node's address is not known yet
        return False
