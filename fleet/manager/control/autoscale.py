"""What is known of a service's policy for its number of tasks: what it wants, what was done, what stands in the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fleet.manager.control.context import Context
from fleet.model.autoscale import explain_policy, policy_of
from fleet.model.ids import ServiceId
from fleet.model.service import AutoscaleStatus, Service, ServiceSpec
from fleet.orchestrator.autoscale import Decision

__all__ = ["AutoscaleControl", "AutoscaleReport", "Scaling", "overrules", "unknown"]

Scaling = Callable[[ServiceId], Decision | None]
"""The last decision about a service, where this manager takes them."""


def unknown(_service_id: ServiceId) -> Decision | None:
    """Where nothing is decided."""
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoscaleReport:
    """``policy``: as a sentence, empty without one. ``now``: the last decision, empty where another manager takes them."""

    service: Service
    policy: str
    status: AutoscaleStatus
    now: str


class AutoscaleControl:
    """Reads alone."""

    def __init__(self, context: Context, *, scaling: Scaling) -> None:
        self._store = context.store
        self._scaling = scaling

    def report(self, text: str) -> AutoscaleReport:
        """For the service of that id, name or prefix. Raises ``NotFoundError``; ``UserError`` if ambiguous."""
        service = self._store.services.find(text)
        decision = self._scaling(service.id)
        return AutoscaleReport(
            service=service,
            policy=explain_policy(service.spec),
            status=service.autoscale or AutoscaleStatus(),
            now=decision.reason if decision is not None else "",
        )


def overrules(before: ServiceSpec, after: ServiceSpec) -> str:
    """What a person should know who set the number of tasks of a service with a policy; empty when nobody did."""
    policy = policy_of(after)
    if policy is None or before.replicas == after.replicas:
        return ""
    if not after.replicas:
        return f"service {after.name} is scaled automatically again when it has tasks again"
    low, high, every_s = policy.min_replicas, policy.max_replicas, policy.interval.total_seconds()
    if low <= after.replicas <= high:
        held_s = policy.down_window.total_seconds()
        until = f"until more are needed, or fewer have done for {held_s:g} s; it is looked at every {every_s:g} s"
    else:
        until = f"until the next decision, within {every_s:g} s"
    return (
        f"service {after.name} is scaled automatically ({low} to {high} tasks): {after.replicas} holds {until}; to set the "
        "number by hand, take the policy away (fleet service update --no-autoscale)"
    )
