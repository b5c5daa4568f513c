"""Which nodes can take a task. Each filter is one predicate that can say for a person how many nodes it excluded.

The order is SwarmKit's (scheduler/pipeline.go), cheapest first; a node counts for the first filter that excludes it.
Texts are Swarm's to the letter, since people search for them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, assert_never

from fleet.model.ids import NodeId, ServiceId
from fleet.model.node import Availability, NodeState
from fleet.model.service import TaskSpec
from fleet.model.taints import Effect, repels
from fleet.model.task import Task
from fleet.scheduler.constraints import matcher, normal_architecture, parse_constraints
from fleet.scheduler.node_view import HostPort, NodeView, host_ports
from fleet.scheduler.wishes import Affinity, Strategy, parse_wishes

__all__ = [
    "AVOIDED_WEIGHT",
    "FILTERS",
    "Demand",
    "HARD",
    "Filter",
    "Holders",
    "explain_counts",
    "explain_pending",
    "failing_filter",
    "failing_filter_after",
    "failing_filter_of_kind",
    "holds",
    "nobody",
]

AVOIDED_WEIGHT: Final = 100
"""What a taint *prefer-no-schedule* takes from a node's score: a wish of more weight outweighs it, strategy does not."""
HARD: Final = (Effect.NO_SCHEDULE, Effect.NO_EXECUTE)
HOLDERS_MAX: Final = 256
"""An image that more nodes have is no reason to choose among them; these few are ranked apart for each group (``spread``)."""

Holders = Callable[[str], frozenset[NodeId]]
"""Which nodes have an image, by the name that services give it."""


def nobody(_image: str) -> frozenset[NodeId]:
    """Where nobody knows who has which image."""
    return frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """``check(demand, view)`` says whether the node can take the task; ``explain(count)`` that ``count`` nodes can not.

    A demand for which ``applies`` is false passes on every node: it is not checked there. ``shrinks``: a task placed on the
    node may change the answer. ``of_kind``: the answer is the same for other services that demand the same.
    """

    name: str
    applies: Callable[[Demand], bool]
    check: Callable[[Demand, NodeView], bool]
    explain: Callable[[int], str]
    shrinks: bool = False
    of_kind: bool = True


