"""``depends_on``: which services come before which, and what is to be true of those first."""

from __future__ import annotations

import dataclasses
import graphlib
from collections.abc import Mapping, Sequence
from enum import StrEnum

from fleet.compose.document import Node, hint

__all__ = ["Condition", "Dependency", "dependencies", "in_order"]


class Condition(StrEnum):
    """Of the service that is depended on."""

    STARTED = "service_started"
    HEALTHY = "service_healthy"
    COMPLETED = "service_completed_successfully"


@dataclasses.dataclass(frozen=True, slots=True)
class Dependency:
    """``service`` is a key of the file."""

    service: str
    condition: Condition


def dependencies(services: Mapping[str, Node]) -> dict[str, tuple[Dependency, ...]]:
    """For each service what it depends on. Raises ``UserError`` for services that are not there and for circles."""
    found = {key: _of(node, services) for key, node in services.items()}
    try:
        in_order(found)
    except graphlib.CycleError as cause:
        circle = list(reversed(cause.args[1]))  # graphlib has it from what is depended on
        services[circle[0]].mapping()["depends_on"].fail(f"the services wait for each other: {' -> '.join(circle)}")
    return found


def _of(service: Node, services: Mapping[str, Node]) -> tuple[Dependency, ...]:
    node = service.mapping().get("depends_on")
    if node is None or node.kind == "null":
        return ()
    entries: dict[str, Node | None]
    if node.kind == "list":
        entries = {item.string(): None for item in node.items}
        places = {item.string(): item for item in node.items}
    else:
        entries = dict(node.mapping())
        places = node.mapping()
    result = []
    for key, entry in entries.items():
        fields = entry.mapping() if entry is not None else {}
        required = "required" not in fields or fields["required"].boolean()
        if key not in services:
            if required:
                places[key].fail(f"there is no service {key!r}; {hint(key, services)}")
            continue
        condition = Condition.STARTED
        if "condition" in fields:
            text = fields["condition"].string()
            if text not in set(Condition):
                fields["condition"].fail(f"{text!r} is no condition; {hint(text, (each.value for each in Condition))}")
            condition = Condition(text)
        result.append(Dependency(key, condition))
    return tuple(result)


def in_order(found: Mapping[str, Sequence[Dependency]]) -> list[str]:
    """The services, each after those it depends on."""
    needs = {key: sorted(each.service for each in found[key]) for key in sorted(found)}
    return list(graphlib.TopologicalSorter(needs).static_order())
