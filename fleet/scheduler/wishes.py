"""What a service says of its placement in labels of its own, which every client of the engine API can write.

    fleet.placement.strategy       spread (default) | binpack | balanced
    fleet.placement.prefer         node.labels.disk==ssd:10; node.labels.zone in (eu, us):5
    fleet.placement.affinity       cache, db:20        nodes with tasks of these services
    fleet.placement.anti-affinity  batch, web:20       nodes without
    fleet.placement.priority       10                  comes before tasks of less, and takes their room (``preempt``); 0 without
    fleet.placement.toleration     gpu=a100:no-schedule, maintenance      taints of nodes that do not matter (``model.taints``)

*Spread* equalises the service's tasks over nodes, as Swarm does. *Binpack* fills the fullest node that has room; *balanced*
takes the one of which the least is reserved. Full and least go by the larger share of CPUs and memory, then by tasks.

With a number, a wish is worth that much on nodes where it holds, and a node worth more comes before all strategy (B22);
without one, affinity and anti-affinity must hold (B21). Anti-affinity to itself puts one task of a service on a node.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fleet import errors
from fleet.model.taints import Toleration, parse_tolerations
from fleet.scheduler.constraints import Constraint, parse_constraint

__all__ = [
    "PREFIX",
    "STRATEGY_LABEL",
    "Affinity",
    "Strategy",
    "Wishes",
    "default_strategy",
    "parse_wishes",
    "priority_of",
]

PREFIX: Final = "fleet.placement."
STRATEGY_LABEL: Final = f"{PREFIX}strategy"
"""Of a service; of the cluster, for services that do not say."""
PRIORITY_LABEL: Final = f"{PREFIX}priority"
PRIORITY_MAX: Final = 1000
WEIGHT_MAX: Final = 1000
ITEMS_MAX: Final = 32
_KNOWN: Final = ("strategy", "prefer", "affinity", "anti-affinity", "toleration", "priority")


class Strategy(enum.StrEnum):
    SPREAD = "spread"
    BINPACK = "binpack"
    BALANCED = "balanced"


@dataclass(frozen=True, slots=True, kw_only=True)
class Affinity:
    """To, or against, tasks of the service of that name. ``weight`` 0: it must hold."""

    service: str
    weight: int
    is_against: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    strategy: Strategy = Strategy.SPREAD
    prefer: tuple[tuple[Constraint, int], ...] = ()
    affinities: tuple[Affinity, ...] = ()
    tolerations: tuple[Toleration, ...] = ()
    priority: int = 0


def default_strategy(labels: Mapping[str, str]) -> Strategy:
    """The cluster's, from its labels. Raises ``UserError`` for a word that is none."""
    text = labels.get(STRATEGY_LABEL)
    if text is None:
        return Strategy.SPREAD
    try:
        return _strategy(text)
    except errors.UserError as cause:
        raise errors.UserError(f"label {STRATEGY_LABEL}: {cause}") from cause


def parse_wishes(labels: Mapping[str, str], *, service_name: str, strategy: Strategy = Strategy.SPREAD) -> Wishes:
    """``strategy``: where no label says one. Raises ``UserError`` that names the label, for one that is not known too."""
    prefer: tuple[tuple[Constraint, int], ...] = ()
    affinities: list[Affinity] = []
    tolerations: tuple[Toleration, ...] = ()
    priority = 0
    for label, text in sorted(labels.items()):
        if not label.startswith(PREFIX):
            continue
        try:
            match label.removeprefix(PREFIX):
                case "strategy":
                    strategy = _strategy(text)
                case "prefer":
                    prefer = tuple(_preference(item) for item in _items(text, ";"))
                case "affinity" | "anti-affinity" as kind:
                    against = kind == "anti-affinity"
                    affinities += (_affinity(item, against, service_name) for item in _items(text, ","))
                case "priority":
                    priority = _priority(text)
                case "toleration":
                    tolerations = parse_tolerations(text)
                case _:
                    raise errors.UserError(f"is not known; known are {', '.join(_KNOWN)}")
        except errors.UserError as cause:
            raise errors.UserError(f"label {label}: {cause}") from cause
    return Wishes(
        strategy=strategy,
        prefer=prefer,
        affinities=tuple(affinities),
        tolerations=tolerations,
        priority=priority,
    )


def priority_of(labels: Mapping[str, str]) -> int:
    """Of a service, from its labels. What does not parse, and came past the API, is 0."""
    text = labels.get(PRIORITY_LABEL)
    if text is None:
        return 0
    try:
        return _priority(text)
    except errors.UserError:
        return 0


def _priority(text: str) -> int:
    digits = text.strip().removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 4 and int(digits) <= PRIORITY_MAX):
        raise errors.UserError(f"{text!r} is not a whole number from -{PRIORITY_MAX} to {PRIORITY_MAX}")
    return int(text)


def _strategy(text: str) -> Strategy:
    if text not in list(Strategy):
        raise errors.UserError(f"{text!r} is none of {', '.join(Strategy)}")
    return Strategy(text)


def _items(text: str, separator: str) -> list[str]:
    items = [item.strip() for item in text.split(separator) if item.strip()]
    if not items:
        raise errors.UserError("is empty; remove the label to wish nothing")
    if len(items) > ITEMS_MAX:
        raise errors.UserError(f"has {len(items)} entries, at most {ITEMS_MAX}")
    return items


def _preference(item: str) -> tuple[Constraint, int]:
    expression, colon, weight = item.rpartition(":")
    if not colon:
        raise errors.UserError(f"{item!r} has no weight; expected a constraint and a weight, such as {item}:10")
    return parse_constraint(expression), _weight(item, weight)


def _affinity(item: str, against: bool, own_name: str) -> Affinity:
    service, colon, weight = (part.strip() for part in item.partition(":"))
    if not service or any(character.isspace() for character in service):
        raise errors.UserError(f"{item!r} is not a service's name, or name:weight")
    if service == own_name and not against:
        raise errors.UserError(
            f"{service} would wait for its own first task; use strategy binpack to keep tasks together"
        )
    return Affinity(service=service, weight=_weight(item, weight) if colon else 0, is_against=against)


def _weight(item: str, text: str) -> int:
    text = text.strip()
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= WEIGHT_MAX):
        raise errors.UserError(f"{item!r}: weight {text!r} is not a whole number from 1 to {WEIGHT_MAX}")
    return int(text)
