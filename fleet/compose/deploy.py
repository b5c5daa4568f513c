"""The ``deploy`` section of a service -> mode, placement, resources, restart and update policies."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final

from fleet.compose import values
from fleet.compose.document import Node
from fleet.compose.reading import string_map
from fleet.model.common import DiscreteResource, GenericResource
from fleet.model.service import (
    GlobalMode,
    JobMode,
    Limits,
    Placement,
    PlacementPreference,
    ReplicatedMode,
    Reservations,
    Resources,
    RestartCondition,
    RestartPolicy,
    ServiceMode,
    SpreadOver,
    UpdateConfig,
)

__all__ = ["Deployment", "convert"]

_RESTART: Final = {
    "always": RestartCondition.ANY,
    "unless-stopped": RestartCondition.ANY,
    "on-failure": RestartCondition.ON_FAILURE,
    "no": RestartCondition.NONE,
    "none": RestartCondition.NONE,
    "any": RestartCondition.ANY,
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What the section says; absent parts are the model's defaults."""

    labels: dict[str, str]
    mode: ServiceMode
    endpoint_mode: str
    placement: Placement
    resources: Resources
    restart_policy: RestartPolicy | None
    update_config: UpdateConfig | None
    rollback_config: UpdateConfig | None


def convert(node: Node | None, *, fields: Mapping[str, Node]) -> Deployment:
    """``node`` is the section, ``fields`` the service's keys (``scale`` and ``restart`` are its older spellings)."""
    section = node.mapping() if node is not None else {}
    return Deployment(
        labels=string_map(section.get("labels")),
        mode=_mode(section, scale=fields.get("scale")),
        endpoint_mode=_one_of(section.get("endpoint_mode"), ("vip", "dnsrr")),
        placement=_placement(section.get("placement")),
        resources=_resources(section.get("resources")),
        restart_policy=_restart(section.get("restart_policy"), older=fields.get("restart")),
        update_config=_update(section.get("update_config"), ("pause", "continue", "rollback")),
        rollback_config=_update(section.get("rollback_config"), ("pause", "continue")),
    )


def _one_of(node: Node | None, accepted: tuple[str, ...]) -> str:
    if node is None:
        return ""
    text = node.string()
    if text not in accepted:
        node.fail(f"{text!r} is not known; expected {', '.join(accepted)}")
    return text


def _mode(section: Mapping[str, Node], *, scale: Node | None) -> ServiceMode:
    mode = _one_of(section.get("mode"), ("replicated", "global", "replicated-job", "global-job")) or "replicated"
    node = section.get("replicas") or scale
    replicas = node.integer() if node is not None else None
    if node is not None and replicas is not None and replicas < 0:
        node.fail(f"{replicas} replicas; expected 0 or more")
    match mode:
        case "global" | "global-job":
            if "replicas" in section:
                section["replicas"].fail(f"replicas have no meaning in {mode} mode")
            return ServiceMode(global_=GlobalMode()) if mode == "global" else ServiceMode(global_job=GlobalMode())
        case "replicated-job":
            return ServiceMode(replicated_job=JobMode(max_concurrent=replicas, total_completions=replicas))
        case _:
            return ServiceMode(replicated=ReplicatedMode(replicas=1 if replicas is None else replicas))


def _placement(node: Node | None) -> Placement:
    if node is None:
        return Placement()
    fields = node.mapping()
    preferences = []
    for item in fields["preferences"].sequence() if "preferences" in fields else ():
        spread = item.mapping().get("spread")
        if spread is None:
            item.fail("expected 'spread: node.labels.NAME'")
        preferences.append(PlacementPreference(spread=SpreadOver(spread_descriptor=spread.string())))
    return Placement(
        constraints=tuple(item.string() for item in fields["constraints"].sequence())
        if "constraints" in fields
        else (),
        preferences=tuple(preferences),
        max_replicas=fields["max_replicas_per_node"].integer() if "max_replicas_per_node" in fields else 0,
    )


def _resources(node: Node | None) -> Resources:
    if node is None:
        return Resources()
    fields = node.mapping()
    limits = fields["limits"].mapping() if "limits" in fields else {}
    reserved = fields["reservations"].mapping() if "reservations" in fields else {}
    generic = []
    for item in reserved["generic_resources"].sequence() if "generic_resources" in reserved else ():
        discrete = item.mapping().get("discrete_resource_spec")
        parts = discrete.mapping() if discrete is not None else {}
        if not {"kind", "value"} <= parts.keys():
            item.fail("expected 'discrete_resource_spec' with 'kind' and 'value'")
        generic.append(
            GenericResource(discrete=DiscreteResource(kind=parts["kind"].string(), value=parts["value"].integer()))
        )
    return Resources(
        limits=Limits(
            nano_cpus=limits["cpus"].apply(values.parse_nano_cpus) if "cpus" in limits else 0,
            memory_bytes=limits["memory"].apply(values.parse_bytes) if "memory" in limits else 0,
            pids=limits["pids"].integer() if "pids" in limits else 0,
        ),
        reservations=Reservations(
            nano_cpus=reserved["cpus"].apply(values.parse_nano_cpus) if "cpus" in reserved else 0,
            memory_bytes=reserved["memory"].apply(values.parse_bytes) if "memory" in reserved else 0,
            generic_resources=tuple(generic),
        ),
    )


def _restart(node: Node | None, *, older: Node | None) -> RestartPolicy | None:
    if node is None:
        return _older_restart(older) if older is not None else None
    fields = node.mapping()
    condition = _one_of(fields.get("condition"), ("none", "on-failure", "any")) or "any"
    return RestartPolicy(
        condition=RestartCondition(condition),
        delay_ns=fields["delay"].apply(values.parse_duration_ns) if "delay" in fields else None,
        max_attempts=fields["max_attempts"].integer() if "max_attempts" in fields else 0,
        window_ns=fields["window"].apply(values.parse_duration_ns) if "window" in fields else 0,
    )


def _older_restart(node: Node) -> RestartPolicy:
    """``restart: always|unless-stopped|on-failure[:N]|no``."""
    name, _, attempts = node.scalar().partition(":")
    name = "no" if name in ("false", "") else name
    if name not in _RESTART or (attempts and (name != "on-failure" or not attempts.isdecimal())):
        node.fail(f"{node.text!r} is not known; expected no, always, unless-stopped or on-failure[:N]")
    return RestartPolicy(condition=_RESTART[name], max_attempts=int(attempts or 0))


def _update(node: Node | None, actions: tuple[str, ...]) -> UpdateConfig | None:
    if node is None:
        return None
    fields = node.mapping()
    defaults = UpdateConfig()
    ratio = fields["max_failure_ratio"].number() if "max_failure_ratio" in fields else 0.0
    if not 0 <= ratio <= 1:
        fields["max_failure_ratio"].fail(f"{ratio} is not a ratio; expected 0 to 1")
    deadline = fields.get("x-progress-deadline")
    return UpdateConfig(
        parallelism=fields["parallelism"].integer() if "parallelism" in fields else defaults.parallelism,
        delay_ns=fields["delay"].apply(values.parse_duration_ns) if "delay" in fields else 0,
        failure_action=_one_of(fields.get("failure_action"), actions) or defaults.failure_action,
        monitor_ns=fields["monitor"].apply(values.parse_duration_ns) if "monitor" in fields else defaults.monitor_ns,
        max_failure_ratio=ratio,
        order=_one_of(fields.get("order"), ("stop-first", "start-first")) or defaults.order,
        progress_deadline_ns=deadline.apply(values.parse_duration_ns) if deadline is not None else 0,
    )