class Demand:
    """What a task demands of its node, taken apart once for a whole group of like tasks.

    ``network_drivers`` are the drivers of the networks it attaches to. ``key`` is equal for demands that the same nodes can
    take in the same order, whatever services they are for; it leaves out ``max_replicas``.
    """

    __slots__ = (
        "affinities",
        "constraint_texts",
        "constraints",
        "filters",
        "generic",
        "has_weights",
        "holders",
        "key",
        "kind_filters",
        "max_replicas",
        "memory_bytes",
        "named",
        "nano_cpus",
        "platforms",
        "plugins",
        "ports",
        "prefer",
        "preferences",
        "service_id",
        "shrinking_filters",
        "spec_version",
        "strategy",
        "tolerations",
    )

    def __init__(
        self,
        task: Task,
        *,
        network_drivers: Iterable[str] = (),
        service_id_of: Callable[[str], ServiceId | None] = lambda _name: None,
        strategy: Strategy = Strategy.SPREAD,
        holders: Holders = nobody,
    ) -> None:
        """``service_id_of`` knows the services that have tasks by name; ``strategy``: the cluster's; ``holders``: of images.

        Raises ``UserError`` when the task's constraints or wishes do not parse; the API refuses those on the way in.
        """
        spec, reserved = task.spec, task.spec.resources.reservations
        self.service_id = task.service_id
        self.spec_version = task.spec_version
        self.constraint_texts = spec.placement.constraints
        self.constraints = tuple(matcher(each) for each in parse_constraints(spec.placement.constraints))
        self.max_replicas = spec.placement.max_replicas
        self.platforms = tuple((normal_architecture(p.architecture), p.os.lower()) for p in spec.placement.platforms)
        self.nano_cpus = reserved.nano_cpus
        self.memory_bytes = reserved.memory_bytes
        self.generic: dict[str, int] = {}
        self.named: list[tuple[str, str]] = []
        for resource in reserved.generic_resources:
            if resource.discrete is not None:
                kind = resource.discrete.kind
                self.generic[kind] = self.generic.get(kind, 0) + resource.discrete.value
            elif resource.named is not None:
                self.named.append((resource.named.kind, resource.named.value))
        self.ports: tuple[HostPort, ...] = tuple(host_ports(task.ports))
        self.plugins = tuple(_plugins(spec, network_drivers))
        wishes = parse_wishes(task.service_labels, service_name=task.service_name, strategy=strategy)
        self.strategy = wishes.strategy
        self.tolerations = wishes.tolerations
        self.prefer = tuple((matcher(constraint), weight) for constraint, weight in wishes.prefer)
        self.affinities = tuple(
            (self.service_id if each.service == task.service_name else service_id_of(each.service), each)
            for each in wishes.affinities
        )
        self.has_weights = bool(self.prefer) or any(each.weight for each in wishes.affinities)
        holding = holders(spec.container_spec.image)
        self.holders = holding if len(holding) <= HOLDERS_MAX else frozenset()
        self.preferences = spec.placement.preferences
        self.filters = tuple(each for each in FILTERS if each.applies(self))
        self.kind_filters = tuple(each for each in self.filters if each.of_kind)
        self.shrinking_filters = tuple(each for each in self.filters if each.shrinks)
        self.key = (
            reserved,
            spec.placement.constraints,
            spec.placement.platforms,
            self.preferences,
            self.ports,
            self.plugins,
            dataclasses.replace(wishes, priority=0),
            tuple(service_id for service_id, _ in self.affinities),
        )

    def score(self, view: NodeView) -> int:
        """What the node is worth by the wishes that have a weight."""
        score = self.preferred(view)
        for service_id, affinity in self.affinities:
            if affinity.weight and holds(service_id, affinity, view):
                score += affinity.weight
        return score

    def preferred(self, view: NodeView) -> int:
        """The part of the score that is the node's own, whatever is placed."""
        score = sum(weight for satisfies, weight in self.prefer if satisfies(view.node))
        if view.taints:
            score -= AVOIDED_WEIGHT * len(repels(view.taints, self.tolerations, Effect.PREFER_NO_SCHEDULE))
        return score

    def load(self, view: NodeView) -> tuple[int, int]:
        """How far behind others the node comes by the strategy, whatever it carries of the service itself."""
        match self.strategy:
            case Strategy.SPREAD:
                return (view.tasks_total, 0)
            case Strategy.BINPACK:
                return (-view.reserved_permille(), -view.tasks_total)
            case Strategy.BALANCED:
                return (view.reserved_permille(), view.tasks_total)
            case _:
                assert_never(self.strategy)


def failing_filter(demand: Demand, view: NodeView) -> Filter | None:
    """The first filter that excludes the node, or None when the node can take the task."""
    return _first_failing(demand.filters, demand, view)


def failing_filter_of_kind(demand: Demand, view: NodeView) -> Filter | None:
    """As ``failing_filter``, leaving out how many tasks of its own service the node has."""
    return _first_failing(demand.kind_filters, demand, view)


def failing_filter_after(demand: Demand, view: NodeView) -> Filter | None:
    """As ``failing_filter``, for a node that could take the task before the last one like it was placed there."""
    return _first_failing(demand.shrinking_filters, demand, view)


def explain_pending(demand: Demand, views: Iterable[NodeView]) -> str:
    """Swarm's sentence: ``no suitable node (insufficient resources on 2 nodes; missing plugin on 1 node)`` (SCH-09)."""
    counts: dict[str, int] = {}
    for view in views:
        failing = failing_filter(demand, view)
        if failing is not None:
            counts[failing.name] = counts.get(failing.name, 0) + 1
    return explain_counts(counts)


def explain_counts(counts: Mapping[str, int]) -> str:
    """The sentence from the number of nodes that each filter (by name) excludes."""
    by_count = sorted((each for each in FILTERS if counts.get(each.name)), key=lambda each: -counts[each.name])
    reasons = "; ".join(each.explain(counts[each.name]) for each in by_count)
    return f"no suitable node ({reasons})" if reasons else "no suitable node"


def _first_failing(filters: tuple[Filter, ...], demand: Demand, view: NodeView) -> Filter | None:
    for each in filters:
        if not each.check(demand, view):
            return each
    return None


def _ready(_demand: Demand, view: NodeView) -> bool:
    node = view.node
    return node.status.state is NodeState.READY and node.spec.availability is Availability.ACTIVE


