"""Placement constraints: ``node.labels.zone==eu``, ``node.role!=manager`` (SCH-04; SwarmKit manager/constraint).

Beyond Swarm's ``==`` and ``!=``:

    node.labels.zone in (eu, us)      node.labels.zone notin (eu, us)
    node.labels.generation >= 3       also > < <=; both sides are numbers, a node without a number does not satisfy it
    node.hostname =~ web-[0-9]+       also !~; the whole value, see ``patterns``

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
from decimal import Decimal
from typing import Final, assert_never

from fleet import errors
from fleet.model.node import Node
from fleet.scheduler.patterns import compile_pattern

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

_FORM: Final = re.compile(
    r"\s*(?P<key>[^=!<>~\s]+)\s*(?P<operator>==|!=|=~|!~|<=|>=|<|>|(?<=\s)(?:in|notin)(?=[\s(]))\s*(?P<value>.*?)\s*",
    re.DOTALL,
)
_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9\-_./]+")
_VALUE: Final = re.compile(r"[A-Za-z0-9:\-_\s.*()?+\[\]\\^$|/@,]+")
_LIST: Final = re.compile(r"\((?P<items>[^()]*)\)")
_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,18}(\.[0-9]{1,18})?")
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "armv6l": "arm", "i686": "386"}


class Operator(enum.StrEnum):
    EQUAL = "=="
    NOT_EQUAL = "!="
    IN = "in"
    NOT_IN = "notin"
    LESS = "<"
    LESS_EQUAL = "<="
    GREATER = ">"
    GREATER_EQUAL = ">="
    MATCHES = "=~"
    MATCHES_NOT = "!~"


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """``key`` is canonical: lower case, except for the name of a label. ``value`` of *in* and *notin* is the list's text."""

    key: str
    operator: Operator
    value: str

    @property
    def items(self) -> tuple[str, ...]:
        """The values of a list."""
        return tuple(item.strip() for item in self.value.strip("()").split(","))


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
        raise errors.UserError(
            f"constraint {text!r}: expected == or != between key and value (or in, notin, <, <=, >, >=, =~, !~)"
        )
    key, value = found["key"], found["value"]
    if not value or not (found["operator"] in ("=~", "!~") or _VALUE.fullmatch(value)):
        raise errors.UserError(f"constraint {text!r}: value {value!r} is invalid")
    canonical = _canonical_key(key)
    if canonical is None:
        raise errors.UserError(
            f"constraint {text!r}: unknown key {key!r}; known are node.id, node.hostname, node.ip, node.role, "
            "node.platform.os, node.platform.arch, node.labels.NAME, engine.labels.NAME"
        )
    operator = Operator(found["operator"])
    _check_value(text, canonical, operator, value)
    return Constraint(key=canonical, operator=operator, value=value)


def matcher(constraint: Constraint) -> Callable[[Node], bool]:
    """A function that says whether a node satisfies the constraint; for asking many nodes."""
    key, operator = constraint.key, constraint.operator
    match operator:
        case Operator.EQUAL:
            return _equals(key, constraint.value)
        case Operator.NOT_EQUAL:
            return _negated(_equals(key, constraint.value))
        case Operator.IN | Operator.NOT_IN:
            each = [_equals(key, item) for item in constraint.items]
            among = lambda node: any(equals(node) for equals in each)  # noqa: E731 - a name for what is returned
            return among if operator is Operator.IN else _negated(among)
        case Operator.MATCHES | Operator.MATCHES_NOT:
            matches, read = compile_pattern(constraint.value), attribute_reader(key)
            fits = lambda node: matches(read(node))  # noqa: E731 - a name for what is returned
            return fits if operator is Operator.MATCHES else _negated(fits)
        case Operator.LESS | Operator.LESS_EQUAL | Operator.GREATER | Operator.GREATER_EQUAL:
            return _compares(key, _COMPARISONS[operator], Decimal(constraint.value))
        case _:
            assert_never(operator)


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


def _equals(key: str, value: str) -> Callable[[Node], bool]:
    if key == "node.ip":
        return lambda node: _address_within(node.status.addr, value)
    read = attribute_reader(key)
    if key == "node.platform.arch":
        architecture = normal_architecture(value)
        return lambda node: normal_architecture(read(node)) == architecture
    folded = value.casefold()

    def satisfies(node: Node) -> bool:
        found = read(node)
        return found == value or found.casefold() == folded

    return satisfies


def _negated(satisfies: Callable[[Node], bool]) -> Callable[[Node], bool]:
    return lambda node: not satisfies(node)


def _compares(key: str, holds: Callable[[Decimal, Decimal], bool], bound: Decimal) -> Callable[[Node], bool]:
    read = attribute_reader(key)

    def satisfies(node: Node) -> bool:
        found = read(node).strip()
        return _NUMBER.fullmatch(found) is not None and holds(Decimal(found), bound)

    return satisfies


_COMPARISONS: Final[dict[Operator, Callable[[Decimal, Decimal], bool]]] = {
    Operator.LESS: lambda found, bound: found < bound,
    Operator.LESS_EQUAL: lambda found, bound: found <= bound,
    Operator.GREATER: lambda found, bound: found > bound,
    Operator.GREATER_EQUAL: lambda found, bound: found >= bound,
}


def _check_value(text: str, key: str, operator: Operator, value: str) -> None:
    """Whether the operator can be used with this key and value. Raises ``UserError``."""
    values: tuple[str, ...] = (value,)
    if operator in (Operator.IN, Operator.NOT_IN):
        values = Constraint(key=key, operator=operator, value=value).items
        if not _LIST.fullmatch(value) or not all(values):
            raise errors.UserError(f"constraint {text!r}: expected values in brackets, such as (eu, us)")
    elif operator in _COMPARISONS:
        if not key.startswith((NODE_LABELS, ENGINE_LABELS)):
            raise errors.UserError(f"constraint {text!r}: only labels can be compared with {operator}")
        if not _NUMBER.fullmatch(value):
            raise errors.UserError(f"constraint {text!r}: {value!r} is not a number")
    elif operator in (Operator.MATCHES, Operator.MATCHES_NOT):
        if key == "node.ip":
            raise errors.UserError(f"constraint {text!r}: node.ip is compared with subnets, not {operator}")
        try:
            compile_pattern(value)
        except errors.UserError as cause:
            raise errors.UserError(f"constraint {text!r}: {cause}") from cause
    if key == "node.ip":
        for each in values:
            _parse_network(text, each)


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
