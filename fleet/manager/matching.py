"""What the orchestrator is lent from the scheduler, which it does not know."""

from __future__ import annotations

import functools
from collections.abc import Callable

from fleet import errors
from fleet.model.node import Node
from fleet.model.service import TaskSpec
from fleet.scheduler.constraints import matcher, parse_constraints

__all__ = ["satisfies_constraints"]


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
