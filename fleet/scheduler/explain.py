"""Why a task would or would not go to a node, for a person: every node, every reason, and what ranks those that can."""

from __future__ import annotations

from dataclasses import dataclass

from fleet.model.node import Availability, NodeState
from fleet.model.taints import Effect, repels
from fleet.scheduler.filters import AVOIDED_WEIGHT, HARD, Demand, holds
from fleet.scheduler.node_view import NodeView
from fleet.scheduler.pool import NodePool
from fleet.scheduler.spread import rank

__all__ = ["NodeVerdict", "explain_nodes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeVerdict:
    """``reasons`` against the node: all of them; none for a node that can take the task. The numbers are what ``rank`` compares:
    ``score`` the weight of wishes that hold, ``failures`` recent ones if there are enough to count. ``notes``: what else
    counts, and no label of the service says."""

    view: NodeView
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    score: int
    failures: int
    service_tasks: int


def explain_nodes(demand: Demand, pool: NodePool) -> list[NodeVerdict]:
    """Nodes that can take the task, best first (before preferences to spread over labels); then the others, by name."""
    verdicts = [
        NodeVerdict(
            view=view,
            reasons=tuple(_reasons(demand, view)),
            notes=tuple(_notes(demand, view)),
            score=demand.score(view),
            failures=view.recent_failures(demand.service_id, demand.spec_version),
            service_tasks=view.count(demand.service_id),
        )
        for view in pool.values()
    ]
    able = sorted((each for each in verdicts if not each.reasons), key=lambda each: rank(each.view, demand))
    others = (each for each in verdicts if each.reasons)
    return able + sorted(others, key=lambda each: (each.view.node.description.hostname, each.view.node.id))


def _reasons(demand: Demand, view: NodeView) -> list[str]:
    found: list[str] = []
    for each in demand.filters:
        if not each.check(demand, view):
            found += _details(each.name, demand, view)
    return found


def _notes(demand: Demand, view: NodeView) -> list[str]:
    avoided = repels(view.taints, demand.tolerations, Effect.PREFER_NO_SCHEDULE)
    notes = [f"taint {taint} (weight -{AVOIDED_WEIGHT})" for taint in avoided]
    return [*notes, "has the image"] if view.node.id in demand.holders else notes


def _details(name: str, demand: Demand, view: NodeView) -> list[str]:
    node = view.node
    match name:
        case "ready":
            states = [f"is {node.status.state}"] if node.status.state is not NodeState.READY else []
            if node.spec.availability is not Availability.ACTIVE:
                states.append(f"availability is {node.spec.availability}")
            return states
        case "resources":
            return _resources(demand, view)
        case "plugins":
            missing = [(k, n) for k, n in demand.plugins if k in view.plugins and n not in view.plugins[k]]
            return [f"has no {kind.lower()} plugin {plugin}" for kind, plugin in missing]
        case "constraints":
            pairs = zip(demand.constraint_texts, demand.constraints, strict=True)
            return [f"{text} does not hold" for text, satisfies in pairs if not satisfies(node)]
        case "taints":
            return [f"taint {taint} is not tolerated" for taint in repels(view.taints, demand.tolerations, *HARD)]
        case "platform":
            platform = node.description.platform
            return [f"is {platform.os}/{platform.architecture}, for which there is no image"]
        case "host ports":
            return [
                f"port {port}/{protocol} is in use" for protocol, port in demand.ports if (protocol, port) in view.ports
            ]
        case "affinity":
            broken = [a for id_, a in demand.affinities if not a.weight and not holds(id_, a, view)]
            return [f"has {'a' if a.is_against else 'no'} task of {a.service}" for a in broken]
        case _:
            return [f"has {view.count(demand.service_id)} tasks of the service, at most {demand.max_replicas} a node"]


def _resources(demand: Demand, view: NodeView) -> list[str]:
    found = []
    if 0 < demand.nano_cpus > view.nano_cpus_free:
        found.append(f"needs {demand.nano_cpus / 1e9:g} CPUs, {max(view.nano_cpus_free, 0) / 1e9:g} are free")
    if 0 < demand.memory_bytes > view.memory_free_bytes:
        free = max(view.memory_free_bytes, 0) / (1 << 20)
        found.append(f"needs {demand.memory_bytes / (1 << 20):.1f} MiB of memory, {free:.1f} MiB are free")
    for kind, amount in demand.generic.items():
        if amount > view.generic_free(kind):
            found.append(f"needs {amount} {kind}, {view.generic_free(kind)} are free")
    found += [f"needs {kind} {value}" for kind, value in demand.named if value not in view.named_free.get(kind, ())]
    return found
