"""What the scheduler is told of the cluster, and what the orchestrator, which does not know it, is lent from it."""

from __future__ import annotations

import functools
from collections.abc import Callable

from fleet import errors
from fleet.model.node import Node
from fleet.model.service import TaskSpec
from fleet.scheduler.constraints import matcher, parse_constraints
from fleet.scheduler.quotas import Quota, quotas_of
from fleet.scheduler.wishes import Strategy, default_strategy
from fleet.store import Store

__all__ = ["cluster_quotas", "cluster_strategy", "satisfies_constraints"]


def cluster_strategy(store: Store) -> Strategy:
    """Of services that say none. What can not be read is *spread*; the API refuses it."""
    try:
        return next((default_strategy(cluster.spec.labels) for cluster in store.clusters.all()), Strategy.SPREAD)
    except errors.UserError:
        return Strategy.SPREAD


def cluster_quotas(store: Store) -> tuple[Quota, ...]:
    """Of stacks and labels. What can not be read limits nothing; the API refuses it."""
    return next((quotas_of(cluster.spec.labels) for cluster in store.clusters.all()), ())


def satisfies_constraints(spec: TaskSpec, node: Node) -> bool:
    """Whether the node satisfies the spec's constraints. Ones that do not parse are satisfied nowhere."""
    matchers = _matchers(spec.placement.constraints)
    return matchers is not None and all(satisfied(node) for satisfied in matchers)


@functools.lru_cache(maxsize=1024)
def _matchers(constraints: tuple[str, ...]) -> tuple[Callable[[Node], bool], ...] | None:
    try:
        return tuple(matcher(constraint) for constraint in parse_constraints(constraints))
    except errors.UserError:
        return None