def _resources(demand: Demand, view: NodeView) -> bool:
    if 0 < demand.nano_cpus > view.nano_cpus_free or 0 < demand.memory_bytes > view.memory_free_bytes:
        return False
    if not (demand.generic or demand.named):
        return True
    if any(amount > view.generic_free(kind) for kind, amount in demand.generic.items()):
        return False
    return all(value in view.named_free.get(kind, ()) for kind, value in demand.named)


def _has_plugins(demand: Demand, view: NodeView) -> bool:
    # A node that reports no plugin of a type at all does not report that type: do not exclude it for silence.
    return all(kind not in view.plugins or name in view.plugins[kind] for kind, name in demand.plugins)


def _satisfies_constraints(demand: Demand, view: NodeView) -> bool:
    node = view.node
    return all(satisfies(node) for satisfies in demand.constraints)


def _tolerates_taints(demand: Demand, view: NodeView) -> bool:
    return not view.taints or not repels(view.taints, demand.tolerations, *HARD)


def _runs_platform(demand: Demand, view: NodeView) -> bool:
    own = view.node.description.platform
    architecture, system = normal_architecture(own.architecture), own.os.lower()
    return any((not a or a == architecture) and (not o or o == system) for a, o in demand.platforms)


def _ports_free(demand: Demand, view: NodeView) -> bool:
    return not any(port in view.ports for port in demand.ports)


def _below_max_replicas(demand: Demand, view: NodeView) -> bool:
    return view.count(demand.service_id) < demand.max_replicas


def _affinities_hold(demand: Demand, view: NodeView) -> bool:
    return all(affinity.weight or holds(service_id, affinity, view) for service_id, affinity in demand.affinities)


def holds(service_id: ServiceId | None, affinity: Affinity, view: NodeView) -> bool:
    """Whether the node has a task of the service, or none if the affinity is against it."""
    return (service_id is not None and view.count(service_id) > 0) is not affinity.is_against


def _on_nodes(text: str) -> Callable[[int], str]:
    return lambda count: f"{text} on 1 node" if count == 1 else f"{text} on {count} nodes"


def _not_available(count: int) -> str:
    return "1 node not available for new tasks" if count == 1 else f"{count} nodes not available for new tasks"


FILTERS: Final = (
    Filter(name="ready", applies=lambda _: True, check=_ready, explain=_not_available),
    Filter(
        name="resources",
        applies=lambda d: bool(d.nano_cpus or d.memory_bytes or d.generic or d.named),
        check=_resources,
        explain=_on_nodes("insufficient resources"),
        shrinks=True,
    ),
    Filter(
        name="plugins",
        applies=lambda d: bool(d.plugins),
        check=_has_plugins,
        explain=_on_nodes("missing plugin"),
    ),
    Filter(
        name="constraints",
        applies=lambda d: bool(d.constraints),
        check=_satisfies_constraints,
        explain=_on_nodes("scheduling constraints not satisfied"),
    ),
    Filter(
        name="taints",
        applies=lambda _: True,
        check=_tolerates_taints,
        explain=_on_nodes("taints not tolerated"),
    ),
    Filter(
        name="platform",
        applies=lambda d: bool(d.platforms),
        check=_runs_platform,
        explain=_on_nodes("unsupported platform"),
    ),
    Filter(
        name="host ports",
        applies=lambda d: bool(d.ports),
        check=_ports_free,
        explain=_on_nodes("host-mode port already in use"),
        shrinks=True,
    ),
    Filter(
        name="affinity",
        applies=lambda d: any(not each.weight for _, each in d.affinities),
        check=_affinities_hold,
        explain=_on_nodes("affinity to services not satisfied"),
        shrinks=True,
    ),
    Filter(
        name="max replicas",
        applies=lambda d: d.max_replicas > 0,
        check=_below_max_replicas,
        explain=lambda _count: "max replicas per node limit exceed",
        shrinks=True,
        of_kind=False,
    ),
)


def _plugins(spec: TaskSpec, network_drivers: Iterable[str]) -> list[tuple[str, str]]:
    """(type, name) as engines report them: Volume, Network, Log."""
    found = [("Network", driver) for driver in sorted(set(network_drivers)) if driver]
    for mount in spec.container_spec.mounts:
        options = mount.volume_options
        driver = options.driver_config if options is not None else None
        if mount.type == "volume" and driver is not None and driver.name:
            found.append(("Volume", driver.name))
    if spec.log_driver is not None and spec.log_driver.name not in ("", "none"):
        found.append(("Log", spec.log_driver.name))
    return found
